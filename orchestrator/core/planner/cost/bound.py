"""A step time that no strategy of some axes can beat, whatever its cuts, its placement and its shares.

Compute: a replica with the most micro-batches m, on the fastest devices, each pipeline rank busy with its share; a micro-batch
must go down the pipeline and back, and before and after it each rank of a 1F1B pipeline has work that it can do at no other time.
Traffic: over the best links that a group of that size can have, nothing shared. Goodput: as many nodes as are needed, the most
reliable ones. Every term is at most the one that `estimate` finds (the tests hold it to that).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.collectives import ALONE, INFINITE, Ring, all_gather, reduce_scatter
from orchestrator.core.planner.cost.programs import SUM_BYTES
from orchestrator.core.planner.cost.stages import Tables
from orchestrator.core.planner.strategy import Problem

_ROUNDING = 1.0 - 1e-9  # sums in another order


@dataclass(frozen=True, slots=True)
class _Work:
    """Ideal seconds of one micro-batch: every layer on the device that is fastest for it."""

    forward: tuple[float, ...]  # sums of so many of the cheapest layers
    total: float  # forward, backward and again where asked, of all layers
    way: float  # the same with half of the backward pass
    least: tuple[float, ...]  # the same for sums of so many of the cheapest layers
    largest: float  # layer
    speeds: tuple[float, ...]  # sums of so many of the fastest devices; an ideal device is 1


class Bounds:
    """Lower bounds for one problem."""

    def __init__(self, problem: Problem, tables: Tables) -> None:
        self._problem, self._tables = problem, tables
        nodes = [n for n in problem.resources.nodes if n.healthy]
        self._nodes = nodes
        self._devices_max = max(n.devices for n in nodes)
        self._inside = (min(n.inside.latency_s for n in nodes), max(n.inside.bandwidth for n in nodes))
        rails = [n.network.bandwidth * (1 if problem.program.straight else n.devices) for n in nodes]
        self._across = (min(n.network.latency_s for n in nodes), max(rails))
        types = problem.resources.by_name
        self._bandwidth = max(types[n.device].bandwidth / n.pace for n in nodes)
        self._pace = min(n.pace for n in nodes)
        self._rates = list(accumulate(sorted(n.failures_per_hour / 3600.0 for n in nodes), initial=0.0))
        self._capacities = list(accumulate(sorted((n.devices for n in nodes), reverse=True), initial=0))
        self._works: dict[tuple[int, int, bool], _Work] = {}

    def effective_s(
        self,
        *,
        tensor: int,
        pipeline: int,
        data: int,
        zero: int,
        shard: int,
        units: int,
        schedule: PipelineSchedule,
        stages_per_rank: int = 1,
        recompute: bool = False,
    ) -> float:
        """At most the effective seconds per step of any strategy with these axes, all of one tensor degree.

        `recompute` true: of those that recompute in every stage; false: of any. Infinite where there are too few devices.
        """
        program, ranks = self._problem.program, tensor * pipeline * data
        if ranks > self._capacities[-1]:
            return INFINITE
        work, m = self._work(tensor, units, recompute), -(-(self._problem.batch // units) // data)
        runs, layers = self._tables.runs(tensor), len(self._problem.costs.order)
        elements = runs.elements(0, layers)
        ring, gathers = self._ring(data), self._ring(shard)
        halves = schedule is PipelineSchedule.ZERO_BUBBLE and pipeline > 1

        numbytes, calls = runs.reduced(0, layers)
        traffic = (3 if recompute else 2) * _all_reduce(self._ring(tensor), units * numbytes, calls)
        if zero >= 2:
            traffic += (1 - program.overlap) * reduce_scatter(ring, program.exchanged_bytes * elements, layers)
        if zero >= 3:
            gathered = all_gather(gathers, program.gathered_bytes * elements, layers)
            traffic += (1 - program.overlap) * (3 if halves else 2) * gathered
        if program.adds_in_tree(zero):
            traffic += SUM_BYTES * elements / self._bandwidth
        acts = self._pace * program.act_s * (3 if halves else 2)
        once = work.total + traffic + acts * pipeline * stages_per_rank  # a micro-batch on all ranks, one after the other
        way = work.way if halves else once  # what of it none can do at the same time

        busiest = max(work.largest, work.least[-(-layers // pipeline)])
        plain = schedule is PipelineSchedule.ONE_F_ONE_B and stages_per_rank == 1
        fill = (pipeline - 1) / 2 * work.forward[1]  # what the ranks before the mean one must pass on to it first
        mean, least = m * once / pipeline + fill, 0.0
        span = max(mean, self._span(once, way, busiest, pipeline=pipeline, m=m, plain=plain))
        span = max(span, (self._problem.batch // units) * work.total * tensor / work.speeds[ranks])
        if zero < 2:
            reduce = _all_reduce if zero == 0 else reduce_scatter
            reduction = (1 - program.overlap) * reduce(ring, program.exchanged_bytes * elements / pipeline)
            mean, least = mean + reduction, reduction if pipeline == 1 else 0.0
        step_s = max(mean, span + least) + program.step_s
        step_s += program.update_bytes * elements / pipeline / shard / self._bandwidth
        if zero in (1, 2):
            step_s += all_gather(gathers, program.gathered_bytes * elements / pipeline)
        return step_s * self._failing(ranks) * _ROUNDING

    def _span(self, once: float, way: float, busiest: float, *, pipeline: int, m: int, plain: bool) -> float:
        """Of a pipeline, from the first forward pass to the last backward pass."""
        if not plain or m < pipeline or pipeline == 1:
            return max(way, m * busiest, m * once / pipeline)
        inverse, first = _slack(pipeline, m)
        return max(once + once / inverse, once + first * busiest)

    def _ring(self, size: int) -> Ring:
        """The best that so many devices can form."""
        if size == 1:
            return ALONE
        if size > self._devices_max:
            return Ring(size, *self._across)
        return Ring(size, min(self._inside[0], self._across[0]), max(self._inside[1], self._across[1]))

    def _failing(self, ranks: int) -> float:
        """Wall seconds per second of work that at least go by."""
        r = self._problem.reliability
        return 1.0 + self._rates[bisect_left(self._capacities, ranks)] * (r.detect_s + min(r.restart_s, r.load_s))

    def _work(self, tensor: int, units: int, recompute: bool) -> _Work:
        key = tensor, units, recompute
        found = self._works.get(key)
        if found is None:
            found = self._works[key] = self._ideal(tensor, units, recompute)
        return found

    def _ideal(self, tensor: int, units: int, recompute: bool) -> _Work:
        costs = self._problem.costs
        first = [costs.order.index(k) if k in costs.order else -1 for k in range(len(costs.kinds))]
        kinds = [k for k, at in enumerate(first) if at >= 0]
        found = dict.fromkeys((n.device, n.pace) for n in self._nodes)
        forward: dict[tuple[str, float], list[float]] = {}
        half: dict[tuple[str, float], list[float]] = {}
        total: dict[tuple[str, float], list[float]] = {}
        for name, pace in found:
            passes = [self._tables.speeds(name, tensor).passes(first[k], first[k] + 1, units) for k in kinds]
            forward[name, pace] = [pace * p.forward_s for p in passes]
            half[name, pace] = [pace * (p.forward_s * (2 if recompute else 1) + p.backward_s / 2) for p in passes]
            total[name, pace] = [pace * (p.forward_s * (2 if recompute else 1) + p.backward_s) for p in passes]
        least_forward = dict(zip(kinds, map(min, zip(*forward.values(), strict=True)), strict=True))
        least_half = dict(zip(kinds, map(min, zip(*half.values(), strict=True)), strict=True))
        least = dict(zip(kinds, map(min, zip(*total.values(), strict=True)), strict=True))
        speeds = {
            speed: max((least[k] / t if t else 1.0 for k, t in zip(kinds, mine, strict=True)), default=1.0)
            for speed, mine in total.items()
        }
        devices = sorted(((speeds[n.device, n.pace], n.devices) for n in self._nodes), reverse=True)
        layers = [least[k] for k in costs.order]
        return _Work(
            forward=_cheapest([least_forward[k] for k in costs.order]),
            total=sum(layers),
            way=sum(least_half[k] for k in costs.order),
            least=_cheapest(layers),
            largest=max(layers),
            speeds=tuple(accumulate((speed for speed, count in devices for _ in range(count)), initial=0.0)),
        )


def _all_reduce(ring: Ring, numbytes: float, messages: int = 1) -> float:
    """At most what parts of it take together: the fewest calls' latency of a tree, the bytes of a ring."""
    n = ring.size
    if n == 1:
        return 0.0
    return 2 * (messages * (n - 1).bit_length() * ring.latency_s + (n - 1) / n * numbytes / ring.bandwidth)


@lru_cache(maxsize=4096)
def _slack(pipeline: int, m: int) -> tuple[float, float]:
    """(sum of 1 / c over the ranks s of a 1F1B pipeline, c of the first), with c = m - 1 - (pipeline - 1 - s) / 2.

    Before its first backward pass ends, a micro-batch has gone all the way and rank s has done pipeline - s forward passes at
    most; as much holds backwards from the end. So the pipeline takes one way there and back, and c times what rank s takes for
    a micro-batch; the largest of these is least when c times it is equal on all ranks.
    """
    slack = [m - 1 - (pipeline - 1 - s) / 2 for s in range(pipeline)]
    return sum(1.0 / c for c in slack), slack[0]


def _cheapest(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(accumulate(sorted(values), initial=0.0))
