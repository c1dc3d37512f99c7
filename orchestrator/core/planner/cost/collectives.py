"""How long collectives take: alpha-beta times over the slowest link that a group's traffic passes.

A ring that visits node after node enters and leaves each node once; libraries run as many rings at a time as the group has
members on a node, each through the adapter of another one. Groups that run at the same time share what leaves a node
(`network_total`) and a rack (`uplink_total`). Ring and tree formulas: Thakur, Rabenseifner and Gropp 2005, sections 3 and 4; that
a ring is optimal in bandwidth: Patarasuk and Yuan 2009.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

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


def layer_by_layer(ring: Ring, numbytes: float, layers: int) -> float:
    """Seconds of an all-gather, or a reduce-scatter, of each of so many layers whose parts are cut from the whole vector.

    Parts lie one after the other: a layer is whole with one owner, or with n / layers of them, and only these send, or receive.
    """
    return all_gather(ring, numbytes * min(ring.size, max(1, layers)), layers)


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


@dataclass(slots=True)
class _Column:
    """What the groups of a column meet."""

    insides: set[tuple[int, int]] = field(default_factory=set)  # kind of node and size of groups that do not leave a node
    size: int = 1  # of the largest of the others
    members: set[tuple[int, int]] = field(default_factory=set)  # nodes, each with how many members a group has there
    racks: set[int] = field(default_factory=set)  # that groups leave


class Network:
    """Makes rings of groups of devices, with what those that run at the same time share. Equal groups are folded.

    `straight`: members do not pass on what they get but send to each other, so that all of a node's cross the network.
    """

    def __init__(self, resources: Resources, *, straight: bool) -> None:
        self._nodes, self._straight = resources.nodes, straight
        racks = {rack: k for k, rack in enumerate(dict.fromkeys(n.rack for n in resources.nodes))}
        self._rack_of, self._racks = [racks[n.rack] for n in resources.nodes], len(racks)
        self._uplink, self._uplink_total = resources.uplink, resources.uplink_total
        links = [(*_numbers(n.inside), *_numbers(n.network), n.network_total) for n in resources.nodes]
        kinds: dict[tuple[float, ...], int] = {}
        self._kind_of = [kinds.setdefault(numbers, len(kinds)) for numbers in links]
        nodes = dict(zip(reversed(self._kind_of), reversed(resources.nodes), strict=True))
        self._kinds = [(nodes[k].inside, nodes[k].network, nodes[k].network_total) for k in range(len(kinds))]

    def inside(self, nodes: Iterable[int], size: int) -> Ring:
        """A ring no faster than those of groups that each lie on one of these nodes."""
        return _slowest(self._within({(self._kind_of[n], size) for n in nodes}))

    def leaving(self, ranks: Mapping[int, int]) -> Ring:
        """From a node to another, when so many ranks of each of them send."""
        latency, bandwidth = 0.0, INFINITE
        for kind, count in {(self._kind_of[n], count) for n, count in ranks.items()}:
            _, network, total = self._kinds[kind]
            latency, bandwidth = max(latency, network.latency_s), min(bandwidth, network.bandwidth, total / count)
        return Ring(2, latency, bandwidth)

    def _within(self, groups: Iterable[tuple[int, int]]) -> list[Ring]:
        """Rings inside nodes, from their kind and the group's size."""
        return [Ring(size, self._kinds[kind][0].latency_s, self._kinds[kind][0].bandwidth) for kind, size in groups]

    def rings(self, columns: Sequence[Iterable[tuple[Sequence[int], int]]]) -> list[Ring]:
        """For each column of groups a ring no faster than any of them; all groups of all columns run at once.

        A group is named by the node of each member, and comes with the number of groups like it.
        """
        out, up = [0] * len(self._nodes), [0] * self._racks  # groups that leave a node, and a rack
        found = [self._column(groups, out, up) for groups in columns]
        return [self._ring(column, out, up) for column in found]

    def _column(self, groups: Iterable[tuple[Sequence[int], int]], out: list[int], up: list[int]) -> _Column:
        """What these groups meet; they are added to those that leave each node and each rack."""
        column, rack_of = _Column(), self._rack_of
        alone: set[int] = set()  # nodes with one member of a group
        for nodes, times in groups:
            different = set(nodes)
            if len(different) == 1:
                column.insides.add((self._kind_of[nodes[0]], len(nodes)))
                continue
            if len(nodes) > column.size:
                column.size = len(nodes)
            if len(different) == len(nodes):
                alone |= different
            else:
                column.members.update(Counter(nodes).items())
            for n in nodes if self._straight else different:
                out[n] += times
            racks = {rack_of[n] for n in different}
            if len(racks) > 1:
                column.racks |= racks
                for rack in racks:
                    up[rack] += times
        column.members.update(zip(alone, repeat(1)))
        return column

    def links(self, columns: Sequence[tuple[Iterable[tuple[int, int]], int]]) -> list[Ring]:
        """For each column of pairs of nodes (sender's, receiver's) a link no faster than any of theirs; all send at once.

        A column comes with the number of pairs like each.
        """
        folded = [Counter(pairs) for pairs, _ in columns]
        out, into = [0] * len(self._nodes), [0] * len(self._nodes)
        up, down = [0] * self._racks, [0] * self._racks
        rack_of, crossings = self._rack_of, list[set[tuple[int, int]]]()
        for column, (_, alike) in zip(folded, columns, strict=True):
            crossed: set[tuple[int, int]] = set()
            for (a, b), pairs in column.items():
                if a != b:
                    times, rack, other = pairs * alike, rack_of[a], rack_of[b]
                    out[a] += times
                    into[b] += times
                    if rack != other:
                        up[rack] += times
                        down[other] += times
                        crossed.add((rack, other))
            crossings.append(crossed)
        flows = [max((max(up[a], down[b]) for a, b in crossed), default=0) for crossed in crossings]
        return [_slowest(self._links(column, out, into, most)) for column, most in zip(folded, flows, strict=True)]

    def _links(self, pairs: Iterable[tuple[int, int]], out: Sequence[int], into: Sequence[int], flows: int) -> list[Ring]:
        """Of these pairs of nodes; at most so many `flows` share a rack's uplink with one of theirs, 0: none leaves a rack."""
        kinds = self._kind_of
        found = self._within({(kinds[a], 2) for a, b in pairs if a == b})
        for x, y, leave, enter in {(kinds[a], kinds[b], out[a], into[b]) for a, b in pairs if a != b}:
            (_, mine, total), (_, theirs, their_total) = self._kinds[x], self._kinds[y]
            bandwidth = min(mine.bandwidth, theirs.bandwidth, total / leave, their_total / enter)
            found.append(Ring(2, max(mine.latency_s, theirs.latency_s), bandwidth))
        return [*found, Ring(2, *self._between(0.0, INFINITE, flows))] if flows else found

    def _ring(self, column: _Column, out: Sequence[int], up: Sequence[int]) -> Ring:
        """No faster than any group of a column."""
        rings = self._within(column.insides)
        if column.members:
            links = [self._link(*key) for key in {(self._kind_of[n], members, out[n]) for n, members in column.members}]
            latency, bandwidth = max(latency for latency, _ in links), min(bandwidth for _, bandwidth in links)
            if column.racks:
                latency, bandwidth = self._between(latency, bandwidth, max(up[rack] for rack in column.racks))
            rings.append(Ring(column.size, latency, bandwidth))
        return _slowest(rings)

    def _link(self, kind: int, members: int, groups: int) -> tuple[float, float]:
        """(latency, bandwidth) of what a group passes on a node with so many of its members, as one of so many that leave it."""
        inside, network, total = self._kinds[kind]
        rails = 1 if self._straight else members
        latency, bandwidth = network.latency_s, min(rails * network.bandwidth, total / groups)
        if members > 1:
            latency, bandwidth = max(latency, inside.latency_s), min(bandwidth, inside.bandwidth)
        return latency, bandwidth

    def _between(self, latency: float, bandwidth: float, flows: int) -> tuple[float, float]:
        """What is left of a link where it leaves a rack as one of so many flows."""
        if self._uplink is not None:
            latency, bandwidth = max(latency, self._uplink.latency_s), min(bandwidth, self._uplink.bandwidth)
        if self._uplink_total:
            bandwidth = min(bandwidth, self._uplink_total / flows)
        return latency, bandwidth


def _numbers(link: Link) -> tuple[float, float]:
    return link.bandwidth, link.latency_s


def _slowest(rings: Iterable[Ring]) -> Ring:
    size, latency, bandwidth = 1, 0.0, INFINITE
    for r in rings:
        size = max(size, r.size)
        latency = max(latency, r.latency_s)
        bandwidth = min(bandwidth, r.bandwidth)
    return Ring(size, latency, bandwidth)
