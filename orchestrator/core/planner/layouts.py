"""Who holds which part of the state under a plan: shards, replicas and peer copies, with the least that has to move.

The ranks that run the same stages on the same tensor coordinate share a section. Its optimizer state is cut into `shard` parts,
each held by data / shard replicas of which every one is owner of its share (ZeRO-0 is shard 1: all replicas hold all). Where
all holders of a part sit on one node, and the plan wants copies, ranks on other nodes hold its regions as well: of the same
section if there are any, since these compute with the parameters anyway, else of any. Nodes that share a machine count as one,
as long as there is another machine.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from orchestrator.core.plan.layout import Holding, Interval, Intervals, StateLayout, intersect, merge, subtract, total
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, PIPELINE, TENSOR, Plan, homes
from orchestrator.core.planner.dealing import Pile, deal, pile_up, share_out
from orchestrator.core.planner.errors import PlanError

NEXT_MAX = 64  # ranks after an owner that its copies are offered to; who has them already keeps them wherever it is
NOTHING: Mapping[int, Intervals] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Lonely:
    """A region whose holders are all on one node, and the ranks that may keep its copy."""

    owner: int
    region: Intervals
    pool: tuple[int, ...]  # the replicas of its section, or all ranks
    keepers: tuple[int, ...]  # those of the pool on other nodes


def make_layouts(
    draft: Plan, *, held: Mapping[int, Intervals] = NOTHING, prefer: Mapping[int, Intervals] = NOTHING
) -> tuple[StateLayout, StateLayout]:
    """(params, optimizer) of a plan that has everything but its layouts.

    `held`: the optimizer state that the worker of each rank has already; `prefer`: what of it the rank should stay owner of.
    Raises PlanError when the plan wants copies and all its ranks are on one node.
    """
    primary: list[Intervals] = [()] * draft.size
    part: list[Intervals] = [()] * draft.size  # what a rank holds of its own section's optimizer state
    lonely: list[_Lonely] = []
    nodes = homes(draft.seats)
    for pipe in range(draft.axis(PIPELINE)):
        for coordinate in range(draft.axis(TENSOR)):
            ranks = draft.replicas(draft.rank_at(pipe, 0, coordinate))
            holders = [ranks[p :: draft.shard] for p in range(draft.shard)]
            parts = deal(draft.section_of(ranks[0]), takers=holders, held=held, prefer=prefer, block=draft.block)
            for members, mine in zip(holders, parts, strict=True):
                owned = deal(mine, takers=[(m,) for m in members], held=prefer, prefer=prefer, block=draft.block)
                for rank, region in zip(members, owned, strict=True):
                    primary[rank], part[rank] = region, mine
                if draft.copies and len({nodes[m] for m in members}) == 1:
                    lonely += _lonely(nodes, members, primary, ranks)
    copies = _copies(draft, nodes, lonely, held=held)
    optimizer, params = [], []
    for rank in range(draft.size):
        everything = merge(part[rank] + copies.get(rank, ()))
        optimizer.append(Holding(primary[rank], subtract(everything, primary[rank])))
        if draft.zero_stage < 3:
            everything = merge(draft.section_of(rank) + everything)
        params.append(Holding(primary[rank], subtract(everything, primary[rank])))
    numel = draft.section * draft.axis(TENSOR)
    return StateLayout(PARAMS, numel, tuple(params)), StateLayout(OPTIMIZER, numel, tuple(optimizer))


def _lonely(nodes: Sequence[str], members: Sequence[int], primary: Sequence[Intervals], ranks: Sequence[int]) -> list[_Lonely]:
    """What the members own, when they are all on one node. `nodes`: by rank."""
    node = nodes[members[0]]
    for pool in (tuple(ranks), tuple(range(len(nodes)))):
        keepers = tuple(r for r in pool if nodes[r] != node)
        if keepers:
            return [_Lonely(m, primary[m], pool, keepers) for m in members if primary[m]]
    raise PlanError(f"rank {members[0]} has no peer on another node than {node} to keep its copy")


def _copies(
    draft: Plan, nodes: Sequence[str], lonely: Sequence[_Lonely], *, held: Mapping[int, Intervals]
) -> dict[int, Intervals]:
    """Which copies each rank keeps: those it has, as long as nobody has to keep more than the others."""
    block = draft.block
    pools: dict[tuple[int, ...], list[_Lonely]] = {}
    for one in lonely:
        pools.setdefault(one.pool, []).append(one)
    out: dict[int, list[Interval]] = {}
    for pool, group in sorted(pools.items()):
        regions = {one.owner: one.region for one in group}
        piles = pile_up(
            merge(i for region in regions.values() for i in region),
            takers=[(r,) for r in pool],
            held={r: held[r] for r in pool if r in held},
            prefer=regions,
            block=block,
        )
        theirs = [nodes[r] for r in pool]
        kept, left = share_out(
            [_elsewhere(theirs, pile) for pile in piles],
            size=len(pool),
            room=_limit(draft.block, theirs, [(nodes[one.owner], one.region) for one in group]),
            more=0,
            block=block,
            others=[_next(theirs, pile.first) for pile in piles],
        )
        load = [total(mine) for mine in kept]
        for one in group:  # more than NEXT_MAX ranks on: the room that is left is too far away
            for i in intersect(left, one.region):
                keeper = min(one.keepers, key=lambda r: (load[pool.index(r)], r))
                kept[pool.index(keeper)] = merge((*kept[pool.index(keeper)], i))
                load[pool.index(keeper)] += i.numel
        for rank, mine in zip(pool, kept, strict=True):
            out.setdefault(rank, []).extend(mine)
    return {rank: merge(mine) for rank, mine in out.items()}


def _elsewhere(nodes: Sequence[str], pile: Pile) -> Pile:
    """The pile with those of its holders that are on another node than its owner, whom nobody should keep it for."""
    there = tuple((t, count) for t, count in pile.holders if nodes[t] != nodes[pile.first])
    return Pile(-1, there, pile.pieces)


def _next(nodes: Sequence[str], owner: int) -> list[int]:
    """The next ranks after the owner that are on other nodes, round the ring."""
    ring = ((owner + d) % len(nodes) for d in range(1, len(nodes)))
    return list(itertools.islice((t for t in ring if nodes[t] != nodes[owner]), NEXT_MAX))


def _limit(block: int, pool: Sequence[str], owned: Sequence[tuple[str, Intervals]]) -> int:
    """The least number of blocks with which everybody's copies find a place when nobody keeps more.

    `pool`: the nodes of those who may keep some; `owned`: nodes of owners, and what of theirs is to be kept.
    """
    ranks = Counter(pool)
    blocks: Counter[str] = Counter()
    for node, region in owned:
        blocks[node] += total(region) // block
    everybody = -(-sum(blocks.values()) // len(pool))
    return max([everybody] + [-(-b // (len(pool) - ranks[node])) for node, b in blocks.items()])
