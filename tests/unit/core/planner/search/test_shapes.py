"""Meshes and shapes: all that belong to a small space, none that do not."""

from __future__ import annotations

from itertools import product

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.search.shapes import Mesh, Shape, meshes, shapes
from tests.unit.core.planner.search.worlds import FAST, SLOW, cluster, layer, model, node, problem


def test_every_factorisation_of_a_small_cluster_with_devices_left_idle_too() -> None:
    asked = problem(
        model(layer(), order=(0,) * 6), cluster(node("a", devices=4), node("b", devices=2)), batch=12, units=(1, 2, 5)
    )
    found = {(m.data, m.tensors, m.units, m.micro_batches) for m in meshes(asked)}
    wanted = {
        (d, (t,) * p, u, 12 // u)
        for d, t, p, u in product(range(1, 7), (1, 2, 4), range(1, 7), (1, 2))
        if d * t * p <= 6 and d <= 12 // u
    }
    assert found == wanted


def test_unhealthy_nodes_are_not_there() -> None:
    asked = problem(model(layer(), order=(0,) * 4), cluster(node("a"), node("b", healthy=False)))
    assert max(m.ranks for m in meshes(asked)) == 2


def test_a_space_that_names_values_has_no_others() -> None:
    asked = problem(
        model(layer(), order=(0,) * 4),
        cluster(node("a", devices=4), node("b", devices=4)),
        tensors=(2,),
        pipelines=(1, 2),
        datas=(2,),
        ranks_min=5,
    )
    assert list(meshes(asked)) == [Mesh(2, (2, 2), 1, 8)]


def test_a_whole_model_is_not_cut() -> None:
    costs = model(layer(), order=(0,) * 4, tensor_max=1)
    asked = problem(type(costs)(costs.name, costs.kinds, costs.order, 1.0, 1, splits=False), cluster(node("a", devices=4)))
    assert {m.tensors for m in meshes(asked)} == {(1,)}
    assert {s.zero for m in meshes(asked) for s in shapes(asked, m)} == {0, 1, 2}


def test_tensor_parallelism_stays_in_a_node_of_a_large_cluster() -> None:
    nodes = [node(f"n{k:02}", devices=2) for k in range(20)]
    asked = problem(model(layer(), order=(0,) * 4), cluster(*nodes))
    assert {m.tensors[0] for m in meshes(asked)} == {1, 2}


def test_shapes_of_one_mesh() -> None:
    asked = problem(model(layer(), order=(0,) * 4), cluster(node("a", devices=4), node("b", devices=4)), stages_per_rank_max=2)
    found = set(shapes(asked, Mesh(4, (1, 1), 1, 8)))
    schedules = [(s, 1) for s in (PipelineSchedule.ONE_F_ONE_B, PipelineSchedule.ZERO_BUBBLE)]
    schedules.append((PipelineSchedule.INTERLEAVED, 2))
    shards = [(0, 1), *((z, s) for z in (1, 2, 3) for s in (2, 4))]
    wanted = {
        Shape(Mesh(4, (1, 1), 1, 8), schedule, local, zero, shard, copies)
        for (schedule, local), (zero, shard), copies in product(schedules, shards, (0, 1))
        if not copies or shard == 4
    }
    assert found == wanted


def test_interleaved_only_where_micro_batches_are_a_multiple_of_the_pipeline() -> None:
    asked = problem(model(layer(), order=(0,) * 8), cluster(node("a", devices=4), node("b", devices=4)))
    for mesh in meshes(asked):
        for shape in shapes(asked, mesh):
            if shape.schedule is PipelineSchedule.INTERLEAVED:
                assert mesh.micro_batches % (mesh.data * len(mesh.tensors)) == 0


def test_one_replica_has_no_use_for_zero() -> None:
    asked = problem(model(layer(), order=(0,) * 2), cluster(node("a")))
    assert {(s.zero, s.shard) for s in shapes(asked, Mesh(1, (1, 1), 1, 8))} == {(0, 1)}


def test_unlike_degrees_only_on_request_and_each_on_one_type() -> None:
    resources = cluster(node("a", FAST, devices=2), node("b", SLOW, devices=4))
    costs = model(layer(), order=(0,) * 4)
    assert all(len(set(m.tensors)) == 1 for m in meshes(problem(costs, resources)))
    mixed = [m for m in meshes(problem(costs, resources, mixed_tensors=True)) if len(set(m.tensors)) > 1]
    assert Mesh(1, (2, 4), 1, 8) in mixed
    assert Mesh(2, (1, 2), 1, 8) in mixed
    assert all(m.data * sum(t for t in m.tensors if t == 4) <= 4 for m in mixed)
