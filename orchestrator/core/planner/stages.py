"""Which layers each stage of a pipeline has: as given, or so that the largest stage is as small as can be.

A layer weighs as many parameters as one tensor coordinate has of it; the time of a layer follows its parameters in the models
that pipelines are made for. First the least possible weight of the largest stage, then the most even stages under that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.core.graph.space import local_shape, space_of
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.plan import Stage
from orchestrator.core.planner.errors import PlanError


def make_stages(
    graph: GraphView, *, tensor: int, pipeline: int, stages_per_rank: int = 1, layers_per_stage: Sequence[int] = ()
) -> tuple[Stage, ...]:
    """pipeline x stages_per_rank stages in forward order; `layers_per_stage` says how many layers each has, empty: balanced.

    Raises PlanError when the layers do not suffice or `layers_per_stage` does not fit them.
    """
    count, layers = pipeline * stages_per_rank, len(graph.layers)
    if layers_per_stage:
        _check(layers_per_stage, count=count, layers=layers)
        sizes = list(layers_per_stage)
    else:
        if count > layers:
            raise PlanError(f"{count} pipeline stages need as many layers, and the model names {layers}")
        sizes = _balanced(_weights(graph, tensor), count)
    bounds = space_of(graph, tensor).layers
    out: list[Stage] = []
    first = 0
    for size in sizes:
        last = first + size
        out.append(Stage(first=first, last=last, start=bounds[first].start, stop=bounds[last - 1].stop))
        first = last
    return tuple(out)


def _check(layers_per_stage: Sequence[int], *, count: int, layers: int) -> None:
    if len(layers_per_stage) != count:
        raise PlanError(f"layers_per_stage lists {len(layers_per_stage)} stages, and the pipeline has {count}")
    if min(layers_per_stage) < 1:
        raise PlanError("layers_per_stage leaves a stage without layers")
    if sum(layers_per_stage) != layers:
        raise PlanError(f"layers_per_stage adds up to {sum(layers_per_stage)} layers, and the model has {layers}")


def _weights(graph: GraphView, tensor: int) -> list[int]:
    weights = [0] * len(graph.layers)
    for t in graph.tensors:
        if t.trainable:
            weights[t.layer] += math.prod(local_shape(t.shape, cut_dim=t.cut_dim, degree=tensor, coordinate=0))
    return weights


def _balanced(weights: Sequence[int], count: int) -> list[int]:
    """Layers per stage: at least one each, the heaviest stage as light as can be, then the least sum of squares."""
    cap = _least_cap(weights, count)
    sums = [0]
    for w in weights:
        sums.append(sums[-1] + w)
    n = len(weights)
    best: list[int | None] = [0] + [None] * n  # best[i]: least sum of squares of the stages so far over the first i layers
    cuts: list[list[int]] = []
    for stage in range(1, count + 1):
        following: list[int | None] = [None] * (n + 1)
        cut = [0] * (n + 1)
        for i in range(stage, n - (count - stage) + 1):
            for j in range(i - 1, stage - 2, -1):
                weight = sums[i] - sums[j]
                if weight > cap:
                    break
                before = best[j]
                if before is None:
                    continue
                cost = before + weight * weight
                known = following[i]
                if known is None or cost < known:
                    following[i], cut[i] = cost, j
        best = following
        cuts.append(cut)
    sizes: list[int] = []
    at = n
    for cut in reversed(cuts):
        sizes.append(at - cut[at])
        at = cut[at]
    return sizes[::-1]


def _least_cap(weights: Sequence[int], count: int) -> int:
    """The least weight of the heaviest of `count` runs (more runs than needed never hurt: there are enough layers)."""
    lo, hi = max(weights), sum(weights)
    while lo < hi:
        cap = (lo + hi) // 2
        runs, filled = 1, 0
        for w in weights:
            if filled + w > cap:
                runs, filled = runs + 1, 0
            filled += w
        if runs <= count:
            hi = cap
        else:
            lo = cap + 1
    return lo
