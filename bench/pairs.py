"""Statistics of paired measurements: the median of ratios, and an interval that assumes no distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of paired ratios with its 95 % interval; `noise` is the median deviation from 1 of a system against itself."""

    median: float
    low: float
    high: float
    noise: float
    pairs: int


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """The order statistics between which the median of the population lies with this confidence (sign test, exact).

    With too few values for that confidence: the smallest and the largest.
    """
    ordered, n = sorted(values), len(values)
    if not ordered:
        raise ValueError("no values")
    k, tail = 0, 0.5**n
    while k + 1 < n / 2 and 2 * (tail + math.comb(n, k + 1) * 0.5**n) <= 1 - confidence:
        k += 1
        tail += math.comb(n, k) * 0.5**n
    return ordered[k], ordered[n - 1 - k]


def alternation(pairs: int) -> str:
    """Which of two goes next, 'ABBAABBA...': neighbours of both kinds, and a slow drift falls on both alike."""
    return "".join("AB" if n % 2 == 0 else "BA" for n in range(pairs))


def paired_ratio(order: str, times: Sequence[float]) -> Ratio:
    """`times` of blocks in the `order` of `alternation`: A over B of each pair; noise from neighbours of one kind."""
    if len(order) != len(times) or len(order) < 2 or len(order) % 2:
        raise ValueError("one time for each letter, in pairs")
    ratios, same = [], []
    for at in range(0, len(order), 2):
        first, second = times[at], times[at + 1]
        ratios.append(first / second if order[at] == "A" else second / first)
    for at in range(1, len(order) - 1, 2):
        if order[at] == order[at + 1]:
            same.append(abs(times[at] / times[at + 1] - 1.0))
    low, high = median_interval(ratios)
    return Ratio(statistics.median(ratios), low, high, statistics.median(same) if same else 0.0, len(ratios))
