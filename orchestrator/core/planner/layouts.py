"""Who holds which part of the state under a plan: shards, replicas and peer copies, with the least that has to move.

The ranks that run the same stages on the same tensor coordinate share a section. Its optimizer state is cut into `shard` parts,
each held by data / shard replicas of which every one is owner of its share (ZeRO-0 is shard 1: all replicas hold all). Where
all holders of a part sit on one node, and the plan wants copies, ranks on other nodes hold its regions as well: of the same
section if there are any, since these compute with the parameters anyway, else of any.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from orchestrator.core.plan.layout import Holding, Interval, Intervals, StateLayout, intersect, merge, subtract, total
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, PIPELINE, TENSOR, Plan
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
    for pipe in range(draft.axis(PIPELINE)):
        for coordinate in range(draft.axis(TENSOR)):
            ranks = draft.replicas(draft.rank_at(pipe, 0, coordinate))
            holders = [ranks[p :: draft.shard] for p in range(draft.shard)]
            parts = deal(draft.section_of(ranks[0]), takers=holders, held=held, prefer=prefer, block=draft.block)
            for members, mine in zip(holders, parts, strict=True):
                owned = deal(mine, takers=[(m,) for m in members], held=prefer, prefer=prefer, block=draft.block)
                for rank, region in zip(members, owned, strict=True):
                    primary[rank], part[rank] = region, mine
                if draft.copies and len({draft.seats[m].node_id for m in members}) == 1:
                    lonely += _lonely(draft, members, primary, ranks)
    copies = _copies(draft, lonely, held=held)
    optimizer, params = [], []
    for rank in range(draft.size):
        everything = merge(part[rank] + copies.get(rank, ()))
        optimizer.append(Holding(primary[rank], subtract(everything, primary[rank])))
        if draft.zero_stage < 3:
            everything = merge(draft.section_of(rank) + everything)
        params.append(Holding(primary[rank], subtract(everything, primary[rank])))
    numel = draft.section * draft.axis(TENSOR)
    return StateLayout(PARAMS, numel, tuple(params)), StateLayout(OPTIMIZER, numel, tuple(optimizer))


def _lonely(draft: Plan, members: Sequence[int], primary: Sequence[Intervals], ranks: Sequence[int]) -> list[_Lonely]:
    """What the members own, when they are all on one node."""
    node = draft.seats[members[0]].node_id
    for pool in (tuple(ranks), tuple(range(draft.size))):
        keepers = tuple(r for r in pool if draft.seats[r].node_id != node)
        if keepers:
            return [_Lonely(m, primary[m], pool, keepers) for m in members if primary[m]]
    raise PlanError(f"rank {members[0]} has no peer on another node than {node} to keep its copy")


def _copies(draft: Plan, lonely: Sequence[_Lonely], *, held: Mapping[int, Intervals]) -> dict[int, Intervals]:
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
        nodes = [draft.seats[r].node_id for r in pool]
        kept, left = share_out(
            [_elsewhere(nodes, pile) for pile in piles],
            size=len(pool),
            room=_limit(draft, pool, group),
            more=0,
            block=block,
            others=[_next(nodes, pile.first) for pile in piles],
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


def _limit(draft: Plan, pool: Sequence[int], group: Sequence[_Lonely]) -> int:
    """The least number of blocks with which everybody's copies find a place when nobody keeps more."""
    ranks: dict[str, int] = {}
    for rank in pool:
        node = draft.seats[rank].node_id
        ranks[node] = ranks.get(node, 0) + 1
    blocks: dict[str, int] = {}
    for one in group:
        node = draft.seats[one.owner].node_id
        blocks[node] = blocks.get(node, 0) + total(one.region) // draft.block
    everybody = -(-sum(blocks.values()) // len(pool))
    return max([everybody] + [-(-b // (len(pool) - ranks.get(node, 0))) for node, b in blocks.items()])
