"""Strategies of one shape: good guesses by the dynamic programme over cuts, or all of them, each with its lower bound.

A guess takes a canonical arrangement of devices and cuts the layers so that the slowest stage is fastest with the memory
there is. What a rank needs beyond what grows with its layers is learnt from the estimate: where a rank overflows, its room is
made smaller by as much, and the layers are cut again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from math import comb

from orchestrator.core.planner.cost.timeline import live
from orchestrator.core.planner.search.arrange import Devices, Ground
from orchestrator.core.planner.search.cuts import Cut, Way, best_cut, even_cut
from orchestrator.core.planner.search.floors import Floors, Speed
from orchestrator.core.planner.search.shapes import Shape, strategy_of
from orchestrator.core.planner.search.weigh import Scale
from orchestrator.core.planner.strategy import Strategy

_REPAIRS = 3  # times that the layers are cut again for want of memory
_RANKS_ALL = 16  # ranks up to which all assignments are listed

_WORD = 0.3  # effort to list one assignment
_CUT = 0.3  # and to cut the layers, for each stage

Row = tuple[tuple[Speed, ...], ...]
Leaf = tuple[Devices, tuple[int, ...], tuple[int, ...]]  # devices, cuts, shares


class Leaves:
    """Makes strategies of shapes."""

    def __init__(self, scale: Scale, ground: Ground, floors: Floors) -> None:
        self._scale, self._ground, self._floors = scale, ground, floors
        self._space = scale.problem.space
        self._types = scale.problem.resources.by_name
        self._cuts_known: dict[tuple[int, tuple[int, ...]], Cut | None] = {}  # by the identities of _ways_known's values
        self._ways_known: dict[object, tuple[Way, ...]] = {}
        self._seconds_known: dict[object, list[float]] = {}
        self._bytes_known: dict[object, list[float]] = {}
        self._per_element: dict[tuple[int, int, int, int, int, int], float] = {}

    def guess(self, shape: Shape) -> None:
        """Weigh one strategy, or a few, for each canonical arrangement while there is effort left."""
        groups = (shape.shard,) if 1 < shape.shard < shape.mesh.data else ()
        for devices in self._ground.arrangements(shape.mesh, groups):
            if self._scale.effort >= 0:
                self._cut_and_weigh(shape, devices)

    def all(self, shape: Shape, most: int) -> list[tuple[float, Leaf]] | None:
        """Every strategy that does not recompute, with its bound, lowest first; None where there are more than `most`."""
        mesh = shape.mesh
        count = comb(self._floors.layers - 1, shape.stages - 1) if self._space.uneven else 1
        if mesh.ranks > _RANKS_ALL or count > most:
            return None
        alike = mesh.micro_batches % mesh.data == 0 and shape.shard in (1, mesh.data)
        alike = alike and not (self._dealt(shape) and self._ground.unlike_speeds)
        before = self._ground.listed
        assignments = self._ground.assignments(mesh, alike=alike)
        self._scale.effort -= _WORD * (self._ground.listed - before)
        if assignments is None or len(assignments) * count > most:
            return None
        cuts = list(self._cuts(shape))
        floors: dict[tuple[Row, ...], list[tuple[float, tuple[int, ...], tuple[int, ...]]]] = {}
        out: list[tuple[float, Leaf]] = []
        for devices in assignments:
            rows = self._floors.rows(shape, devices)
            if rows not in floors:
                shares = self._shares(shape, rows, most)
                floors[rows] = [
                    (self._floor(shape, _work(rows, share or mesh.even), cut), cut, share) for cut in cuts for share in shares
                ]
            if len(out) + len(floors[rows]) > most:
                return None
            out += [(floor, (devices, cut, share)) for floor, cut, share in floors[rows]]
        return sorted(out)

    def least_bytes(self, shape: Shape) -> float:
        """What the fullest rank needs at least, however the layers are cut: its part of the state."""
        runs = self._scale.costing.tables.runs(max(shape.mesh.degrees))
        part = runs.elements(0, self._floors.layers) / len(shape.mesh.tensors)
        return self.element_bytes(shape) * part + self._scale.problem.program.rank_bytes

    def strategy(
        self,
        shape: Shape,
        devices: Devices,
        cuts: tuple[int, ...],
        *,
        recompute: tuple[bool, ...] = (),
        shares: tuple[int, ...] = (),
    ) -> Strategy:
        """Of a shape; without `recompute` no stage does, where the space allows it."""
        again = recompute or (False not in self._space.recompute,) * len(cuts)
        return strategy_of(shape, devices, cuts, again, shares)

    def floor(self, shape: Shape, rows: Sequence[Row], strategy: Strategy) -> float:
        """Seconds of a step at least."""
        return self._floor(shape, _work(rows, strategy.shares or shape.mesh.even), strategy.cuts)

    def _floor(self, shape: Shape, work: dict[Row, int], cuts: tuple[int, ...]) -> float:
        return max(self._floors.replica_s(shape, row, cuts, m) for row, m in work.items())

    def _cuts(self, shape: Shape) -> Iterator[tuple[int, ...]]:
        layers = self._floors.layers
        if not self._space.uneven:
            yield even_cut(layers, shape.stages)
            return
        for inner in combinations(range(1, layers), shape.stages - 1):
            yield tuple(b - a for a, b in pairwise((0, *inner, layers)))

    def _shares(self, shape: Shape, rows: Sequence[Row], most: int) -> list[tuple[int, ...]]:
        """Every way to deal out micro-batches to unlike replicas; only the even one to alike ones, and from ZeRO-2 on."""
        mesh = shape.mesh
        if not self._unlike(shape, rows) or comb(mesh.micro_batches - 1, mesh.data - 1) > most:
            return [()]
        dealt = combinations(range(1, mesh.micro_batches), mesh.data - 1)
        return [tuple(b - a for a, b in pairwise((0, *inner, mesh.micro_batches))) for inner in dealt]

    def _dealt(self, shape: Shape) -> bool:
        """Whether replicas may have unequal shares."""
        return self._space.uneven and shape.zero <= 1

    def _unlike(self, shape: Shape, rows: Sequence[Row]) -> bool:
        return self._dealt(shape) and len(set(rows)) > 1

    def _cut_and_weigh(self, shape: Shape, devices: Devices) -> None:
        rows = self._floors.rows(shape, devices)
        slack = [0.0] * len(shape.mesh.tensors)
        for _ in range(_REPAIRS):
            strategy = self._cut(shape, devices, rows, slack)
            if strategy is None or self._scale.floor(self.floor(shape, rows, strategy)) >= self._scale.least:
                break
            option = self._scale.settle(strategy)
            if option.estimate.fits or not self._space.uneven:
                break
            for pipe, m in enumerate(option.estimate.memory):
                slack[pipe] += max(0.0, m.total - m.limit)

    def _cut(self, shape: Shape, devices: Devices, rows: Sequence[Row], slack: Sequence[float]) -> Strategy | None:
        """The strategy of the best cut with less room by `slack` on each pipeline rank."""
        layers = self._floors.layers
        if not self._space.uneven:
            cuts = even_cut(layers, shape.stages)
            return self.strategy(shape, devices, cuts, shares=self.deal(shape, rows, cuts))
        ways = self._ways(shape, rows, slack)
        key = shape.stages, tuple(id(w) for w in ways)
        if key not in self._cuts_known:
            self._scale.effort -= _CUT * shape.stages
            self._cuts_known[key] = best_cut([ways[s % len(ways)] for s in range(shape.stages)], layers)
        cut = self._cuts_known[key]
        if cut is None:
            return None
        again = sorted(set(self._space.recompute))
        recompute = tuple(again[w] for w in cut.ways)
        return self.strategy(shape, devices, cut.sizes, recompute=recompute, shares=self.deal(shape, rows, cut.sizes))

    def _ways(self, shape: Shape, rows: Sequence[Row], slack: Sequence[float]) -> list[tuple[Way, ...]]:
        """How each pipeline rank can run a stage: what the layers take on the slowest of its devices, and need."""
        program, mesh, local = self._scale.problem.program, shape.mesh, shape.stages_per_rank
        kept = live(shape.schedule, len(mesh.tensors), shape.stages, -(-mesh.micro_batches // mesh.data))
        per_element, different = self.element_bytes(shape), set(rows)
        out: list[tuple[Way, ...]] = []
        for pipe, t in enumerate(mesh.tensors):
            speeds = tuple(sorted({s for row in different for s in row[pipe]}))
            limit = min(self._types[name].memory_bytes for name, _ in speeds)
            in_flight = max(sum(counts) for counts in kept[pipe]) / local
            room = (limit - program.rank_bytes - slack[pipe]) / local
            key = speeds, t, mesh.units, per_element, in_flight, room
            if key not in self._ways_known:
                self._ways_known[key] = tuple(
                    Way(
                        self._seconds(mesh.units, speeds, t, again),
                        self._bytes(mesh.units, t, again, per_element, in_flight),
                        room,
                    )
                    for again in sorted(set(self._space.recompute))
                )
            out.append(self._ways_known[key])
        return out

    def _bytes(self, units: int, tensor: int, recompute: bool, per_element: float, in_flight: float) -> list[float]:
        """What the first n layers need, state and activations."""
        key = units, tensor, recompute, per_element, in_flight
        if key not in self._bytes_known:
            runs = self._scale.costing.tables.runs(tensor)
            self._bytes_known[key] = [
                per_element * runs.elements(0, n) + in_flight * units * runs.kept_bytes(0, n, recompute=recompute)
                for n in range(self._floors.layers + 1)
            ]
        return self._bytes_known[key]

    def element_bytes(self, shape: Shape) -> float:
        """Bytes of state per element of a rank's stages."""
        mesh, costing = shape.mesh, self._scale.costing
        pipeline, t = min(len(mesh.tensors), 2), max(mesh.degrees)  # whether there is one rank or more is all that matters
        data, micro_batches = (mesh.data, mesh.micro_batches) if self._scale.problem.program.straight else (1, 1)
        key = data, micro_batches, shape.zero, shape.shard, t, pipeline
        found = self._per_element.get(key)
        if found is None:
            shares = mesh.even if data > 1 else (micro_batches,)
            found = costing.element_bytes(pipeline=pipeline, tensor=t, zero=shape.zero, shard=shape.shard, shares=shares)
            self._per_element[key] = found
        return found

    def _seconds(self, units: int, speeds: Sequence[Speed], tensor: int, recompute: bool) -> list[float]:
        """Of the first n layers on the slowest of these devices: a forward pass more where they recompute."""
        key = units, tuple(speeds), tensor, recompute
        if key not in self._seconds_known:
            columns = []
            for speed in speeds:
                forward, backward = self._floors.sums(speed, tensor, units)
                columns.append([f * (2 if recompute else 1) + b for f, b in zip(forward, backward, strict=True)])
            self._seconds_known[key] = [max(c) for c in zip(*columns, strict=True)]
        return self._seconds_known[key]

    def deal(self, shape: Shape, rows: Sequence[Row], cuts: Sequence[int]) -> tuple[int, ...]:
        """Micro-batches of each replica so that the last one is done soonest; empty: as even as can be."""
        mesh = shape.mesh
        if not self._unlike(shape, rows):
            return ()
        kinds = list(dict.fromkeys(rows))
        ends = {k: [self._floors.replica_s(shape, k, cuts, m) for m in (1, 2)] for k in kinds}
        rate = {k: ends[k][1] - ends[k][0] for k in kinds}
        shares = [1] * mesh.data
        total = sum(1 / rate[row] for row in rows)
        for r, row in enumerate(rows):
            shares[r] = max(1, int(mesh.micro_batches / rate[row] / total))
        while sum(shares) > mesh.micro_batches:
            r = max(
                (r for r in range(mesh.data) if shares[r] > 1),
                key=lambda r: (ends[rows[r]][0] + (shares[r] - 1) * rate[rows[r]], r),
            )
            shares[r] -= 1
        while sum(shares) < mesh.micro_batches:
            r = min(range(mesh.data), key=lambda r: (ends[rows[r]][0] + shares[r] * rate[rows[r]], r))
            shares[r] += 1
        return () if tuple(shares) == mesh.even else tuple(shares)


def _work(rows: Sequence[Row], shares: Sequence[int]) -> dict[Row, int]:
    """Micro-batches of the replica that has most, for each row of speeds."""
    if all(row is rows[0] for row in rows):
        return {rows[0]: max(shares)}
    out: dict[Row, int] = {}
    for row, share in zip(rows, shares, strict=True):
        if share > out.get(row, 0):
            out[row] = share
    return out
