"""Who holds which part of the state: lists of intervals of a flat vector, per rank.

Ownership is a list of intervals, not one even chunk, so that a later plan with another number of ranks can leave most of the
state where it is. A *primary* holder is responsible (it reduces, updates and checkpoints the region); an *extra* holder keeps a
replica or a peer copy of it. Every operation is one sweep over sorted lists: a thousand ranks have thousands of intervals each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter


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

_start = attrgetter("start")


def merge(intervals: Iterable[Interval]) -> Intervals:
    """The union, sorted, neighbours joined."""
    out: list[Interval] = []
    ordered = sorted(intervals, key=_start)
    if not ordered:
        return ()
    lo, hi = ordered[0].start, ordered[0].stop
    for i in ordered:
        if i.start > hi:
            out.append(Interval(lo, hi))
            lo, hi = i.start, i.stop
        elif i.stop > hi:
            hi = i.stop
    out.append(Interval(lo, hi))
    return tuple(out)


def subtract(a: Iterable[Interval], b: Iterable[Interval]) -> Intervals:
    """Elements of a that are not in b."""
    out: list[Interval] = []
    cuts = merge(b)
    at = 0
    for i in merge(a):
        lo = i.start
        while at < len(cuts) and cuts[at].stop <= lo:
            at += 1
        while at < len(cuts) and cuts[at].start < i.stop:
            if cuts[at].start > lo:
                out.append(Interval(lo, cuts[at].start))
            lo = cuts[at].stop
            if lo >= i.stop:
                break  # this cut may reach into the next interval as well
            at += 1
        if lo < i.stop:
            out.append(Interval(lo, i.stop))
    return tuple(out)


def intersect(a: Iterable[Interval], b: Iterable[Interval]) -> Intervals:
    """Elements in both."""
    out: list[Interval] = []
    left, right = merge(a), merge(b)
    at = to = 0
    while at < len(left) and to < len(right):
        i, j = left[at], right[to]
        lo, hi = max(i.start, j.start), min(i.stop, j.stop)
        if lo < hi:
            out.append(Interval(lo, hi))
        if i.stop < j.stop:
            at += 1
        else:
            to += 1
    return tuple(out)


def total(intervals: Iterable[Interval]) -> int:
    """Elements in all of them; what lies in two of them counts twice."""
    return sum(i.stop - i.start for i in intervals)


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
