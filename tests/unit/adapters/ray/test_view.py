"""What the tracker makes of Ray's rows: nodes appear, change, die and are never forgotten at once."""

from __future__ import annotations

from typing import Any

from orchestrator.adapters.ray.view import DEAD_NODES_MAX, ViewTracker, slot_request, slots_of
from orchestrator.core.job import DeviceKind


def row(node_id: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    """A row as `ray.nodes()` has it; Ray empties the resources of a dead node."""
    return {
        "NodeID": node_id,
        "NodeManagerAddress": f"10.0.0.{len(node_id)}",
        "Alive": alive,
        "Resources": resources if alive else {},
    }


def test_slots_are_our_own_then_gpus_then_cpus() -> None:
    assert slots_of({"orchestrator_slot": 2.0, "CPU": 8.0}) == (2, DeviceKind.CPU)
    assert slots_of({"GPU": 4.0, "CPU": 64.0}) == (4, DeviceKind.CUDA)
    assert slots_of({"CPU": 8.0}) == (8, DeviceKind.CPU)
    assert slots_of({"orchestrator_head": 1.0, "CPU": 8.0}) == (0, DeviceKind.CPU)


def test_a_worker_asks_for_one_unit_of_what_the_slots_were_counted_by() -> None:
    assert slot_request({"orchestrator_slot": 2.0, "GPU": 2.0}) == {"orchestrator_slot": 1.0}
    assert slot_request({"GPU": 4.0, "CPU": 64.0}) == {"GPU": 1.0}
    assert slot_request({"CPU": 8.0}) == {"CPU": 1.0}


def test_the_first_look_is_a_view_even_of_nothing() -> None:
    view = ViewTracker().look([])
    assert view is not None
    assert (view.generation, view.nodes) == (1, ())


def test_nodes_are_sorted_and_the_head_of_an_embedded_cluster_is_no_place_for_workers() -> None:
    view = ViewTracker().look(
        [row("b", orchestrator_slot=1, memory=5.0), row("head", orchestrator_head=1), row("a", orchestrator_slot=1)]
    )
    assert view is not None
    assert [n.node_id for n in view.nodes] == ["a", "b"]
    assert view.nodes[1].memory_bytes == 5


def test_the_same_look_again_is_no_news() -> None:
    tracker = ViewTracker()
    first = tracker.look([row("a", CPU=2), row("b", CPU=2)])
    assert tracker.look([row("b", CPU=2), row("a", CPU=2)]) is None
    assert tracker.view is first


def test_a_dead_node_keeps_its_slots_and_stays_in_view_after_ray_forgot_it() -> None:
    tracker = ViewTracker(after_generation=7)
    tracker.look([row("a", CPU=2), row("b", CPU=3)])
    died = tracker.look([row("a", CPU=2), row("b", alive=False)])
    assert died is not None
    assert died.generation == 9
    node = died.node("b")
    assert node is not None
    assert (node.healthy, node.slots) == (False, 3)
    assert tracker.look([row("a", CPU=2)]) is None
    assert [n.node_id for n in died.healthy()] == ["a"]


def test_a_node_that_was_never_seen_alive_is_not_shown() -> None:
    view = ViewTracker().look([row("a", CPU=2), row("old", alive=False)])
    assert view is not None
    assert [n.node_id for n in view.nodes] == ["a"]


def test_dead_nodes_are_bounded() -> None:
    tracker = ViewTracker()
    names = [f"n{i:03}" for i in range(DEAD_NODES_MAX + 10)]
    tracker.look([row(n, CPU=1) for n in names])
    view = tracker.look([row("alive", CPU=1)])
    assert view is not None
    assert len(view.nodes) == DEAD_NODES_MAX + 1
    assert view.node("alive") is not None


def test_the_id_of_a_node_that_shares_a_machine_names_it_also_when_the_node_is_dead() -> None:
    tracker = ViewTracker()
    pod = row("ab", CPU=1.0) | {"Labels": {"orchestrator.dev/machine": "node-7"}}
    first = tracker.look([pod, row("c", CPU=1.0) | {"Labels": {}}])
    assert first is not None
    assert [n.node_id for n in first.nodes] == ["ab@node-7", "c"]
    second = tracker.look([row("ab", alive=False), row("c", CPU=1.0)])
    assert second is not None
    assert {n.node_id: n.healthy for n in second.nodes} == {"ab@node-7": False, "c": True}
