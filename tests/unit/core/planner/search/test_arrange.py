"""Arrangements use each device once; assignments are all that differ, found by another way of counting."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations

import pytest

from orchestrator.core.cluster.resources import Resources
from orchestrator.core.planner.search.arrange import Ground
from orchestrator.core.planner.search.shapes import Mesh
from tests.unit.core.planner.search.worlds import FAST, SLOW, cluster, node


@pytest.mark.parametrize("mesh", [Mesh(2, (2, 2), 1, 8), Mesh(4, (1, 1), 1, 8), Mesh(1, (4, 4), 1, 8), Mesh(3, (2,), 1, 9)])
def test_a_canonical_arrangement_uses_no_device_twice_and_keeps_tensor_groups_in_nodes(mesh: Mesh) -> None:
    resources = cluster(node("a", FAST, 4), node("b", SLOW, 4), node("dead", FAST, 4, healthy=False))
    found = Ground(resources).arrangements(mesh)
    assert found
    for devices in found:
        assert len(set(devices)) == len(devices) == mesh.ranks
        assert max(devices) < 8
        t = mesh.tensors[0]
        assert all(len({resources.node_of[d] for d in devices[k : k + t]}) == 1 for k in range(0, len(devices), t))


def test_data_inside_the_pipeline_and_the_pipeline_inside_the_data_axis() -> None:
    resources = cluster(node("a", devices=4), node("b", devices=4))
    found = Ground(resources).arrangements(Mesh(4, (1, 1), 1, 8))
    assert (0, 1, 2, 3, 4, 5, 6, 7) in found
    assert (0, 2, 4, 6, 1, 3, 5, 7) in found


def test_slow_devices_are_left_idle() -> None:
    resources = cluster(node("a", SLOW, 2), node("b", FAST, 2), node("c", FAST, 2, pace=3.0))
    for devices in Ground(resources).arrangements(Mesh(2, (1,), 1, 8))[:1]:
        assert devices == (2, 3)


def test_unlike_degrees_have_blocks_of_their_own() -> None:
    resources = cluster(node("a", FAST, 2), node("b", SLOW, 4))
    found = Ground(resources).arrangements(Mesh(1, (2, 4), 1, 8))
    assert (0, 1, 2, 3, 4, 5) in found


@pytest.mark.parametrize("seed", range(20))
def test_all_assignments_up_to_interchangeable_devices_nodes_and_replicas(seed: int) -> None:
    rng = random.Random(seed)
    nodes = [node(f"n{k}", rng.choice([FAST, FAST, SLOW]), rng.randint(1, 2), pace=rng.choice([1.0, 1.0, 2.0])) for k in range(3)]
    resources = cluster(*nodes)
    mesh = rng.choice([m for m in (Mesh(2, (1, 1), 1, 8), Mesh(3, (1,), 1, 9), Mesh(1, (2,), 1, 8)) if m.ranks <= resources.size])
    found = Ground(resources).assignments(mesh, alike=True)
    assert found is not None
    seen = [_class(resources, mesh, devices) for devices in found]
    everything = {_class(resources, mesh, devices) for devices in permutations(range(resources.size), mesh.ranks)}
    assert set(seen) == everything, f"seed {seed}: one is missing"
    assert len(seen) <= 1.25 * len(everything), f"seed {seed}: too many that are the same"


def _class(resources: Resources, mesh: Mesh, devices: tuple[int, ...]) -> object:
    """The least word over all names of alike nodes and all orders of replicas; blocks are sets."""
    alike = [replace(n, node_id="") for n in resources.nodes]
    words = []
    for renamed in permutations(range(len(alike))):
        if [alike[k] for k in renamed] == alike:
            blocks, at = [], 0
            for t in mesh.tensors:
                ends = range(at, at + t * mesh.data, t)
                blocks.append([tuple(sorted(renamed[resources.node_of[d]] for d in devices[k : k + t])) for k in ends])
                at += t * mesh.data
            words.append(sorted(zip(*blocks, strict=True)))
    return tuple(min(words))


def test_too_many_assignments_are_not_listed() -> None:
    resources = cluster(*(node(f"n{k}", devices=1, pace=1 + k / 10) for k in range(9)))
    assert Ground(resources).assignments(Mesh(1, (1,) * 9, 1, 8), alike=True) is None


def test_what_would_have_room_on_one_machine_is_also_put_on_two() -> None:
    pods = cluster(*(node(name, devices=1) for name in ("a@x", "b@x", "c@y", "d@y")))
    assert {pods.machines[n] for devices in Ground(pods).arrangements(Mesh(2, (1,), 1, 8)) for n in devices} == {0, 2}


def test_what_would_have_room_on_one_node_of_the_only_machine_is_also_put_on_two() -> None:
    pods = cluster(node("a@x", devices=2), node("b@x", devices=2))
    assert (0, 2) in Ground(pods).arrangements(Mesh(2, (1,), 1, 8))


def test_nodes_of_one_machine_are_side_by_side_and_like_no_others() -> None:
    pods = cluster(*(node(name, devices=1) for name in ("a@x", "b@y", "c@x", "d@y", "e")))
    ground = Ground(pods)
    assert (0, 2, 1, 3) in [devices[:4] for devices in ground.arrangements(Mesh(4, (1,), 1, 8))]
    assert ground.kinds[0] == ground.kinds[2] != ground.kinds[1] == ground.kinds[3]
    found = ground.assignments(Mesh(2, (1,), 1, 8), alike=True)
    assert found is not None
    assert {(0, 2), (1, 3), (0, 1)} <= {tuple(sorted(devices)) for devices in found}
