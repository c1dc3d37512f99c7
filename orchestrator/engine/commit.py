"""The commit exchange of a step: everybody's losses, sums of squares and wishes, folded the same way by everybody.

Squares are summed block by block of the flat vector, so that the norm that clips has the same bits for any number of owners;
what other places hold as well (twins, what every tensor coordinate has whole) and buffers are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.core.graph.space import counted
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.layout import Interval, Intervals, intersect
from orchestrator.core.plan.plan import OPTIMIZER, PIPELINE, TENSOR, Plan
from orchestrator.engine.groups.base import EpochGroup
from orchestrator.engine.norms import block_sums
from orchestrator.engine.optim import Reduced

LEAVE, CHECKPOINT, SAVE = 1, 2, 4  # wishes, as bits; SAVE: a checkpoint of this step, and leave when it is written


@dataclass(frozen=True, slots=True)
class Told:
    """What all ranks told together."""

    losses: Mapping[int, float]  # by micro-batch
    squares: tuple[float, ...]
    wishes: int  # of anybody


def cut_at_blocks(intervals: Intervals, block: int) -> list[Interval]:
    """The intervals, those that begin inside a block cut at its end: then each rest begins at a block."""
    out: list[Interval] = []
    for i in intervals:
        edge = -(-i.start // block) * block
        if i.start < edge < i.stop:
            out += [Interval(i.start, edge), Interval(edge, i.stop)]
        else:
            out.append(i)
    return out


class CommitExchange:
    """Made once per epoch; `tell` is a barrier that a rank enters only when it is prepared."""

    def __init__(self, *, plan: Plan, group: EpochGroup, graph: GraphView, exact: bool, device: torch.device) -> None:
        self._plan, self._group, self._exact, self._device = plan, group, exact, device
        count = counted(graph, plan.axis(TENSOR))
        owned = [h.primary for h in plan.layout(OPTIMIZER).holdings]
        self._normed = [cut_at_blocks(intersect(o, count), plan.block) for o in owned]
        last = (len(plan.stages) - 1) % plan.axis(PIPELINE)
        self._runs = []
        for rank in range(plan.size):
            pipe, _, coordinate = plan.coordinates(rank)
            self._runs.append(plan.micro_batches_of(rank) if pipe == last and coordinate == 0 else ())
        self._counts = [sum(-(-i.numel // plan.block) for i in mine) if exact else 1 for mine in self._normed]
        self._losses_max = max(len(r) for r in self._runs)
        self._sums_max = max(self._counts)

    def tell(self, *, reduced: Reduced | None, losses: Mapping[int, float], wishes: int) -> Told:
        """This rank's losses by micro-batch and its reduced gradient; None: a step that nobody computes. Raises GroupBroken."""
        rank = self._group.rank
        told = torch.zeros(1 + self._losses_max + self._sums_max, dtype=torch.float64)
        told[0] = wishes
        if reduced is not None:
            run = self._runs[rank]
            told[1 : 1 + len(run)] = torch.tensor([losses[m] for m in run], dtype=torch.float64)
            sums = self._sums(reduced, self._normed[rank])
            told[1 + self._losses_max : 1 + self._losses_max + sums.numel()] = sums.cpu()
        told = told.to(self._device)
        everybody = torch.empty(self._group.size * told.numel(), dtype=torch.float64, device=self._device)
        self._group.all_gather_into(everybody, told)
        rows = everybody.cpu().view(self._group.size, -1)
        wished = 0
        for wish in rows[:, 0].tolist():
            wished |= int(wish)
        if reduced is None:
            return Told({}, (), wished)
        heard = {m: x for row, run in zip(rows, self._runs, strict=True) for m, x in zip(run, row[1:].tolist(), strict=False)}
        first = 1 + self._losses_max
        squares = [x for row, n in zip(rows, self._counts, strict=True) for x in row[first : first + n].tolist()]
        return Told(heard, tuple(squares), wished)

    def _sums(self, reduced: Reduced, mine: list[Interval]) -> Tensor:
        """float64 sums of squares of my region: of each block (exact), or one (fast)."""
        views = [reduced.view(i.start, i.stop) for i in mine]
        if self._exact:
            sums = [block_sums(v, self._plan.block) for v in views]
            return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64)
        total = torch.zeros(1, dtype=torch.float64, device=self._device)
        for view in views:
            total += torch.linalg.vector_norm(view).double().square()
        return total
