"""What the placement bench counts, on graphs small enough to do by hand."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from bench.placement import FAST, SLOW, UPLINK, Outcome, arrangements, cost, machines, outcomes, planted_graph, random_graph
from orchestrator.core.planner.placement import Traffic, seconds


def test_bytes_cost_by_the_link_they_take() -> None:
    racks = machines(["a", "a", "b"], devices=2, uplink=True)
    traffic = Traffic(6, ((0, 1, 1.0), (0, 2, 1.0), (0, 4, 1.0)))
    assert cost(traffic, racks, range(6)) == pytest.approx(1 / FAST + 1 / SLOW + 1 / UPLINK)
    assert cost(traffic, racks, range(6)) == pytest.approx(seconds(traffic, racks, range(6)))


def test_every_arrangement_is_tried_once() -> None:
    ways = list(arrangements(machines(["", "", ""], devices=2)))
    assert len(set(ways)) == len(ways) == 90  # 6! / 2!^3
    assert all(sorted(way) == list(range(6)) for way in ways)


def test_an_outcome_counts_optima_and_the_worst() -> None:
    outcome = Outcome("x", (1.0, 1.0 + 1e-12, 1.2, 3.0))
    assert outcome.optimal == 2
    assert outcome.row().split() == ["x", "2", "1.100", "3.000"]


def test_ours_is_never_worse_than_the_identity_on_few_ranks() -> None:
    rng = random.Random(7)
    on = machines(["", ""], devices=2)
    found = {o.name: o for o in outcomes([random_graph(rng, 4) for _ in range(20)], on, list(permutations(range(4))), rng)}
    assert all(a <= b * (1 + 1e-9) for a, b in zip(found["ours"].ratios, found["identity"].ratios, strict=True))
    assert min(r for o in found.values() for r in o.ratios) >= 1.0, "nothing is better than the best"
    assert max(found["identity"].ratios) > 1


def test_the_planted_placement_is_the_best() -> None:
    traffic, group = planted_graph(random.Random(1), groups=2, size=2)
    on = machines(["", ""], devices=2)
    best = min(permutations(range(4)), key=lambda way: cost(traffic, on, way))
    assert {frozenset(r for r in range(4) if on.node_of[best[r]] == n) for n in range(2)} == {
        frozenset(r for r in range(4) if group[r] == g) for g in range(2)
    }
