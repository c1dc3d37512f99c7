"""Between a job and the search: the problem that a job poses, and what a chosen strategy means as a job and as a plan.

The search knows strategies over numbered devices; the rest of the system knows jobs, plans and workers. Everything here is a
plain translation, so that a chosen plan is one that a person could have written down, and a running one can be held against
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.core.cluster.resources import Resources
from orchestrator.core.graph.costs import ModelCosts, Timing
from orchestrator.core.job import Consistency, Job, ParallelSettings
from orchestrator.core.plan.plan import DATA, PIPELINE, TENSOR, PipelineSchedule, Plan
from orchestrator.core.planner.cost.programs import FAST, OURS
from orchestrator.core.planner.strategy import Estimate, Problem, Reliability, Space, Strategy

STATE_BYTES = 12  # per parameter: fp32 weights and two moments, what a durable checkpoint holds
COPY_BANDWIDTH = 2e9  # bytes/s at which a rank copies its state aside for a checkpoint; the rest happens beside the training
READ_BANDWIDTH = 2e8  # bytes/s at which a rank reads its part of a checkpoint
RESTART_S = 1.0  # forming groups of the next epoch, and its first step
LOAD_S = 20.0  # starting processes anew, before anything is read


def problem_of(job: Job, *, costs: ModelCosts, resources: Resources) -> Problem:
    """What the planner is asked: a job that it may cut as the job allows, or one whose every axis is given."""
    return Problem(
        costs=costs,
        resources=resources,
        program=OURS if job.train.consistency is Consistency.EXACT else FAST,
        batch=job.train.micro_batches,
        space=job.planner.space if job.planner.auto else pinned(job.parallel),
        reliability=reliability(
            params=costs.params,
            ranks=max(1, job.planner.space.ranks_max or job.parallel.ranks),
            detect_s=job.resilience.detect_within_ms / 1000,
        ),
    )


def reliability(*, params: int, ranks: int, detect_s: float) -> Reliability:
    """What failures cost so many parameters on so many ranks, before any has happened.

    A checkpoint is written beside the training: it costs the run only the copy of its state.
    """
    share = STATE_BYTES * params / ranks
    return Reliability(
        detect_s=detect_s,
        restart_s=RESTART_S,
        checkpoint_s=share / COPY_BANDWIDTH,
        load_s=LOAD_S + share / READ_BANDWIDTH,
    )


def pinned(p: ParallelSettings) -> Space:
    """The space of one shape: that of a job whose plan is given."""
    return Space(
        tensors=(p.tensor,),
        pipelines=(p.pipeline,),
        datas=(p.data,),
        zeros=(p.zero_stage,),
        groups=bool(p.shard),
        schedules=(p.schedule,),
        stages_per_rank_max=p.stages_per_rank,
        recompute=tuple(dict.fromkeys(p.recompute)),
        copies=(p.copies,),
        uneven=bool(p.layers_per_stage or p.shares),
        ranks_min=p.ranks,
        ranks_max=p.ranks,
    )


def strategy_of(plan: Plan, devices: Sequence[int]) -> Strategy:
    """A plan as the search sees it. `devices`: of each rank, its index in Resources; -1 where it is lost."""
    pipeline = plan.axis(PIPELINE)
    return Strategy(
        data=plan.axis(DATA),
        tensors=(plan.axis(TENSOR),) * pipeline,
        cuts=tuple(s.last - s.first for s in plan.stages),
        schedule=plan.schedule,
        units=1,
        micro_batches=plan.micro_batches,
        zero=plan.zero_stage,
        shard=plan.shard,
        copies=plan.copies,
        recompute=plan.recompute,
        devices=tuple(devices),
        shares=plan.shares,
    )


def settings_of(strategy: Strategy) -> ParallelSettings:
    """The strategy as a person would write it down: without devices."""
    schedule = strategy.schedule
    if strategy.pipeline == 1:
        schedule = PipelineSchedule.ONE_F_ONE_B
    return ParallelSettings(
        data=strategy.data,
        zero_stage=strategy.zero,
        shard=strategy.shard if strategy.zero and strategy.shard < strategy.data else 0,
        copies=strategy.copies,
        tensor=strategy.tensor,
        pipeline=strategy.pipeline,
        stages_per_rank=strategy.stages_per_rank,
        layers_per_stage=strategy.cuts,
        schedule=schedule,
        recompute=strategy.recompute,
        shares=strategy.shares,
    )


def job_for(job: Job, strategy: Strategy, estimate: Estimate) -> Job:
    """The job with that plan, and with the interval of checkpoints that the estimate names where the planner may choose it."""
    checkpoint = job.checkpoint
    if job.planner.checkpoint:
        checkpoint = replace(checkpoint, every=estimate.checkpoint_every)
    return replace(job, parallel=settings_of(strategy), checkpoint=checkpoint)


def merged(costs: Sequence[ModelCosts]) -> ModelCosts:
    """The same model measured by several workers: of each kind and type of device the median seconds. At least one."""
    first = costs[0]
    kinds = []
    for n, kind in enumerate(first.kinds):
        found: dict[str, list[Timing]] = {}
        for other in costs:
            for timing in other.kinds[n].timings:
                found.setdefault(timing.device, []).append(timing)
        timings = tuple(
            Timing(device, _median([t.forward_s for t in of]), _median([t.backward_s for t in of]))
            for device, of in found.items()
        )
        kinds.append(replace(kind, timings=timings))
    return replace(first, kinds=tuple(kinds))


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]
