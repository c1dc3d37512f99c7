"""One hex digest of params and optimizer state, the same for every layout, and a vote on who is wrong where copies differ.

Each holder sums each block of what it holds as 64-bit words (wrapping) and takes its CRC. The numbers are gathered, all holders
of a block are held against each other, and the blocks are folded in their order. A flipped bit in one copy stops the run and
names tensor, block and ranks, instead of surfacing days later in the loss; with three holders or more the majority says
who it was. Every rank sees the same table and comes to the same verdict.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from orchestrator.core.plan.layout import Intervals
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.engine.checksum import words_of
from orchestrator.engine.extents import Extents
from orchestrator.engine.groups.base import EpochGroup

TABLE_BYTES_MAX = 16 << 20  # of all ranks' numbers that are looked at at a time

_NAMED_MAX = 4


class CopiesDiffer(Exception):
    """Ranks hold different bits of what must be equal. `accused`: who is outvoted; empty where no majority says so."""

    def __init__(self, message: str, accused: tuple[int, ...]) -> None:
        super().__init__(message)
        self.accused = accused


def fill(table: Tensor, extents: Extents, intervals: Intervals, block: int) -> None:
    """Word sum and CRC of each block of the intervals (whole blocks) into `table`, int64 [2, blocks], zero there before.

    Memory may be cut anywhere at a multiple of 8 bytes. Raises KeyError when some of it is not held.
    """
    for i in intervals:
        for lo, hi, view in extents.pieces(i.start, i.stop):
            words = words_of(view)
            data = view.detach().cpu().view(torch.uint8).numpy().data
            size = view.element_size()
            per = block * size // 8  # words of a block
            for start, stop in _whole_and_parts(lo, hi, block):
                at, to, b = start - lo, stop - lo, start // block
                if stop - start >= block:
                    table[0, b : stop // block] += words[at * size // 8 : to * size // 8].view(-1, per).sum(dim=1).cpu()
                else:
                    table[0, b] += words[at * size // 8 : to * size // 8].sum().cpu()
                for n, begin in enumerate(range(at, to, block)):
                    part = data[begin * size : min(to, begin + block) * size]
                    table[1, b + n] = zlib.crc32(part, int(table[1, b + n]))


def _whole_and_parts(lo: int, hi: int, block: int) -> Iterator[tuple[int, int]]:
    """[lo, hi) as a part of a block, whole blocks, and a part of a block, as far as there are such."""
    first, last = -(-lo // block) * block, hi // block * block
    if first > last:  # inside one block
        yield lo, hi
        return
    for a, b in ((lo, first), (first, last), (last, hi)):
        if a < b:
            yield a, b


class Fold:
    """The hash over all blocks of all tensors, in order: the tables of each must come whole, params first, then by key."""

    def __init__(self, *, step: int, numel: int, block: int) -> None:
        self._digest = hashlib.sha256(f"{step}:{numel}:{block}".encode())

    def add(self, name: str, table: Tensor) -> None:
        """`table` is int64 [2, blocks] on the CPU: word sums and CRCs."""
        self._digest.update(name.encode() + table.contiguous().numpy().tobytes())

    def hex(self) -> str:
        """The digest."""
        return self._digest.hexdigest()


def serial_digest(*, step: int, numel: int, block: int, params: Extents, moments: Mapping[str, Extents]) -> str:
    """The digest of a vector that one process holds all of; equal to that of the ranks that share it."""
    fold = Fold(step=step, numel=numel, block=block)
    for name, extents in [(PARAMS, params), *sorted(moments.items())]:
        table = torch.zeros(2, numel // block, dtype=torch.int64)
        fill(table, extents, extents.intervals, block)
        fold.add(name, table)
    return fold.hex()


class Digester:
    """Digests the state of one plan; every rank of the group calls it with its own part."""

    def __init__(self, *, plan: Plan, group: EpochGroup, keys: Sequence[str]) -> None:
        self._plan, self._group = plan, group
        self._names = (PARAMS, *sorted(keys))  # of the optimizer's elementwise tensors; equal on all ranks
        self._numel = plan.layout(PARAMS).numel
        self._blocks = self._numel // plan.block
        self._held = [self._holders(PARAMS), self._holders(OPTIMIZER)]

    def _holders(self, layout: str) -> Tensor:
        """bool [ranks, blocks]."""
        out = torch.zeros(self._group.size, self._blocks, dtype=torch.bool)
        for rank, holding in enumerate(self._plan.layout(layout).holdings[: self._group.size]):
            for i in holding.everything:
                out[rank, i.start // self._plan.block : i.stop // self._plan.block] = True
        return out

    def compute(self, *, step: int, params: Extents, moments: Mapping[str, Extents]) -> str:
        """Hex digest after `step`. What is held beyond the plan's layouts does not count.

        Raises CopiesDiffer, GroupBroken, and KeyError when something of the layouts is not held.
        """
        mine = torch.zeros(len(self._names), 2, self._blocks, dtype=torch.int64)
        for row, name in enumerate(self._names):
            holding = self._plan.layout(OPTIMIZER if row else PARAMS).holdings[self._group.rank]
            fill(mine[row], moments[name] if row else params, holding.everything, self._plan.block)
        agreed = torch.zeros_like(mine)
        found: list[_Difference] = []
        per = max(1, TABLE_BYTES_MAX // (self._group.size * 2 * 8))
        for row in range(len(self._names)):
            held = self._held[min(row, 1)]
            for lo in range(0, self._blocks, per):
                hi = min(self._blocks, lo + per)
                tables = self._gather(mine[row, :, lo:hi], params.device)
                first = held[:, lo:hi].int().argmax(dim=0)  # the lowest rank that holds a block
                agreed[row, :, lo:hi] = tables.permute(1, 0, 2)[:, first, torch.arange(hi - lo)]
                found += self._compare(row, lo, tables, held[:, lo:hi], agreed[row, :, lo:hi])
        if found:
            raise CopiesDiffer(self._words(step, found), tuple(sorted({r for d in found for r in d.minority})))
        fold = Fold(step=step, numel=self._numel, block=self._plan.block)
        for row, name in enumerate(self._names):
            fold.add(name, agreed[row])
        return fold.hex()

    def _gather(self, part: Tensor, device: torch.device) -> Tensor:
        """int64 [ranks, 2, blocks] of everybody's [2, blocks]."""
        ours = part.contiguous().view(-1).to(device)
        gathered = torch.empty(self._group.size * ours.numel(), dtype=torch.int64, device=device)
        self._group.all_gather_into(gathered, ours)
        return gathered.cpu().view(self._group.size, 2, -1)

    def _compare(self, row: int, lo: int, tables: Tensor, held: Tensor, expected: Tensor) -> list[_Difference]:
        differ = ((tables != expected).any(dim=1) & held).any(dim=0)
        out = []
        for column in differ.nonzero().view(-1).tolist():
            votes: dict[tuple[int, ...], list[int]] = {}
            for rank in held[:, column].nonzero().view(-1).tolist():
                votes.setdefault(tuple(tables[rank, :, column].tolist()), []).append(rank)
            out.append(_Difference(row, lo + column, sorted(votes.values(), key=lambda v: (-len(v), v))))
        return out

    def _words(self, step: int, found: Sequence[_Difference]) -> str:
        shown = []
        for d in found[:_NAMED_MAX]:
            start = d.block * self._plan.block
            where = f"{self._names[d.row]}, block {d.block} (elements [{start}, {start + self._plan.block}))"
            if d.minority:
                shown.append(f"{where}: {_ranks(d.minority)} against {_ranks(d.votes[0])}")
            else:
                shown.append(f"{where}: {' against '.join(_ranks(v) for v in d.votes)}, with no majority")
        more = f", and {len(found) - _NAMED_MAX} more blocks" if len(found) > _NAMED_MAX else ""
        return f"after step {step} holders of the same state have different bits: {'; '.join(shown)}{more}"


class _Difference:
    """A block that its holders do not agree on."""

    def __init__(self, row: int, block: int, votes: list[list[int]]) -> None:
        self.row, self.block = row, block
        self.votes = votes  # ranks that agree with each other, most first
        holders = sum(len(v) for v in votes)
        outvoted = [r for v in votes[1:] for r in v]
        self.minority = sorted(outvoted) if 2 * len(votes[0]) > holders else []


def _ranks(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(str(r) for r in sorted(ranks))
