"""A cluster in words: what it consists of, where some devices are, how fast its links are at each level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.apps.units import plural, rate, seconds
from orchestrator.core.cluster.resources import Link, NodeResources, Resources

NODES_NAMED_MAX = 3  # in a line of words


def devices_words(resources: Resources, devices: Sequence[int]) -> str:
    """Where devices are: `n1 (8 x a100), n2 (8 x a100)`; many nodes are counted."""
    per_node: dict[int, int] = {}
    for device in devices:
        node = resources.node_of[device]
        per_node[node] = per_node.get(node, 0) + 1
    if len(per_node) <= NODES_NAMED_MAX:
        named = [(resources.nodes[n], used) for n, used in per_node.items()]
        return ", ".join(f"{node.node_id} ({used} x {node.device})" for node, used in named)
    kinds: dict[str, int] = {}
    for n, used in per_node.items():
        kinds[resources.nodes[n].device] = kinds.get(resources.nodes[n].device, 0) + used
    first, last = (resources.nodes[n].node_id for n in (min(per_node), max(per_node)))
    what = ", ".join(f"{used} x {kind}" for kind, used in kinds.items())
    return f"{plural(len(per_node), 'node')} {first} .. {last} ({what})"


def cluster_words(resources: Resources) -> str:
    """A cluster in one line: its name, devices by type, nodes, racks and what is not healthy."""
    counted: dict[str, int] = {}
    for node in resources.nodes:
        counted[node.device] = counted.get(node.device, 0) + node.devices
    racks = {n.rack for n in resources.nodes}
    words = f"{resources.name}: " + ", ".join(f"{n:,} x {kind}" for kind, n in counted.items())
    words += f" in {plural(len(resources.nodes), 'node')}" + (f", {plural(len(racks), 'rack')}" if len(racks) > 1 else "")
    bad = [n for n in resources.nodes if not n.healthy]
    slow = [n for n in resources.nodes if n.healthy and n.pace > 1.0]
    if slow:
        words += f"; slow: {_named(slow)}"
    return words + (f"; not healthy: {_named(bad)}" if bad else "")


def levels(resources: Resources) -> tuple[tuple[str, str], ...]:
    """The links by level, (level, bandwidth and latency); where nodes differ, the range."""
    nodes = resources.nodes
    rows = []
    if any(n.devices > 1 for n in nodes):
        rows.append(("inside a node", _link(n.inside for n in nodes if n.devices > 1)))
    if len(nodes) > 1:
        shared = [n.network_total for n in nodes]
        told = f", {_range(min(shared), max(shared))} for a whole node" if any(n.devices > 1 for n in nodes) else ""
        rows.append(("between nodes", _link(n.network for n in nodes) + told))
    if resources.uplink is not None:
        whole = f", {rate(resources.uplink_total)} for a whole rack" if resources.uplink_total else ""
        rows.append(("between racks", _link([resources.uplink]) + whole))
    return tuple(rows)


def _named(nodes: Sequence[NodeResources]) -> str:
    told = ", ".join(n.node_id + (f" ({n.pace:.3g} x as long)" if n.pace > 1.0 else "") for n in nodes[:NODES_NAMED_MAX])
    return told + (f" and {len(nodes) - NODES_NAMED_MAX} more" if len(nodes) > NODES_NAMED_MAX else "")


def _link(links: Iterable[Link]) -> str:
    every = list(links)
    speeds = [link.bandwidth for link in every]
    return f"{_range(min(speeds), max(speeds))}, {seconds(max(link.latency_s for link in every))}"


def _range(low: float, high: float) -> str:
    return rate(low) if low == high else f"{rate(low)} to {rate(high)}"
