"""Holds what the planner predicted of an epoch against what was measured in it: step time and memory.

The first steps of an epoch warm caches and allocators up and are left out; of the rest the median counts, because a step that
waited for something is not what the cost model speaks of. An error is signed: above zero the prediction was too high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.strategy import Option
from orchestrator.core.supervisor.commands import ExpectEpoch, RunEpoch
from orchestrator.core.supervisor.events import StepCommitted
from orchestrator.runtime.ports import Record

WARM_UP_STEPS = 2  # of each epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionStatus:
    """One epoch's prediction against what was measured. A None means that nothing was measured (yet)."""

    epoch: int
    step_ms: float  # predicted
    measured_step_ms: float | None  # median of the steady steps
    steps: int  # steady steps that were measured
    step_error: float | None  # (predicted - measured) / measured
    memory_bytes: int  # predicted peak of the fullest rank
    measured_memory_bytes: int | None  # the most resident memory that a worker of those ranks was seen to have
    memory_error: float | None


def prediction_of(
    option: Option, plan: Plan, *, steps_ms: Sequence[float], peak_rss_bytes: Mapping[str, int]
) -> PredictionStatus:
    """One epoch's. `steps_ms` of all steps of the epoch, in order; `peak_rss_bytes` by worker id, 0 where it is not known."""
    memory = option.estimate.memory
    fullest = max(range(len(memory)), key=lambda pipe: memory[pipe].total)
    seen = [
        peak_rss_bytes[s.worker_id]
        for s in plan.seats
        if plan.coordinates(s.rank)[0] == fullest and peak_rss_bytes.get(s.worker_id)
    ]
    steady = steps_ms[WARM_UP_STEPS:]
    step_ms = 1000 * option.estimate.step_s
    measured_ms, measured_bytes = median(steady) if steady else None, max(seen, default=None)
    return PredictionStatus(
        epoch=plan.epoch,
        step_ms=step_ms,
        measured_step_ms=measured_ms,
        steps=len(steady),
        step_error=_error(step_ms, measured_ms),
        memory_bytes=round(memory[fullest].total),
        measured_memory_bytes=measured_bytes,
        memory_error=_error(memory[fullest].total, measured_bytes),
    )


def predictions(records: Sequence[Record], *, peak_rss_bytes: Mapping[int, Mapping[str, int]]) -> tuple[PredictionStatus, ...]:
    """Of every epoch that has a prediction, oldest first; a step that was done again counts in the epoch that did it.

    `peak_rss_bytes` is by epoch and worker id.
    """
    options: dict[int, Option] = {}
    plans: dict[int, Plan] = {}
    steps: dict[int, list[float]] = {}
    for record in records:
        for command in record.commands:
            if isinstance(command, ExpectEpoch):
                options[command.epoch] = command.option
            elif isinstance(command, RunEpoch):
                plans[command.plan.epoch] = command.plan
        if isinstance(record.event, StepCommitted):
            steps.setdefault(record.event.epoch, []).append(record.event.step_ms)
    return tuple(
        prediction_of(option, plans[epoch], steps_ms=steps.get(epoch, ()), peak_rss_bytes=peak_rss_bytes.get(epoch, {}))
        for epoch, option in sorted(options.items())
        if epoch in plans
    )


def _error(predicted: float, measured: float | None) -> float | None:
    return (predicted - measured) / measured if measured else None
