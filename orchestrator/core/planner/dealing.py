"""Dealing regions of whole blocks out to ranks: everybody the same number of blocks, and each keeps what it has already.

Regions are cut where the set of their holders changes; pieces with the same holders are one node of a flow network whose edges
lead to the holders. The maximum flow is the most that can stay; what it leaves over goes where there is room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.plan.layout import Interval, Intervals, intersect, merge, total
from orchestrator.core.planner.matching import Flow


@dataclass(frozen=True, slots=True)
class Pile:
    """Pieces that are alike: the taker that should keep them first (-1: none), and how many holders stand behind each taker."""

    first: int
    holders: tuple[tuple[int, int], ...]  # (taker, number), ascending
    pieces: Intervals

    def blocks(self, block: int) -> int:
        """How many."""
        return total(self.pieces) // block


def whole_blocks(intervals: Intervals, block: int) -> Intervals:
    """The whole blocks inside."""
    out = []
    for i in merge(intervals):
        lo, hi = -(-i.start // block) * block, i.stop // block * block
        if lo < hi:
            out.append(Interval(lo, hi))
    return tuple(out)


def pile_up(
    region: Intervals,
    *,
    takers: Sequence[Sequence[int]],
    held: Mapping[int, Intervals],
    prefer: Mapping[int, Intervals],
    block: int,
) -> list[Pile]:
    """The region in piles. A taker is a list of ranks; `held` and `prefer` (who comes first) are by rank."""
    edges: list[tuple[int, int, int, int]] = []  # position, 0 held or 1 preferred, taker, +1 begins or -1 ends
    for taker, ranks in enumerate(takers):
        for rank in ranks:
            for kind, have in enumerate((held, prefer)):
                for i in whole_blocks(intersect(have.get(rank, ()), region), block):
                    edges += [(i.start, kind, taker, 1), (i.stop, kind, taker, -1)]
    edges.sort()
    piles: dict[tuple[int, tuple[tuple[int, int], ...]], list[Interval]] = {}
    active: tuple[dict[int, int], dict[int, int]] = ({}, {})
    at = 0
    for i in region:
        lo = i.start
        while lo < i.stop:
            while at < len(edges) and edges[at][0] <= lo:
                _, kind, taker, sign = edges[at]
                count = active[kind].get(taker, 0) + sign
                if count:
                    active[kind][taker] = count
                else:
                    del active[kind][taker]
                at += 1
            hi = min(i.stop, edges[at][0]) if at < len(edges) else i.stop
            key = (min(active[1], default=-1), tuple(sorted(active[0].items())))
            piles.setdefault(key, []).append(Interval(lo, hi))
            lo = hi
    return [Pile(first, holders, merge(pieces)) for (first, holders), pieces in piles.items()]


def share_out(
    piles: Sequence[Pile], *, size: int, room: int, more: int, block: int, others: Sequence[Sequence[int]] = ()
) -> tuple[list[Intervals], list[Interval]]:
    """What each of `size` takers gets, and what is left over.

    Nobody gets more than `room` blocks, but for `more` takers who may get one further. As much as possible stays with its
    holders; then `others` says for each pile who else may have it, the first ones first.
    """
    source, sink, pool = 0, 1, 2
    at_taker, at_pile, at_hub = 3, 3 + size, 3 + size + len(piles)
    flow = Flow(at_hub + len(others))
    to_sink = [flow.edge(at_taker + t, sink, room) for t in range(size)]
    to_pool = [flow.edge(at_taker + t, pool, 1) for t in range(size)]
    from_pool = flow.edge(pool, sink, more)
    supply = [flow.edge(source, at_pile + n, pile.blocks(block)) for n, pile in enumerate(piles)]
    ways: list[dict[int, int]] = [{} for _ in piles]  # taker -> edge
    for level in sorted({count for pile in piles for _, count in pile.holders}, reverse=True):
        for n, pile in enumerate(piles):
            for taker, count in pile.holders:
                if count == level:
                    ways[n][taker] = flow.edge(at_pile + n, at_taker + taker, pile.blocks(block))
            way = ways[n].get(pile.first)
            if way is not None:  # start from where things are: the flow leaves that only where it has to
                for end in ((to_sink[pile.first],), (to_pool[pile.first], from_pool)):
                    edges = (supply[n], way, *end)
                    flow.push(edges, min(flow.room(e) for e in edges))
        flow.grow(source, sink)
    beyond: list[dict[int, int]] = [{} for _ in piles]
    for n, takers in enumerate(others):
        amount = piles[n].blocks(block)
        flow.edge(at_pile + n, at_hub + n, amount)
        beyond[n] = {t: flow.edge(at_hub + n, at_taker + t, amount) for t in takers}
    if others:
        flow.grow(source, sink)
    out: list[list[Interval]] = [[] for _ in range(size)]
    left: list[Interval] = []
    for n, pile in enumerate(piles):
        rest = list(pile.pieces)
        for taker in sorted(ways[n], key=lambda t: (t != pile.first, t)):
            rest = take(rest, flow.flow(ways[n][taker]) * block, out[taker])
        for taker, way in beyond[n].items():
            rest = take(rest, flow.flow(way) * block, out[taker])
        left += rest
    return [merge(o) for o in out], sorted(left)


def take(pieces: Sequence[Interval], amount: int, into: list[Interval]) -> list[Interval]:
    """Move the first `amount` elements of the pieces `into` a list; what is left of them."""
    rest: list[Interval] = []
    for i in pieces:
        mine = min(amount, i.numel)
        if mine:
            into.append(Interval(i.start, i.start + mine))
        if mine < i.numel:
            rest.append(Interval(i.start + mine, i.stop))
        amount -= mine
    return rest


def deal(
    region: Intervals,
    *,
    takers: Sequence[Sequence[int]],
    held: Mapping[int, Intervals],
    prefer: Mapping[int, Intervals],
    block: int,
) -> list[Intervals]:
    """The region in as many equal parts (to the block) as there are takers, each with as much as possible of what it holds."""
    if len(takers) == 1:
        return [region]
    room, more = divmod(total(region) // block, len(takers))
    piles = pile_up(region, takers=takers, held=held, prefer=prefer, block=block)
    kept, left = share_out(piles, size=len(takers), room=room, more=more, block=block)
    more -= sum(total(k) // block > room for k in kept)
    out: list[Intervals] = []
    for mine in kept:
        free = room - total(mine) // block
        if free >= 0 and more:
            free, more = free + 1, more - 1
        got: list[Interval] = []
        left = take(left, max(0, free) * block, got)
        out.append(merge((*mine, *got)))
    assert not left, "the parts add up to the region"
    return out
