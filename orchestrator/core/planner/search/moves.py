"""Strategies that differ from one by a small step: a layer handed on, a stage not recomputed, devices exchanged, shares changed.

They repair what the dynamic programme does not see: links, bubbles, what a rank needs beyond its layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations

from orchestrator.core.planner.search.arrange import Ground
from orchestrator.core.planner.search.shapes import shape_of, shapes, strategy_of
from orchestrator.core.planner.strategy import Problem, Strategy

_STAGES_ALL = 8  # stages up to which a layer is handed on between any two, beyond it between neighbours
_BLOCKS_ALL = 32  # blocks of devices, or replicas, up to which any two change places


def neighbours(strategy: Strategy, *, problem: Problem, ground: Ground) -> Iterator[Strategy]:
    """All of them, in one order."""
    space = problem.space
    if False in space.recompute:
        for s, again in enumerate(strategy.recompute):
            if again:
                yield replace(strategy, recompute=_with(strategy.recompute, s, False))
    if space.uneven:
        yield from _handed_on(strategy)
        yield from _dealt(strategy, ground)
    yield from _exchanged(strategy, ground)
    yield from _siblings(strategy, problem)


def _with(values: tuple[bool, ...], index: int, value: bool) -> tuple[bool, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _handed_on(strategy: Strategy) -> Iterator[Strategy]:
    """One layer less for one stage and one more for another; those between are shifted."""
    stages = len(strategy.cuts)
    for giver, taker in permutations(range(stages), 2):
        if strategy.cuts[giver] > 1 and (stages <= _STAGES_ALL or abs(giver - taker) == 1):
            cuts = list(strategy.cuts)
            cuts[giver] -= 1
            cuts[taker] += 1
            yield replace(strategy, cuts=tuple(cuts))


def _dealt(strategy: Strategy, ground: Ground) -> Iterator[Strategy]:
    """One micro-batch less for one replica and one more for another of another speed."""
    if strategy.zero > 1 or not 1 < strategy.data <= _BLOCKS_ALL or not ground.unlike_speeds:
        return
    shares = [strategy.share(r) for r in range(strategy.data)]
    for giver, taker in permutations(range(strategy.data), 2):
        if shares[giver] > 1:
            dealt = list(shares)
            dealt[giver] -= 1
            dealt[taker] += 1
            yield replace(strategy, shares=tuple(dealt))


def _siblings(strategy: Strategy, problem: Problem) -> Iterator[Strategy]:
    """The same cuts and devices with another schedule, ZeRO stage, shard or copies."""
    own = shape_of(strategy)
    for shape in shapes(problem, own.mesh):
        if shape != own and shape.stages_per_rank == own.stages_per_rank:
            shares = strategy.shares if shape.zero <= 1 else ()
            yield strategy_of(shape, strategy.devices, strategy.cuts, strategy.recompute, shares)


def _exchanged(strategy: Strategy, ground: Ground) -> Iterator[Strategy]:
    """Two pipeline ranks, or two blocks, change devices where these are of unlike nodes."""
    kind = [ground.kinds[n] for n in ground.resources.node_of]
    ends = (*strategy.first_rank[1:], strategy.ranks)
    rows = [strategy.devices[a:b] for a, b in zip(strategy.first_rank, ends, strict=True)]
    seen = [[kind[d] for d in row] for row in rows]
    for i, j in combinations(range(strategy.pipeline), 2):
        if strategy.tensors[i] == strategy.tensors[j] and seen[i] != seen[j]:
            swapped = [rows[j] if k == i else rows[i] if k == j else row for k, row in enumerate(rows)]
            yield replace(strategy, devices=tuple(d for row in swapped for d in row))
    starts = [a + r * t for a, t in zip(strategy.first_rank, strategy.tensors, strict=True) for r in range(strategy.data)]
    degrees = [t for t in strategy.tensors for _ in range(strategy.data)]
    if len(starts) > _BLOCKS_ALL:
        return
    for n, block in ground.idle(strategy.devices, set(degrees)):
        for start, t in zip(starts, degrees, strict=True):
            mine = ground.nodes_of(strategy.devices[start : start + t])
            if len(block) == t and any(ground.kinds[m] != ground.kinds[n] for m in mine):
                yield replace(strategy, devices=(*strategy.devices[:start], *block, *strategy.devices[start + t :]))
    for (a, t), (b, u) in combinations(zip(starts, degrees, strict=True), 2):
        if t == u and ground.nodes_of(strategy.devices[a : a + t]) != ground.nodes_of(strategy.devices[b : b + t]):
            devices = list(strategy.devices)
            devices[a : a + t], devices[b : b + t] = devices[b : b + t], devices[a : a + t]
            yield replace(strategy, devices=tuple(devices))
