"""Choosing the senders and the rounds of a reshard: greedy, deterministic, and close to what the links allow.

A sender on the receiver's own node is taken first (memory is faster than a link, and nobody else's link is used); among others
whoever's node has sent least, then whoever has. Regions with one holder are given out first, so that those with a choice even
out what these have made uneven; a region with many holders is split between them. Rounds are filled in the order of the
busiest ranks, and a transfer is cut where a round is full.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from orchestrator.core.reshard.regions import Piece, Regions, pieces
from orchestrator.core.reshard.schedule import DEFAULT_LINKS, ROUND_BYTES, Links, Party, ReshardSchedule, Transfer

OTHERS_MAX = 3
SHARE_BYTES_MIN = 1 << 20  # a region is not split between senders into smaller parts than this
CUT = 16  # elements: transfers are cut at whole cache lines
ROOM_LEFT = 16  # a round is full for a rank when less than 1/16 of it is left


class NoHolder(ValueError):
    """Somebody needs a region that nobody has."""

    def __init__(self, *, tensor: str, start: int, stop: int, rank: int) -> None:
        super().__init__(f"{tensor} [{start}, {stop}) of rank {rank} has no holder")
        self.tensor, self.start, self.stop, self.rank = tensor, start, stop, rank


def make_schedule(
    parties: Sequence[Party],
    *,
    element_bytes: Mapping[str, int],
    bytes_per_round: int = ROUND_BYTES,
    share_bytes_min: int = SHARE_BYTES_MIN,
    links: Links = DEFAULT_LINKS,
) -> ReshardSchedule:
    """The schedule that gives every party what it needs; it moves the fewest bytes that do.

    `element_bytes` names the state tensors and what one element of each takes. Raises NoHolder, and ValueError for a bound that
    no transfer fits in.
    """
    if bytes_per_round < max(element_bytes.values()):
        raise ValueError(f"{bytes_per_round} bytes per round are less than one element")
    flows = _choose(parties, element_bytes=element_bytes, share_bytes_min=share_bytes_min)
    return ReshardSchedule(
        parties=tuple(parties),
        transfers=tuple(_in_rounds(flows, element_bytes=element_bytes, bytes_per_round=bytes_per_round)),
        element_bytes=element_bytes,
        bytes_per_round=bytes_per_round,
        links=links,
    )


class _Flow(NamedTuple):
    """A transfer before it is cut into rounds."""

    tensor: str
    src: int
    dst: int
    start: int
    stop: int
    src_start: int
    others: tuple[int, ...]


class _Load:
    """Bytes that every rank, and every node's link, has been given to send."""

    def __init__(self, parties: Iterable[Party]) -> None:
        self.node = {p.rank: p.node_id for p in parties}
        self._by_rank = dict.fromkeys(self.node, 0)
        self._by_node = dict.fromkeys(self.node.values(), 0)

    def of(self, src: int, dst: int) -> tuple[int, int, int]:
        """What to compare senders by."""
        near = self.node[src] == self.node[dst]
        return 0 if near else self._by_node[self.node[src]], self._by_rank[src], src

    def add(self, src: int, dst: int, size: int) -> None:
        """`src` sends these, too."""
        self._by_rank[src] += size
        if self.node[src] != self.node[dst]:
            self._by_node[self.node[src]] += size


def _choose(parties: Sequence[Party], *, element_bytes: Mapping[str, int], share_bytes_min: int) -> list[_Flow]:
    load = _Load(parties)
    todo: list[tuple[int, int, int, int, str, Piece, tuple[tuple[int, int], ...]]] = []
    for order, tensor in enumerate(element_bytes):
        lacks: dict[int, Regions] = {p.rank: p.lacks(tensor) for p in parties}
        for piece in pieces(lacks, {p.rank: p.has.get(tensor, ()) for p in parties}):
            able = _able(piece, load, tensor)
            todo.append((len(able), order, piece.dst, piece.region.at, tensor, piece, able))
    todo.sort(key=lambda t: t[:4])
    out: list[_Flow] = []
    for _, _, _, _, tensor, piece, able in todo:
        out.extend(_split(tensor, piece, able, load, size=element_bytes[tensor], share_bytes_min=share_bytes_min))
    return out


