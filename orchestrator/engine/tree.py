"""The canonical order of sums over the M micro-batches of a step, whatever the number of ranks.

Floating-point addition is not associative, so an exact run fixes a binary tree over the micro-batches: T(lo, hi) is a
leaf when hi - lo is 1, else T(lo, mid) + T(mid, hi) with mid = lo + the largest power of two below hi - lo.  A rank
owns a contiguous run of micro-batches and folds it into the few maximal tree nodes inside (at most 2 log2 M, one
where the run aligns with the tree); whoever needs the total folds all ranks' nodes the same way, and always gets the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Generic, TypeVar

Node = tuple[int, int]
V = TypeVar("V")


def midpoint(lo: int, hi: int) -> int:
    """Where the node [lo, hi) of at least two micro-batches is split."""
    if hi - lo < 2:
        raise ValueError(f"[{lo}, {hi}) is not an inner node")
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


def split(total: int, rank: int, size: int, shares: Sequence[int] = ()) -> range:
    """The contiguous micro-batches of `rank`, by the `shares` of the ranks or even.

    Empty for some ranks when there are more ranks than micro-batches. Raises ValueError for shares that are no split.
    """
    if total < 1 or not 0 <= rank < size or (shares and (len(shares), sum(shares)) != (size, total)):
        raise ValueError(f"no split of {total} micro-batches for rank {rank} of {size}")
    if shares:
        first = sum(shares[:rank])
        return range(first, first + shares[rank])
    return range(total * rank // size, total * (rank + 1) // size)


def segments(lo: int, hi: int, total: int) -> list[Node]:
    """The maximal nodes of T(0, total) inside [lo, hi), in order; [] when lo == hi."""
    if not 0 <= lo <= hi <= total:
        raise ValueError(f"[{lo}, {hi}) is not inside [0, {total})")
    found: list[Node] = []

    def visit(a: int, b: int) -> None:
        if hi <= a or b <= lo:
            return
        if lo <= a and b <= hi:
            found.append((a, b))
            return
        mid = midpoint(a, b)
        visit(a, mid)
        visit(mid, b)

    if lo < hi:
        visit(0, total)
    return found


def all_segments(total: int, size: int, shares: Sequence[int] = ()) -> list[list[Node]]:
    """Every rank's segments; concatenated they cover [0, total) in order."""
    runs = [split(total, rank, size, shares) for rank in range(size)]
    return [segments(run.start, run.stop, total) for run in runs]


@lru_cache(maxsize=64)
def siblings(total: int) -> MappingProxyType[Node, Node]:
    """For each right child of T(0, total) its left sibling."""
    left_of: dict[Node, Node] = {}
    todo = [(0, total)]
    while todo:
        a, b = todo.pop()
        if b - a > 1:
            mid = midpoint(a, b)
            left_of[(mid, b)] = (a, mid)
            todo += [(a, mid), (mid, b)]
    return MappingProxyType(left_of)


class Folder(Generic[V]):
    """Folds values of nodes, pushed from left to right, into the value of the root.

    `add(left, right)` makes the parent's value.
    """

    def __init__(self, total: int, add: Callable[[V, V], V]) -> None:
        self._total = total
        self._left_of = siblings(total)
        self._add = add
        self._stack: list[tuple[Node, V]] = []

    def push(self, node: Node, value: V) -> int:
        """Take the next node's value; return how many additions it completed.

        Raises ValueError out of order or off the tree.
        """
        expected = self._stack[-1][0][1] if self._stack else 0
        if node[0] != expected or not node[0] < node[1] <= self._total:
            raise ValueError(f"node {node} does not follow {expected} in T(0, {self._total})")
        if node != (0, self._total) and node not in self._left_of and node not in self._left_of.values():
            raise ValueError(f"{node} is not a node of T(0, {self._total})")
        merges = 0
        while self._stack and self._left_of.get(node) == self._stack[-1][0]:
            left, left_value = self._stack.pop()
            node, value = (left[0], node[1]), self._add(left_value, value)
            merges += 1
        self._stack.append((node, value))
        return merges

    def result(self) -> V:
        """The root's value. Raises ValueError while nodes are missing."""
        if len(self._stack) != 1 or self._stack[0][0] != (0, self._total):
            raise ValueError(f"T(0, {self._total}) is not complete: {[node for node, _ in self._stack]}")
        return self._stack[0][1]


def merge_counts(nodes: Sequence[Node], total: int) -> list[int]:
    """For nodes that cover [0, total): how often to add a stack's two topmost values after pushing each."""
    folder: Folder[None] = Folder(total, lambda _left, _right: None)
    counts = [folder.push(node, None) for node in nodes]
    folder.result()
    return counts


def left_fold_counts(values: int) -> list[int]:
    """The same for plain left-to-right addition of `values` values."""
    return [0] + [1] * (values - 1) if values else []
