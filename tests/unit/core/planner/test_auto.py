"""From jobs to problems and from strategies to plans and back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.cluster.measured import resources_from
from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.graph.costs import ModelCosts, Timing
from orchestrator.core.job import Consistency, DeviceKind, Job, PlannerSettings
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.auto import job_for, merged, pinned, problem_of, settings_of, strategy_of
from orchestrator.core.planner.cost.estimate import estimate
from orchestrator.core.planner.planner import first_plan
from orchestrator.core.planner.seating import seats_from
from orchestrator.core.planner.strategy import Problem, Space, Strategy
from orchestrator.testkit.jobs import make_costs, make_graph, make_job, make_measure

GRAPH = make_graph(2048, 2048, 2048, 2048, 2048, 2048)
COSTS = make_costs(GRAPH)
NODES = tuple(f"n{i}" for i in range(8))
WORKERS = [(f"j/w{i}", node) for i, node in enumerate(NODES)]
VIEW = ClusterView(1, tuple(NodeView(n, "", DeviceKind.CPU, 1, 1 << 30, True) for n in NODES))
RESOURCES = resources_from(VIEW, WORKERS, {w: make_measure() for w, _ in WORKERS})


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    """Ways to split a job of 12 micro-batches and six layers over up to eight devices, uneven ones too."""
    pipeline = draw(st.sampled_from([1, 2, 3]))
    data = draw(st.integers(1, 8 // pipeline))
    per_rank = draw(st.sampled_from([1, 2])) if pipeline > 1 else 1
    stages = pipeline * per_rank
    ends = [0, *sorted(draw(st.permutations(range(1, 6)))[: stages - 1]), 6]
    zero = draw(st.integers(0, 3)) if data > 1 else 0
    shares: tuple[int, ...] = ()
    if zero < 2 and data > 1 and draw(st.booleans()):
        marks = [0, *sorted(draw(st.permutations(range(1, 12)))[: data - 1]), 12]
        shares = tuple(b - a for a, b in pairwise(marks))
    one = PipelineSchedule.ONE_F_ONE_B
    schedule = draw(st.sampled_from([one, PipelineSchedule.ZERO_BUBBLE])) if pipeline > 1 else one
    return Strategy(
        data=data,
        tensors=(1,) * pipeline,
        cuts=tuple(b - a for a, b in pairwise(ends)),
        schedule=PipelineSchedule.INTERLEAVED if per_rank > 1 else schedule,
        units=1,
        micro_batches=12,
        zero=zero,
        shard=draw(st.sampled_from([s for s in range(1, data + 1) if data % s == 0])) if zero else 1,
        copies=draw(st.integers(0, 1)) if pipeline * data > 1 else 0,
        recompute=tuple(draw(st.booleans()) for _ in range(stages)),
        devices=tuple(draw(st.permutations(range(8)))[: pipeline * data]),
        shares=shares,
    )


def problem(job: Job) -> Problem:
    return problem_of(job, costs=COSTS, resources=RESOURCES)


@given(strategies())
def test_a_strategy_survives_as_a_job_and_as_a_plan(strategy: Strategy) -> None:
    if strategy.zero and strategy.shard == 1 and strategy.data > 1:
        strategy = replace(strategy, shard=strategy.data)  # sharded over one rank is not sharded: no job says that
    asked = make_job(micro_batches=12)
    job = job_for(asked, strategy, estimate(problem(asked), strategy))
    seats = seats_from(strategy, RESOURCES, WORKERS)
    plan = first_plan(job=job, graph=GRAPH, workers=WORKERS, epoch=1, seats=seats)
    assert lint(plan) == ()
    assert [NODES.index(s.node_id) for s in plan.seats] == list(strategy.devices)
    assert strategy_of(plan, strategy.devices) == strategy


def test_the_interval_of_checkpoints_is_chosen_only_where_it_may_be() -> None:
    given_job = replace(make_job(micro_batches=12, every=7), planner=PlannerSettings(auto=True, space=Space(), checkpoint=False))
    free = replace(given_job, planner=replace(given_job.planner, checkpoint=True))
    plan = first_plan(job=given_job, graph=GRAPH, workers=WORKERS, epoch=1)
    strategy = strategy_of(plan, [0, 1])
    found = estimate(problem(free), strategy)
    assert job_for(given_job, strategy, found).checkpoint.every == 7
    assert job_for(free, strategy, found).checkpoint.every == found.checkpoint_every


def test_a_given_job_leaves_nothing_open() -> None:
    job = make_job(pipeline=2, data=2, zero_stage=1, shard=0, stages_per_rank=2, schedule=PipelineSchedule.INTERLEAVED)
    space = problem(job).space
    assert space == pinned(job.parallel)
    assert (space.tensors, space.pipelines, space.datas, space.zeros) == ((1,), (2,), (2,), (1,))
    assert (space.ranks_min, space.ranks_max) == (4, 4)
    assert settings_of(strategy_of(first_plan(job=job, graph=GRAPH, workers=WORKERS, epoch=1), range(4))) == replace(
        job.parallel, layers_per_stage=(2, 2, 1, 1), recompute=(False,) * 4
    )


@pytest.mark.parametrize("consistency", list(Consistency))
def test_only_exact_sums_are_kept(consistency: Consistency) -> None:
    found = problem(make_job(consistency=consistency)).program
    assert found.sums_kept == (consistency is Consistency.EXACT)
    assert found.straight


def test_of_several_measurings_the_median_counts() -> None:
    def timed(seconds: float, device: str = "cpu") -> ModelCosts:
        kinds = tuple(replace(k, timings=(Timing(device, seconds, 2 * seconds),)) for k in COSTS.kinds)
        return replace(COSTS, kinds=kinds)

    found = merged([timed(3.0), timed(1.0), COSTS, timed(2.0), timed(9.0, "gpu")])
    assert found.kinds[0].timings == (Timing("cpu", 2.0, 4.0), Timing("gpu", 9.0, 18.0))
    assert replace(found, kinds=COSTS.kinds) == COSTS
    assert merged([COSTS]) == COSTS
