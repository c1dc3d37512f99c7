"""What a mesh of ranks meets on the devices that it is laid on: its links, the speeds of its places, who holds what where.

One pass over the ranks for a placement; what an estimate needs of ten thousand ranks is then a few numbers per pipeline rank.
Replicas that sit on equal devices are folded into one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from orchestrator.core.cluster.resources import Resources
from orchestrator.core.planner.cost.collectives import ALONE, Network, Ring
from orchestrator.core.planner.strategy import Strategy

_RANKS_MAX = 1 << 22  # of all meshes that are remembered
Speed = tuple[str, float]  # name of the device type and pace
Place = tuple[Speed, ...]  # the different speeds of the devices of one tensor group


@dataclass(frozen=True, slots=True)
class Holders:
    """Where the parts of a sharded state are, for one shard size."""

    gathers: tuple[Ring, ...]  # of the groups that hold one whole, by pipeline rank
    lonely: tuple[bool, ...]  # whether a part of a pipeline rank's state is on one node (or machine of several) only
    nodes: int  # that hold the least spread part, those of one machine counted once


@dataclass(frozen=True, slots=True)
class MeshOnDevices:
    """Rings are the slowest of a pipeline rank's groups of a kind."""

    tensors: tuple[Ring, ...]  # by pipeline rank
    datas: tuple[Ring, ...]
    boundaries: tuple[Ring, ...]  # from each pipeline rank to the next, the last one's to the first
    places: tuple[tuple[Place, ...], ...]  # different rows of places of a replica, by pipeline rank
    replicas: tuple[tuple[int, ...], ...]  # that have each row
    limits: tuple[int, ...]  # bytes of the smallest device of each pipeline rank
    bandwidths: tuple[float, ...]  # bytes/s of the slowest memory
    network: Ring  # from a node to another, when all of its ranks send
    nodes: tuple[int, ...]  # that are used
    failures_per_s: float  # of any of them
    crowding: float  # ranks of a node (or machine) per rank on others, of the fullest one; infinite where there is only one
    spans: bool  # whether replicas lie on several nodes (or machines)


@dataclass(frozen=True, slots=True)
class _Laid:
    """The nodes of a strategy's ranks, by pipeline rank."""

    nodes: list[tuple[int, ...]]
    different: list[set[int]]
    heads: list[_Heads]
    homes: Sequence[int]  # what each node fails with


@dataclass(frozen=True, slots=True)
class _Heads:
    """Ranks that stand for all of a pipeline rank."""

    nodes: tuple[int, ...]  # of each, replica by replica
    step: int  # of them in a replica
    alike: int  # ranks that each stands for


