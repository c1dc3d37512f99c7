"""Which layers each stage gets, so that the slowest stage is as fast as can be and every stage has room.

For one candidate time, stages take greedily as many layers as that time and their memory allow: a stage that ends later
leaves less to the rest. Where that gets stuck before a layer that is too heavy for the next stage, a dynamic programme over
the ends that each stage can have decides. Bisection over the time finds the least (Pınar, Tabak and Aykanat, One-dimensional
partitioning for heterogeneous systems, JPDC 2008, section 4). Among the cuts of that time an even one is taken where the
stages leave a choice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_ROUNDS, _NEAR = 24, 1e-5  # bisections at most; relative: times so near are the same


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a stage (with or without recomputation): what layers take and need there, summed up from layer 0 on."""

    seconds: Sequence[float]  # of the first n layers, n = 0 .. layers
    bytes: Sequence[float]
    room: float  # bytes

    def reach(self, first: int, seconds: float) -> int:
        """The end of the longest run of layers from `first` on that keeps to the time and has room."""
        timely = bisect_right(self.seconds, self.seconds[first] + seconds, first) - 1
        return min(timely, bisect_right(self.bytes, self.bytes[first] + self.room, first) - 1)

    def back(self, last: int, seconds: float) -> int:
        """The least `first` for which the layers [first, last) keep to the time and have room."""
        timely = _bisect_from(self.seconds, self.seconds[last] - seconds)
        return max(timely, _bisect_from(self.bytes, self.bytes[last] - self.room))


@dataclass(frozen=True, slots=True)
class Cut:
    """Layers of each stage, and which of its ways it is run by."""

    sizes: tuple[int, ...]
    ways: tuple[int, ...]
    slowest_s: float


def best_cut(stages: Sequence[Sequence[Way]], layers: int) -> Cut | None:
    """The cut whose slowest stage is fastest; None where none has room. Each stage runs the fastest way that has room."""
    if len(stages) > layers:
        return None
    ends = _ends(stages, layers, max(w.seconds[-1] for ways in stages for w in ways))
    if ends is None:
        return None
    high = _slowest(stages, ends)
    low = min(w.seconds[-1] for ways in stages for w in ways) / len(stages)
    for _ in range(_ROUNDS):
        if high - low <= _NEAR * high:
            break
        middle = (low + high) / 2
        found = _ends(stages, layers, middle)
        if found is None:
            low = middle
        else:
            ends, high = found, _slowest(stages, found)
    even = _even(stages, layers, high)
    if _slowest(stages, even) <= high * (1 + 1e-9):
        ends = even
    sizes = tuple(_sizes(ends))
    return Cut(sizes, tuple(_picks(stages, ends)), _slowest(stages, ends))


def even_cut(layers: int, stages: int) -> tuple[int, ...]:
    """As many layers for each stage as can be; the first ones have one more where they do not divide."""
    each, more = divmod(layers, stages)
    return tuple(each + (s < more) for s in range(stages))


def _ends(stages: Sequence[Sequence[Way]], layers: int, seconds: float) -> list[int] | None:
    """Where each stage ends if every one is to keep to the time; None where that cannot be."""
    at = 0
    ends: list[int] = []
    for n, ways in enumerate(stages):
        end = min(max(w.reach(at, seconds) for w in ways), layers - (len(stages) - n - 1))
        if end <= at:
            return _programme(stages, layers, seconds) if any(size > 1 for size in _sizes(ends)) else None
        ends.append(end)
        at = end
    return ends if at == layers else None


def _programme(stages: Sequence[Sequence[Way]], layers: int, seconds: float) -> list[int] | None:
    """The same by a dynamic programme: which ends each stage can have at all, then back from the last layer."""
    reached: list[dict[int, int]] = [{0: 0}]  # end of a stage -> a first layer of it
    for n, ways in enumerate(stages):
        ends: dict[int, int] = {}
        for first in reached[-1]:
            last = min(max(w.reach(first, seconds) for w in ways), layers - (len(stages) - n - 1))
            for end in range(first + 1, last + 1):
                ends[end] = first
        reached.append(ends)
    if layers not in reached[-1]:
        return None
    out, at = [], layers
    for ends in reversed(reached[1:]):
        out.append(at)
        at = ends[at]
    return out[::-1]


def _sizes(ends: Sequence[int]) -> list[int]:
    return [b - a for a, b in pairwise([0, *ends])]


def _even(stages: Sequence[Sequence[Way]], layers: int, seconds: float) -> list[int]:
    """Ends of stages under a time that can be kept: each as near to its share as leaves the rest enough."""
    seconds *= 1 + 1e-9  # sums of floats: the time itself must pass
    count = len(stages)
    least, at = [0] * count, layers  # the earliest end of each stage from which the rest still keeps to the time
    for n in range(count - 1, -1, -1):
        least[n] = at
        at = max(min(w.back(at, seconds) for w in stages[n]), n)
    ends: list[int] = []
    at = 0
    for n, ways in enumerate(stages):
        end = min(max(w.reach(at, seconds) for w in ways), layers - (count - n - 1))
        rest = ways[0].seconds[layers] - ways[0].seconds[at]
        fair = ways[0].reach(at, rest / (count - n))
        at = max(min(fair, end), least[n], at + 1)
        ends.append(at)
    return ends


def _picks(stages: Sequence[Sequence[Way]], ends: Sequence[int]) -> list[int]:
    """The fastest way with room of each stage, the first where none has room."""
    out, first = [], 0
    for ways, last in zip(stages, ends, strict=True):
        out.append(min((_time(w, first, last), n) for n, w in enumerate(ways))[1])
        first = last
    return out


def _slowest(stages: Sequence[Sequence[Way]], ends: Sequence[int]) -> float:
    slowest, first = 0.0, 0
    for ways, last in zip(stages, ends, strict=True):
        slowest = max(slowest, min(_time(w, first, last) for w in ways))
        first = last
    return slowest


def _time(way: Way, first: int, last: int) -> float:
    """Seconds of the layers [first, last); infinite where there is no room, or no layer."""
    fits = last > first and way.bytes[last] - way.bytes[first] <= way.room
    return way.seconds[last] - way.seconds[first] if fits else float("inf")


def _bisect_from(sums: Sequence[float], least: float) -> int:
    """The first index whose sum is at least `least`."""
    low, high = 0, len(sums) - 1
    while low < high:
        middle = (low + high) // 2
        if sums[middle] >= least:
            high = middle
        else:
            low = middle + 1
    return low
