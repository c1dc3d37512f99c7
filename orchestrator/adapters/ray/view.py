"""The cluster as Ray's GCS describes it, made into a ClusterView.

Ray forgets what a dead node had, so the watcher remembers it; and while the GCS is away the last view stays, because silence
of the GCS says nothing about any node. A view gets a higher generation only when something in it changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from orchestrator.adapters.ray.settings import HEAD_RESOURCE, MACHINE_LABEL, SLOT_RESOURCE
from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import DeviceKind

DEAD_NODES_MAX: Final = 64  # dead nodes are shown, but not for ever


def node_view(node: Mapping[str, Any]) -> NodeView | None:
    """One row of `ray.nodes()`; None for a node that holds no worker (the head of an embedded cluster) or is gone for good."""
    resources: Mapping[str, float] = node["Resources"]
    slots, device = slots_of(resources)
    if slots == 0:
        return None
    return NodeView(
        node_id=node_id(node),
        address=node["NodeManagerAddress"],
        device=device,
        slots=slots,
        memory_bytes=int(resources.get("memory", 0)),
        healthy=bool(node["Alive"]),
    )


def node_id(node: Mapping[str, Any]) -> str:
    """Ray's id, and for a node that shares a machine also which: core.plan.plan.homes reads it."""
    machine = (node.get("Labels") or {}).get(MACHINE_LABEL, "")
    return f"{node['NodeID']}@{machine}" if machine else str(node["NodeID"])


def slots_of(resources: Mapping[str, float]) -> tuple[int, DeviceKind]:
    """How many workers fit on a node with these resources, and on what: our own slots, else GPUs, else CPUs."""
    gpus = int(resources.get("GPU", 0))
    device = DeviceKind.CUDA if gpus else DeviceKind.CPU
    if SLOT_RESOURCE in resources:
        return int(resources[SLOT_RESOURCE]), device
    if HEAD_RESOURCE in resources:
        return 0, device
    return (gpus, device) if gpus else (int(resources.get("CPU", 0)), device)


def slot_request(resources: Mapping[str, float]) -> dict[str, float]:
    """What a worker asks for to get one slot of a node with these resources."""
    if SLOT_RESOURCE in resources:
        return {SLOT_RESOURCE: 1.0}
    return {"GPU": 1.0} if int(resources.get("GPU", 0)) else {"CPU": 1.0}


class ViewTracker:
    """Makes the next view out of each look at the cluster."""

    def __init__(self, *, after_generation: int = 0) -> None:
        self._view = ClusterView(generation=after_generation, nodes=())
        self._seen = False

    @property
    def view(self) -> ClusterView:
        """The newest one; without nodes and with the generation it started from before the first look."""
        return self._view

    def look(self, rows: Sequence[Mapping[str, Any]]) -> ClusterView | None:
        """Take what `ray.nodes()` returned; the new view, or None when nothing changed."""
        nodes = {n.node_id: n for row in rows if (n := node_view(row)) is not None}
        for known in self._view.nodes:  # Ray empties a dead node's resources, and forgets it after a while
            if known.node_id not in nodes:
                nodes[known.node_id] = replace(known, healthy=False)
        healthy = [n for n in nodes.values() if n.healthy]
        dead = [n for n in nodes.values() if not n.healthy][-DEAD_NODES_MAX:]
        ordered = tuple(sorted((*healthy, *dead), key=lambda n: n.node_id))
        if self._seen and ordered == self._view.nodes:
            return None
        self._seen = True
        self._view = ClusterView(generation=self._view.generation + 1, nodes=ordered)
        return self._view
