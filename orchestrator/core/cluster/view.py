"""The unified resource view: what there is to compute on, and whether it is healthy.

The planner and the supervisor see the cluster only through this frozen value. An adapter watches the real thing (Ray today)
and makes a new view, with a higher generation, whenever something changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.job import DeviceKind


@dataclass(frozen=True, slots=True)
class NodeView:
    """One machine. `slots` is how many workers fit: one per device, or per CPU slot where there is no accelerator."""

    node_id: str
    address: str  # the address that workers of other nodes reach it at
    device: DeviceKind
    slots: int
    memory_bytes: int
    healthy: bool
    schedulable: bool = True  # false while it is drained


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All machines, sorted by node_id."""

    generation: int
    nodes: tuple[NodeView, ...]

    def node(self, node_id: str) -> NodeView | None:
        """The node of that id, or None."""
        return next((n for n in self.nodes if n.node_id == node_id), None)

    def healthy(self) -> tuple[NodeView, ...]:
        """Nodes that can be given work."""
        return tuple(n for n in self.nodes if n.healthy and n.schedulable)
