"""How many partial gradients the canonical tree keeps at once, and how many each rank sends (see engine/tree.py, accumulate.py).

A rank folds its run [lo, hi) of the step's micro-batches into maximal nodes of the binary tree over all of them: whole aligned
powers of two, or the tree's own end. Right leaves are added into their left sibling's buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=4096)
def tree_sums(runs: Sequence[tuple[int, int]], total: int) -> tuple[int, int]:
    """(buffers alive at once, partial sums left at the end), each of the rank that has most of them."""
    alive, left = 1, 1
    for lo, hi in runs:
        stack: list[tuple[int, int]] = []
        for i in range(lo, hi):
            joined = bool(stack) and i % 2 == 1 and stack[-1] == (i - 1, i)
            alive = max(alive, len(stack) + (not joined))
            stack.append((i, i + 1))
            while len(stack) > 1 and _siblings(stack[-2], stack[-1], total):
                (_, end), (begin, _) = stack.pop(), stack.pop()
                stack.append((begin, end))
        left = max(left, len(stack))
    return alive, left


def _siblings(a: tuple[int, int], b: tuple[int, int], total: int) -> bool:
    """Whether two neighbouring nodes have one parent: the left is a power of two, the right as long or the tree's end."""
    left, right = a[1] - a[0], b[1] - b[0]
    if left & (left - 1) or a[0] % (2 * left):
        return False
    return right == left or (b[1] == total and right < left)


@lru_cache(maxsize=4096)
def streamed_sums(total: int, replicas: int) -> int:
    """Sums of one owner that are alive between rounds where `replicas` micro-batches at a time are added in tree order."""
    return max((min(i, total).bit_count() for i in range(replicas, total + replicas, replicas)), default=1)
