"""On which devices the ranks of a mesh run: a few canonical arrangements, or for small problems every one that differs.

A tensor group is a block of devices of one node where nodes have room for it. Canonical arrangements put blocks in the order
of the nodes (alike nodes of one rack side by side, and those of one machine, fast ones first or last) with the data axis inside
the pipeline, the pipeline inside the data axis, or replicas in groups between the two. What is left idle are the slowest devices.
Where few assignments exist, all are listed, one of each set that differs by interchangeable devices or replicas only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, combinations_with_replacement, islice

from orchestrator.core.cluster.resources import Resources
from orchestrator.core.planner.search.shapes import Mesh

Devices = tuple[int, ...]
ASSIGNMENTS_MAX = 1000
_KINDS_MAX = 8
Word = tuple[tuple[int, ...], ...]  # for each (pipeline rank, replica) the nodes of its block


class Ground:
    """The usable devices of a cluster, with the tables that arrangements need."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        nodes = resources.nodes
        self.usable = [n for n, node in enumerate(nodes) if node.healthy and node.devices]
        self.speeds = [resources.by_name[node.device].flops / node.pace for node in nodes]
        self.starts = [0, *accumulate(node.devices for node in nodes)][: len(nodes)]
        self.kinds = self._kinds()
        self.unlike_speeds = len({(nodes[n].device, nodes[n].pace) for n in self.usable}) > 1
        machines = resources.machines
        fast = sorted(self.usable, key=lambda n: (-self.speeds[n], nodes[n].device, nodes[n].rack, machines[n], n))
        racks = sorted(self.usable, key=lambda n: (nodes[n].rack, -self.speeds[n], machines[n], n))
        self.orders = list(dict.fromkeys((tuple(fast), tuple(fast[::-1]), tuple(racks))))
        if not self.unlike_speeds:
            self.orders = [tuple(racks)]
        self._whole = len(self.orders)  # those of which the slowest nodes stay idle; of the others the last ones do
        self.orders = list(dict.fromkeys((*self.orders, *self._from_each_kind(fast))))
        self._homes = resources.homes(self.usable)
        room: Counter[int] = Counter()
        for n in self.usable:
            room[self._homes[n]] += nodes[n].devices
        self._largest = max(room.values(), default=0)
        self.listed = 0  # words of assignments so far, for those who count effort
        self._assignments: dict[tuple[int, tuple[int, ...], bool], list[Devices] | None] = {}
        self._cut_up: dict[tuple[int, int], list[Devices]] = {}

    def _kinds(self) -> list[int]:
        """A number for each node, the same for nodes that could change places unnoticed."""
        seen: dict[object, int] = {}
        machines = self.resources.machines
        beside = Counter(machines)
        return [
            seen.setdefault(
                (
                    (n.device, n.devices, n.rack, n.inside.bandwidth, n.inside.latency_s, n.network.bandwidth),
                    (n.network.latency_s, n.network_total, n.pace, n.failures_per_hour, n.healthy),
                    m if beside[m] > 1 else -1,
                ),
                len(seen),
            )
            for n, m in zip(self.resources.nodes, machines, strict=True)
        ]

    def arrangements(self, mesh: Mesh, groups: Sequence[int] = ()) -> list[Devices]:
        """Canonical ones, all different. `groups`: further numbers of replicas to lie side by side inside the pipeline."""
        out: dict[Devices, None] = {}
        for order in range(len(self.orders)):
            blocks = self._blocks(order, mesh)
            if blocks is not None:
                for inner in self._inners(mesh, blocks, groups):
                    out[_lay(mesh, blocks, inner)] = None
        small = len(self.usable) > 1 and mesh.ranks <= self._largest
        if small and len({self._homes[n] for devices in out for n in self.nodes_of(devices)}) == 1:
            blocks = self._spread(mesh)
            out |= {_lay(mesh, blocks, mesh.data): None} if blocks is not None else {}
        return list(out)

    def _from_each_kind(self, fast: Sequence[int]) -> list[tuple[int, ...]]:
        """Orders that begin with a node of each kind and go on with what is nearest to it; for what needs a part of the nodes."""
        nodes = self.resources.nodes
        firsts = list({self.kinds[n]: n for n in reversed(fast)}.values())
        if not 1 < len(firsts) <= _KINDS_MAX:
            return []
        place = {n: k for k, n in enumerate(fast)}
        return [
            tuple(sorted(fast, key=lambda n: (n != f, self.kinds[n] != self.kinds[f], nodes[n].rack != nodes[f].rack, place[n])))
            for f in firsts
        ]

    def devices_of(self, node: int) -> range:
        """The devices of a node."""
        return range(self.starts[node], self.starts[node] + self.resources.nodes[node].devices)

    def nodes_of(self, devices: Sequence[int]) -> list[int]:
        """The node of each device."""
        return [self.resources.node_of[d] for d in devices]

    def idle(self, devices: Devices, degrees: set[int]) -> list[tuple[int, Devices]]:
        """(node, block) of one block of each degree on every node with so many devices left idle, alike untouched nodes once."""
        used = set(devices)
        out: list[tuple[int, Devices]] = []
        seen: set[tuple[int, int]] = set()
        for n in self.usable:
            free = [d for d in self.devices_of(n) if d not in used]
            untouched = len(free) == self.resources.nodes[n].devices
            if not free or (untouched and (self.kinds[n], 0) in seen):
                continue
            seen.add((self.kinds[n], 0 if untouched else 1))
            out += [(n, tuple(free[:t])) for t in sorted(degrees) if t <= len(free)]
        return out

    def assignments(self, mesh: Mesh, *, alike: bool) -> list[Devices] | None:
        """At least one of each set of assignments that cost the same, or None where there are more than ASSIGNMENTS_MAX.

        `alike`: replicas that change places cost the same.
        """
        key = mesh.data, mesh.tensors, alike
        if key not in self._assignments:
            words = list(islice(self._words(mesh), 2 * ASSIGNMENTS_MAX + 1))
            found = [self._seated(word) for word in words if not alike or _in_order(mesh, word)]
            few = len(words) <= 2 * ASSIGNMENTS_MAX and len(found) <= ASSIGNMENTS_MAX
            self._assignments[key] = found if few else None
            self.listed += len(words)
        return self._assignments[key]

    def _blocks(self, order: int, mesh: Mesh) -> list[Devices] | None:
        """A block for each (pipeline rank, replica) by the nodes' order, the slowest idle; None where they do not fit."""
        if len(set(mesh.tensors)) > 1:
            return self._unlike(order, mesh)
        need = mesh.data * len(mesh.tensors)
        blocks = self._inside(order, mesh.tensors[0])
        if len(blocks) < need:
            blocks = self._across(order, mesh.tensors[0])
        if len(blocks) <= need:
            return blocks if len(blocks) == need else None
        if order >= self._whole or not self.unlike_speeds:
            return blocks[:need]
        node_of = self.resources.node_of
        pace = [min(self.speeds[node_of[d]] for d in b) for b in blocks]
        keep = sorted(sorted(range(len(blocks)), key=lambda k: -pace[k])[:need])
        return [blocks[k] for k in keep]

    def _inside(self, order: int, degree: int) -> list[Devices]:
        """Blocks of a degree that lie within nodes."""
        found = self._cut_up.get((order, degree))
        if found is None:
            rows = [self.devices_of(n) for n in self.orders[order]]
            found = [tuple(row[k : k + degree]) for row in rows for k in range(0, len(row) - degree + 1, degree)]
            self._cut_up[order, degree] = found
        return found

    def _across(self, order: int, degree: int) -> list[Devices]:
        """Blocks of a degree, as many as there are if they may span nodes."""
        flat = [d for n in self.orders[order] for d in self.devices_of(n)]
        return [tuple(flat[k : k + degree]) for k in range(0, len(flat) - degree + 1, degree)]

    def _spread(self, mesh: Mesh) -> list[Devices] | None:
        """Blocks of two machines in turn (of two nodes, if there is one machine), for what would have room on one."""
        if len(set(mesh.tensors)) > 1:
            return None
        t, need = mesh.tensors[0], mesh.data * len(mesh.tensors)
        inside = self._inside(0, t)
        homes, node_of = self._homes, self.resources.node_of
        rows = [[b for b in inside if homes[node_of[b[0]]] == h] for h in dict.fromkeys(homes[n] for n in self.orders[0])]
        turns = [row[k] for k in range(need) for row in rows[:2] if k < len(row)]
        if len(turns) >= need > 1:
            return sorted(turns[:need])
        across = self._across(0, t)
        return across[-need:] if len(across) >= need else None

    def _unlike(self, order: int, mesh: Mesh) -> list[Devices] | None:
        """Blocks of unlike degrees, pipeline rank by pipeline rank, each within a node."""
        left = [(self.starts[n], self.resources.nodes[n].devices) for n in self.orders[order]]
        out: list[Devices] = []
        at = 0
        for degree in mesh.tensors:
            for _ in range(mesh.data):
                while at < len(left) and left[at][1] < degree:
                    at += 1
                if at == len(left):
                    return None
                first, count = left[at]
                out.append(tuple(range(first, first + degree)))
                left[at] = (first + degree, count - degree)
        return out

    def _inners(self, mesh: Mesh, blocks: Sequence[Devices], groups: Sequence[int]) -> list[int]:
        """How many replicas lie side by side inside the pipeline: all, one, a node's worth, or as asked for."""
        if len(set(mesh.tensors)) > 1 or len(mesh.tensors) == 1:
            return [mesh.data]
        here = self.resources.nodes[self.resources.node_of[blocks[0][0]]].devices // mesh.tensors[0]
        return [g for g in dict.fromkeys((mesh.data, 1, here, *groups)) if g >= 1 and mesh.data % g == 0]

    def _words(self, mesh: Mesh) -> Iterator[Word]:
        """Nodes of each block; among alike nodes not used yet the first one comes first."""
        degrees = [t for t in mesh.tensors for _ in range(mesh.data)]
        left = [0] * len(self.kinds)
        for n in self.usable:
            left[n] = self.resources.nodes[n].devices
        word: list[tuple[int, ...]] = []

        def extend() -> Iterator[Word]:
            if len(word) == len(degrees):
                yield tuple(word)
                return
            here = [n for n in self.usable if left[n]]
            for block in combinations_with_replacement(here, degrees[len(word)]):
                if all(block.count(n) <= left[n] for n in set(block)) and self._in_turn(block, left):
                    for n in block:
                        left[n] -= 1
                    word.append(block)
                    yield from extend()
                    word.pop()
                    for n in block:
                        left[n] += 1

        return extend()

    def _in_turn(self, block: Sequence[int], left: Sequence[int]) -> bool:
        """Whether of alike untouched nodes none is used more than one before it."""
        nodes = self.resources.nodes
        fresh = [n for n in self.usable if left[n] == nodes[n].devices]
        return not any(
            m < n and self.kinds[m] == self.kinds[n] and block.count(m) < block.count(n)
            for n in set(block).intersection(fresh)
            for m in fresh
        )

    def _seated(self, word: Word) -> Devices:
        free = list(self.starts)
        out: list[int] = []
        for block in word:
            for n in block:
                out.append(free[n])
                free[n] += 1
        return tuple(out)


def _lay(mesh: Mesh, blocks: Sequence[Devices], inner: int) -> Devices:
    """Devices by rank, where `inner` replicas lie side by side inside the pipeline."""
    data, pipeline = mesh.data, len(mesh.tensors)
    if inner == data:
        return tuple(chain.from_iterable(blocks))
    firsts = [(outer * pipeline + pipe) * inner for pipe in range(pipeline) for outer in range(data // inner)]
    return tuple(chain.from_iterable(b for first in firsts for b in blocks[first : first + inner]))


def _in_order(mesh: Mesh, word: Word) -> bool:
    """Whether the replicas come in the order of their nodes: of those that differ by the names of replicas only one does."""
    replicas = [word[r :: mesh.data] for r in range(mesh.data)]
    return replicas == sorted(replicas)
