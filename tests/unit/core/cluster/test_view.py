"""Which machines of a view can be given work."""

from __future__ import annotations

from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import DeviceKind


def node(name: str, *, healthy: bool = True, schedulable: bool = True) -> NodeView:
    """A node with one slot."""
    return NodeView(name, "127.0.0.1", DeviceKind.CPU, 1, 1 << 30, healthy, schedulable)


def test_only_healthy_nodes_that_take_work_count() -> None:
    view = ClusterView(1, (node("a"), node("b", healthy=False), node("c", schedulable=False), node("d")))
    assert [n.node_id for n in view.healthy()] == ["a", "d"]


def test_a_node_is_found_by_its_id() -> None:
    view = ClusterView(1, (node("a"), node("b")))
    assert view.node("b") == view.nodes[1]
    assert view.node("c") is None
