"""Which worker gets which place of the mesh: those that hold state where most of it stays in place, the others spread out.

Places of one (pipe, coordinate) compute with the same section and are alike, so that workers are assigned to sections by how much
of it they hold. Replicas of a section go to different machines and nodes, tensor coordinates of one replica to the same node, or
at least machine, where that is possible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.core.cluster.machines import machine_of
from orchestrator.core.plan.plan import DATA, PIPELINE, TENSOR, Plan, Seat
from orchestrator.core.planner.matching import assign

EXACT_MAX = 64  # workers up to which the best assignment is searched; beyond, the most valuable pairs are taken one by one

Worker = tuple[str, str]  # (worker_id, node_id)
Section = tuple[int, int]  # (pipe, coordinate)
Overlap = Callable[[Worker, Worker], int]  # elements that two workers both hold


@dataclass(slots=True)
class _Grid:
    """Places of the mesh while they are given away: [pipe][replica][coordinate]."""

    places: list[list[list[Worker | None]]]
    free: list[Worker]
    machine: Mapping[str, str]  # by node
    used: Counter[str] = field(default_factory=Counter)

    def put(self, worker: Worker, pipe: int, replica: int, coordinate: int) -> None:
        self.places[pipe][replica][coordinate] = worker
        self.free.remove(worker)
        self.used[worker[1]] += 1

    def nodes(self, pipe: int, coordinate: int) -> Counter[str]:
        """How many replicas of a section each node has so far."""
        return Counter(w[1] for row in self.places[pipe] if (w := row[coordinate]) is not None)

    def machines(self, nodes: Counter[str]) -> Counter[str]:
        """As many of each machine's nodes together."""
        out: Counter[str] = Counter()
        for node, count in nodes.items():
            out[self.machine[node]] += count
        return out


def choose_seats(
    *,
    workers: Sequence[Worker],
    pipeline: int,
    data: int,
    tensor: int,
    shard: int,
    value: Mapping[str, Mapping[Section, int]],
    overlap: Overlap,
    parent: Plan | None,
) -> tuple[Seat, ...]:
    """A seat for every rank, from at least as many workers.

    `value` says for each worker that holds state how much of what a place of a section needs is there (0 or more). A survivor
    keeps its place among the replicas where the parent's plan has as many.
    """
    grid = _Grid(
        places=[[[None] * tensor for _ in range(data)] for _ in range(pipeline)],
        free=sorted(workers, key=lambda w: (w[1], w[0])),
        machine={node: machine_of(node) for _, node in workers},
    )
    if parent is not None:
        _seat_holders(grid, value=value, parent=parent)
    _seat_others(grid)
    if 1 < shard < data:
        for rows in grid.places:
            rows[:] = _in_groups(rows, shard=shard, overlap=overlap)
    flat = [w for rows in grid.places for row in rows for w in row]
    return tuple(Seat(rank, *w) for rank, w in enumerate(flat) if w is not None)


def _seat_holders(grid: _Grid, *, value: Mapping[str, Mapping[Section, int]], parent: Plan) -> None:
    pipeline, data, tensor = len(grid.places), len(grid.places[0]), len(grid.places[0][0])
    sections = [(pipe, coordinate) for pipe in range(pipeline) for coordinate in range(tensor)]
    before = {s.worker_id: parent.coordinates(s.rank) for s in parent.seats}
    alive = {w[0] for w in grid.free}
    complete = {  # a replica with all its tensor coordinates left is worth keeping together
        s.worker_id
        for s in parent.seats
        if all(
            parent.seats[parent.rank_at(*parent.coordinates(s.rank)[:2], t)].worker_id in alive
            for t in range(parent.axis(TENSOR))
        )
    }
    holders = [w for w in grid.free if any(value.get(w[0], {}).values())]

    def worth(worker: Worker, section: Section) -> int:
        mine = value[worker[0]].get(section, 0)
        if not mine:
            return 0
        there = before.get(worker[0])
        return 4 * mine + 2 * (there is not None and there[::2] == section) + (worker[0] in complete)

    table = [[worth(w, s) for s in sections] for w in holders]
    chosen: dict[Section, list[Worker]] = {s: [] for s in sections}
    for worker, section in _pairs(table, holders, sections, places=data):
        chosen[section].append(worker)
    same = (parent.axis(PIPELINE), parent.axis(DATA)) == (pipeline, data)
    last = parent.axis(DATA)
    for (pipe, coordinate), members in chosen.items():
        members.sort(key=lambda w: (before.get(w[0], (0, last, 0))[1], w))
        taken: set[int] = set()
        for w in members:  # where it was
            there = before.get(w[0])
            if same and there is not None and there[::2] == (pipe, coordinate):
                grid.put(w, pipe, there[1], coordinate)
                taken.add(there[1])
        others = [r for r in range(data) if r not in taken]
        for w in members:
            if w in grid.free:
                grid.put(w, pipe, others.pop(0), coordinate)


