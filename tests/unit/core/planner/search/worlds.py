"""Small clusters, models and problems for the tests of the search; what matters is spelt out."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.graph.costs import LayerCost, ModelCosts
from orchestrator.core.planner.cost.programs import MEGATRON
from orchestrator.core.planner.strategy import Problem, Reliability, Space

GIB = 1 << 30
FAST = DeviceType("fast", "cuda", flops=2e12, bandwidth=1e11, memory_bytes=8 * GIB)
SLOW = DeviceType("slow", "cuda", flops=1e12, bandwidth=5e10, memory_bytes=8 * GIB)
INSIDE, NETWORK = Link(1e11, 1e-6), Link(1e10, 1e-5)
PROGRAM = replace(MEGATRON, rank_bytes=0, bucket_bytes=1 << 20)


def layer(name: str = "block", *, flops: float = 1e9, params: int = 1_000_000, kept: float = 1e7) -> LayerCost:
    """All of it cut by tensor parallelism."""
    return LayerCost(name, params, params, 0, flops, flops, 2 * flops, 2 * flops, 0.0, kept, kept, 0.0, 1e5, 1e5)


def model(*kinds: LayerCost, order: tuple[int, ...] = (), tensor_max: int = 4) -> ModelCosts:
    """Without an order each kind once."""
    return ModelCosts("model", kinds, order or tuple(range(len(kinds))), 1.0, tensor_max, splits=True)


def node(name: str, device: DeviceType = FAST, devices: int = 2, **changes: object) -> NodeResources:
    """In a rack without a name."""
    made = NodeResources(name, device.name, devices, "", INSIDE, NETWORK, 2 * NETWORK.bandwidth)
    return replace(made, **changes)  # type: ignore[arg-type]


def cluster(*nodes: NodeResources, memory: int = 8 * GIB) -> Resources:
    """Of fast and slow devices with so much memory."""
    return Resources("cluster", (replace(FAST, memory_bytes=memory), replace(SLOW, memory_bytes=memory)), nodes)


def problem(costs: ModelCosts, resources: Resources, *, batch: int = 8, **space: object) -> Problem:
    """Nothing fails, so that effective seconds are those of a step."""
    return Problem(costs, resources, PROGRAM, batch, Space(**space), Reliability(1.0, 1.0, 1.0, 10.0))  # type: ignore[arg-type]
