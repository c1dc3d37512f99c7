"""The cut of a chain of layers is the best of all cuts, for unlike layers, unlike devices and little memory."""

from __future__ import annotations

import random
from itertools import accumulate, combinations, pairwise

import pytest

from orchestrator.core.planner.search.cuts import Way, best_cut, even_cut


def ways(seconds: list[float], needs: list[float], room: float, slow: float = 1.0) -> Way:
    return Way([0.0, *accumulate(s * slow for s in seconds)], [0.0, *accumulate(needs)], room)


def by_hand(stages: list[tuple[Way, ...]], layers: int) -> float | None:
    """The least slowest stage over every cut and every way."""
    found: list[float] = []
    for inner in combinations(range(1, layers), len(stages) - 1):
        slowest = 0.0
        for options, (first, last) in zip(stages, pairwise((0, *inner, layers)), strict=True):
            times = [w.seconds[last] - w.seconds[first] for w in options if w.bytes[last] - w.bytes[first] <= w.room]
            slowest = max(slowest, min(times, default=float("inf")))
        if slowest < float("inf"):
            found.append(slowest)
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(200))
def test_no_cut_is_faster(seed: int) -> None:
    rng = random.Random(seed)
    layers, count = rng.randint(2, 10), rng.randint(1, 5)
    seconds = [rng.choice([1.0, 1.0, 3.0, 0.25]) * rng.uniform(0.9, 1.1) for _ in range(layers)]
    needs = [rng.choice([1.0, 4.0]) for _ in range(layers)]
    stages: list[tuple[Way, ...]] = []
    for _ in range(count):
        slow, room = rng.choice([1.0, 1.0, 2.5]), rng.choice([4.1, 9.1, 40.1])
        plain = ways(seconds, needs, room, slow)
        again = ways(seconds, [n / 3 for n in needs], room, slow * 4 / 3)
        stages.append((plain, again) if rng.random() < 0.5 else (plain,))

    cut = best_cut(stages, layers)
    best = by_hand(stages, layers) if count <= layers else None

    if best is None:
        assert cut is None, f"seed {seed}: a cut where there is none"
        return
    assert cut is not None, f"seed {seed}: no cut where there is one"
    assert cut.slowest_s == pytest.approx(best, rel=2e-5), f"seed {seed}"
    assert sum(cut.sizes) == layers
    assert min(cut.sizes) >= 1
    first = 0
    for options, size, way in zip(stages, cut.sizes, cut.ways, strict=True):
        chosen, last = options[way], first + size
        assert chosen.seconds[last] - chosen.seconds[first] <= cut.slowest_s, f"seed {seed}"
        assert chosen.bytes[last] - chosen.bytes[first] <= chosen.room, f"seed {seed}"
        first = last


def test_equal_layers_are_dealt_out_evenly() -> None:
    stage = (ways([1.0] * 11, [1.0] * 11, 100.0),)
    cut = best_cut([stage] * 4, 11)
    assert cut is not None
    assert sorted(cut.sizes) == [2, 3, 3, 3]
    assert even_cut(11, 4) == (3, 3, 3, 2)


def test_a_stage_recomputes_only_where_it_must() -> None:
    plain, again = ways([1.0] * 4, [2.0] * 4, 3.0), ways([1.5] * 4, [1.0] * 4, 3.0)
    roomy = ways([1.0] * 4, [2.0] * 4, 8.0)
    cut = best_cut([(plain, again), (roomy, again)], 4)
    assert cut is not None
    assert cut.ways[1] == 0
    assert cut.slowest_s == 3.0
