"""What workers measured of their devices and links, made into Resources: the cluster as it is, unlike and ailing nodes included.

Devices of one kind and model are one type, whose rates are those of its better half; a node that falls behind them gets a pace.
A node's network is what the better half of its links reach, so that one slow peer does not make it slow. What was not measured
gets the median of what was. A worker's measurement travels and is journaled as it is here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.cluster.view import ClusterView

SLOWER: Final = 1.25  # times below its type's rate: a node is slow, not only measured at a bad moment
FAR: Final = 2.0  # times below the usual link: machines are not in one rack
# Kokolis et al., "Revisiting Reliability in Large-Scale Machine Learning Research Clusters", arXiv 2410.21680, section 3: 6.5
# failures in 1000 node-days. What is counted here is added to one such failure and its time.
PRIOR_HOURS: Final = 24 * 1000 / 6.5
UNMEASURED: Final = Link(bandwidth=100e6, latency_s=1e-3)  # no link at all could be measured: a plan that hardly talks is safe
_NOTHING: Final[Mapping[str, float]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DeviceMeasure:
    """What one worker's device does; as in DeviceType."""

    kind: str
    model: str  # "NVIDIA H100 80GB HBM3", or the processor's name
    flops: float
    bandwidth: float
    memory_bytes: int
    half_flops: float


@dataclass(frozen=True, slots=True)
class LinkMeasure:
    """What a meeting measured. `problem` says why it measured nothing; the numbers are 0 then."""

    senders: tuple[str, ...]  # worker ids
    receivers: tuple[str, ...]
    bandwidth: float  # bytes/s of all senders together
    latency_s: float
    problem: str = ""


@dataclass(frozen=True, slots=True)
class WorkerMeasure:
    """All that one worker measured: its device, and the links of the meetings that it led."""

    device: DeviceMeasure
    links: tuple[LinkMeasure, ...] = ()


