"""Who could send what to whom: stretches of one common vector, wherever each rank keeps them, and one sweep over all of them.

Where all ranks cut the model the same way (tensor parallelism of one degree) the common vector is the state vector itself. Where
they do not, it is the uncut model's, and each rank's stretches of it lie elsewhere in its own vector. Everything here is linear
in the number of stretches, but for the sorting: a thousand ranks are planned in less than a second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from orchestrator.core.plan.layout import Interval, Intervals, merge


class Region(NamedTuple):
    """[start, stop) of the common vector, which a rank has (or wants) at `at` of its own vector."""

    start: int
    stop: int
    at: int

    @property
    def shift(self) -> int:
        """From a place in the common vector to the place in the rank's own."""
        return self.at - self.start


Regions = tuple[Region, ...]


class Piece(NamedTuple):
    """A stretch that a rank lacks and that the same ranks hold from end to end."""

    dst: int
    region: Region  # `at` is dst's
    holders: tuple[tuple[int, int], ...]  # (rank, its shift there), by rank; names dst itself when it has it at another place


def in_place(intervals: Intervals) -> Regions:
    """The regions of a rank whose own vector is the common one."""
    return tuple(Region(i.start, i.stop, i.start) for i in intervals)


def translated(intervals: Intervals, runs: Sequence[tuple[int, int, int]]) -> Regions:
    """The regions of a rank whose own vector is cut as `runs` say (core/graph/space.runs), padding left out."""
    out: list[Region] = []
    k = 0
    for i in intervals:
        while k < len(runs) and runs[k][0] + runs[k][2] <= i.start:
            k += 1
        for n in range(k, len(runs)):
            own, common, numel = runs[n]
            if own >= i.stop:
                break
            lo, hi = max(own, i.start), min(own + numel, i.stop)
            out.append(Region(common + lo - own, common + hi - own, lo))
    return join(out)


def join(regions: Iterable[Region]) -> Regions:
    """Sorted, with neighbours that are neighbours in both vectors made one."""
    out: list[Region] = []
    for r in sorted(regions):
        if out and out[-1].stop == r.start and out[-1].shift == r.shift:
            out[-1] = Region(out[-1].start, r.stop, out[-1].at)
        else:
            out.append(r)
    return tuple(out)


def once(regions: Regions) -> Regions:
    """Every element of the common vector at one place only: the one of the region that begins first."""
    out: list[Region] = []
    done = 0
    for r in regions:
        if r.stop > done:
            lo = max(r.start, done)
            out.append(Region(lo, r.stop, r.at + lo - r.start))
            done = r.stop
    return join(out)  # what lay between neighbours may have been left out


def lacking(wants: Regions, has: Regions) -> Regions:
    """What of `wants` is not among `has` at the same place of the same vector. `has` as `once` gives it."""
    out: list[Region] = []
    starts = [h.start for h in has]
    for w in wants:
        lo = w.start
        for k in range(max(0, bisect_right(starts, lo) - 1), len(has)):
            h = has[k]
            if h.start >= w.stop:
                break
            if h.stop <= lo or h.shift != w.shift:
                continue
            if h.start > lo:
                out.append(Region(lo, h.start, lo + w.shift))
            lo = min(h.stop, w.stop)
        if lo < w.stop:
            out.append(Region(lo, w.stop, lo + w.shift))
    return tuple(out)


def pieces(wanted: Mapping[int, Regions], has: Mapping[int, Regions]) -> list[Piece]:
    """Everything that is wanted, rank by rank, cut only where the set of its holders changes. `has` as `once` gives it."""
    events: list[tuple[int, int, int, int]] = []  # (place, kind, rank, shift), in the order of the kinds below
    union = merge(Interval(r.start, r.stop) for regions in wanted.values() for r in regions)
    for rank, regions in has.items():
        for h in _within(regions, union):
            events.append((h.stop, _LEAVES, rank, h.shift))
            events.append((h.start, _ENTERS, rank, h.shift))
    for rank, regions in wanted.items():
        for w in regions:
            events.append((w.stop, _ENDS, rank, w.shift))
            events.append((w.start, _BEGINS, rank, w.shift))
    events.sort()
    return _sweep(events)


_ENDS, _LEAVES, _ENTERS, _BEGINS = range(4)


def _sweep(events: Sequence[tuple[int, int, int, int]]) -> list[Piece]:
    out: list[Piece] = []
    open_from: dict[tuple[int, int], int] = {}  # (rank, shift) of what is wanted here -> where the piece under way began
    holding: dict[int, int] = {}  # rank -> shift
    now: tuple[tuple[int, int], ...] = ()

    def close(want: tuple[int, int], place: int) -> None:
        begin = open_from[want]
        if place > begin:
            out.append(Piece(want[0], Region(begin, place, begin + want[1]), now))

    k = 0
    while k < len(events):
        place = events[k][0]
        moved = False
        begins: list[tuple[int, int]] = []
        while k < len(events) and events[k][0] == place:
            _, kind, rank, shift = events[k]
            k += 1
            if kind == _ENDS:
                close((rank, shift), place)
                del open_from[rank, shift]
            elif kind == _BEGINS:
                begins.append((rank, shift))
            elif kind == _LEAVES:
                del holding[rank]
                moved = True
            else:
                holding[rank] = shift
                moved = True
        if moved:
            after = tuple(sorted(holding.items()))
            if after != now:
                for want in open_from:
                    close(want, place)
                open_from = dict.fromkeys(open_from, place)
                now = after
        open_from.update(dict.fromkeys(begins, place))
    return out


def _within(regions: Regions, union: Intervals) -> Iterable[Region]:
    """The parts of the regions that lie in the union."""
    stops = [i.stop for i in union]
    for r in regions:
        for k in range(bisect_right(stops, r.start), len(union)):
            if union[k].start >= r.stop:
                break
            lo, hi = max(r.start, union[k].start), min(r.stop, union[k].stop)
            yield Region(lo, hi, r.at + lo - r.start)
