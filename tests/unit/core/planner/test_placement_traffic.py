"""The bytes that a strategy sends, counted by hand."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.graph.costs import LayerCost, ModelCosts
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.placement_traffic import apart_of, placed, traffic_of
from orchestrator.core.planner.strategy import Problem, Program, Reliability, Space, Strategy

LAYER = LayerCost(
    name="block",
    params=1000,
    cut_params=800,
    buffers=0,
    forward_flops=1.0,
    cut_forward_flops=1.0,
    backward_flops=2.0,
    cut_backward_flops=2.0,
    moved_bytes=0.0,
    kept_bytes=0.0,
    cut_kept_bytes=0.0,
    work_bytes=0.0,
    boundary_bytes=10.0,
    reduced_bytes=20.0,
)
PROGRAM = Program(
    name="p",
    weight_bytes=4,
    gradient_bytes=4,
    optimizer_bytes=8,
    exchanged_bytes=4,
    gathered_bytes=2,
    overlap=0.0,
    act_s=0.0,
    call_s=0.0,
    step_s=0.0,
    update_bytes=0.0,
    rank_bytes=0,
    bucket_bytes=0,
    peer_reads=True,
    sums_kept=False,
    straight=False,
    scattered=True,
)


def problem(nodes: int = 2, devices: int = 2) -> Problem:
    machines = tuple(NodeResources(f"n{i}", "d", devices, "", Link(100.0, 0.0), Link(1.0, 0.0), 10.0) for i in range(nodes))
    return Problem(
        costs=ModelCosts("m", (LAYER,), (0,) * 4, 1.0, 4, True),
        resources=Resources("c", (DeviceType("d", "cpu", 1.0, 1.0, 1),), machines),
        program=PROGRAM,
        batch=8,
        space=Space(),
        reliability=Reliability(1.0, 1.0, 1.0, 1.0),
    )


def strategy(*, data: int = 1, pipeline: int = 1, tensor: int = 1, zero: int = 0, shard: int = 1, copies: int = 0) -> Strategy:
    """Four layers, four micro-batches of two units."""
    return Strategy(
        data=data,
        tensors=(tensor,) * pipeline,
        cuts=(4 // pipeline,) * pipeline,
        schedule=PipelineSchedule.ONE_F_ONE_B,
        units=2,
        micro_batches=4,
        zero=zero,
        shard=shard,
        copies=copies,
        recompute=(False,) * pipeline,
        devices=tuple(range(data * pipeline * tensor)),
    )


def bytes_of(s: Strategy) -> dict[tuple[int, int], float]:
    out: dict[tuple[int, int], float] = defaultdict(float)
    for a, b, volume in traffic_of(problem(), s).flows:
        out[min(a, b), max(a, b)] += volume
    return dict(out)


def test_a_rank_alone_sends_nothing() -> None:
    assert bytes_of(strategy()) == {}


def test_tensor_ranks_sum_activations_forward_and_backward_and_again_to_recompute() -> None:
    one_way = 4 * 20 * 2 * 4 * 2  # layers, bytes, units, micro-batches, passes
    assert bytes_of(strategy(tensor=2)) == {(0, 1): 2 * one_way * 2 * 1 / 2}
    again = replace(strategy(tensor=2), recompute=(True,))
    assert bytes_of(again) == {(0, 1): 2 * one_way * 3 / 2}
    ring = bytes_of(strategy(tensor=4))
    assert set(ring) == {(0, 1), (1, 2), (2, 3), (0, 3)}
    assert set(ring.values()) == {one_way * 2 * 3 / 4}


def test_stages_send_boundaries_forward_and_gradients_back_between_equal_coordinates() -> None:
    assert bytes_of(strategy(pipeline=2)) == {(0, 1): 10 * 2 * 4 * 2}
    wide = bytes_of(strategy(pipeline=2, tensor=2))
    assert (wide[0, 2], wide[1, 3]) == (160, 160)
    assert (0, 3) not in wide
    interleaved = replace(strategy(pipeline=2), cuts=(1, 1, 1, 1), recompute=(False,) * 4)
    assert bytes_of(interleaved) == {(0, 1): 3 * 160}


def test_unlike_tensor_degrees_meet_at_their_share() -> None:
    unlike = replace(strategy(pipeline=2, tensor=2), tensors=(2, 1), devices=(0, 1, 2))
    found = bytes_of(unlike)
    assert (found[0, 2], found[1, 2]) == (160, 160)


def test_replicas_exchange_their_gradients_and_weights() -> None:
    whole = 4 * 1000
    assert bytes_of(strategy(data=2)) == {(0, 1): 2 * (4 + 4) * whole / 2}
    assert bytes_of(strategy(data=2, zero=1, shard=2)) == {(0, 1): 2 * (4 + 2) * whole / 2}
    assert bytes_of(strategy(data=2, zero=2, shard=2)) == {(0, 1): 2 * (4 * 2 + 2) * whole / 2}, "two rounds"
    assert bytes_of(strategy(data=2, zero=3, shard=2)) == {(0, 1): 2 * (4 * 2 + 2 * 2 * 2) * whole / 2}
    cut = 4 * (200 + 800 / 2)
    assert bytes_of(strategy(data=2, tensor=2))[0, 2] == 2 * (4 + 4) * cut / 2


def test_a_rank_that_keeps_several_partial_sums_sends_them_all() -> None:
    """Six micro-batches over two replicas: neither half is a whole subtree, so each sends two."""
    p = problem()
    kept = replace(p, program=replace(PROGRAM, sums_kept=True, straight=True))
    s = replace(strategy(data=2, zero=1, shard=2), micro_batches=6)
    (one,), (two,) = traffic_of(p, s).flows, traffic_of(kept, s).flows
    assert two[2] - one[2] == 2 * 4 * 4000 / 2


def test_weights_are_gathered_inside_a_shard_group() -> None:
    found = bytes_of(strategy(data=4, zero=3, shard=2))
    gradients = 2 * 4 * 1 * 4000 / 4
    assert found[0, 2] == gradients
    assert found[0, 1] == gradients + 2 * 2 * 2 * 1 * 4000 / 2


def test_a_copy_is_fed_by_the_one_who_holds_the_original() -> None:
    copied = bytes_of(strategy(pipeline=2, copies=1))
    assert copied == {(0, 1): 160 + 2 * 4 * 2000}
    sharded, plain = strategy(data=2, zero=1, shard=2, copies=1), strategy(data=2, zero=1, shard=2)
    assert bytes_of(sharded)[0, 1] - bytes_of(plain)[0, 1] == 2 * 4 * 4000 / 2
    assert bytes_of(strategy(data=2, copies=1)) == bytes_of(strategy(data=2)), "a replica is a copy"


def test_each_part_of_the_state_wants_two_nodes() -> None:
    assert apart_of(strategy()) == ()
    assert apart_of(strategy(data=2)) == ((0, 1),)
    assert apart_of(strategy(data=4)) == ((0, 2),)
    assert apart_of(strategy(data=4, zero=1, shard=2)) == ((0, 2), (1, 3))
    assert apart_of(strategy(data=2, tensor=2)) == ((0, 2), (1, 3))
    assert apart_of(strategy(data=2, zero=1, shard=2)) == (), "nobody asked for copies"
    assert apart_of(strategy(data=4, zero=1, shard=4, copies=1)) == ((0, 2), (1, 3))
    assert apart_of(strategy(pipeline=2, tensor=2, copies=1)) == ((0, 2), (1, 3))


def test_tensor_ranks_share_a_node_and_replicas_do_not() -> None:
    s, p = strategy(data=2, tensor=2), problem()
    good = placed(p, replace(s, devices=(0, 2, 1, 3)))
    assert [p.resources.node_of[d] for d in good.devices] in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert replace(good, devices=s.devices) == s


def test_only_devices_of_the_strategy_are_placed_on() -> None:
    p = problem(nodes=3)
    assert sorted(placed(p, replace(strategy(pipeline=2, tensor=2), devices=(5, 2, 3, 4))).devices) == [2, 3, 4, 5]


def test_a_copy_goes_to_another_node_where_there_is_a_device() -> None:
    p = problem()
    alone = replace(strategy(pipeline=2, copies=1), devices=(0, 1))
    assert placed(p, alone).devices in ((0, 1), (1, 0)), "no other devices are given"
    spread = placed(p, alone, range(4))
    assert {p.resources.node_of[d] for d in spread.devices} == {0, 1}


def test_more_ranks_than_can_be_placed_have_no_graph() -> None:
    with pytest.raises(PlanError, match="at most 256 ranks"):
        traffic_of(problem(), strategy(data=512))
