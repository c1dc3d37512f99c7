"""Summing gradients over ranks in the canonical order, at the traffic of an ordinary reduce-scatter.

Each rank has its run of micro-batches folded into a few partial sums (see tree.py); the owner of a region of the flat
vector is sent every rank's partials of it and folds them in tree order, so the bits do not depend on how many ranks
there are or who owns what. Regions are lists of intervals, so that ownership can stay where the state is; data moves
straight between flat vectors and in chunks, so that scratch memory is bounded and the sums of one chunk overlap the
transfer of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from orchestrator.engine.buffers import BufferPool
from orchestrator.engine.groups.base import USER_TAG_MAX, EpochGroup, Handle
from orchestrator.engine.groups.part import Part
from orchestrator.engine.norms import block_sums
from orchestrator.engine.tree import Node, all_segments, left_fold_counts, merge_counts

__all__ = [
    "Ownership",
    "all_reduce_exact",
    "all_reduce_fast",
    "block_sums",
    "reduce_scatter_exact",
    "reduce_scatter_fast",
]

Interval = tuple[int, int]

SCRATCH_BYTES = 64 << 20
_CHUNK_NUMEL_MAX = 1 << 20  # smaller chunks cost more in gloo's rendezvous than their overlap saves
_CHUNK_NUMEL_MIN = 1 << 10
_REDUCE_TAG = USER_TAG_MAX + 1
_GATHER_TAG = USER_TAG_MAX + 2


@dataclass(frozen=True, slots=True)
class Ownership:
    """Which intervals [start, stop) of a flat vector [length] each rank owns: disjoint, covering, in any order.

    A rank's region is its intervals concatenated in the order given. Raises ValueError when they do not tile the
    vector.
    """

    regions: tuple[tuple[Interval, ...], ...]
    length: int = field(init=False)

    def __post_init__(self) -> None:
        position = 0
        for start, stop in sorted(interval for region in self.regions for interval in region if interval[0] != interval[1]):
            if start != position or stop < start:
                raise ValueError(f"interval [{start}, {stop}) does not follow {position}: regions must tile the vector")
            position = stop
        object.__setattr__(self, "length", position)

    @classmethod
    def of(cls, regions: Sequence[Sequence[Interval]]) -> Ownership:
        """From lists."""
        return cls(tuple(tuple((int(a), int(b)) for a, b in region) for region in regions))

    @classmethod
    def even(cls, length: int, size: int) -> Ownership:
        """Contiguous, in rank order, sizes differing by at most one."""
        return cls(tuple(((length * r // size, length * (r + 1) // size),) for r in range(size)))

    def numel(self, rank: int) -> int:
        """Elements that `rank` owns."""
        return sum(stop - start for start, stop in self.regions[rank])

    def chunks(self, rank: int, numel: int) -> list[list[Interval]]:
        """The region of `rank` cut into chunks of `numel` elements (the last may be short): their intervals."""
        out: list[list[Interval]] = []
        room = 0
        for start, stop in self.regions[rank]:
            while start < stop:
                if room == 0:
                    out.append([])
                    room = numel
                end = min(stop, start + room)
                out[-1].append((start, end))
                room -= end - start
                start = end
        return out


def reduce_scatter_exact(
    group: EpochGroup | Part,
    ownership: Ownership,
    partials: Sequence[tuple[Node, Tensor]],
    *,
    total: int,
    pool: BufferPool,
    out: Tensor | None = None,
    scratch_bytes: int = SCRATCH_BYTES,
    shares: Sequence[int] = (),
) -> Tensor:
    """The sum over all `total` micro-batches, in tree order, of the region that this rank owns: [numel(rank)].

    `partials`: this rank's segments (tree.segments of tree.split, where `shares` does not say how many micro-batches each
    rank has) with flat vectors [length], which are only read: they stay valid when GroupBroken
    is raised. `out`, if given, is written and returned; after GroupBroken neither it nor what this call took from
    `pool` is used again. Scratch is bounded by `scratch_bytes` (at least a few KiB).
    """
    counts, merges = _exact_order(group, partials, total, shares)
    region = pool.take(ownership.numel(group.rank), _dtype(partials)) if out is None else out
    _Reduction(group, ownership, [value for _, value in partials], counts, merges, pool, scratch_bytes).run(region)
    return region


def all_reduce_exact(
    group: EpochGroup | Part,
    ownership: Ownership,
    partials: Sequence[tuple[Node, Tensor]],
    out: Tensor,
    *,
    total: int,
    pool: BufferPool,
    scratch_bytes: int = SCRATCH_BYTES,
    shares: Sequence[int] = (),
) -> None:
    """The whole sum into `out` [length] on every rank; `ownership` only says who adds what.

    Otherwise as reduce_scatter_exact.
    """
    counts, merges = _exact_order(group, partials, total, shares)
    _Reduction(group, ownership, [value for _, value in partials], counts, merges, pool, scratch_bytes).run_and_gather(out)


def reduce_scatter_fast(
    group: EpochGroup | Part,
    ownership: Ownership,
    partials: Sequence[tuple[Node, Tensor]],
    *,
    pool: BufferPool,
    out: Tensor | None = None,
    scratch_bytes: int = SCRATCH_BYTES,
) -> Tensor:
    """As reduce_scatter_exact, but one sum per rank travels and the bits depend on the number of ranks.

    One partial or more.
    """
    local, borrowed = _local_sum(partials, pool)
    region = pool.take(ownership.numel(group.rank), local.dtype) if out is None else out
    _Reduction(group, ownership, [local], [1] * group.size, left_fold_counts(group.size), pool, scratch_bytes).run(region)
    if borrowed:
        pool.give(local)
    return region


def all_reduce_fast(
    group: EpochGroup | Part,
    ownership: Ownership,
    partials: Sequence[tuple[Node, Tensor]],
    out: Tensor,
    *,
    pool: BufferPool,
    scratch_bytes: int = SCRATCH_BYTES,
) -> None:
    """As all_reduce_exact, but one sum per rank travels and the bits depend on the number of ranks.

    One partial or more.
    """
    library = group.whole if isinstance(group, Part) else group
    if out.device.type != "cpu" and library is not None:  # the library's own is the fast one there
        _sum_into(out, [value for _, value in partials])
        library.all_reduce_sum_(out)
        return
    local, borrowed = _local_sum(partials, pool)
    _Reduction(group, ownership, [local], [1] * group.size, left_fold_counts(group.size), pool, scratch_bytes).run_and_gather(out)
    if borrowed:
        pool.give(local)


class _Reduction:
    """One reduction: rank r contributes counts[r] vectors.

    Merges[i] says how often to add after the i-th of all of them.
    """

    def __init__(
        self,
        group: EpochGroup | Part,
        ownership: Ownership,
        mine: Sequence[Tensor],
        counts: Sequence[int],
        merges: Sequence[int],
        pool: BufferPool,
        scratch_bytes: int,
    ) -> None:
        if len(ownership.regions) != group.size:
            raise ValueError(f"ownership over {len(ownership.regions)} ranks in a group of {group.size}")
        for value in mine:
            if value.numel() != ownership.length:
                raise ValueError(f"a partial sum of {value.numel()} elements for a vector of {ownership.length}")
        self.group, self.mine, self.counts, self.merges, self.pool = group, mine, counts, merges, pool
        self.dtype = mine[0].dtype if mine else torch.float32
        remote_max = max(sum(counts) - count for count in counts)
        # Two rounds of incoming pieces, an own piece per partial, a folded one: the same chunk size on every rank.
        share = scratch_bytes // (self.dtype.itemsize * (2 * remote_max + max(counts) + 1))
        self.chunk = max(_CHUNK_NUMEL_MIN, min(_CHUNK_NUMEL_MAX, share))
        self.chunks = [ownership.chunks(rank, self.chunk) for rank in range(group.size)]
        self.rounds = max(len(chunks) for chunks in self.chunks)
        self.remote = sum(counts) - counts[group.rank]
        self.incoming = [pool.take(self.chunk * self.remote, self.dtype) for _ in range(min(2, self.rounds))]

    def run(self, region: Tensor) -> None:
        """Fold my region into `region` [numel(rank)]."""
        pending = self._post(0)
        for index in range(self.rounds):
            following = self._post(index + 1)
            pending.wait()
            if index < len(self.chunks[self.group.rank]):
                first = index * self.chunk
                numel = _numel(self.chunks[self.group.rank][index])
                self._fold(index, region[first : first + numel])
            pending = following
        self._finish()

    def run_and_gather(self, flat: Tensor) -> None:
        """Fold my region, and send each chunk to everybody as soon as it is complete.

        `flat` [length] is the whole sum.
        """
        mine = self.chunks[self.group.rank]
        peers = _others(self.group)
        gathers = []
        pending = self._post(0)
        for index in range(self.rounds):
            following = self._post(index + 1)
            pending.wait()
            if index < len(mine):
                self._fold_into_flat(index, flat)
            sends = [(flat[a:b], peer) for peer in peers for a, b in (mine[index] if index < len(mine) else [])]
            recvs = [
                (flat[a:b], peer)
                for peer in peers
                for a, b in (self.chunks[peer][index] if index < len(self.chunks[peer]) else [])
            ]
            gathers.append(self.group.exchange(sends, recvs, tag=_GATHER_TAG))
            pending = following
        for gather in gathers:
            gather.wait()
        self._finish()

    def _post(self, index: int) -> Handle:
        """Start round `index`: my partials' pieces of everybody's chunk, and everybody's pieces of mine."""
        rank = self.group.rank
        sends = [
            (value[a:b], peer)
            for peer in _others(self.group)
            if index < len(self.chunks[peer])
            for value in self.mine
            for a, b in self.chunks[peer][index]
        ]
        recvs = []
        if index < len(self.chunks[rank]):
            rows = self._rows(index)
            slot = 0
            for peer, count in enumerate(self.counts):
                for _ in range(count if peer != rank else 0):
                    position = 0
                    for a, b in self.chunks[rank][index]:
                        recvs.append((rows[slot][position : position + b - a], peer))
                        position += b - a
                    slot += 1
        return self.group.exchange(sends, recvs, tag=_REDUCE_TAG)

    def _rows(self, index: int) -> list[Tensor]:
        numel = _numel(self.chunks[self.group.rank][index])
        buffer = self.incoming[index % 2]
        return [buffer[slot * self.chunk : slot * self.chunk + numel] for slot in range(self.remote)]

    def _fold_into_flat(self, index: int, flat: Tensor) -> None:
        pieces = self.chunks[self.group.rank][index]
        if len(pieces) == 1:
            self._fold(index, flat[pieces[0][0] : pieces[0][1]])
            return
        buffer = self.pool.take(self.chunk, self.dtype)
        folded = buffer[: _numel(pieces)]
        self._fold(index, folded)
        for (a, b), piece in zip(pieces, folded.split([b - a for a, b in pieces]), strict=True):
            flat[a:b] = piece
        self.pool.give(buffer)

    def _fold(self, index: int, out: Tensor) -> None:
        """Add everybody's pieces of my chunk `index` in order into `out`."""
        pieces = self.chunks[self.group.rank][index]
        rows = iter(self._rows(index))
        borrowed: list[Tensor] = []
        stack: list[tuple[Tensor, bool]] = []  # (value, may be overwritten)
        left_to_merge = sum(self.merges)
        merges = iter(self.merges)
        for peer, count in enumerate(self.counts):
            for which in range(count):
                if peer != self.group.rank:
                    stack.append((next(rows), True))
                elif len(pieces) == 1:
                    stack.append((self.mine[which][pieces[0][0] : pieces[0][1]], False))
                else:
                    borrowed.append(self.pool.take(self.chunk, self.dtype))
                    own = borrowed[-1][: out.numel()]
                    torch.cat([self.mine[which][a:b] for a, b in pieces], out=own)
                    stack.append((own, True))
                for _ in range(next(merges)):
                    right, right_free = stack.pop()
                    left, left_free = stack.pop()
                    left_to_merge -= 1
                    if left_to_merge == 0:
                        target = out
                    else:
                        assert left_free or right_free, "siblings of one rank are always folded already"
                        target = left if left_free else right
                    torch.add(left, right, out=target)
                    stack.append((target, True))
        if stack[0][0] is not out:
            out.copy_(stack[0][0])
        for buffer in borrowed:
            self.pool.give(buffer)

    def _finish(self) -> None:
        for buffer in self.incoming:
            self.pool.give(buffer)
        self.incoming = []


