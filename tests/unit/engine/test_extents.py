"""Extents keep what stays where it is, say exactly what they hold, and give memory back chunk by chunk."""

from __future__ import annotations

import random

import pytest
import torch

from orchestrator.core.plan.layout import Interval, intersect, merge, subtract
from orchestrator.engine.extents import CHUNK_BYTES, SLAB_BYTES_MAX, Extents, Pages


def filled(*intervals: tuple[int, int]) -> Extents:
    """Each element holds its own place in the vector."""
    out = Extents(torch.float32)
    for lo, hi in intervals:
        out.add(Interval(lo, hi), torch.arange(lo, hi, dtype=torch.float32))
    return out


def test_what_is_held_is_found_and_neighbours_are_one_interval() -> None:
    e = filled((10, 20), (0, 10), (30, 40))
    assert e.intervals == (Interval(0, 20), Interval(30, 40))
    assert (e.numel, e.nbytes, len(e)) == (30, 120, 3)
    assert [(lo, hi) for lo, hi, _ in e.pieces(5, 15)] == [(5, 10), (10, 15)]
    assert torch.cat([v for _, _, v in e.pieces(5, 15)]).tolist() == list(range(5, 15))
    assert e.view(31, 33).tolist() == [31, 32]
    assert e.covers(0, 20)
    assert not e.covers(15, 31)
    assert [i for i, _ in e] == [Interval(0, 10), Interval(10, 20), Interval(30, 40)]


def test_what_is_missing_is_named() -> None:
    e = filled((0, 10), (20, 30))
    with pytest.raises(KeyError, match=r"\[10, 25\) is not all held"):
        e.pieces(5, 25)
    with pytest.raises(KeyError, match="nothing"):
        filled().pieces(0, 1)
    with pytest.raises(KeyError, match="in 2 chunks"):
        filled((0, 10), (10, 20)).view(5, 15)


@pytest.mark.parametrize("interval", [(5, 15), (0, 10), (9, 10), (0, 40), (25, 31)])
def test_nothing_is_held_twice(interval: tuple[int, int]) -> None:
    e = filled((0, 10), (30, 40))
    with pytest.raises(ValueError, match="overlaps"):
        e.add(Interval(*interval), torch.zeros(interval[1] - interval[0]))


def test_a_tensor_that_does_not_fit_is_refused() -> None:
    e = Extents(torch.float32)
    for tensor in (torch.zeros(3), torch.zeros(2, 2), torch.zeros(4, dtype=torch.float64), torch.zeros(8)[::2]):
        with pytest.raises(ValueError):
            e.add(Interval(0, 4), tensor)


def test_an_extent_that_is_cut_keeps_its_memory_until_the_last_element_goes() -> None:
    e = filled((0, 10), (10, 20))
    first = e.view(0, 10)
    assert e.drop((Interval(2, 4), Interval(8, 12), Interval(100, 200))) == []
    assert e.intervals == (Interval(0, 2), Interval(4, 8), Interval(12, 20))
    assert e.view(4, 8).data_ptr() == first[4:].data_ptr()
    assert (e.nbytes, e.resident_nbytes) == (14 * 4, 80)
    freed = e.drop((Interval(0, 8),))
    assert [t.tolist() for t in freed] == [list(range(10))]
    assert e.resident_nbytes == 40
    e.add(Interval(3, 6), torch.zeros(3))  # there is room again


def test_drop_is_what_subtract_says() -> None:
    chance = random.Random(3)
    for _ in range(200):
        cuts = sorted(chance.sample(range(100), 8))
        e = filled(*zip(cuts[::2], cuts[1::2], strict=True))
        held = e.intervals
        lost = merge([Interval(lo, lo + chance.randint(1, 20)) for lo in chance.sample(range(100), 3)])
        freed = e.drop(lost)
        assert e.intervals == subtract(held, lost)
        for interval, tensor in e:
            assert tensor.tolist() == list(range(interval.start, interval.stop))
        gone = {int(t[0]) for t in freed}
        expected = {lo for lo, hi in zip(cuts[::2], cuts[1::2], strict=True) if not intersect(e.intervals, (Interval(lo, hi),))}
        assert gone == expected


def test_merged_shares_the_memory_and_not_the_fate() -> None:
    a, b = filled((0, 10)), filled((10, 20))
    both = a.merged_with(b)
    assert both.intervals == (Interval(0, 20),)
    assert both.view(0, 10).data_ptr() == a.view(0, 10).data_ptr()
    assert len(both.drop((Interval(0, 10),))) == 1
    assert a.covers(0, 10)
    with pytest.raises(ValueError, match="overlaps"):
        a.merged_with(filled((9, 11)))


def test_halves_of_a_chunk_that_meet_again_are_one_chunk() -> None:
    a = filled((0, 10))
    b = Extents(torch.float32).merged_with(a)
    a.drop((Interval(0, 5),))
    b.drop((Interval(5, 10),))
    both = a.merged_with(b)
    assert both.intervals == (Interval(0, 10),)
    assert both.drop((Interval(0, 5),)) == []
    assert len(both.drop((Interval(5, 10),))) == 1


def test_pages_are_used_again_whatever_the_dtype() -> None:
    pages = Pages()
    tensor = pages.take(1 << 20, torch.float32)
    assert not tensor.any()
    where = tensor.data_ptr()
    tensor.fill_(1.0)
    pages.give(tensor[100:200])  # any view will do
    assert pages.free_bytes == 4 << 20
    again = pages.take(1 << 19, torch.float64)
    assert (again.data_ptr(), again.any().item(), pages.free_bytes) == (where, False, 0)
    pages.give(again)
    assert pages.take(16, torch.float32).data_ptr() != where  # not a large slab for a few elements


def test_the_pool_is_bounded() -> None:
    pages = Pages(free_bytes_max=3 * CHUNK_BYTES)
    pages.prefault(1 << 30, torch.float32)
    assert pages.free_bytes == 3 * CHUNK_BYTES
    pages.give(torch.zeros(16))
    assert pages.free_bytes == 3 * CHUNK_BYTES
    with pytest.raises(ValueError, match="slab"):
        pages.take(SLAB_BYTES_MAX // 4 + 1, torch.float32)
    pages.clear()
    assert pages.free_bytes == 0


def test_extents_out_of_pages_are_cut_on_one_grid() -> None:
    pages = Pages()
    grain = CHUNK_BYTES // 4
    e = pages.extents((Interval(grain - 8, 3 * grain + 8), Interval(4 * grain, 5 * grain)), torch.float32)
    assert [i for i, _ in e] == [
        Interval(grain - 8, grain),
        Interval(grain, 2 * grain),
        Interval(2 * grain, 3 * grain),
        Interval(3 * grain, 3 * grain + 8),
        Interval(4 * grain, 5 * grain),
    ]
    assert not any(t.any() for _, t in e)
    for tensor in e.drop(e.intervals):
        pages.give(tensor)
    assert pages.free_bytes == 3 * CHUNK_BYTES + 2 * 4096
