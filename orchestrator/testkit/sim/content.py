"""What training computes, as numbers that give every mistake away.

Each block of the parameters and of the optimizer state is one integer, chained by a hash from step to step over the gradient,
which is a hash over all micro-batches of all cells. A cell is one layer on one tensor coordinate: what a rank computes with. A
region that is stale, torn, mixed up or updated twice differs from the serial run from then on, everywhere. Hashes are of tuples
of integers: equal in every process, whatever PYTHONHASHSEED.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from orchestrator.core.graph.space import space_of
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.layout import Interval, Intervals, merge
from orchestrator.core.plan.plan import Plan
from orchestrator.core.reshard.recovery import Commit

BLOCK = 1024  # elements
USUAL_SHARE = 0.1

Cells = tuple[tuple[int, ...], ...]  # blocks of each


def cells_of(graph: GraphView, degree: int) -> Cells:
    """The blocks of each layer on each tensor coordinate, in that order: cell = coordinate * layers + layer."""
    space = space_of(graph, degree)
    layers = range(len(graph.layers))
    return tuple(blocks_of(space.layer_run(n, n + 1, coordinate=c)) for c in range(degree) for n in layers)


def my_cells(plan: Plan, rank: int, layers: int) -> tuple[int, ...]:
    """The cells that a rank computes with."""
    first = plan.coordinates(rank)[2] * layers
    return tuple(first + n for s in plan.stages_of(rank) for n in range(plan.stages[s].first, plan.stages[s].last))


def blocks_of(intervals: Intervals) -> tuple[int, ...]:
    """The blocks of whole-block intervals."""
    return tuple(b for i in intervals for b in range(i.start // BLOCK, i.stop // BLOCK))


def intervals_of(blocks: Collection[int]) -> Intervals:
    """The inverse."""
    return merge(Interval(b * BLOCK, (b + 1) * BLOCK) for b in blocks)


def micro_batch(step: int, index: int, cell: int, params: tuple[int, ...]) -> int:
    """What one micro-batch gives on one cell with these parameters."""
    return hash((1, step, index, cell, params))


def reduced(parts: Mapping[tuple[int, int], int]) -> int:
    """The gradient of a step, from all its micro-batches and cells."""
    return hash((2, *(parts[key] for key in sorted(parts))))


def optim_after(optim: int, grad: int, block: int) -> int:
    """Optimizer state of a block after an update."""
    return hash((3, optim, grad, block))


def params_after(params: int, optim: int, block: int) -> int:
    """Parameters of a block after an update that left `optim`."""
    return hash((4, params, optim, block))


def commit_of(step: int, grad: int, *, usual: float, skipped: bool) -> Commit:
    """What the ranks settle in the exchange of a step; `usual` is the loss that was usual before it."""
    if skipped:
        return Commit(step, usual, 0.0, 0.0, True, usual)
    loss = (1 + (grad & 0xFFFF)) / 16384
    return Commit(step, loss, 1.0, 1.0, False, loss if usual == 0.0 else usual + USUAL_SHARE * (loss - usual))


def digest_of(params: Sequence[int], optim: Sequence[int]) -> str:
    """Of the whole state."""
    return f"{hash((tuple(params), tuple(optim))) & (2**64 - 1):016x}"


class Serial:
    """The run in which nothing failed: params[n], optim[n] by block, grad[n] and commit[n], after step n.

    `bad` are steps whose data gives no finite loss; they change nothing.
    """

    def __init__(self, *, cells: Cells, micro_batches: int, steps: int, bad: Collection[int]) -> None:
        self.blocks = 1 + max(b for cell in cells for b in cell)
        blocks = range(self.blocks)
        self.params: list[tuple[int, ...]] = [tuple(hash((5, b)) for b in blocks)]
        self.optim: list[tuple[int, ...]] = [tuple(hash((6, b)) for b in blocks)]
        self.grad = [0]
        self.commit = [Commit(0, 0.0, 0.0, 1.0, False, 0.0)]
        for n in range(1, steps + 1):
            p, o = self.params[-1], self.optim[-1]
            parts = {
                (m, c): micro_batch(n, m, c, tuple(p[b] for b in mine))
                for m in range(micro_batches)
                for c, mine in enumerate(cells)
            }
            grad = reduced(parts)
            self.grad.append(grad)
            self.commit.append(commit_of(n, grad, usual=self.commit[-1].usual_loss, skipped=n in bad))
            after = o if n in bad else tuple(optim_after(o[b], grad, b) for b in blocks)
            self.optim.append(after)
            self.params.append(p if n in bad else tuple(params_after(p[b], after[b], b) for b in blocks))

    def digest(self, step: int) -> str:
        """Of the whole state after a step."""
        return digest_of(self.params[step], self.optim[step])