class Meshes:
    """Makes and remembers them; `straight` as for a Network."""

    def __init__(self, resources: Resources, *, straight: bool) -> None:
        self._resources = resources
        self._network = Network(resources, straight=straight)
        self._speeds: list[Speed] = [(n.device, n.pace) for n in resources.nodes]
        self._ranks = 0  # of all that are remembered
        self._known: dict[tuple[int, tuple[int, ...], tuple[int, ...], bool], MeshOnDevices] = {}
        self._held: dict[tuple[int, tuple[int, ...], tuple[int, ...], int], Holders] = {}
        self._last: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], _Laid] | None = None  # asked for twice in a row

    def of(self, s: Strategy) -> MeshOnDevices:
        """The mesh of a strategy. Raises IndexError for a device that is not there."""
        key = s.data, s.tensors, s.devices, s.stages_per_rank > 1  # the last rank then sends to the first
        found = self._known.get(key)
        if found is None:
            self._ranks += len(s.devices)
            if self._ranks > _RANKS_MAX:
                self._known.clear()
                self._held.clear()
                self._ranks = len(s.devices)
            found = self._known[key] = self._look(s)
        return found

    def holders(self, s: Strategy) -> Holders:
        """Where its state is."""
        key = s.data, s.tensors, s.devices, s.shard
        found = self._held.get(key)
        if found is None:
            found = self._held[key] = self._hold(s)
        return found

    def _look(self, s: Strategy) -> MeshOnDevices:
        resources, data, laid = self._resources, s.data, self._laid(s)
        nodes, heads = laid.nodes, laid.heads
        ranks = Counter(chain.from_iterable(nodes))
        crowds: Counter[int] = Counter()  # ranks that fail as one
        for n, count in ranks.items():
            crowds[laid.homes[n]] += count
        used, most = tuple(sorted(ranks)), max(crowds.values())
        alone = tuple([ALONE] * s.pipeline)
        speeds = [{self._speeds[n] for n in different} for different in laid.different]
        rows = self._rows(nodes, speeds, s)
        types = resources.by_name
        return MeshOnDevices(
            tensors=alone if s.tensor == 1 else self._tensor_rings(laid, s.tensors),
            datas=alone if data == 1 else self._data_rings(heads, data),
            boundaries=alone if s.pipeline == 1 else self._boundaries(nodes, heads, s),
            places=tuple(rows),
            replicas=tuple(tuple(r) for r in rows.values()),
            limits=tuple(min(types[name].memory_bytes for name, _ in here) for here in speeds),
            bandwidths=tuple(min(types[name].bandwidth / pace for name, pace in here) for here in speeds),
            network=self._network.leaving(ranks),
            nodes=used,
            failures_per_s=sum(resources.nodes[n].failures_per_hour for n in used) / 3600.0,
            crowding=most / (len(s.devices) - most) if most < len(s.devices) else float("inf"),
            spans=any(len({laid.homes[n] for n in h.nodes[c :: h.step]}) > 1 for h in heads for c in range(h.step)),
        )

    def _rows(
        self, nodes: list[tuple[int, ...]], speeds: list[set[Speed]], s: Strategy
    ) -> Mapping[tuple[Place, ...], Sequence[int]]:
        """The replicas that have each row of places."""
        if all(len(here) == 1 for here in speeds):
            return {tuple(tuple(here) for here in speeds): range(s.data)}
        rows: dict[tuple[Place, ...], list[int]] = {}
        columns = [self._places(mine, here, t, s.data) for mine, here, t in zip(nodes, speeds, s.tensors, strict=True)]
        for replica, row in enumerate(zip(*columns, strict=True)):
            rows.setdefault(row, []).append(replica)
        return rows

    def _places(self, nodes: tuple[int, ...], here: set[Speed], tensor: int, data: int) -> list[Place]:
        speeds = self._speeds
        if len(here) == 1:
            return [tuple(here)] * data
        return [tuple(sorted({speeds[n] for n in nodes[r * tensor : (r + 1) * tensor]})) for r in range(data)]

    def _laid(self, s: Strategy) -> _Laid:
        """Where a strategy's ranks are. Raises IndexError for a device that is not there."""
        key = s.data, s.tensors, s.devices
        if self._last is None or self._last[0] != key:
            if min(s.devices) < 0:
                raise IndexError(f"the strategy uses a device that is lost: {s.devices}")
            node_of = self._resources.node_of
            every = tuple(map(node_of.__getitem__, s.devices))
            nodes = [every[first : first + t * s.data] for first, t in zip(s.first_rank, s.tensors, strict=True)]
            heads = [_heads(mine, t) for mine, t in zip(nodes, s.tensors, strict=True)]
            self._last = key, _Laid(nodes, [set(h.nodes) for h in heads], heads, self._resources.homes(every))
        return self._last[1]

    def _tensor_rings(self, laid: _Laid, tensors: tuple[int, ...]) -> tuple[Ring, ...]:
        columns = [
            [] if h.step == 1 else [(b[i : i + t], 1) for i in range(0, len(b), t)]
            for b, h, t in zip(laid.nodes, laid.heads, tensors, strict=True)
        ]
        rings = self._network.rings(columns)
        return tuple(
            (ALONE if t == 1 else self._network.inside(here, t)) if h.step == 1 else ring
            for here, h, t, ring in zip(laid.different, laid.heads, tensors, rings, strict=True)
        )

    def _data_rings(self, heads: list[_Heads], size: int) -> tuple[Ring, ...]:
        """Rings over the data axis, each of so many replicas in a row."""
        columns: list[list[tuple[tuple[int, ...], int]]] = []
        for h in heads:
            starts = [first + c for first in range(0, len(h.nodes), size * h.step) for c in range(h.step)]
            groups = Counter([h.nodes[k : k + (size - 1) * h.step + 1 : h.step] for k in starts])
            columns.append([(group, h.alike * times) for group, times in groups.items()])
        return tuple(self._network.rings(columns))

    def _boundaries(self, nodes: list[tuple[int, ...]], heads: list[_Heads], s: Strategy) -> tuple[Ring, ...]:
        columns: list[tuple[list[tuple[int, int]], int]] = []
        for pipe, (mine, t) in enumerate(zip(nodes, s.tensors, strict=True)):
            theirs, u = nodes[(pipe + 1) % s.pipeline], s.tensors[(pipe + 1) % s.pipeline]
            if pipe == s.pipeline - 1 and s.stages_per_rank == 1:
                columns.append(([], 1))
            elif t == u:
                ours, others = heads[pipe], heads[(pipe + 1) % s.pipeline]
                if ours.step == others.step == 1:
                    columns.append((list(zip(ours.nodes, others.nodes, strict=True)), t))
                else:
                    columns.append((list(zip(mine, theirs, strict=True)), 1))
            else:
                wide = max(t, u)
                columns.append(([(mine[k * t // wide], theirs[k * u // wide]) for k in range(s.data * wide)], 1))
        return tuple(self._network.links(columns))

    def _hold(self, s: Strategy) -> Holders:
        if s.shard == s.data:
            return Holders(self.of(s).datas, tuple([True] * s.pipeline), 1)
        heads, homes = self._laid(s).heads, self._laid(s).homes
        spread = [[len({homes[n] for n in h.nodes[k :: s.shard * h.step]}) for k in range(s.shard * h.step)] for h in heads]
        gathers = self._data_rings(heads, s.shard) if s.shard > 1 else tuple([ALONE] * s.pipeline)
        return Holders(gathers, tuple(min(mine) == 1 for mine in spread), min(map(min, spread)))


def _heads(nodes: tuple[int, ...], tensor: int) -> _Heads:
    """Of a pipeline rank: one rank for each tensor group where every group sits on one node, else all of them."""
    first = nodes[::tensor]
    if all(nodes[c::tensor] == first for c in range(1, tensor)):
        return _Heads(first, step=1, alike=tensor)
    return _Heads(nodes, step=tensor, alike=1)
