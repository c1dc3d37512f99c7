"""One rank's gradients over its run of micro-batches, kept as the values of tree nodes.

It works like a binary counter: each micro-batch is a leaf, and completed siblings are added at once, left + right
into left, so that about log2 of the run's length buffers are alive.  What is complete survives an aborted epoch: the
rank goes on at the micro-batch where it was interrupted and nothing that it has is computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from orchestrator.engine.buffers import BufferPool
from orchestrator.engine.tree import Node, siblings


@dataclass(slots=True)
class _Open:
    """The micro-batch being computed, and the complete node whose buffer it accumulates into, if any."""

    index: int
    joined: bool


class GradAccumulator:
    """Micro-batches [lo, hi) of `total`, gradients as flat fp32 vectors [numel].

    exact=True keeps the canonical tree. exact=False adds every micro-batch into one buffer (`partials` then has one
    entry, in general no tree node).

    join_leaves=True (exact only) lets a right leaf accumulate straight into its left sibling's buffer, which saves
    zeroing and one addition for every other micro-batch. The bits are the same provided that a backward pass adds
    each parameter's whole gradient once, as autograd does. The price: interrupting such a micro-batch loses its
    sibling too.
    """

    def __init__(
        self,
        numel: int,
        *,
        total: int,
        lo: int,
        hi: int,
        pool: BufferPool,
        exact: bool = True,
        join_leaves: bool = False,
    ) -> None:
        if not 0 <= lo <= hi <= total:
            raise ValueError(f"[{lo}, {hi}) is not inside [0, {total})")
        self._numel, self._lo, self._hi = numel, lo, hi
        self._left_of = siblings(total)
        self._pool = pool
        self._exact, self._join_leaves = exact, join_leaves
        self._stack: list[tuple[Node, Tensor]] = []
        self._open: _Open | None = None
        self._spare: Tensor | None = None  # the buffer of an open micro-batch that was not joined

    @property
    def next_index(self) -> int:
        """The first micro-batch that is not complete; hi when all are."""
        complete = self.partials()
        return complete[-1][0][1] if complete else self._lo

    @property
    def done(self) -> bool:
        """True when every micro-batch of the run is complete."""
        return self.next_index == self._hi

    def begin(self) -> tuple[int, Tensor]:
        """Open the next micro-batch: its index, and the buffer [numel] that backward must *add* its gradient to.

        Call it again, without `commit`, after an interruption: whatever the unfinished micro-batch wrote is dropped,
        and the index may be smaller than before where it had been joined to complete ones. Raises ValueError when all
        are done.
        """
        if self._open is not None and self._open.joined:
            _, self._spare = self._stack.pop()
        self._open = None
        index = self.next_index
        if index == self._hi:
            raise ValueError(f"micro-batches [{self._lo}, {self._hi}) are complete")
        if self._joins(index):
            self._open = _Open(index, joined=True)
            return index, self._stack[-1][1]
        if self._spare is None:
            self._spare = self._pool.take(self._numel)
        self._open = _Open(index, joined=False)
        return index, self._spare.zero_()

    def current(self) -> Tensor:
        """The open micro-batch's buffer. Raises ValueError when none is open."""
        if self._open is None:
            raise ValueError("no micro-batch is open")
        if self._open.joined:
            return self._stack[-1][1]
        assert self._spare is not None
        return self._spare

    def commit(self) -> None:
        """The open micro-batch's gradient is complete."""
        if self._open is None:
            raise ValueError("commit without begin")
        index, joined = self._open.index, self._open.joined
        self._open = None
        node: Node = (index, index + 1)
        if joined:
            left, value = self._stack.pop()
            node = (left[0], node[1])
        else:
            assert self._spare is not None
            value, self._spare = self._spare, None
        while self._exact and self._stack and self._left_of.get(node) == self._stack[-1][0]:
            left, left_value = self._stack.pop()
            left_value.add_(value)
            self._pool.give(value)
            node, value = (left[0], node[1]), left_value
        self._stack.append((node, value))

    def partials(self) -> list[tuple[Node, Tensor]]:
        """The complete nodes in order, as live buffers; equal to `segments(lo, hi, total)` when done (exact)."""
        kept = self._stack[:-1] if self._open is not None and self._open.joined else self._stack
        return list(kept)

    def reset(self) -> None:
        """Start the next step; the buffers are used again."""
        for _, value in self._stack:
            self._pool.give(value)
        if self._spare is not None:
            self._pool.give(self._spare)
        self._stack, self._spare, self._open = [], None, None

    def _joins(self, index: int) -> bool:
        if not self._stack:
            return False
        if not self._exact:
            return True
        top = self._stack[-1][0]
        return self._join_leaves and top[1] - top[0] == 1 and self._left_of.get((index, index + 1)) == top
