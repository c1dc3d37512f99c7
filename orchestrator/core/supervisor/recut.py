"""Where to cut a pipeline whose ranks are not equally fast.

Each rank's measured time per micro-batch, by the share of the model that it has, says how long a layer would take on it; the best
cut is the one whose slowest stage is fastest. Small gains are not worth a change.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.plan import PIPELINE, Plan

GAIN_MIN = 0.9  # the slowest stage must take less than this share of what it takes now


def recut(plan: Plan, graph: GraphView, micro_batch_ms: Mapping[int, int]) -> tuple[int, ...]:
    """Layers per stage, in forward order; empty when there is no cut that is better by enough.

    `micro_batch_ms`: by rank, above zero. A stage waits for the slowest of its ranks. Interleaved stages are not cut anew.
    """
    stages = plan.axis(PIPELINE)
    if stages < 2 or len(plan.stages) != stages or any(micro_batch_ms.get(r, 0) <= 0 for r in range(plan.size)):
        return ()
    slowest = [max(micro_batch_ms[r] for r in range(plan.size) if plan.coordinates(r)[0] == p) for p in range(stages)]
    pace = [ms / (s.stop - s.start) for ms, s in zip(slowest, plan.stages, strict=True)]
    weights = [layer.stop - layer.start for layer in graph.layers]
    sizes = fastest(weights, pace)
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    best = max(sum(weights[ends[p] : ends[p + 1]]) * pace[p] for p in range(stages))
    now = max(sum(weights[s.first : s.last]) * pace[p] for p, s in enumerate(plan.stages))
    return sizes if best < GAIN_MIN * now else ()


def fastest(weights: list[int], pace: list[float]) -> tuple[int, ...]:
    """Sizes of len(pace) runs of `weights`, each at least one long, so that the largest (weight of run p) * pace[p] is least.

    Of equally good ones the one with the shortest last runs. Dynamic programming, O(layers^2 * stages).
    """
    n, count = len(weights), len(pace)
    if count > n:
        raise ValueError(f"{n} layers are too few for {count} stages")
    sums = [0]
    for w in weights:
        sums.append(sums[-1] + w)
    best = [0.0] + [float("inf")] * n  # best[i]: least time of the slowest of the runs so far over the first i layers
    cuts: list[list[int]] = []
    for p in range(count):
        following, cut = [float("inf")] * (n + 1), [0] * (n + 1)
        for i in range(p + 1, n - (count - p - 1) + 1):
            for j in range(i - 1, p - 1, -1):
                time = max(best[j], (sums[i] - sums[j]) * pace[p])
                if time < following[i]:
                    following[i], cut[i] = time, j
        best = following
        cuts.append(cut)
    sizes: list[int] = []
    at = n
    for cut in reversed(cuts):
        sizes.append(at - cut[at])
        at = cut[at]
    return tuple(reversed(sizes))
