"""Meshes on devices: what is folded is what one finds group by group."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from orchestrator.core.planner.cost.collectives import Network
from orchestrator.core.planner.cost.mesh import Meshes
from tests.unit.core.planner.cost.problems import cluster, random_problem, random_strategy, strategy


@pytest.mark.parametrize("seed", range(30))
def test_rings_are_those_of_all_groups_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    p = random_problem(rng)
    s = random_strategy(rng, p)
    if rng.random() < 0.5:
        s = replace(s, devices=tuple(sorted(s.devices)))
    straight = rng.random() < 0.5
    mesh, network = Meshes(p.resources, straight=straight).of(s), Network(p.resources, straight=straight)
    t, node_of = s.tensor, p.resources.node_of

    def node(pipe: int, replica: int, coordinate: int) -> int:
        return node_of[s.devices[s.rank_at(pipe, replica, coordinate)]]

    pipes, replicas, coordinates = range(s.pipeline), range(s.data), range(t)
    if s.data > 1:
        groups = [[([node(p, r, c) for r in replicas], 1) for c in coordinates] for p in pipes]
        assert list(mesh.datas) == network.rings(groups)
    if t > 1:
        groups = [[([node(p, r, c) for c in coordinates], 1) for r in replicas] for p in pipes]
        assert list(mesh.tensors) == network.rings(groups)
    if s.pipeline > 1:
        last = s.pipeline if s.stages_per_rank > 1 else s.pipeline - 1
        pairs = [
            [(node(p, r, c), node((p + 1) % s.pipeline, r, c)) for r in replicas for c in coordinates] if p < last else []
            for p in pipes
        ]
        assert list(mesh.boundaries) == network.links([(column, 1) for column in pairs])
    holders = Meshes(p.resources, straight=straight).holders(s)
    spread = [
        [len({node(p, r, c) for r in replicas if r % s.shard == part}) for part in range(s.shard) for c in coordinates]
        for p in pipes
    ]
    assert holders.nodes == min(min(mine) for mine in spread)
    assert holders.lonely == tuple(min(mine) == 1 for mine in spread)


def test_replicas_on_equal_devices_are_one_row() -> None:
    resources = cluster(4, 2)
    slow = replace(resources, nodes=(*resources.nodes[:3], replace(resources.nodes[3], pace=2.0)))
    mesh = Meshes(slow, straight=True).of(strategy(data=4, tensors=(2,), micro_batches=8))
    assert mesh.replicas == ((0, 1, 2), (3,))
    assert mesh.places == (((("a", 1.0),),), ((("a", 2.0),),))
    assert mesh.failures_per_s == pytest.approx(4 * 0.01 / 3600)
    assert mesh.bandwidths == (0.5e10,)


def test_a_tensor_group_over_unlike_devices_has_a_place_with_both() -> None:
    resources = cluster(2, 1)
    slow = replace(resources, nodes=(resources.nodes[0], replace(resources.nodes[1], pace=2.0)))
    mesh = Meshes(slow, straight=True).of(strategy(tensors=(2,)))
    assert mesh.places == (((("a", 1.0), ("a", 2.0)),),)
    assert mesh.crowding == 1.0


def test_shards_in_groups_gather_inside_them() -> None:
    meshes, s = Meshes(cluster(2, 2, network=1e6), straight=True), strategy(data=4, zero=1, shard=2, micro_batches=8)
    assert meshes.holders(s).gathers[0].bandwidth == 1e10  # replicas 0 and 1 sit on one node
    assert meshes.of(s).datas[0].bandwidth == 1e6 / 2
    assert meshes.holders(s).nodes == 2  # replicas 0 and 2 hold the same, on two nodes


@pytest.mark.parametrize("seed", range(20))
def test_nodes_of_one_machine_hold_as_one_unless_it_is_the_only_one(seed: int) -> None:
    rng = random.Random(seed)
    p = random_problem(rng)
    s = random_strategy(rng, p)
    named = [replace(n, node_id=f"{n.node_id}@m{rng.randrange(2)}") for n in p.resources.nodes]
    shared = replace(p.resources, nodes=tuple(named))
    machine = [named[n].node_id.rpartition("@")[2] for n in shared.node_of]
    alone = len({machine[d] for d in s.devices}) == 1
    home = [str(n) for n in shared.node_of] if alone else machine
    meshes = Meshes(shared, straight=True)
    spread = [
        len({home[s.devices[s.rank_at(p, r, c)]] for r in range(part, s.data, s.shard)})
        for p in range(s.pipeline)
        for part in range(s.shard)
        for c in range(s.tensors[p])
    ]
    assert meshes.holders(s).nodes == min(spread)
    most = max(Counter(home[d] for d in s.devices).values())
    assert meshes.of(s).crowding == (most / (s.ranks - most) if most < s.ranks else float("inf"))
    columns = [
        {home[s.devices[s.rank_at(p, r, c)]] for r in range(s.data)} for p in range(s.pipeline) for c in range(s.tensors[p])
    ]
    assert meshes.of(s).spans == any(len(column) > 1 for column in columns)
