"""What fails as one: nodes, or the machines that they share."""

from __future__ import annotations

import pytest

from orchestrator.core.cluster.machines import elsewhere, homes, machine_of
from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources


def test_a_node_names_the_machine_that_it_shares_and_is_one_otherwise() -> None:
    assert [machine_of(n) for n in ("3f2a@node-7", "3f2a", "a@b@c")] == ["node-7", "3f2a", "c"]


@pytest.mark.parametrize(
    ("nodes", "apart"),
    [
        (["a@x", "b@x", "c@y"], ["x", "x", "y"]),
        (["a@x", "b@x"], ["a@x", "b@x"]),
        (["a", "b", "a"], ["a", "b", "a"]),
        (["a", "b@x", "c@x"], ["a", "x", "x"]),
        ([], []),
    ],
)
def test_nodes_of_one_machine_fail_as_one_while_there_is_another(nodes: list[str], apart: list[str]) -> None:
    assert homes(nodes) == apart


@pytest.mark.parametrize(
    ("here", "others", "found"),
    [
        (["a"], ["a", "b", "c"], {"b", "c"}),
        (["a", "b"], ["c"], set()),  # apart already
        (["a"], ["a"], set()),
        (["a@x"], ["b@x", "c@y"], {"c@y"}),  # a machine is better than a node
        (["a@x"], ["b@x"], {"b@x"}),
        (["a@x", "b@x"], ["c@x"], set()),
        (["a@x", "b@x"], ["c@x", "d@y"], {"d@y"}),
        (["a@x", "c@y"], ["d@z"], set()),
        ([], ["a"], set()),
    ],
)
def test_what_outlives_the_loss_of_all_of_them(here: list[str], others: list[str], found: set[str]) -> None:
    assert elsewhere(here, others) == found


def test_resources_know_which_nodes_share_a_machine() -> None:
    link = Link(1e9, 1e-5)
    nodes = tuple(NodeResources(n, "d", 1, "", link, link, 1e9) for n in ("a@x", "b@y", "c@x", "d"))
    assert Resources("r", (DeviceType("d", "cpu", 1.0, 1.0, 1),), nodes).machines == (0, 1, 0, 3)
