"""What makes a plan valid, as a list of checks with words.

The supervisor refuses to execute a plan with findings; tests and the simulator run the same checks on every plan they meet.
Shape first, then stages, then who holds what: a check that rests on one that failed is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from orchestrator.core.plan.layout import Interval, Intervals, StateLayout, intersect, merge, subtract, total
from orchestrator.core.plan.plan import DATA, OPTIMIZER, PARAMS, PIPELINE, TENSOR, PipelineSchedule, Plan, homes


def lint(plan: Plan) -> tuple[str, ...]:
    """Every reason why the plan must not run; empty when it may."""
    out = [*_seats(plan)]
    shape = [*_shape(plan)] or [*_stages(plan)]
    out += shape
    layouts: dict[str, StateLayout] = {}
    for name in (PARAMS, OPTIMIZER):
        found = [layout for layout in plan.layouts if layout.name == name]
        if len(found) != 1:
            out.append(f"{len(found)} layouts for {name}")
        else:
            layouts[name] = found[0]
    if shape or len(layouts) < 2:
        return tuple(out)
    holdings = [finding for layout in layouts.values() for finding in _layout(plan, layout)]
    return (*out, *(holdings or _together(plan, params=layouts[PARAMS], optimizer=layouts[OPTIMIZER])))


def _seats(plan: Plan) -> Iterator[str]:
    if plan.epoch <= plan.parent:
        yield f"epoch {plan.epoch} does not follow its parent {plan.parent}"
    if [s.rank for s in plan.seats] != list(range(plan.size)):
        yield "seats are not numbered 0..n-1 in order"
    if len({s.worker_id for s in plan.seats}) != plan.size:
        yield "one worker has two seats"


def _shape(plan: Plan) -> Iterator[str]:
    if [a.name for a in plan.mesh] != [PIPELINE, DATA, TENSOR] or any(a.size < 1 for a in plan.mesh):
        yield f"the mesh is {', '.join(f'{a.name} {a.size}' for a in plan.mesh)} and not {PIPELINE}, {DATA}, {TENSOR}"
        return
    pipeline, data, tensor = (a.size for a in plan.mesh)
    if pipeline * data * tensor != plan.size:
        yield f"the mesh has {pipeline * data * tensor} places and the plan {plan.size} seats"
    if plan.micro_batches < data:
        yield f"{plan.micro_batches} micro-batches cannot feed {data} replicas"
    if plan.shares:
        yield from _shares(plan, data)
    if plan.zero_stage not in (0, 1, 2, 3):
        yield f"there is no ZeRO stage {plan.zero_stage}"
    if plan.copies not in (0, 1):
        yield f"{plan.copies} copies: only 0 and 1 are known"
    if plan.shard < 1 or data % plan.shard:
        yield f"shards of {plan.shard} ranks do not divide {data} replicas"
    elif plan.zero_stage == 0 and plan.shard != 1:
        yield f"nothing is sharded under ZeRO-0, and shard is {plan.shard}"
    if plan.checkpoint_every < 0:
        yield f"a checkpoint every {plan.checkpoint_every} steps"
    if plan.block < 1 or plan.section < 1 or plan.section % plan.block:
        yield f"a section of {plan.section} elements is not whole blocks of {plan.block}"


def _shares(plan: Plan, data: int) -> Iterator[str]:
    if plan.zero_stage > 1:
        yield f"under ZeRO-{plan.zero_stage} micro-batches are dealt out in rounds, and shares are given"
    if len(plan.shares) != data or min(plan.shares) < 1 or sum(plan.shares) != plan.micro_batches:
        listed = ", ".join(map(str, plan.shares))
        yield f"shares of {listed} do not deal {plan.micro_batches} micro-batches out to {data} replicas"


def _stages(plan: Plan) -> Iterator[str]:
    pipeline, count = plan.axis(PIPELINE), len(plan.stages)
    if not count or count % pipeline:
        yield f"{count} stages do not divide over {pipeline} pipeline ranks"
        return
    if len(plan.recompute) != count:
        yield f"{len(plan.recompute)} stages are said to recompute or not, of {count}"
    interleaved = plan.schedule is PipelineSchedule.INTERLEAVED
    if pipeline > 1 and interleaved != (count > pipeline):
        yield f"{count // pipeline} stages per rank do not go with the schedule {plan.schedule}"
    first = start = 0
    for n, s in enumerate(plan.stages):
        if s.first != first or s.last <= s.first:
            yield f"stage {n} has layers [{s.first}, {s.last}) where {first} comes next"
        if s.start != start or s.stop <= s.start or s.stop % plan.block:
            yield f"stage {n} lies at [{s.start}, {s.stop}) where whole blocks from {start} on come next"
        first, start = s.last, s.stop
    if start != plan.section:
        yield f"the stages end at {start} and the section at {plan.section}"


def _layout(plan: Plan, layout: StateLayout) -> Iterator[str]:
    """What holds for each layout by itself."""
    name, numel = layout.name, layout.numel
    if numel != plan.section * plan.axis(TENSOR):
        yield f"{name}: {numel} elements for {plan.axis(TENSOR)} sections of {plan.section}"
        return
    if len(layout.holdings) != plan.size:
        yield f"{name}: {len(layout.holdings)} holdings for {plan.size} ranks"
        return
    primaries = sorted(i for h in layout.holdings for i in h.primary)
    if merge(primaries) != (Interval(0, numel),) or total(primaries) != numel:
        yield f"{name}: primary regions do not cover [0, {numel}) exactly once"
    for rank, h in enumerate(layout.holdings):
        if intersect(h.primary, h.extra):
            yield f"{name}: rank {rank} lists a region as primary and as extra"
        for which, region in (("primary", h.primary), ("extra", h.extra)):
            if any(a.stop >= b.start for a, b in pairwise(region)):
                yield f"{name}: the {which} regions of rank {rank} are not sorted, apart and joined"
            for i in region:
                if i.start % plan.block or i.stop % plan.block:
                    yield f"{name}: [{i.start}, {i.stop}) is not aligned to blocks of {plan.block}"
                elif i.stop > numel:
                    yield f"{name}: [{i.start}, {i.stop}) ends behind {numel}"


def _together(plan: Plan, *, params: StateLayout, optimizer: StateLayout) -> Iterator[str]:
    """What holds between the layouts, the stages and the nodes."""
    ranks = range(plan.size)
    section = {plan.coordinates(r)[::2]: plan.section_of(r) for r in ranks}
    mine = [section[plan.coordinates(r)[::2]] for r in ranks]
    weights = [h.everything for h in params.holdings]
    state = [h.everything for h in optimizer.holdings]
    for rank in ranks:
        if params.holdings[rank].primary != optimizer.holdings[rank].primary:
            yield f"rank {rank} owns other parameters than moments"
        if outside := total(subtract(optimizer.holdings[rank].primary, mine[rank])):
            yield f"rank {rank} owns {outside} elements of layers that it does not compute"
        if bare := total(subtract(state[rank], weights[rank])):
            yield f"rank {rank} holds {bare} elements of {OPTIMIZER} without their {PARAMS}"
        if plan.zero_stage < 3 and (missing := total(subtract(mine[rank], weights[rank]))):
            yield f"rank {rank} lacks {missing} parameters that it computes with"
        if plan.zero_stage == 3 and weights[rank] != state[rank]:
            yield f"rank {rank} holds parameters whose {OPTIMIZER} it does not hold, under ZeRO-3"
    for group in dict.fromkeys(plan.shard_group(r) for r in ranks):
        held = merge(i for r in group for i in state[r])
        if missing := total(subtract(mine[group[0]], held)):
            yield f"ranks {', '.join(map(str, group))} lack {missing} elements of their section's {OPTIMIZER} between them"
    if plan.copies:
        yield from _copies(plan, optimizer, state)


def _copies(plan: Plan, layout: StateLayout, state: list[Intervals]) -> Iterator[str]:
    """Every owned region has a holder on another machine than its owner's, or node where all are on one machine."""
    nodes = homes(plan.seats)
    edges = sorted((at, sign, rank) for rank, held in enumerate(state) for i in held for at, sign in ((i.start, 1), (i.stop, -1)))
    here: Counter[str] = Counter()
    alone: list[Interval] = []
    at = 0
    for edge, sign, rank in edges:
        if edge > at:
            if len(here) < 2:
                alone.append(Interval(at, edge))
            at = edge
        here[nodes[rank]] += sign
        if not here[nodes[rank]]:
            del here[nodes[rank]]
    if not alone:
        return
    for rank, h in enumerate(layout.holdings):
        if missing := total(intersect(h.primary, alone)):
            what = "node" if nodes[rank] == plan.seats[rank].node_id else "machine"
            yield f"{layout.name}: {missing} elements of rank {rank} have no copy on another {what} than {nodes[rank]}"
