"""How the bench of predictions judges: errors of a plan, the figures of many, and a rank that really runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.plan_accuracy_models import GPT, UNLIKE, Case, cases
from bench.plan_accuracy_results import Outcome, percentile, rank_correlation, summary
from bench.plan_accuracy_world import Place, run
from orchestrator.core.planner.strategy import Estimate, Memory

OTHER = 300.0


def memory(weights: float) -> Memory:
    return Memory(
        weights=weights, gradients=0, optimizer=0, copies=0, activations=0, work=0, buffers=0, other=OTHER, limit=10_000
    )


def outcome(
    fields: dict[str, object], *, predicted_s: float, step_s: list[float], need: list[float], held: Sequence[tuple[int, ...]]
) -> Outcome:
    estimate = Estimate(predicted_s, (), tuple(map(memory, need)), 1.0, 0, 0.0)
    return Outcome(Case(GPT, "a plan", fields), estimate, step_s, list(held))


def test_a_disturbed_step_does_not_count() -> None:
    o = outcome({}, predicted_s=1.0, step_s=[9.0, 1.1, 1.2, 7.0, 1.1, 1.3], need=[100.0], held=[(100,)])
    assert o.measured_s == pytest.approx(1.1)
    assert o.step_error == pytest.approx(0.1)


def test_memory_is_that_of_each_pipeline_ranks_fullest_rank() -> None:
    held = [(90, 120, 50, 40), (90, 110, 50, 44), (90, 100, 50, 48)]
    o = outcome({"pipeline": 2, "data": 2}, predicted_s=1.0, step_s=[1.0], need=[100.0, 50.0], held=held)
    assert o.fullest == ((100.0 + OTHER, 110), (50.0 + OTHER, 50))
    assert o.memory_errors == pytest.approx((110 / (100 + OTHER) - 1, 50 / (50 + OTHER) - 1))
    o.base = 10
    assert o.beside_errors == pytest.approx((100 / (90 + OTHER) - 1, 40 / (40 + OTHER) - 1))


def test_the_figures_of_many() -> None:
    many = [
        outcome({}, predicted_s=1.0 + n, step_s=[(1.0 + n) * (1 + e)], need=[100.0 - OTHER], held=[(m,)])
        for n, (e, m) in enumerate([(0.1, 101), (-0.2, 90), (0.05, 120)])
    ]
    found = summary(many)
    assert found["step_error_median"] == pytest.approx(0.1)
    assert found["step_error_p90"] == pytest.approx(0.2)
    assert found["memory_under_max"] == pytest.approx(0.2)
    assert found["memory_error_median"] == pytest.approx(0.1)
    assert found["memory_beside_error_median"] == pytest.approx(0.1)
    assert found["rank_correlation"] == 1.0
    assert (found["plans"], found["models"]) == (3, 1)


def test_places_correlate_not_values() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    assert percentile([5, 1, 4, 2, 3], 0.2) == 2


def test_there_are_enough_plans_and_all_are_different() -> None:
    every = cases(quick=False)
    assert len(every) >= 24
    assert len({c.model.name for c in every}) == 3
    assert len({(c.model.name, repr(sorted(c.fields.items()))) for c in every}) == len(every)
    assert all(c.ranks in (1, 2) for c in every)


@pytest.mark.slow
def test_ranks_that_really_run() -> None:
    job = Case(UNLIKE.nothing, "two", {"data": 2}).job
    runs = run(replace(job, train=replace(job.train, steps=4)), [Place(), Place()])
    assert len(runs) == 2
    for seen in runs:
        assert len(seen.step_s) == 2, "steps 3 and 4"
        assert seen.peak_bytes > 50 << 20
        assert {"forward", "backward", "reduce", "update"} <= set(seen.phases)
