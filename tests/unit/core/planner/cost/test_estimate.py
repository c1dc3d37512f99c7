"""Estimates: terms that add up, hand results for small cases, and that nothing worse is ever predicted to be faster."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from orchestrator.core.cluster.resources import Link, Resources
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.estimate import Costing, estimate
from orchestrator.core.planner.cost.programs import OURS, SUM_BYTES
from orchestrator.core.planner.strategy import Estimate, Problem
from tests.unit.core.planner.cost.problems import (
    cluster,
    layer,
    model,
    problem,
    random_problem,
    random_strategy,
    strategy,
)

SEEDS = range(40)


def term(e: Estimate, name: str) -> float:
    return next(t.seconds for t in e.terms if t.name == name)


@pytest.mark.parametrize("seed", SEEDS)
def test_terms_add_up_and_none_is_negative(seed: int) -> None:
    rng = random.Random(seed)
    p = random_problem(rng)
    costing = Costing(p)
    for _ in range(5):
        e = costing.estimate(random_strategy(rng, p))
        assert sum(t.seconds for t in e.terms) == pytest.approx(e.step_s, rel=1e-12)
        assert min(t.seconds for t in e.terms) >= 0.0
        assert 0.0 < e.goodput <= 1.0
        assert e.loss_s > 0.0


def test_one_rank_computes_adds_and_updates() -> None:
    e = estimate(problem(model(layer()), cluster(1, 1)), strategy(micro_batches=8))
    assert term(e, "forward") == pytest.approx(8 * 2e9 / 1e12)
    assert term(e, "backward") == pytest.approx(8 * 4e9 / 1e12)
    assert term(e, "gradients") == pytest.approx(8 * SUM_BYTES * 1e6 / 1e10)
    assert term(e, "update") == pytest.approx(OURS.update_bytes * 1e6 / 1e10)
    assert term(e, "overhead") == pytest.approx(8 * 2 * OURS.act_s + OURS.step_s)
    assert [t.name for t in e.terms if t.seconds == 0.0] == ["recompute", "tensor", "boundary", "weights", "bubble", "copies"]


def test_replicas_divide_the_work_and_reduce() -> None:
    e = estimate(problem(model(layer()), cluster(2, 1)), strategy(data=2, micro_batches=8, zero=1, shard=2))
    assert term(e, "forward") == pytest.approx(4 * 2e9 / 1e12)
    summed = 4 * SUM_BYTES * 1e6 / 1e10
    assert term(e, "gradients") == pytest.approx(summed + 1e-5 + 4e6 / 2 / 1e9)
    assert term(e, "weights") == pytest.approx(1e-5 + 4e6 / 2 / 1e9)
    assert term(e, "update") == pytest.approx(OURS.update_bytes * 1e6 / 2 / 1e10)


def test_recomputation_is_another_forward_pass() -> None:
    p = problem(model(layer()), cluster(1, 2))
    plain, again = (estimate(p, strategy(micro_batches=8, tensors=(2,), recompute=(r,))) for r in (False, True))
    assert term(again, "recompute") == pytest.approx(term(plain, "forward"))
    assert term(again, "tensor") == pytest.approx(1.5 * term(plain, "tensor"))


def test_an_all_reduce_takes_its_traffic_and_on_a_cpu_its_call() -> None:
    p = problem(model(layer()), cluster(1, 2))
    traffic = 2 * (1e-6 + 2e6 / 2 / 1e10)
    assert term(estimate(p, strategy(micro_batches=8, tensors=(2,))), "tensor") == pytest.approx(16 * (traffic + OURS.call_s))
    (kind,) = p.resources.types
    queued = replace(p, resources=replace(p.resources, types=(replace(kind, kind="cuda"),)))
    assert term(estimate(queued, strategy(micro_batches=8, tensors=(2,))), "tensor") == pytest.approx(16 * traffic)


def test_a_pipeline_waits_for_its_boundary_and_its_bubble() -> None:
    p = problem(model(layer(), layer()), cluster(2, 1, network=1e8))
    e = estimate(p, strategy(tensors=(1, 1), cuts=(1, 1), micro_batches=8))
    assert term(e, "boundary") == pytest.approx(8 * (1e-5 + 1e6 / 1e8))
    assert term(e, "bubble") > 0.0
    near = estimate(problem(model(layer(), layer()), cluster(1, 2)), strategy(tensors=(1, 1), cuts=(1, 1), micro_batches=8))
    assert near.step_s < e.step_s


def test_the_slowest_replica_decides_and_shares_help_it() -> None:
    resources = cluster(2, 1)
    slow = replace(resources, nodes=(resources.nodes[0], replace(resources.nodes[1], pace=3.0)))
    p = problem(model(layer(forward_flops=2e10, backward_flops=4e10)), slow)
    even = estimate(p, strategy(data=2, micro_batches=8))
    assert term(even, "forward") == pytest.approx(4 * 3 * 2e10 / 1e12)
    shared = estimate(p, strategy(data=2, micro_batches=8, shares=(6, 2)))
    assert shared.step_s < 0.7 * even.step_s


def test_a_tensor_group_goes_at_the_pace_of_its_slowest_device() -> None:
    resources = cluster(2, 1)
    slow = replace(resources, nodes=(resources.nodes[0], replace(resources.nodes[1], pace=3.0)))
    e = estimate(problem(model(layer()), slow), strategy(tensors=(2,)))
    assert term(e, "forward") == pytest.approx(3 * 1.5e9 / 1e12)


def worse(p: Problem, rng: random.Random) -> Problem:
    """The same problem where something takes longer."""
    r: Resources = p.resources
    k = rng.randrange(len(r.nodes))
    n = r.nodes[k]
    changed = rng.choice(
        [
            replace(n, pace=2 * n.pace),
            replace(n, inside=Link(n.inside.bandwidth / 2, n.inside.latency_s * 2)),
            replace(n, network=Link(n.network.bandwidth / 2, n.network.latency_s * 2), network_total=n.network_total / 2),
            replace(n, failures_per_hour=n.failures_per_hour * 2 + 0.1),
        ]
    )
    kinds = p.costs.kinds
    heavier = rng.choice(
        [
            replace(kinds[0], forward_flops=2 * kinds[0].forward_flops, cut_forward_flops=2 * kinds[0].cut_forward_flops),
            replace(kinds[0], params=2 * kinds[0].params, cut_params=2 * kinds[0].cut_params),
            replace(kinds[0], boundary_bytes=2 * kinds[0].boundary_bytes),
            replace(kinds[0], reduced_bytes=2 * kinds[0].reduced_bytes),
        ]
    )
    if rng.random() < 0.5:
        return replace(p, resources=replace(r, nodes=(*r.nodes[:k], changed, *r.nodes[k + 1 :])))
    return replace(p, costs=replace(p.costs, kinds=(heavier, *kinds[1:])))


@pytest.mark.parametrize("seed", SEEDS)
def test_slower_links_and_nodes_and_more_bytes_never_make_a_step_faster(seed: int) -> None:
    rng = random.Random(seed)
    p = random_problem(rng)
    for _ in range(5):
        s, q = random_strategy(rng, p), worse(p, rng)
        before, after = estimate(p, s), estimate(q, s)
        assert after.step_s >= before.step_s * (1 - 1e-9)
        assert after.effective_s >= before.effective_s * (1 - 1e-3)  # checkpoints come after whole steps


def test_copies_and_replicas_turn_losses_of_everything_into_swaps() -> None:
    p = problem(model(layer()), cluster(4, 1))
    bare = estimate(p, strategy(data=4, micro_batches=8, zero=1, shard=4))
    kept = estimate(p, strategy(data=4, micro_batches=8, zero=1, shard=4, copies=1))
    assert kept.goodput > bare.goodput
    assert kept.loss_s < bare.loss_s
    assert kept.checkpoint_every > bare.checkpoint_every > 0
    assert term(kept, "copies") > 0.0 == term(bare, "copies")


def test_costings_remember_and_agree() -> None:
    p = problem(model(layer(), layer()), cluster(4, 2))
    costing = Costing(p)
    s = strategy(data=2, tensors=(2, 2), cuts=(1, 1), micro_batches=8, zero=3, shard=2)
    assert costing.estimate(s) == costing.estimate(s) == estimate(p, s)
    assert costing.memory(s) == costing.estimate(s).memory


@pytest.mark.parametrize("seed", range(10))
def test_what_was_estimated_before_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    p = random_problem(rng)
    costing = Costing(p)
    for _ in range(30):
        s = random_strategy(rng, p)
        s = replace(s, devices=tuple(range(s.ranks)))  # so that meshes are met again
        assert costing.estimate(s) == estimate(p, s)


def test_stage_times_are_what_layers_and_passes_take() -> None:
    p = problem(model(layer(), layer()), cluster(2, 1))
    costing = Costing(p)
    s = strategy(tensors=(1, 1), cuts=(1, 1), micro_batches=8, recompute=(True, False))
    times = costing.stage_times(s)
    passes = costing.tables.speeds("a", 1).passes(0, 1, 1)
    assert times.forward[0] == pytest.approx(passes.forward_s + OURS.act_s)
    assert times.backward[1] > times.forward[1]
    assert passes.backward_s == pytest.approx(4e9 / 1e12)


def test_zero_bubble_halves_wait_less_than_1f1b() -> None:
    p = problem(model(*[layer(forward_flops=2e11, backward_flops=4e11) for _ in range(4)]), cluster(1, 4))
    plain = estimate(p, strategy(tensors=(1,) * 4, cuts=(1,) * 4, micro_batches=8))
    halves = estimate(p, strategy(tensors=(1,) * 4, cuts=(1,) * 4, micro_batches=8, schedule=PipelineSchedule.ZERO_BUBBLE))
    assert term(halves, "bubble") < 0.5 * term(plain, "bubble")


def test_a_device_that_is_not_there_is_an_error() -> None:
    for device in (7, -1):
        with pytest.raises(IndexError):
            estimate(problem(model(layer()), cluster(1, 1)), strategy(devices=(device,)))
