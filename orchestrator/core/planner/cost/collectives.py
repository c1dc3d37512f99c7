"""How long collectives take: alpha-beta times over the slowest link that a group's traffic passes.

A ring that visits node after node enters and leaves each node once; libraries run as many rings at a time as the group has
members on a node, each through the adapter of another one. Groups that run at the same time share what leaves a node
(`network_total`) and a rack (`uplink_total`). Ring and tree formulas: Thakur, Rabenseifner and Gropp 2005, sections 3 and 4; that
a ring is optimal in bandwidth: Patarasuk and Yuan 2009.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.core.cluster.resources import Link, Resources

INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class Ring:
    """A group as its traffic sees it: its size, and the latency and bandwidth (bytes/s) of the slowest of its links."""

    size: int
    latency_s: float
    bandwidth: float


ALONE = Ring(1, 0.0, INFINITE)


def all_gather(ring: Ring, numbytes: float, messages: int = 1) -> float:
    """Seconds until everybody has `numbytes` in all, in `messages` calls; a ring: (n-1) alpha + (n-1)/n bytes beta (4.1)."""
    n = ring.size
    if n == 1:
        return 0.0
    return (n - 1) * (messages * ring.latency_s + numbytes / (n * ring.bandwidth))


def reduce_scatter(ring: Ring, numbytes: float, messages: int = 1) -> float:
    """Seconds to sum vectors of `numbytes` so that each member has its part: an all-gather backwards (4.3)."""
    return all_gather(ring, numbytes, messages)


def all_reduce(ring: Ring, numbytes: float, messages: int = 1) -> float:
    """Seconds to sum vectors of `numbytes` in all, in `messages` calls, everywhere.

    The better of a ring, 2 (n-1) alpha + 2 (n-1)/n bytes beta (4.4), and two binomial trees, 2 ceil(log2 n) (alpha + bytes beta).
    """
    n = ring.size
    if n == 1:
        return 0.0
    steps = 2 * (n - 1).bit_length()
    tree = steps * (messages * ring.latency_s + numbytes / ring.bandwidth)
    return min(2 * all_gather(ring, numbytes, messages), tree)


def send(link: Ring, numbytes: float) -> float:
    """Seconds from one to another."""
    return 0.0 if link.size == 1 else link.latency_s + numbytes / link.bandwidth


class Network:
    """Makes rings of groups of devices, with what those that run at the same time share. Equal groups are folded.

    `straight`: members do not pass on what they get but send to each other, so that all of a node's cross the network.
    """

    def __init__(self, resources: Resources, *, straight: bool) -> None:
        self._nodes, self._straight = resources.nodes, straight
        racks = {rack: k for k, rack in enumerate(dict.fromkeys(n.rack for n in resources.nodes))}
        self._rack_of = [racks[n.rack] for n in resources.nodes]
        self._uplink, self._uplink_total = resources.uplink, resources.uplink_total
        kinds: dict[tuple[Link, Link, float], int] = {}
        self._kind_of = [kinds.setdefault((n.inside, n.network, n.network_total), len(kinds)) for n in resources.nodes]
        self._insides = [inside for inside, _, _ in kinds]  # link of each kind

    def inside(self, nodes: Iterable[int], size: int) -> Ring:
        """A ring no faster than those of groups that each lie on one of these nodes."""
        return _slowest(self._within({(self._kind_of[n], size) for n in nodes}))

    def _within(self, groups: Iterable[tuple[int, int]]) -> list[Ring]:
        """Rings inside nodes, from their kind and the group's size."""
        return [Ring(size, self._insides[kind].latency_s, self._insides[kind].bandwidth) for kind, size in groups]

    def rings(self, columns: Sequence[Iterable[tuple[Sequence[int], int]]]) -> list[Ring]:
        """For each column of groups a ring no faster than any of them; all groups of all columns run at once.

        A group is named by the node of each member, and comes with the number of groups like it.
        """
        folded: list[dict[tuple[int, ...], int]] = []  # groups that leave a node
        within: list[set[tuple[int, int]]] = []  # kind of node and size of those that do not
        for groups in columns:
            column: dict[tuple[int, ...], int] = {}
            insides: set[tuple[int, int]] = set()
            for group, times in groups:
                nodes = tuple(sorted(group))
                if nodes[0] == nodes[-1]:
                    insides.add((self._kind_of[nodes[0]], len(nodes)))
                else:
                    column[nodes] = column.get(nodes, 0) + times
            folded.append(column)
            within.append(insides)
        out = [0] * len(self._nodes)  # groups that leave a node
        up: Counter[int] = Counter()  # and a rack
        for column in folded:
            for nodes, times in column.items():
                for n in nodes if self._straight else set(nodes):
                    out[n] += times
                for rack in self._racks(nodes):
                    up[rack] += times
        links: dict[tuple[int, int, int], tuple[float, float]] = {}
        return [
            _slowest([*self._within(insides), *(self._ring(nodes, out, up, links) for nodes in column)])
            for column, insides in zip(folded, within, strict=True)
        ]

    def links(self, columns: Sequence[tuple[Iterable[tuple[int, int]], int]]) -> list[Ring]:
        """For each column of pairs of nodes (sender's, receiver's) a link no faster than any of theirs; all send at once.

        A column comes with the number of pairs like each.
        """
        folded = [Counter(pairs) for pairs, _ in columns]
        out, into = [0] * len(self._nodes), [0] * len(self._nodes)
        up, down = Counter[int](), Counter[int]()
        for column, (_, alike) in zip(folded, columns, strict=True):
            for (a, b), pairs in column.items():
                times = pairs * alike
                if a != b:
                    out[a] += times
                    into[b] += times
                    if self._rack_of[a] != self._rack_of[b]:
                        up[self._rack_of[a]] += times
                        down[self._rack_of[b]] += times
        return [_slowest(self._links(column, out, into, up, down)) for column in folded]

    def _links(
        self, pairs: Iterable[tuple[int, int]], out: Sequence[int], into: Sequence[int], up: Counter[int], down: Counter[int]
    ) -> list[Ring]:
        """The different links among these pairs of nodes."""
        kinds, racks = self._kind_of, self._rack_of
        found: dict[tuple[int, ...], Ring] = {}
        for a, b in pairs:
            flows = max(up[racks[a]], down[racks[b]]) if racks[a] != racks[b] else 0
            key = (kinds[a], kinds[b], out[a], into[b], flows) if a != b else (kinds[a],)
            if key in found:
                continue
            x, y = self._nodes[a], self._nodes[b]
            if a == b:
                found[key] = Ring(2, x.inside.latency_s, x.inside.bandwidth)
                continue
            latency = max(x.network.latency_s, y.network.latency_s)
            bandwidth = min(x.network.bandwidth, y.network.bandwidth, x.network_total / out[a], y.network_total / into[b])
            if flows:
                latency, bandwidth = self._between(latency, bandwidth, flows)
            found[key] = Ring(2, latency, bandwidth)
        return list(found.values())

    def _racks(self, nodes: Iterable[int]) -> set[int]:
        """The racks of a group that leaves its rack; none where it does not."""
        racks = {self._rack_of[n] for n in nodes}
        return racks if len(racks) > 1 else set()

    def _ring(
        self, nodes: Sequence[int], out: Sequence[int], up: Counter[int], links: dict[tuple[int, int, int], tuple[float, float]]
    ) -> Ring:
        """Of a group on several nodes. `links` remembers what `_link` finds: by kind of node, members, groups that leave."""
        latency, bandwidth = 0.0, INFINITE
        different = set(nodes)
        for n in different:
            key = self._kind_of[n], 1 if len(different) == len(nodes) else nodes.count(n), out[n]
            found = links.get(key)
            if found is None:
                found = links[key] = self._link(n, key[1], out[n])
            if found[0] > latency:
                latency = found[0]
            if found[1] < bandwidth:
                bandwidth = found[1]
        racks = self._racks(different)
        if racks:
            latency, bandwidth = self._between(latency, bandwidth, max(up[rack] for rack in racks))
        return Ring(len(nodes), latency, bandwidth)

    def _link(self, n: int, members: int, groups: int) -> tuple[float, float]:
        """(latency, bandwidth) of what a group passes on a node with so many of its members, as one of so many that leave it."""
        node = self._nodes[n]
        rails = 1 if self._straight else members
        latency, bandwidth = node.network.latency_s, min(rails * node.network.bandwidth, node.network_total / groups)
        if members > 1:
            latency, bandwidth = max(latency, node.inside.latency_s), min(bandwidth, node.inside.bandwidth)
        return latency, bandwidth

    def _between(self, latency: float, bandwidth: float, flows: int) -> tuple[float, float]:
        """What is left of a link where it leaves a rack as one of so many flows."""
        if self._uplink is not None:
            latency, bandwidth = max(latency, self._uplink.latency_s), min(bandwidth, self._uplink.bandwidth)
        if self._uplink_total:
            bandwidth = min(bandwidth, self._uplink_total / flows)
        return latency, bandwidth


def _slowest(rings: Iterable[Ring]) -> Ring:
    size, latency, bandwidth = 1, 0.0, INFINITE
    for r in rings:
        size = max(size, r.size)
        latency = max(latency, r.latency_s)
        bandwidth = min(bandwidth, r.bandwidth)
    return Ring(size, latency, bandwidth)
