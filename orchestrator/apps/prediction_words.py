"""A prediction against what was measured, in words: by how much the planner erred, and to which side."""

from __future__ import annotations

from orchestrator.apps.units import percent, plural, seconds, size
from orchestrator.runtime.prediction import PredictionStatus

NOTHING = "nothing was predicted: the job fixes its plan, or no worker measured; ask `orchestrator plan`"


def step_words(told: PredictionStatus) -> str:
    """`103 ms predicted, 98 ms measured (median of 40 steps): 5.1 % too long`."""
    words = f"{seconds(told.step_ms / 1000)} predicted"
    if told.measured_step_ms is None or told.step_error is None:
        return f"{words}, no steady step measured"
    measured = f"{seconds(told.measured_step_ms / 1000)} measured (median of {plural(told.steps, 'step')})"
    return f"{words}, {measured}: {_error(told.step_error, 'long', 'short')}"


def memory_words(told: PredictionStatus) -> str:
    """`1.2 GB predicted, 1.1 GB seen: 9.1 % too much`."""
    words = f"{size(told.memory_bytes)} predicted"
    if told.measured_memory_bytes is None or told.memory_error is None:
        return f"{words}, none measured"
    return f"{words}, {size(told.measured_memory_bytes)} measured: {_error(told.memory_error, 'much', 'little')}"


def _error(error: float, over: str, under: str) -> str:
    return f"{percent(abs(error))} too {over if error > 0 else under}"
