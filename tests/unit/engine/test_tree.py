"""The canonical tree: its shape, a rank's maximal nodes, and that folding them gives the serial bits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.tree import Folder, all_segments, left_fold_counts, merge_counts, segments, split

totals = st.integers(1, 200)


def shape(lo: int, hi: int) -> str:
    """T(lo, hi) written out, straight from the definition."""
    if hi - lo == 1:
        return str(lo)
    half = 1
    while 2 * half < hi - lo:
        half *= 2
    return f"({shape(lo, lo + half)}+{shape(lo + half, hi)})"


def folded(nodes: list[tuple[int, int]], total: int) -> str:
    folder: Folder[str] = Folder(total, lambda left, right: f"({left}+{right})")
    for lo, hi in nodes:
        folder.push((lo, hi), shape(lo, hi))
    return folder.result()


def test_shape_of_seven() -> None:
    assert folded([(i, i + 1) for i in range(7)], 7) == "(((0+1)+(2+3))+((4+5)+6))"


@given(totals)
def test_leaves_fold_into_the_tree(total: int) -> None:
    assert folded([(i, i + 1) for i in range(total)], total) == shape(0, total)


@given(totals, st.integers(1, 40))
def test_any_number_of_ranks_folds_into_the_same_tree(total: int, size: int) -> None:
    by_rank = all_segments(total, size)
    nodes = [node for rank in by_rank for node in rank]
    assert folded(nodes, total) == shape(0, total)
    assert sum(merge_counts(nodes, total)) == len(nodes) - 1
    assert all(len(rank) <= max(1, 2 * math.ceil(math.log2(total))) for rank in by_rank if total > 1)


@given(totals, st.integers(1, 40))
def test_split_tiles_the_step_evenly(total: int, size: int) -> None:
    runs = [split(total, rank, size) for rank in range(size)]
    assert [i for run in runs for i in run] == list(range(total))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


@given(st.data())
def test_segments_are_maximal(data: st.DataObject) -> None:
    total = data.draw(totals)
    lo = data.draw(st.integers(0, total))
    hi = data.draw(st.integers(lo, total))
    found = segments(lo, hi, total)
    assert [i for a, b in found for i in range(a, b)] == list(range(lo, hi))
    folder: Folder[None] = Folder(total, lambda _left, _right: None)
    for i in range(lo):
        folder.push((i, i + 1), None)
    held = len(folder._stack)
    pushes = [folder.push(node, None) for node in found]
    # No two of them are siblings; what merges is a node from the left of lo.
    assert len(folder._stack) == held + len(found) - sum(pushes)
    assert all(b <= a2 for (_, b), (a2, _) in pairwise(found))


@pytest.mark.parametrize(("total", "size"), [(8, 1), (8, 2), (8, 4), (12, 3), (16, 8)])
def test_aligned_runs_are_one_node(total: int, size: int) -> None:
    assert [len(nodes) for nodes in all_segments(total, size)] == [1] * size


def test_more_ranks_than_micro_batches() -> None:
    assert all_segments(2, 3) == [[], [(0, 1)], [(1, 2)]]


def test_refusals() -> None:
    folder: Folder[int] = Folder(8, int.__add__)
    folder.push((0, 4), 1)
    for node in [(5, 6), (4, 4), (4, 9), (4, 7)]:
        with pytest.raises(ValueError, match="node"):
            folder.push(node, 1)
    with pytest.raises(ValueError, match="not complete"):
        folder.result()
    for bad in [(-1, 2), (3, 2), (0, 9)]:
        with pytest.raises(ValueError, match="not inside"):
            segments(*bad, 8)
    with pytest.raises(ValueError, match="no split"):
        split(8, 2, 2)


def test_left_fold() -> None:
    assert [left_fold_counts(n) for n in range(4)] == [[], [0], [0, 1], [0, 1, 1]]