def _exact_order(
    group: EpochGroup | Part, partials: Sequence[tuple[Node, Tensor]], total: int, shares: Sequence[int]
) -> tuple[list[int], list[int]]:
    by_rank = all_segments(total, group.size, shares)
    if [node for node, _ in partials] != by_rank[group.rank]:
        nodes = [node for node, _ in partials]
        raise ValueError(f"rank {group.rank} of {group.size} has sums of {nodes}, not of {by_rank[group.rank]}")
    return [len(nodes) for nodes in by_rank], merge_counts([node for nodes in by_rank for node in nodes], total)


def _dtype(partials: Sequence[tuple[Node, Tensor]]) -> torch.dtype:
    return partials[0][1].dtype if partials else torch.float32


def _others(group: EpochGroup | Part) -> list[int]:
    """The peers, starting with the next rank, so that not everybody talks to rank 0 first."""
    return [(group.rank + step) % group.size for step in range(1, group.size)]


def _numel(pieces: Sequence[Interval]) -> int:
    return sum(stop - start for start, stop in pieces)


def _local_sum(partials: Sequence[tuple[Node, Tensor]], pool: BufferPool) -> tuple[Tensor, bool]:
    """This rank's own sum, and whether it is a buffer of the pool (the partials themselves are never written)."""
    if not partials:
        raise ValueError("a fast reduction needs a partial sum from every rank")
    if len(partials) == 1:
        return partials[0][1], False
    total = pool.take(partials[0][1].numel(), partials[0][1].dtype)
    _sum_into(total, [value for _, value in partials])
    return total, True


def _sum_into(out: Tensor, values: Sequence[Tensor]) -> None:
    out.copy_(values[0])
    for value in values[1:]:
        out.add_(value)