def _able(piece: Piece, load: _Load, tensor: str) -> tuple[tuple[int, int], ...]:
    """(rank, shift) of those among whom the sender is chosen. Raises NoHolder."""
    region = piece.region
    if not piece.holders:
        raise NoHolder(tensor=tensor, start=region.at, stop=region.at + region.stop - region.start, rank=piece.dst)
    own = tuple(h for h in piece.holders if h[0] == piece.dst)
    near = tuple(h for h in piece.holders if load.node[h[0]] == load.node[piece.dst])
    return own or near or piece.holders


def _split(
    tensor: str, piece: Piece, able: Sequence[tuple[int, int]], load: _Load, *, size: int, share_bytes_min: int
) -> Iterator[_Flow]:
    """The piece, shared out between the able so that the busiest sends least."""
    region, dst = piece.region, piece.dst
    numel = region.stop - region.start
    share = max(-(-numel // len(able)), -(-share_bytes_min // size))
    share = -(-share // CUT) * CUT if share > CUT else share
    shift = dict(able)
    heap = [load.of(rank, dst) for rank in shift]
    heapq.heapify(heap)
    lo = region.start
    while lo < region.stop:
        src = heap[0][-1]
        if load.of(src, dst) != heap[0]:  # it or its node has been given something since
            heapq.heapreplace(heap, load.of(src, dst))
            continue
        hi = min(region.stop, lo + share)
        at = lo - region.start + region.at
        yield _Flow(tensor, src, dst, at, at + hi - lo, lo + shift[src], _others(piece, src, shift[src]))
        if src != dst:
            load.add(src, dst, size * (hi - lo))
        lo = hi


def _others(piece: Piece, src: int, shift: int) -> tuple[int, ...]:
    """Some more holders, those that follow the sender first: not the same few for every region."""
    same = [rank for rank, s in piece.holders if s == shift and rank != piece.dst]
    if src not in same:
        return ()
    k = same.index(src)
    return tuple((same[k + 1 :] + same[:k])[:OTHERS_MAX])


def _in_rounds(flows: Sequence[_Flow], *, element_bytes: Mapping[str, int], bytes_per_round: int) -> list[Transfer]:
    order = {tensor: k for k, tensor in enumerate(element_bytes)}
    out_total: dict[int, int] = {}
    in_total: dict[int, int] = {}
    for f in flows:
        size = element_bytes[f.tensor] * (f.stop - f.start)
        out_total[f.src] = out_total.get(f.src, 0) + size
        in_total[f.dst] = in_total.get(f.dst, 0) + size
    sends, receives = _Rounds(bytes_per_round), _Rounds(bytes_per_round)
    out: list[Transfer] = []
    for f in sorted(flows, key=lambda f: (-max(out_total[f.src], in_total[f.dst]), order[f.tensor], f.src, f.dst, f.start)):
        if f.src == f.dst:
            out.append(Transfer(f.tensor, f.src, f.dst, f.start, f.stop, f.src_start, 0, f.others))
            continue
        size = element_bytes[f.tensor]
        start, number = f.start, max(sends.first(f.src), receives.first(f.dst))
        while start < f.stop:
            room = min(sends.room(f.src, number), receives.room(f.dst, number)) // size
            numel = min(room, f.stop - start)
            if numel < f.stop - start:
                numel = numel // CUT * CUT or numel
            if numel == f.stop - start or numel * size * ROOM_LEFT >= bytes_per_round:
                sends.take(f.src, number, numel * size)
                receives.take(f.dst, number, numel * size)
                src_start = f.src_start + start - f.start
                out.append(Transfer(f.tensor, f.src, f.dst, start, start + numel, src_start, number, f.others))
                start += numel
            number += 1
    return sorted(out, key=lambda t: (t.round, order[t.tensor], t.src, t.dst, t.start))


class _Rounds:
    """How many bytes each rank may still send (or receive) in each round."""

    def __init__(self, bytes_per_round: int) -> None:
        self._bound = bytes_per_round
        self._room: dict[int, list[int]] = {}
        self._first: dict[int, int] = {}

    def first(self, rank: int) -> int:
        """The first round that is not full."""
        return self._first.get(rank, 0)

    def room(self, rank: int, number: int) -> int:
        """Bytes left in a round."""
        rooms = self._room.get(rank, ())
        return rooms[number] if number < len(rooms) else self._bound

    def take(self, rank: int, number: int, size: int) -> None:
        """Use some of it."""
        rooms = self._room.setdefault(rank, [])
        rooms.extend([self._bound] * (number + 1 - len(rooms)))
        rooms[number] -= size
        first = self.first(rank)
        while first < len(rooms) and rooms[first] * ROOM_LEFT < self._bound:
            first += 1
        self._first[rank] = first
