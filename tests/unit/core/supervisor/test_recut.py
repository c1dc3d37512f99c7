"""Where a pipeline is cut when its ranks are not equally fast."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.planner.planner import first_plan
from orchestrator.core.supervisor.recut import fastest, recut
from orchestrator.testkit.jobs import make_graph, make_job


def slowest(weights: list[int], pace: list[float], sizes: tuple[int, ...]) -> float:
    """The time of the slowest run."""
    at, worst = 0, 0.0
    for size, p in zip(sizes, pace, strict=True):
        worst = max(worst, sum(weights[at : at + size]) * p)
        at += size
    return worst


@given(st.lists(st.integers(1, 20), min_size=3, max_size=8), st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_no_cut_is_faster(weights: list[int], pace: list[int]) -> None:
    paces = [float(p) for p in pace]
    found = fastest(weights, paces)
    assert sum(found) == len(weights)
    assert min(found) >= 1
    every = []
    for ends in combinations(range(1, len(weights)), len(pace) - 1):
        every.append(tuple(b - a for a, b in pairwise((0, *ends, len(weights)))))
    assert slowest(weights, paces, found) == min(slowest(weights, paces, e) for e in every)


def test_too_few_layers_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 layers are too few for 2 stages"):
        fastest([5], [1.0, 1.0])


@pytest.mark.parametrize(
    ("times", "sizes"),
    [
        ({0: 50, 1: 50, 2: 50, 3: 50}, ()),  # even
        ({0: 50, 1: 54, 2: 50, 3: 54}, ()),  # not worth it
        ({0: 50, 1: 50, 2: 150, 3: 50}, (3, 1)),  # one replica of the second stage is slow
        ({0: 150, 1: 150, 2: 50, 3: 50}, (1, 3)),
        ({0: 50, 1: 50, 2: 150}, ()),  # one has not been measured
    ],
)
def test_layers_go_where_they_are_done_fastest(times: dict[int, int], sizes: tuple[int, ...]) -> None:
    graph = make_graph(2048, 2048, 2048, 2048)
    workers = [(f"j/w{i}", f"n{i}") for i in range(4)]
    plan = first_plan(job=make_job(data=2, pipeline=2), graph=graph, workers=workers, epoch=1)
    assert recut(plan, graph, times) == sizes


def test_a_plan_without_a_pipeline_has_no_cut() -> None:
    graph = make_graph(2048, 2048)
    plan = first_plan(job=make_job(data=2), graph=graph, workers=[("j/w0", "n0"), ("j/w1", "n1")], epoch=1)
    assert recut(plan, graph, {0: 10, 1: 90}) == ()
