"""Predictions against what was measured: steady steps, the fullest rank, signed errors, epoch by epoch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.supervisor.events import StepCommitted
from orchestrator.runtime.explain import plan_stories
from orchestrator.runtime.ports import Record
from orchestrator.runtime.prediction import prediction_of, predictions
from tests.unit.apps import planned
from tests.unit.apps.world import expecting, story

OPTION = planned.option(planned.strategy(pipeline=1, data=4), step_s=0.110)
TOLD = story()  # steps of 100 ms; epoch 2 after step 3


def with_steps(records: list[Record], step_ms: dict[int, float]) -> list[Record]:
    """The records, but for the times of some steps."""
    out = []
    for r in records:
        if isinstance(r.event, StepCommitted) and r.event.step in step_ms:
            r = replace(r, event=replace(r.event, step_ms=step_ms[r.event.step]))
        out.append(r)
    return out


def test_the_first_two_steps_do_not_count_and_of_the_rest_the_median_does() -> None:
    made = prediction_of(OPTION, TOLD.plan, steps_ms=[900.0, 500.0, 100.0, 90.0, 400.0], peak_rss_bytes={})
    assert (made.step_ms, made.measured_step_ms, made.steps) == (110.0, 100.0, 3)
    assert made.step_error == pytest.approx(0.10)
    assert (made.measured_memory_bytes, made.memory_error) == (None, None)


def test_without_a_steady_step_nothing_is_claimed() -> None:
    made = prediction_of(OPTION, TOLD.plan, steps_ms=[900.0, 500.0], peak_rss_bytes={"nobody": 5})
    assert (made.measured_step_ms, made.steps, made.step_error, made.memory_error) == (None, 0, None, None)


def test_memory_is_that_of_the_fullest_ranks() -> None:
    estimate = OPTION.estimate
    low, high = estimate.memory[0], replace(estimate.memory[0], weights=3e9)
    plan = replace(TOLD.plan, mesh=tuple(replace(a, size=2) if a.name != "tensor" else a for a in TOLD.plan.mesh))
    option = replace(OPTION, estimate=replace(estimate, memory=(low, high)))
    seen = {s.worker_id: (9 + s.rank) * 10**9 if s.rank < 2 else s.rank * 10**9 for s in plan.seats}
    made = prediction_of(option, plan, steps_ms=(), peak_rss_bytes=seen)
    assert made.memory_bytes == round(high.total)
    assert made.measured_memory_bytes == 3 * 10**9  # of ranks 2 and 3; 9 and 10 GB are of the other pipeline rank
    assert made.memory_error == pytest.approx((high.total - 3e9) / 3e9)


def test_each_epoch_is_held_against_its_own_steps_and_memory() -> None:
    records = with_steps(expecting(TOLD.records, OPTION), {3: 50.0, 6: 220.0})
    worker = TOLD.plan.seats[0].worker_id
    first, second = predictions(records, peak_rss_bytes={2: {worker: 4 << 30}})
    assert (first.epoch, first.steps, first.measured_step_ms) == (1, 1, 50.0)
    assert (second.epoch, second.steps, second.measured_step_ms) == (2, 1, 220.0)
    assert first.step_error == pytest.approx(1.2)
    assert second.step_error == pytest.approx(-0.5)
    assert (first.measured_memory_bytes, second.measured_memory_bytes) == (None, 4 << 30)


def test_nothing_was_predicted_of_a_job_that_fixes_its_axes() -> None:
    assert predictions(TOLD.records, peak_rss_bytes={}) == ()
    assert [(s.plan.epoch, s.expected, s.choice, s.prediction) for s in plan_stories(TOLD.records)] == [
        (1, None, None, None),
        (2, None, None, None),
    ]


def test_the_story_of_each_plan() -> None:
    choice = planned.choice(OPTION)
    first, second = plan_stories(expecting(TOLD.records, OPTION, choice))
    assert (first.plan.epoch, first.choice, first.expected) == (1, choice, OPTION)
    assert (second.plan.epoch, second.choice, second.expected) == (2, None, OPTION)
    assert second.seq > first.seq
    assert TOLD.records[second.seq - 1].reason == second.reason
    assert first.prediction is not None
    assert first.prediction.epoch == 1