def _pairs(
    table: Sequence[Sequence[int]], holders: Sequence[Worker], sections: Sequence[Section], *, places: int
) -> list[tuple[Worker, Section]]:
    """Holders with the section that each goes to, at most `places` to one; who is worth nothing where there is room, to none."""
    count = len(sections)
    if len(holders) <= EXACT_MAX and count > 1:
        columns = assign([[row[c % count] for c in range(count * places)] for row in table])
        return [(holders[n], sections[c % count]) for n, c in enumerate(columns) if c >= 0 and table[n][c % count]]
    left = [places] * count
    out: list[tuple[Worker, Section]] = []
    done: set[int] = set()
    for worth, n, c in sorted(((-v, n, c) for n, row in enumerate(table) for c, v in enumerate(row) if v)):
        if worth and n not in done and left[c]:
            done.add(n)
            left[c] -= 1
            out.append((holders[n], sections[c]))
    return out


def _seat_others(grid: _Grid) -> None:
    """Workers for the places that are left, replica by replica."""
    for pipe, rows in enumerate(grid.places):
        for replica, row in enumerate(rows):
            for coordinate in range(len(row)):
                if row[coordinate] is None:
                    grid.put(_spread(grid, pipe=pipe, row=row, coordinate=coordinate), pipe, replica, coordinate)


def _spread(grid: _Grid, *, pipe: int, row: Sequence[Worker | None], coordinate: int) -> Worker:
    there = grid.nodes(pipe, coordinate)
    beside = Counter(w[1] for w in row if w is not None)
    open_places = sum(w is None for w in row)
    free = Counter(w[1] for w in grid.free)
    beside_m, there_m, free_m, used_m = (grid.machines(c) for c in (beside, there, free, grid.used))
    worth = {
        node: (
            (-beside[node], -beside_m[machine]),
            (there_m[machine], there[node]),
            (free[node] < open_places, free_m[machine] < open_places),
            (used_m[machine], grid.used[node]),
        )
        for node in free
        for machine in (grid.machine[node],)
    }
    return min(grid.free, key=lambda w: (worth[w[1]], w[1], w[0]))


def _in_groups(rows: Sequence[list[Worker | None]], *, shard: int, overlap: Overlap) -> list[list[Worker | None]]:
    """The replicas in an order in which those that hold the same, or will, are `shard` apart, on other machines if possible."""
    size = len(rows) // shard
    parts: list[list[list[Worker | None]]] = [[] for _ in range(shard)]
    rest = []
    for row in rows:
        alike = [sum(overlap(a, b) for a, b in zip(row, p[0], strict=True) if a and b) if p else 0 for p in parts]
        best = max(range(shard), key=lambda p: (alike[p], -p))
        empty = next((p for p in range(shard) if not parts[p]), None)
        if alike[best] and len(parts[best]) < size:
            parts[best].append(row)
        elif empty is not None and any(w is not None and overlap(w, w) for w in row):
            parts[empty].append(row)
        else:
            rest.append(row)
    for row in rest:
        node = row[0] and row[0][1]
        near = [_near(node, [r[0][1] for r in p if r[0] is not None]) for p in parts]
        where = min((p for p in range(shard) if len(parts[p]) < size), key=lambda p: (near[p], len(parts[p]), p))
        parts[where].append(row)
    return [parts[d % shard][d // shard] for d in range(len(rows))]


def _near(node: str | None, nodes: Sequence[str]) -> tuple[int, int]:
    """How many of `nodes` are on the machine of a node, and on the node itself."""
    return sum(machine_of(n) == machine_of(node) for n in nodes) if node else 0, sum(n == node for n in nodes)
