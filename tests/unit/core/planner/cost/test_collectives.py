"""Collectives: the formulas against hand results, and what groups of devices share of a cluster's links."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from orchestrator.core.cluster.resources import Link
from orchestrator.core.planner.cost.collectives import (
    ALONE,
    Network,
    Ring,
    all_gather,
    all_reduce,
    layer_by_layer,
    reduce_scatter,
    send,
)
from tests.unit.core.planner.cost.problems import cluster

RING = Ring(4, latency_s=1e-3, bandwidth=1e6)


def test_formulas_give_what_is_worked_out_by_hand() -> None:
    # 4 MB over 4 ranks at 1 MB/s: three quarters of it pass each link in 3 steps of 1 ms
    assert all_gather(RING, 4e6) == pytest.approx(3e-3 + 3.0)
    assert reduce_scatter(RING, 4e6) == pytest.approx(3e-3 + 3.0)
    assert all_reduce(RING, 4e6) == pytest.approx(6e-3 + 6.0)
    assert all_reduce(RING, 4e6, 10) == pytest.approx(60e-3 + 6.0)
    assert all_reduce(RING, 4.0) == pytest.approx(4 * (1e-3 + 4e-6))  # small ones go up and down a tree of two levels
    assert send(RING, 1e6) == pytest.approx(1.001)


def test_a_layer_is_sent_by_its_few_owners() -> None:
    # three layers of 1 MB over 4 ranks: a layer has one owner and a third; in ten layers each has one, that sends it to 3 others
    assert layer_by_layer(RING, 3e6, 3) == pytest.approx(9e-3 + 3 * 0.75 * 3)
    assert layer_by_layer(RING, 1e7, 10) == pytest.approx(30e-3 + 3 * 10)
    assert layer_by_layer(RING, 1e7, 1) == pytest.approx(all_gather(RING, 1e7))


def test_one_alone_waits_for_nobody() -> None:
    assert [f(ALONE, 1e9) for f in (all_gather, reduce_scatter, all_reduce, send)] == [0.0] * 4


def test_more_ranks_or_bytes_or_a_slower_link_never_take_less() -> None:
    for of in (all_gather, reduce_scatter, all_reduce):
        for numbytes in (1.0, 1e3, 1e6, 1e9):
            times = [of(replace(RING, size=n), numbytes) for n in range(1, 40)]
            assert all(a <= b for a, b in pairwise(times)), of
            assert of(RING, numbytes) <= of(RING, 2 * numbytes)
            assert of(RING, numbytes) <= of(replace(RING, bandwidth=5e5), numbytes)
            assert of(RING, numbytes) <= of(replace(RING, latency_s=2e-3), numbytes)


def ring(network: Network, *groups: tuple[int, ...]) -> Ring:
    """That of one column of groups."""
    return network.rings([[(group, 1) for group in groups]])[0]


def test_a_group_inside_a_node_never_sees_the_network() -> None:
    network = Network(cluster(2, 4, network=1e6), straight=False)
    assert ring(network, (0, 0, 0, 0), (1, 1, 1, 1)) == Ring(4, 1e-6, 1e10)


def test_groups_that_leave_a_node_at_once_share_its_network() -> None:
    network = Network(cluster(2, 4, network=1e9), straight=False)  # all devices of a node together reach what one does
    assert ring(network, (0, 1)).bandwidth == 1e9
    assert ring(network, (0, 1), (0, 1), (0, 1), (0, 1)).bandwidth == 1e9 / 4
    assert network.rings([[((0, 1), 4)]]) == [ring(network, (0, 1), (0, 1), (0, 1), (0, 1))]
    assert [r.bandwidth for r in network.rings([[((0, 1), 1)], [((0, 1), 1)]])] == [1e9 / 2, 1e9 / 2]


def test_rings_use_the_adapters_of_all_members_where_ranks_that_send_straight_need_them_all() -> None:
    resources, group = cluster(2, 4, network=1e9), (0, 0, 0, 0, 1, 1, 1, 1)
    wide = replace(resources, nodes=tuple(replace(n, network_total=4e9) for n in resources.nodes))
    assert ring(Network(wide, straight=False), group).bandwidth == 4e9
    assert ring(Network(wide, straight=True), group).bandwidth == 1e9
    assert ring(Network(resources, straight=True), group).bandwidth == 1e9 / 4


def test_the_slowest_link_of_a_group_decides() -> None:
    resources = cluster(3, 1, network=1e9)
    slow = replace(resources.nodes[2], network=Link(1e8, 1e-3), network_total=1e8)
    network = Network(replace(resources, nodes=(*resources.nodes[:2], slow)), straight=False)
    assert ring(network, (0, 1)) == Ring(2, 1e-5, 1e9)
    assert ring(network, (0, 1, 2)) == Ring(3, 1e-3, 1e8)
    assert ring(network, (0, 1), (1, 2)).bandwidth == 1e8


def test_groups_that_leave_a_rack_share_its_uplink() -> None:
    resources = cluster(4, 1, network=1e9)
    nodes = tuple(replace(n, rack="xxyy"[k]) for k, n in enumerate(resources.nodes))
    racks = replace(resources, nodes=nodes, uplink=Link(5e8, 1e-4), uplink_total=6e8)
    network = Network(racks, straight=False)
    assert ring(network, (0, 1)) == Ring(2, 1e-5, 1e9)
    assert ring(network, (0, 2)) == Ring(2, 1e-4, 5e8)
    assert ring(network, (0, 2), (1, 3)) == Ring(2, 1e-4, 3e8)


def test_sending_and_receiving_do_not_disturb_each_other() -> None:
    network = Network(cluster(3, 2, network=1e9), straight=False)
    assert [r.bandwidth for r in network.links([([(0, 1)], 1), ([(1, 0)], 1)])] == [1e9, 1e9]
    assert network.links([([(0, 1), (0, 2)], 1)])[0].bandwidth == 1e9 / 2
    assert network.links([([(0, 2), (1, 2)], 1)])[0].bandwidth == 1e9 / 2
    assert network.links([([(0, 2)], 4)])[0].bandwidth == 1e9 / 4
    assert network.links([([(0, 0)], 1), ([], 1)]) == [Ring(2, 1e-6, 1e10), Ring(1, 0.0, float("inf"))]
