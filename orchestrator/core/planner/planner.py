"""From (job, graph, workers, what they hold) to a Plan: the first one, the same with other workers, and one of another shape.

The shape is somebody else's choice (`shape_for`, a person); here ranks are given to workers, layers to stages and state to ranks,
so that the least state moves, and the plan says in words what it is and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.core.graph.space import space_of
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.layout import Interval, Intervals, intersect, merge, subtract, total
from orchestrator.core.plan.plan import DATA, OPTIMIZER, PIPELINE, TENSOR, MeshAxis, PipelineSchedule, Plan, Seat, Stage
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.layouts import make_layouts
from orchestrator.core.planner.seats import Section, Worker, choose_seats
from orchestrator.core.planner.shape import recompute_for, shape_for, shard_for, shares_for, stages_per_rank_for
from orchestrator.core.planner.stages import make_stages
from orchestrator.core.planner.words import describe
from orchestrator.core.reshard.recovery import Held

__all__ = ["PlanError", "first_plan", "make_layouts", "make_stages", "replan", "shape_for", "shard_for", "swap_plan"]


def first_plan(
    *,
    job: Job,
    graph: GraphView,
    workers: Sequence[Worker],
    epoch: int,
    seats: tuple[Seat, ...] = (),
    why: str = "as the job asks",
) -> Plan:
    """A plan at full strength for a job that has none yet.

    `workers` are (worker_id, node_id) pairs that are ready; `seats` are given where somebody has chosen them already, and `why`
    then says so. Raises PlanError when there are too few, when the model has too few layers, or when copies are asked for and all
    ranks sit on one node.
    """
    p = job.parallel
    if len(workers) < p.ranks:
        raise PlanError(f"{p.ranks} ranks need {p.ranks} workers, {len(workers)} are ready")
    stages = make_stages(
        graph,
        tensor=p.tensor,
        pipeline=p.pipeline,
        stages_per_rank=p.stages_per_rank,
        layers_per_stage=p.layers_per_stage,
    )
    seats = seats or choose_seats(
        workers=workers,
        pipeline=p.pipeline,
        data=p.data,
        tensor=p.tensor,
        shard=shard_for(job, p.data),
        value={},
        overlap=lambda _a, _b: 0,
        parent=None,
    )
    if p.copies and len({s.node_id for s in seats}) < 2:
        raise PlanError("peer copies need workers on at least two nodes, and all ready workers share one")
    plan = _draft(job=job, graph=graph, pipeline=p.pipeline, data=p.data, stages=stages, seats=seats, epoch=epoch, parent=0)
    plan = replace(plan, layouts=make_layouts(plan))
    return replace(plan, reason=f"first plan: {describe(plan)}, {why}")


def swap_plan(parent: Plan, *, epoch: int, replacements: Mapping[int, Worker], reason: str) -> Plan:
    """The parent's plan with some ranks given to other workers; the layouts follow where a seat's node changes.

    `replacements` maps rank -> (worker_id, node_id). Every owner stays owner; only copies may move, when a replacement sits on
    the node of its region's copy. Raises PlanError when copies are wanted and all ranks would be on one node.
    """
    seats = tuple(Seat(s.rank, *replacements.get(s.rank, (s.worker_id, s.node_id))) for s in parent.seats)
    plan = replace(parent, epoch=epoch, parent=parent.epoch, seats=seats, reason=reason)
    holdings = parent.layout(OPTIMIZER).holdings
    layouts = make_layouts(
        plan,
        held={rank: h.everything for rank, h in enumerate(holdings)},
        prefer={rank: h.primary for rank, h in enumerate(holdings)},
    )
    return replace(plan, layouts=layouts)


def replan(
    *,
    parent: Plan,
    job: Job,
    graph: GraphView,
    workers: Sequence[Worker],
    held: Mapping[str, Held],
    epoch: int,
    pipeline: int,
    data: int,
    layers_per_stage: tuple[int, ...] = (),
    seats: tuple[Seat, ...] = (),
    reason: str,
) -> Plan:
    """A plan of another shape, or of the same one with other stages, in which as much state as possible stays where it is.

    `workers` may get a rank, survivors and fresh ones alike, and may be more than the shape needs; `held` says by worker id what
    survivors hold; `seats` are given where somebody has chosen them already. Without `layers_per_stage` the stages stay as they
    are when there are as many of them, else they are the job's or balanced. Where all ranks end up on one node the plan has no
    copies. Raises PlanError for a shape that does not fit.
    """
    tensor = job.parallel.tensor
    need = pipeline * data * tensor
    if len(workers) < need:
        raise PlanError(f"{need} ranks need {need} workers, {len(workers)} are there")
    if data > job.train.micro_batches:
        raise PlanError(f"{job.train.micro_batches} micro-batches cannot feed {data} replicas")
    stages = _stages(job, graph, parent, pipeline=pipeline, layers_per_stage=layers_per_stage)
    at = max((h.applied_step for h in held.values()), default=0)
    state = {w: h for w, h in held.items() if h.tensor == tensor and at in (h.applied_step, h.prepared_step)}
    optimizer = {w: h.optimizer for w, h in state.items()}
    seats = seats or choose_seats(
        workers=workers,
        pipeline=pipeline,
        data=data,
        tensor=tensor,
        shard=shard_for(job, data),
        value=_values(job, graph, stages, state, pipeline=pipeline, data=data),
        overlap=lambda a, b: total(intersect(optimizer.get(a[0], ()), optimizer.get(b[0], ()))),
        parent=parent,
    )
    plan = _draft(
        job=job, graph=graph, pipeline=pipeline, data=data, stages=stages, seats=seats, epoch=epoch, parent=parent.epoch
    )
    alone = bool(plan.copies) and len({s.node_id for s in seats}) < 2
    if alone:
        plan = replace(plan, copies=0)
    here = {s.rank: optimizer[s.worker_id] for s in seats if s.worker_id in optimizer}
    owned: dict[int, Intervals] = {}
    before = {s.worker_id: parent.layout(OPTIMIZER).holdings[s.rank].primary for s in parent.seats}
    for seat in seats:
        if seat.worker_id in before and seat.rank in here:
            owned[seat.rank] = intersect(before[seat.worker_id], here[seat.rank])
    plan = replace(plan, layouts=make_layouts(plan, held=here, prefer=owned))
    words = f"{reason}: {describe(plan)}"
    if alone:
        words += ", without copies because there is no other node"
    missing = sum(total(subtract(h.everything, here.get(r, ()))) for r, h in enumerate(plan.layout(OPTIMIZER).holdings))
    return replace(plan, reason=f"{words}; {missing / plan.layout(OPTIMIZER).numel:.0%} of the optimizer state moves")


def _draft(
    *,
    job: Job,
    graph: GraphView,
    pipeline: int,
    data: int,
    stages: tuple[Stage, ...],
    seats: tuple[Seat, ...],
    epoch: int,
    parent: int,
) -> Plan:
    """The plan but for its layouts and its reason."""
    p = job.parallel
    tensor = len(seats) // (pipeline * data)
    schedule = p.schedule
    if len(stages) > pipeline:
        schedule = PipelineSchedule.INTERLEAVED
    elif schedule is PipelineSchedule.INTERLEAVED:
        schedule = PipelineSchedule.ONE_F_ONE_B
    return Plan(
        job=job.name,
        epoch=epoch,
        parent=parent,
        mesh=(MeshAxis(PIPELINE, pipeline), MeshAxis(DATA, data), MeshAxis(TENSOR, tensor)),
        zero_stage=p.zero_stage,
        shard=shard_for(job, data),
        copies=p.copies,
        micro_batches=job.train.micro_batches,
        shares=shares_for(job, data),
        block=graph.block,
        section=space_of(graph, tensor).section,
        stages=stages,
        schedule=schedule,
        recompute=recompute_for(job, len(stages)),
        checkpoint_every=job.checkpoint.every,
        seats=seats,
        layouts=(),
        reason="",
    )


def _stages(job: Job, graph: GraphView, parent: Plan, *, pipeline: int, layers_per_stage: tuple[int, ...]) -> tuple[Stage, ...]:
    per_rank = stages_per_rank_for(job, graph, pipeline)
    if layers_per_stage:
        per_rank = max(1, len(layers_per_stage) // pipeline)
    elif len(parent.stages) == pipeline * per_rank and parent.axis(TENSOR) == job.parallel.tensor:
        return parent.stages
    elif len(job.parallel.layers_per_stage) == pipeline * per_rank:
        layers_per_stage = job.parallel.layers_per_stage
    return make_stages(
        graph, tensor=job.parallel.tensor, pipeline=pipeline, stages_per_rank=per_rank, layers_per_stage=layers_per_stage
    )


def _values(
    job: Job, graph: GraphView, stages: Sequence[Stage], state: Mapping[str, Held], *, pipeline: int, data: int
) -> dict[str, dict[Section, int]]:
    """For each holder the elements of parameters and moments that each section's places need and that it has."""
    p = job.parallel
    out: dict[str, dict[Section, int]] = {w: {} for w in state}
    for pipe in range(pipeline):
        for coordinate in range(p.tensor):
            base = coordinate * space_of(graph, p.tensor).section
            section = merge(Interval(base + s.start, base + s.stop) for s in stages[pipe::pipeline])
            share = -(-total(section) // shard_for(job, data)) * (1 + (p.copies if p.zero_stage else 0))
            for worker, h in state.items():
                kept = min(share, total(intersect(h.optimizer, section)))
                params = kept if p.zero_stage == 3 else total(intersect(h.params, section))
                out[worker][pipe, coordinate] = params + 2 * kept
    return out
