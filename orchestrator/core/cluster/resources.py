"""The unified resource view: what devices and links can do, as measured by the probe or as read from a cluster file.

`ClusterView` says what is there and healthy; this says how fast it is. Devices are numbered node by node. Links have levels: two
devices of one node, of one rack (or switch), and across. Bandwidths are bytes/s in one direction, latencies seconds, rates per
hour. A node's network is shared by all of its devices, a rack's uplink by all of its nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from orchestrator.core.cluster.machines import machine_of


class Level(IntEnum):
    """How far apart two devices are."""

    DEVICE = 0
    NODE = 1
    RACK = 2
    ACROSS = 3


@dataclass(frozen=True, slots=True)
class DeviceType:
    """One kind of device, e.g. "cpu", "a100-80g". Healthy rates; a node's `pace` slows them."""

    name: str
    kind: str  # "cpu", "cuda", "npu", ...: core.cluster.kinds knows more
    flops: float  # FLOP/s that large matrix products reach
    bandwidth: float  # bytes/s that elementwise work reaches on its memory
    memory_bytes: int  # what a rank may use
    half_flops: float = 0.0  # FLOPs of a layer's pass at which half of `flops` is reached: small work is slower; 0: it is not


@dataclass(frozen=True, slots=True)
class Link:
    """alpha-beta: a message of n bytes takes latency_s + n / bandwidth."""

    bandwidth: float  # bytes/s, one direction
    latency_s: float


@dataclass(frozen=True, slots=True)
class NodeResources:
    """One machine with `devices` equal devices."""

    node_id: str
    device: str  # DeviceType.name
    devices: int
    rack: str  # "" where it is not known: all nodes of no rack share one
    inside: Link  # between two of its devices
    network: Link  # of one device to another node; bandwidth: what one flow reaches
    network_total: float  # bytes/s that all of its devices together reach, at least network.bandwidth
    pace: float = 1.0  # seconds it takes for what takes a healthy one a second: 2.0 is half as fast
    failures_per_hour: float = 0.0
    healthy: bool = True


@dataclass(frozen=True)
class Resources:
    """All machines. Frozen; index tables are computed once."""

    name: str
    types: tuple[DeviceType, ...]
    nodes: tuple[NodeResources, ...]  # in any order; those that are not healthy are never used
    uplink: Link | None = None  # of one flow between racks; None: as the network inside a rack
    uplink_total: float = 0.0  # bytes/s of one rack to all others together, shared by its flows; 0: never a bottleneck

    @cached_property
    def node_of(self) -> tuple[int, ...]:
        """Index into nodes of each device."""
        return tuple(n for n, node in enumerate(self.nodes) for _ in range(node.devices))

    @cached_property
    def machines(self) -> tuple[int, ...]:
        """Index of the first node on the same machine, of each node: its own, where it shares none."""
        first: dict[str, int] = {}
        return tuple(first.setdefault(machine_of(node.node_id), n) for n, node in enumerate(self.nodes))

    def homes(self, used: Iterable[int]) -> Sequence[int]:
        """What fails as one where these nodes are used, by index of a node: its machine; itself, where all are on one machine."""
        several = self._apart or len({self.machines[n] for n in used}) > 1
        return self.machines if several else range(len(self.nodes))

    @cached_property
    def _apart(self) -> bool:
        return len(set(self.machines)) == len(self.nodes)

    @cached_property
    def machines_shared(self) -> bool:
        """Whether nodes may share machines."""
        return any(machine_of(node.node_id) != node.node_id for node in self.nodes)

    @cached_property
    def by_name(self) -> dict[str, DeviceType]:
        """Device types by name."""
        return {t.name: t for t in self.types}

    @property
    def size(self) -> int:
        """Number of devices, healthy or not."""
        return len(self.node_of)

    def type_of(self, device: int) -> DeviceType:
        """The type of a device."""
        return self.by_name[self.nodes[self.node_of[device]].device]

    def level(self, a: int, b: int) -> Level:
        """How far apart two devices are."""
        if a == b:
            return Level.DEVICE
        m, n = self.node_of[a], self.node_of[b]
        if m == n:
            return Level.NODE
        return Level.RACK if self.nodes[m].rack == self.nodes[n].rack else Level.ACROSS
