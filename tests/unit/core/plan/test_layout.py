"""The algebra of intervals against the plain thing it stands for: sets of integers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.plan.layout import Holding, Interval, Intervals, intersect, merge, subtract, total
from tests.unit.core.strategies import intervals

many = st.lists(intervals(), max_size=6).map(tuple)


def points(of: Intervals) -> set[int]:
    """The integers that the intervals stand for."""
    return {x for i in of for x in range(i.start, i.stop)}


def assert_normal(of: Intervals) -> None:
    """Sorted and disjoint."""
    assert all(a.stop <= b.start for a, b in pairwise(of)), of


@given(many)
def test_merge_is_the_union_in_its_only_form(a: Intervals) -> None:
    merged = merge(a)
    assert points(merged) == points(a)
    assert all(x.stop < y.start for x, y in pairwise(merged)), "neighbours that touch are joined"
    assert merge(merged) == merged
    assert merge(reversed(a)) == merged, "the order given does not matter"
    assert total(merged) == len(points(a))


@given(many, many)
def test_subtract_is_the_difference(a: Intervals, b: Intervals) -> None:
    out = subtract(a, b)
    assert points(out) == points(a) - points(b)
    assert_normal(out)


@given(many, many)
def test_intersect_is_the_intersection(a: Intervals, b: Intervals) -> None:
    out = intersect(a, b)
    assert points(out) == points(a) & points(b)
    assert_normal(out)


@given(many, many)
def test_what_is_cut_and_what_is_left_make_the_whole(a: Intervals, b: Intervals) -> None:
    assert merge(subtract(a, b) + intersect(a, b)) == merge(a)


@given(many, many)
def test_a_holding_is_both_its_parts(primary: Intervals, extra: Intervals) -> None:
    assert points(Holding(primary, extra).everything) == points(primary) | points(extra)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 2), (-1, 2)])
def test_empty_and_negative_intervals_do_not_exist(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="interval"):
        Interval(start, stop)


def test_an_interval_counts_its_elements() -> None:
    assert Interval(3, 10).numel == 7
    assert total((Interval(0, 2), Interval(5, 9))) == 6
