"""The best way to split a model over a cluster, or the best found within a fixed effort, with what is known about the rest.

First what people would do and what is near to the plan that runs. Then meshes and shapes in the order of a quick sketch, each
with the strategies that the best cuts suggest, without those whose lower bound is not below the best. The best shapes are
improved by small moves, and what is left open is gone through in full where that is few enough strategies.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.placement_traffic import placed
from orchestrator.core.planner.search.arrange import Ground
from orchestrator.core.planner.search.floors import Floors
from orchestrator.core.planner.search.leaves import Leaves
from orchestrator.core.planner.search.ledger import Ledger
from orchestrator.core.planner.search.moves import neighbours
from orchestrator.core.planner.search.seeds import near, outside, rules
from orchestrator.core.planner.search.shapes import SMALL, Mesh, Shape, meshes, shape_of, shapes
from orchestrator.core.planner.search.sketch import Sketches
from orchestrator.core.planner.search.weigh import INFINITE, Scale
from orchestrator.core.planner.search.words import describe
from orchestrator.core.planner.strategy import Choice, Option, Parent, Problem, Strategy

EFFORT, EFFORT_PER_DEVICE = 5500.0, 1.0  # units of weigh.effort_of: about 0.1 ms each
EFFORT_UNIFORM = 300.0  # on more than SMALL devices, where neither cuts nor shares may be uneven
_REPLAN = 0.3  # share of that in a re-plan: much is known, and workers wait
_MOVES_FROM, _EXACT_FROM = 0.6, 0.4  # shares of the effort that are left to small moves, and to going through all
_LEAF = 0.2  # effort to list and bound one strategy
_LEAVES_MAX = 20_000  # strategies of one shape that are listed
_PLACED = 128  # ranks up to which they are
_IMPROVED = 6  # meshes that are improved by small moves
_IMPROVED_LAST = 24  # shapes that are on small clusters
_SHAPE = 0.2  # effort to bound a shape
_UNLIKELY = 1.5  # times as long as the best: shapes sketched slower are not weighed, only gone through if there is effort left


def choose(
    problem: Problem, parent: Parent | None = None, *, seeds: Sequence[Strategy] = (), runners: int = 5, effort: float = 0.0
) -> Choice:
    """The strategy of least effective seconds per step, or with a parent of least seconds for the move and all steps left.

    `seeds` within the space are weighed and improved in any case; `effort` 0: the usual one. Raises PlanError when no strategy of
    the space fits.
    """
    return _Search(problem, parent, effort).run(seeds, runners)


class _Search:
    def __init__(self, problem: Problem, parent: Parent | None, effort: float) -> None:
        self._problem, self._parent = problem, parent
        self._ground = Ground(problem.resources)
        devices = sum(problem.resources.nodes[n].devices for n in self._ground.usable)
        if not devices:
            raise PlanError("no device is healthy")
        self._complete = devices <= SMALL or bool(problem.space.datas)
        uniform = devices > SMALL and not problem.space.uneven
        usual = EFFORT_UNIFORM if uniform else EFFORT + EFFORT_PER_DEVICE * devices
        self._effort = effort or usual * (1.0 if parent is None else _REPLAN)
        self._scale = Scale(problem, parent, self._effort)
        self._floors = Floors(problem, self._scale.costing)
        self._leaves = Leaves(self._scale, self._ground, self._floors)
        self._sketches = Sketches(self._scale, self._floors, self._leaves)
        self._meshes = list(meshes(problem))
        self._ledger = Ledger()
        self._guessed: set[Shape] = set()
        self._open: list[tuple[float, Shape]] = []  # shapes of which some strategies may be better than the best

    def run(self, seeds: Sequence[Strategy], runners: int) -> Choice:
        """All of it."""
        self._plant(seeds)
        rest = self._descend()
        self._place()
        self._improve(self._by_mesh()[:_IMPROVED], self._effort * _EXACT_FROM)
        if self._complete:
            self._guess_rest()
            self._improve(self._by_shape()[:_IMPROVED_LAST], self._effort * _EXACT_FROM)
        self._exhaust()
        best = self._scale.best
        if best is None:
            raise PlanError(f"no strategy fits: {self._ledger.shortest()}")
        least = self._scale.least
        bound = min([rest, *(b for b, _ in self._open if self._scale.floor(b) < least), best.estimate.effective_s])
        complete = self._complete and not self._problem.space.mixed_tensors  # of unlike degrees only some are listed
        proven = complete and self._scale.floor(bound) >= min(least, self._scale.floor(best.estimate.effective_s))
        for b, shape in self._open:
            self._ledger.bounded(shape, self._scale.floor(b))
        for option in self._scale.options.values():
            self._ledger.weighed(option, self._scale.value(option))
        return Choice(
            best=best,
            runners_up=self._runners(best, runners),
            rejected=self._ledger.rejected(best.strategy, least),
            proven=proven,
            bound_s=bound,
            weighed=self._ledger.count,
            reason=describe(self._problem, best, weighed=self._ledger.count, proven=proven, bound_s=bound),
        )

    # ------------------------------------------------------------------------------------------------------------ phases

    def _plant(self, seeds: Sequence[Strategy]) -> None:
        """Weigh what is weighed in any case."""
        if self._parent is not None:
            seeds = (*seeds, *near(self._problem, self._parent, self._ground))
        elif self._problem.space.uneven:
            seeds = (*seeds, *rules(self._problem, self._meshes, self._ground, self._sketches))
        for strategy in seeds:
            if not outside(self._problem, strategy):
                self._scale.settle(strategy)

    def _descend(self) -> float:
        """Go through meshes and shapes, the likeliest first; returns the least bound of the meshes not gone through."""
        scale, sketches = self._scale, self._sketches
        count, queue = len(self._meshes), list[tuple[float, int, float, Mesh | Shape]]()
        for n, mesh in enumerate(self._meshes):  # one below 0 waits under its bound, and is sketched only when its turn comes
            bound = self._floors.mesh_s(mesh)
            queue.append((bound, n - count, bound, mesh))
        heapify(queue)
        # numbers of replicas that are not looked at are smaller than the most of their pipeline, and their bound is no lower
        rest = INFINITE if self._complete else min((entry[2] for entry in queue), default=INFINITE)
        while queue:
            guess, n, bound, what = heappop(queue)
            floor = scale.floor(bound)
            if floor >= scale.least:
                self._ledger.bounded(what, floor)
                continue
            if n < 0 and isinstance(what, Mesh):
                heappush(queue, (sketches.mesh_s(what), n + len(self._meshes), bound, what))
                continue
            later = scale.effort < self._effort * _MOVES_FROM or scale.floor(guess) > _UNLIKELY * scale.least
            if isinstance(what, Mesh) and later and not self._complete:
                rest = min(rest, bound)
                self._ledger.bounded(what, floor)
            elif isinstance(what, Mesh):
                for shape in shapes(self._problem, what):
                    if not self._lacks(shape):
                        count += 1
                        scale.effort -= _SHAPE
                        heappush(queue, (sketches.shape_s(shape), count, max(bound, self._bound(shape)), shape))
            else:
                if not later:
                    self._leaves.guess(what)
                    self._guessed.add(what)
                self._open.append((bound, what))
        return rest

    def _place(self) -> None:
        """The best strategy's ranks placed by their traffic."""
        best = self._scale.best
        if best is not None and self._parent is None and self._problem.space.uneven and SMALL < best.strategy.ranks <= _PLACED:
            devices = [d for n in self._ground.usable for d in self._ground.devices_of(n)]
            self._scale.settle(placed(self._problem, best.strategy, devices))

    def _improve(self, starts: Sequence[Option], reserve: float) -> None:
        """Small moves from some strategies while more than `reserve` of the effort is left."""
        for start in starts:
            option, better = start, True
            while better:
                better = False
                for strategy in neighbours(option.strategy, problem=self._problem, ground=self._ground):
                    if self._scale.effort < reserve:
                        return
                    found = self._try(strategy, self._scale.value(option))
                    if found is not None:
                        option, better = found, True
                        break

    def _try(self, strategy: Strategy, value: float) -> Option | None:
        """The strategy's option if it is worth less than `value`."""
        shape = shape_of(strategy)
        floor = self._leaves.floor(shape, self._floors.rows(shape, strategy.devices), strategy)
        if self._scale.floor(floor) >= value:
            return None
        option = self._scale.settle(strategy)
        return option if self._scale.value(option) < value * (1 - 1e-12) else None

    def _exhaust(self) -> None:
        """Go through all strategies of the shapes that may still have a better one, where they are few enough."""
        self._open.sort(key=lambda entry: entry[0])
        still: list[tuple[float, Shape]] = []
        for bound, shape in self._open:
            if self._scale.floor(bound) >= self._scale.least:
                self._ledger.bounded(shape, self._scale.floor(bound))
                continue
            most = min(_LEAVES_MAX, int(self._scale.effort / _LEAF))
            leaves = self._leaves.all(shape, most) if self._parent is None and most > 0 else None
            if leaves is None:
                still.append((bound, shape))
                continue
            self._scale.effort -= _LEAF * len(leaves)
            for n, (floor, (devices, cuts, shares)) in enumerate(leaves):
                if self._scale.floor(floor) >= self._scale.least:
                    self._ledger.bounded(shape, self._scale.floor(floor), len(leaves) - n)
                    break
                if self._scale.effort < 0:
                    still.append((max(bound, floor), shape))
                    break
                self._scale.settle(self._leaves.strategy(shape, devices, cuts, shares=shares))
        self._open = still

    def _guess_rest(self) -> None:
        """Weigh guesses of the shapes that seemed unlikely as far as there is effort."""
        for bound, shape in self._open:
            likely = shape in self._guessed or self._scale.floor(bound) >= self._scale.least
            if not likely and self._scale.effort > self._effort * _MOVES_FROM:
                self._leaves.guess(shape)

    # ----------------------------------------------------------------------------------------------------------- details

    def _bound(self, shape: Shape) -> float:
        """Effective seconds at least of any strategy of a shape; for unlike degrees nothing beyond the mesh's floor is shown."""
        mesh = shape.mesh
        if len(mesh.degrees) > 1:
            return 0.0
        return self._scale.costing.bound(
            tensor=mesh.tensors[0],
            pipeline=len(mesh.tensors),
            data=mesh.data,
            zero=shape.zero,
            shard=shape.shard,
            units=mesh.units,
            schedule=shape.schedule,
            stages_per_rank=shape.stages_per_rank,
            recompute=False not in self._problem.space.recompute,
        )

    def _lacks(self, shape: Shape) -> bool:
        """Whether the state alone has no room, however it is cut."""
        need, room = self._leaves.least_bytes(shape), self._floors.memory_max
        if need > room:
            self._ledger.lacking(shape, need, room)
        return need > room

    def _by_shape(self) -> list[Option]:
        """The best option of each shape, best first."""
        found: dict[Shape, Option] = {}
        for option in self._scale.options.values():
            shape = shape_of(option.strategy)
            if self._scale.value(option) < (self._scale.value(found[shape]) if shape in found else INFINITE):
                found[shape] = option
        return sorted(found.values(), key=self._scale.value)

    def _by_mesh(self) -> list[Option]:
        """The best option of each mesh, best first."""
        found: dict[tuple[int, tuple[int, ...]], Option] = {}
        for option in self._by_shape():
            found.setdefault((option.strategy.data, option.strategy.tensors), option)
        return list(found.values())

    def _runners(self, best: Option, most: int) -> tuple[Option, ...]:
        """The best options of other meshes."""
        found = [o for o in self._by_mesh() if o.strategy != best.strategy][:most]
        return tuple(sorted((self._scale.moved(o) for o in found), key=self._scale.value))
