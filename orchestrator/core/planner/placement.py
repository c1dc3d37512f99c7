"""Ranks to devices, so that heavy traffic stays on fast links: the least sum over pairs of bytes / bandwidth of the pair's link.

Devices of one node are alike, so that ranks are given to nodes. Few ranks are placed exactly, by branch and bound up to nodes
that may be exchanged; more of them by a greedy start and passes of pairwise swaps (`placement_swaps.py`). Ranks that must not be
lost together are kept on different nodes before traffic is looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from orchestrator.core.cluster.resources import Resources
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.placement_swaps import Table, arrange, cost

EXACT_RANKS = 10  # up to which the best placement is searched
EXACT_VISITS = 50_000  # partial placements looked at, one or two seconds; beyond (many unlike nodes), the best so far stands
RANKS_MAX = 256  # larger meshes are regular: the search arranges them axis by axis, without a graph of pairs


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that pairs of ranks exchange, both directions together; a pair may be named more than once."""

    ranks: int
    flows: tuple[tuple[int, int, float], ...]  # (rank, rank, bytes)


def place(
    traffic: Traffic, resources: Resources, devices: Sequence[int], *, apart: Sequence[Sequence[int]] = ()
) -> tuple[int, ...]:
    """The device of each rank, out of `devices`.

    Groups of `apart` are spread over as many nodes as can be (the fewest pairs on one node over all groups), whatever that costs.
    Deterministic; the least cost there is for at most EXACT_RANKS ranks (while EXACT_VISITS last). Raises PlanError for more than
    RANKS_MAX ranks, or for more of them than devices.
    """
    if traffic.ranks > len(devices):
        raise PlanError(f"{traffic.ranks} ranks need {traffic.ranks} devices, {len(devices)} are given")
    if traffic.ranks > RANKS_MAX:
        raise PlanError(f"placement weighs pairs of at most {RANKS_MAX} ranks, not of {traffic.ranks}")
    of_node: dict[int, list[int]] = {}
    for device in sorted(devices):
        of_node.setdefault(resources.node_of[device], []).append(device)
    table = _table(traffic, resources, of_node, apart)
    where = arrange(table)
    if traffic.ranks <= EXACT_RANKS:
        where = _Exact(table, where).solve()
    left = [iter(of_node[node]) for node in of_node]
    return tuple(next(left[n]) for n in where)


def seconds(traffic: Traffic, resources: Resources, devices: Sequence[int]) -> float:
    """The sum over pairs of bytes / bandwidth of their link when rank r is on devices[r]: what `place` minimises."""
    at = [resources.node_of[d] for d in devices]
    return math.fsum(b * seconds_per_byte(resources, at[r], at[s]) for r, s, b in traffic.flows)


def seconds_per_byte(resources: Resources, m: int, n: int) -> float:
    """Of the link between two devices of node m, or of one of node m and one of node n; latencies and sharing are left out."""
    a, b = resources.nodes[m], resources.nodes[n]
    if m == n:
        return 1 / a.inside.bandwidth
    slowest = min(a.network.bandwidth, b.network.bandwidth)
    if a.rack != b.rack and resources.uplink is not None:
        slowest = min(slowest, resources.uplink.bandwidth)
    return 1 / slowest


def _table(traffic: Traffic, resources: Resources, of_node: dict[int, list[int]], apart: Sequence[Sequence[int]]) -> Table:
    weights: list[dict[int, float]] = [{} for _ in range(traffic.ranks)]
    for r, s, volume in traffic.flows:
        if r != s:
            weights[r][s] = weights[s][r] = weights[r].get(s, 0.0) + volume
    links = [[seconds_per_byte(resources, m, n) for n in of_node] for m in of_node]
    worst = sum(sum(row.values()) for row in weights) / 2 * max(map(max, links))
    kept: list[Counter[int]] = [Counter() for _ in range(traffic.ranks)]
    for group in apart:
        for r, s in combinations(group, 2):
            kept[r][s] += 1
            kept[s][r] += 1
    return Table(
        room=[len(members) for members in of_node.values()],
        links=links,
        weights=weights,
        apart=[dict(row) for row in kept],
        penalty=worst or 1.0,
    )


class _Exact:
    """Depth first, the rank with the most traffic to those placed before first, with what has been found as the bar to beat."""

    def __init__(self, table: Table, first: list[int]) -> None:
        self.table = table
        self.best = first
        self.bar = cost(table, first)
        self.order = _order(table)
        self.where = [-1] * len(first)
        self.free = list(table.room)
        self.alike = _alike(table)
        self.pull = [[0.0] * len(table.room) for _ in first]  # cost of each rank on each node, towards those that are placed
        cheapest = min(map(min, table.links))
        later, self.rest = 0.0, [0.0]  # at least, for the traffic among the last k ranks of the order
        for i in range(len(first) - 1, -1, -1):
            later += sum(table.weights[self.order[i]].get(r, 0.0) for r in self.order[i + 1 :]) * cheapest
            self.rest.append(later)
        self.visits = 0

    def solve(self) -> list[int]:
        """The best placement (the best found when the visits run out)."""
        self._go(0, 0.0)
        return self.best

    def _go(self, depth: int, spent: float) -> None:
        ranks = len(self.order)
        if depth == ranks:
            self.best, self.bar = list(self.where), spent
            return
        rank = self.order[depth]
        empty: set[int] = set()
        for _, node in sorted((self.pull[rank][n], n) for n, free in enumerate(self.free) if free):
            if self.free[node] == self.table.room[node]:  # nobody is there: one of those that may be exchanged is enough
                if self.alike[node] in empty:
                    continue
                empty.add(self.alike[node])
            self.visits += 1
            if self.visits > EXACT_VISITS:
                return
            now = spent + self.pull[rank][node]
            self._put(rank, node, 1)
            if now + self._least(depth + 1) < self.bar * (1 - 1e-12):
                self._go(depth + 1, now)
            self._put(rank, node, -1)

    def _put(self, rank: int, node: int, sign: int) -> None:
        table = self.table
        self.free[node] -= sign
        self.where[rank] = node if sign > 0 else -1
        for other in table.weights[rank].keys() | table.apart[rank].keys():
            if self.where[other] < 0:
                for n, row in enumerate(self.pull[other]):
                    self.pull[other][n] = row + sign * table.pair(rank, other, node, n)

    def _least(self, depth: int) -> float:
        """No less than this is added by the ranks from `depth` on, each alone where it costs least."""
        open_nodes = [n for n, free in enumerate(self.free) if free]
        towards = sum(min(self.pull[r][n] for n in open_nodes) for r in self.order[depth:])
        return towards + self.rest[len(self.order) - depth]


def _order(table: Table) -> list[int]:
    ranks = range(len(table.weights))
    out: list[int] = []
    while len(out) < len(ranks):
        left = [r for r in ranks if r not in out]
        out.append(
            max(
                left,
                key=lambda r: (
                    sum(table.weights[r].get(o, 0.0) + table.apart[r].get(o, 0) * table.penalty for o in out),
                    sum(table.weights[r].values()),
                    -r,
                ),
            )
        )
    return out


def _alike(table: Table) -> list[int]:
    """For each node the first one that it may be exchanged with."""
    nodes = range(len(table.room))

    def same(m: int, n: int) -> bool:
        return (table.room[m], table.links[m][m]) == (table.room[n], table.links[n][n]) and all(
            table.links[m][k] == table.links[n][k] for k in nodes if k not in (m, n)
        )

    return [next(m for m in nodes if m == n or same(m, n)) for n in nodes]
