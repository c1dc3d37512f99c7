"""The bound is never more than an estimate, and near it where there is nothing to choose."""

from __future__ import annotations

import math
import random

import pytest

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.estimate import Costing
from orchestrator.core.planner.strategy import Strategy
from tests.unit.core.planner.cost.problems import cluster, layer, model, problem, random_problem, random_strategy, strategy


def bound(costing: Costing, s: Strategy) -> float:
    return costing.bound(
        tensor=s.tensor,
        pipeline=s.pipeline,
        data=s.data,
        zero=s.zero,
        shard=s.shard,
        units=s.units,
        schedule=s.schedule,
        stages_per_rank=s.stages_per_rank,
        recompute=all(s.recompute),
    )


@pytest.mark.parametrize("seed", range(80))
def test_no_strategy_beats_it(seed: int) -> None:
    rng = random.Random(seed)
    p = random_problem(rng)
    costing = Costing(p)
    for _ in range(6):
        s = random_strategy(rng, p)
        assert bound(costing, s) <= costing.estimate(s).effective_s, s


@pytest.mark.parametrize("schedule", list(PipelineSchedule))
def test_it_is_near_for_equal_layers_on_equal_devices(schedule: PipelineSchedule) -> None:
    costing = Costing(problem(model(*[layer(forward_flops=2e11, backward_flops=4e11)] * 8), cluster(4, 1), batch=32))
    stages = 8 if schedule is PipelineSchedule.INTERLEAVED else 4
    s = strategy(tensors=(1,) * 4, cuts=(8 // stages,) * stages, micro_batches=32, schedule=schedule)
    assert 0.9 * costing.estimate(s).effective_s <= bound(costing, s)


def test_what_needs_more_devices_than_there_are_takes_for_ever() -> None:
    costing = Costing(problem(model(layer()), cluster(2, 1)))
    assert math.isinf(bound(costing, strategy(data=3, micro_batches=8)))
