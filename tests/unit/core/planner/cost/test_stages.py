"""What runs of layers cost, against sums made here layer by layer."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from orchestrator.core.cluster.resources import DeviceType
from orchestrator.core.graph.costs import Timing
from orchestrator.core.planner.cost.stages import Passes, Runs, Speeds, reductions
from tests.unit.core.planner.cost.problems import layer, model, random_problem

DEVICE = DeviceType("a", "cpu", flops=1e12, bandwidth=1e10, memory_bytes=1 << 30)


def seconds(passes: Passes) -> tuple[float, float]:
    return passes.forward_s, passes.backward_s


def test_a_layer_takes_its_flops_and_moves_its_bytes() -> None:
    costs = model(layer(moved_bytes=1e7))
    assert seconds(Speeds(costs, DEVICE, 1).passes(0, 1, 2)) == pytest.approx(
        (2 * (2e9 / 1e12 + 1e7 / 1e10), 2 * (4e9 / 1e12 + 2e7 / 1e10))
    )


def test_tensor_parallelism_divides_what_is_cut() -> None:
    costs = model(layer(moved_bytes=1e7))  # half of everything is cut
    assert Speeds(costs, DEVICE, 4).passes(0, 1, 1).forward_s == pytest.approx((1e9 + 1e9 / 4) / 1e12 + (5e6 + 5e6 / 4) / 1e10)
    assert Runs(costs, 4).elements(0, 1) == pytest.approx(500_000 + 125_000)
    assert Runs(costs, 4).kept_bytes(0, 1, recompute=False) == pytest.approx(4e6 + 1e6)


def test_a_block_of_attention_and_feed_forward_has_two_all_reduces() -> None:
    block = layer(reduced_bytes=2e6, boundary_bytes=1e6)
    assert [reductions(block, stream) for stream in (1e6, 2e6, 8e6, 0.0)] == [2, 1, 1, 1]
    assert reductions(layer(reduced_bytes=0.0), 1e6) == 0
    head = layer(reduced_bytes=1e6, boundary_bytes=4.0)  # a loss: not what an all-reduce is of
    costs = replace(model(block, head), order=(0, 0, 1))
    assert [Runs(costs, t).reduced(0, 3)[1] for t in (1, 2)] == [0, 5]


def test_small_work_is_slower() -> None:
    slow = DeviceType("a", "cpu", flops=1e12, bandwidth=1e10, memory_bytes=1 << 30, half_flops=2e9)
    assert Speeds(model(layer()), slow, 1).passes(0, 1, 1).forward_s == pytest.approx(2e9 / (1e12 * 2e9 / (2e9 + 2e9)))


def test_what_was_measured_counts_and_tensor_parallelism_leaves_its_share() -> None:
    costs = model(layer(timings=(Timing("a", 0.5, 0.75),)))
    assert seconds(Speeds(costs, DEVICE, 1).passes(0, 1, 2)) == pytest.approx((1.0, 1.5))
    assert seconds(Speeds(costs, DEVICE, 2).passes(0, 1, 1)) == pytest.approx((0.375, 0.5625))


@pytest.mark.parametrize("seed", range(5))
def test_runs_are_the_sums_and_maxima_of_their_layers(seed: int) -> None:
    rng = random.Random(seed)
    costs = random_problem(rng).costs
    layers = costs.layers
    runs, speeds = Runs(costs, 1), Speeds(costs, DEVICE, 1)
    for first in range(len(layers)):
        for last in range(first + 1, len(layers) + 1):
            mine = layers[first:last]
            assert runs.elements(first, last) == pytest.approx(sum(k.params + k.buffers for k in mine))
            assert runs.kept_bytes(first, last, recompute=False) == pytest.approx(sum(k.kept_bytes for k in mine))
            assert runs.kept_bytes(first, last, recompute=True) == pytest.approx(sum(k.boundary_bytes for k in mine))
            assert runs.work_bytes(first, last, recompute=False) == max(k.work_bytes for k in mine)
            assert runs.work_bytes(first, last, recompute=True) == pytest.approx(max(k.kept_bytes + k.work_bytes for k in mine))
            assert runs.layer_elements(first, last) == max(k.params + k.buffers for k in mine)
            assert runs.boundary_bytes(last) == pytest.approx(mine[-1].boundary_bytes)
            one_by_one = sum(speeds.passes(k, k + 1, 3).forward_s for k in range(first, last))
            assert speeds.passes(first, last, 3).forward_s == pytest.approx(one_by_one)
            assert speeds.sums(3)[last] == seconds(speeds.passes(0, last, 3))