def type_name(kind: str, model: str) -> str:
    """DeviceType.name of a measured device; Timings measured on it are under this name."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-") or kind


def resources_from(
    view: ClusterView,
    workers: Sequence[tuple[str, str]],
    measured: Mapping[str, WorkerMeasure],
    *,
    pace: Mapping[str, float] = _NOTHING,
    failures_per_hour: Mapping[str, float] = _NOTHING,
    name: str = "measured",
) -> Resources:
    """The nodes that have a worker, one device per worker, devices of a node in the order of `workers`; nodes by node_id.

    `workers`: (worker_id, node_id). `pace`: by worker_id, how many times slower it trained than its device was measured to be.
    `failures_per_hour`: by node_id, see `failure_rates`. A node is healthy when the view says so and it may be given work.

    Raises ValueError when no worker was measured.
    """
    if not any(worker in measured for worker, _ in workers):
        raise ValueError("no worker has measured its device")
    by_node: dict[str, list[str]] = {}
    for worker, node_id in workers:
        by_node.setdefault(node_id, []).append(worker)
    usable = {n.node_id for n in view.healthy()}
    types, type_of, slow = _types({n: [measured[w].device for w in ws if w in measured] for n, ws in by_node.items()})
    links = _Links(dict(workers), [link for w, _ in workers if w in measured for link in measured[w].links])
    return Resources(
        name=name,
        types=types,
        nodes=tuple(
            NodeResources(
                node_id=node_id,
                device=type_of[node_id],
                devices=len(by_node[node_id]),
                rack=links.rack_of[node_id],
                inside=links.inside(node_id),
                network=links.network(node_id),
                network_total=links.total(node_id),
                pace=slow[node_id] * max(pace.get(w, 1.0) for w in by_node[node_id]),
                failures_per_hour=failures_per_hour.get(node_id, 0.0),
                healthy=node_id in usable,
            )
            for node_id in sorted(by_node)
        ),
        uplink=links.uplink,
    )


def failure_rates(kinds: Mapping[str, str], *, losses: Mapping[str, int], hours: Mapping[str, float]) -> dict[str, float]:
    """Failures per hour of each node: those of all nodes of its kind, counted, over the hours that these were watched.

    `kinds`, `losses` and `hours` are by node_id. One failure in PRIOR_HOURS is added (the mean under a Gamma prior), so that a
    short quiet time is not taken for a promise.
    """
    out = {}
    for kind in dict.fromkeys(kinds.values()):
        nodes = [n for n, k in kinds.items() if k == kind]
        rate = (1.0 + sum(losses.get(n, 0) for n in nodes)) / (PRIOR_HOURS + sum(hours.get(n, 0.0) for n in nodes))
        out.update(dict.fromkeys(nodes, rate))
    return out


# ----------------------------------------------------------------------------------------------------------------- devices


def _types(devices: Mapping[str, Sequence[DeviceMeasure]]) -> tuple[tuple[DeviceType, ...], dict[str, str], dict[str, float]]:
    """The types, and of each node its type and how many times slower than it the node is."""
    type_of = {node: type_name(found[0].kind, found[0].model) for node, found in devices.items() if found}
    names = sorted(type_of.values())
    types, slow = [], dict.fromkeys(devices, 1.0)
    for name in dict.fromkeys(names):
        nodes = [n for n, t in type_of.items() if t == name]
        rates = {n: _median(d.flops for d in devices[n]) for n in nodes}
        flops = _better(rates.values())
        fit = [n for n in nodes if rates[n] * SLOWER >= flops]
        slow.update({n: flops / rates[n] for n in nodes if n not in fit})
        of_fit = [d for n in fit for d in devices[n]]
        types.append(
            DeviceType(
                name=name,
                kind=of_fit[0].kind,
                flops=flops,
                bandwidth=_median(d.bandwidth for d in of_fit),
                memory_bytes=min(d.memory_bytes for n in nodes for d in devices[n]),
                half_flops=_median(d.half_flops for d in of_fit),
            )
        )
    commonest = max(dict.fromkeys(names), key=names.count)
    return tuple(types), {node: type_of.get(node, commonest) for node in devices}, slow


# ------------------------------------------------------------------------------------------------------------------- links


class _Links:
    """Measured links, by the nodes of both ends."""

    def __init__(self, node_of: Mapping[str, str], links: Iterable[LinkMeasure]) -> None:
        inside: dict[str, list[Link]] = {}
        together: dict[str, list[float]] = {}
        pairs: list[tuple[str, str, Link]] = []
        for measure in links:
            if measure.problem or not {*measure.senders, *measure.receivers} <= node_of.keys():
                continue
            a, b = node_of[measure.senders[0]], node_of[measure.receivers[0]]
            link = Link(measure.bandwidth, measure.latency_s)
            if len(measure.senders) > 1:
                for node in (a, b):
                    together.setdefault(node, []).append(measure.bandwidth)
            elif a == b:
                inside.setdefault(a, []).append(link)
            else:
                pairs.append((a, b, link))
        self.rack_of = _racks(tuple(dict.fromkeys(node_of.values())), pairs)
        near = [(a, b, link) for a, b, link in pairs if self.rack_of[a] == self.rack_of[b]]
        across = [link for a, b, link in pairs if self.rack_of[a] != self.rack_of[b]]
        self.uplink = _usual(across, _median) if across else None
        of_network, of_inside = [link for _, _, link in near], [link for found in inside.values() for link in found]
        ends: dict[str, list[Link]] = {}
        for a, b, link in near:
            ends.setdefault(a, []).append(link)
            ends.setdefault(b, []).append(link)
        self._network = {node: _usual(found, _better) for node, found in ends.items()}
        self._any_network = _usual(of_network or of_inside, _median)
        self._inside = {node: _usual(found, _median) for node, found in inside.items()}
        self._any_inside = _usual(of_inside or of_network, _median)
        self._total = {node: max(found) for node, found in together.items()}
        self._any_total = _median(self._total.values()) if together else 0.0

    def inside(self, node: str) -> Link:
        """Of this node, else the median of all nodes, else that of the network."""
        return self._inside.get(node, self._any_inside)

    def network(self, node: str) -> Link:
        """What the better half of its links inside its rack reach, else the median of all such, else that inside machines."""
        return self._network.get(node, self._any_network)

    def total(self, node: str) -> float:
        """What its devices reached together, else the median of such; never less than one flow."""
        return max(self.network(node).bandwidth, self._total.get(node, self._any_total))


def _racks(nodes: Sequence[str], pairs: Sequence[tuple[str, str, Link]]) -> dict[str, str]:
    """The rack of each node; all "" where they are not told apart.

    Nodes are in one rack when links of at least 1 / FAR of the usual bandwidth lead from one to the other. A node without any
    such link has a slow network of its own; racks are told apart only where no such node is left.
    """
    rack = {node: node for node in nodes}
    usual = _better(link.bandwidth for _, _, link in pairs) if pairs else 0.0
    for a, b, link in pairs:
        if link.bandwidth * FAR >= usual and rack[a] != rack[b]:
            gone, kept = rack[b], rack[a]
            rack = {node: kept if r == gone else r for node, r in rack.items()}
    sizes = Counter(rack.values())
    if len(sizes) < 2 or min(sizes.values()) < 2:
        return dict.fromkeys(nodes, "")
    names = {r: f"rack-{k}" for k, r in enumerate(dict.fromkeys(rack[node] for node in sorted(nodes)))}
    return {node: names[r] for node, r in rack.items()}


def _usual(links: Sequence[Link], of: Callable[[Iterable[float]], float]) -> Link:
    if not links:
        return UNMEASURED
    return Link(bandwidth=of(link.bandwidth for link in links), latency_s=_median(link.latency_s for link in links))


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _better(values: Iterable[float]) -> float:
    """The median of the better half."""
    ordered = sorted(values)
    return _median(ordered[len(ordered) // 2 :])
