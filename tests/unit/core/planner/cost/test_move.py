"""What has to move from one plan to the next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.planner.cost.move import move
from orchestrator.core.planner.strategy import Parent, Strategy
from tests.unit.core.planner.cost.problems import cluster, layer, model, problem, strategy

P = problem(model(*[layer(cut_params=1_000_000)] * 4), cluster(4, 2))
E = 4_000_000


def parent(s: Strategy) -> Parent:
    return Parent(s, steps_left=100, move_bandwidth=1e9)


def test_the_same_plan_moves_nothing() -> None:
    s = strategy(data=2, tensors=(2, 2), cuts=(2, 2), micro_batches=8, zero=1, shard=2)
    assert move(P, parent(s), s).total_bytes == 0.0


def test_a_spare_receives_all_that_the_lost_rank_had() -> None:
    s = strategy(data=4, cuts=(4,), micro_batches=8, zero=1, shard=4)
    got = move(P, parent(replace(s, devices=(0, 1, 2, -1))), replace(s, devices=(0, 1, 2, 4)))
    assert got.total_bytes == pytest.approx(4 * E + 8 * E / 4)
    assert got.seconds == pytest.approx(got.total_bytes / 1e9)


def test_with_fewer_replicas_each_receives_only_what_its_shard_grows_by() -> None:
    old = strategy(data=4, cuts=(4,), micro_batches=8, zero=1, shard=4, devices=(0, 1, 2, -1))
    got = move(P, parent(old), strategy(data=3, cuts=(4,), micro_batches=8, zero=1, shard=3, devices=(0, 1, 2)))
    assert got.total_bytes == pytest.approx(3 * 8 * E * (1 / 3 - 1 / 4))
    assert got.seconds == pytest.approx(8 * E * (1 / 3 - 1 / 4) / 1e9)


def test_layers_that_go_to_another_stage_move() -> None:
    old = strategy(tensors=(1, 1), cuts=(2, 2), micro_batches=8)
    got = move(P, parent(old), strategy(tensors=(1, 1), cuts=(3, 1), micro_batches=8))
    assert got.total_bytes == pytest.approx((4 + 8) * E / 4)


def test_from_sharded_weights_to_whole_ones_the_rest_moves() -> None:
    old = strategy(data=2, cuts=(4,), micro_batches=8, zero=3, shard=2)
    got = move(P, parent(old), replace(old, zero=1))
    assert got.total_bytes == pytest.approx(2 * 4 * E / 2)


def test_another_tensor_degree_keeps_what_both_coordinates_share() -> None:
    old = strategy(tensors=(2,), cuts=(4,), micro_batches=8)
    got = move(P, parent(old), strategy(tensors=(4,), cuts=(4,), micro_batches=8))
    # coordinate 0 of 4 lies in 0 of 2 and coordinate 1 of 4 does not lie in 1 of 2; devices 2 and 3 had nothing
    assert got.total_bytes == pytest.approx(3 * (4 + 8) * E / 4)
