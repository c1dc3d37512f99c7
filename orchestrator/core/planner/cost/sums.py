"""How many partial gradients the canonical tree keeps at once, and how many each rank sends (see engine/tree.py, accumulate.py).

A rank folds its run [lo, hi) of the step's micro-batches into maximal nodes of the binary tree over all of them: aligned powers
of two, or the tree's own end. Up to the most even place of a run its nodes grow, one for each binary digit of the way there; from
there on they shrink, one for each digit of the way on. A right leaf is added into its left sibling's buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=4096)
def tree_sums(runs: Sequence[tuple[int, int]], total: int) -> tuple[int, int]:
    """(buffers alive at once, partial sums left at the end), each of the rank that has most of them."""
    return max(_alive(lo, hi) for lo, hi in runs), max(_left(lo, hi, total) for lo, hi in runs)


@lru_cache(maxsize=4096)
def streamed_sums(total: int, replicas: int) -> int:
    """Sums of one owner that are alive between rounds where `replicas` micro-batches at a time are added in tree order."""
    return max((min(i, total).bit_count() for i in range(replicas, total + replicas, replicas)), default=1)


def _alive(lo: int, hi: int) -> int:
    """Complete nodes and the open leaf, at most, on the way from lo to hi."""
    most, step = 1, 1
    while step < 2 * (hi - lo):
        even = -(-lo // step) * step  # the next multiple
        if even >= hi:
            break
        further = min(step - 1, hi - 1 - even)  # leaves from there on; with every second one open a node is whole
        most = max(most, (even - lo).bit_count() + (further // 2 + 1).bit_length())
        step *= 2
    return most


def _left(lo: int, hi: int, total: int) -> int:
    """Maximal nodes inside [lo, hi)."""
    if lo == hi:
        return 0
    if hi < total:
        level = (lo ^ hi).bit_length() - 1  # the highest digit in which they differ: its multiple below hi is the most even
        even = hi >> level << level if lo else 0
        return (even - lo).bit_count() + (hi - even).bit_count()
    begin = 0
    while lo > begin:  # down the right edge, whose nodes are the tree's end
        middle = begin + (1 << ((total - begin - 1).bit_length() - 1))
        if lo < middle:
            return (middle - lo).bit_count() + 1
        begin = middle
    return 1
