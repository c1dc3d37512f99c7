"""Who holds which part of the state: lists of intervals of a flat vector, per rank.

Ownership is a list of intervals, not one even chunk, so that a later plan with another number of ranks can leave most of the
state where it is. A *primary* holder is responsible (it reduces, updates and checkpoints the region); an *extra* holder keeps a
replica or a peer copy of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """Half-open range [start, stop) of elements of a flat vector."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"empty or negative interval [{self.start}, {self.stop})")

    @property
    def numel(self) -> int:
        """Elements in it."""
        return self.stop - self.start


Intervals = tuple[Interval, ...]


def merge(intervals: Iterable[Interval]) -> Intervals:
    """The union, sorted, neighbours joined."""
    out: list[Interval] = []
    for i in sorted(intervals):
        if out and i.start <= out[-1].stop:
            if i.stop > out[-1].stop:
                out[-1] = Interval(out[-1].start, i.stop)
        else:
            out.append(i)
    return tuple(out)


def subtract(a: Intervals, b: Intervals) -> Intervals:
    """Elements of a that are not in b."""
    out: list[Interval] = []
    cuts = merge(b)
    for i in merge(a):
        lo = i.start
        for c in cuts:
            if c.stop <= lo or c.start >= i.stop:
                continue
            if c.start > lo:
                out.append(Interval(lo, c.start))
            lo = max(lo, c.stop)
        if lo < i.stop:
            out.append(Interval(lo, i.stop))
    return tuple(out)


def intersect(a: Intervals, b: Intervals) -> Intervals:
    """Elements in both."""
    out: list[Interval] = []
    for i in merge(a):
        for j in merge(b):
            lo, hi = max(i.start, j.start), min(i.stop, j.stop)
            if lo < hi:
                out.append(Interval(lo, hi))
    return tuple(out)


def total(intervals: Intervals) -> int:
    """Elements in all of them."""
    return sum(i.numel for i in intervals)


@dataclass(frozen=True, slots=True)
class Holding:
    """What one rank holds of one state tensor."""

    primary: Intervals
    extra: Intervals

    @property
    def everything(self) -> Intervals:
        """Primary and extra regions together."""
        return merge(self.primary + self.extra)


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The layout of one state tensor (`params` or `optimizer`) over the ranks, by rank."""

    name: str
    numel: int
    holdings: tuple[Holding, ...]
