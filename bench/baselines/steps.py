"""What the step log of a run says: pure functions over its lines, so that the rules of the measurement are in one place.

A step is complete when each of the N seats has written its line for it. After a kill, the first new step is the lowest
one beyond all that any worker had finished before the kill which N seats then complete; steps that a system does again
after a restart are not new. A step that survivors finish without the victim does not count as recovered.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the log; `t_s` is CLOCK_MONOTONIC; rank -1 is a spare; step is -1 for a start."""

    t_s: float
    worker: int
    pid: int
    event: str
    rank: int
    step: int


def parse(text: str) -> list[Line]:
    """Parses whole lines; an unfinished last line is left out."""
    lines = []
    for raw in text[: text.rfind("\n") + 1].splitlines():
        record = json.loads(raw)
        lines.append(
            Line(
                t_s=record["t"],
                worker=record["worker"],
                pid=record["pid"],
                event=record["event"],
                rank=record.get("rank", -1),
                step=record.get("step", -1),
            )
        )
    return lines


def completions(lines: Iterable[Line], *, ranks: int, after_s: float = 0.0) -> dict[int, float]:
    """Step -> the time in seconds at which the last of `ranks` seats first finished it after `after_s`."""
    seats: dict[int, dict[int, float]] = defaultdict(dict)
    for line in lines:
        if line.event == "step" and line.rank >= 0 and line.t_s > after_s:
            seats[line.step].setdefault(line.rank, line.t_s)
    return {step: max(times.values()) for step, times in sorted(seats.items()) if len(times) == ranks}


def newest_step(lines: Iterable[Line], *, until_s: float) -> int:
    """The highest step that any worker had finished by `until_s`; 0 if none."""
    return max((line.step for line in lines if line.event == "step" and line.t_s <= until_s), default=0)


def first_new_step(lines: Sequence[Line], *, ranks: int, killed_s: float) -> tuple[int, float] | None:
    """(step, end time in seconds) of the first new step after a kill, or None while there is none."""
    before = newest_step(lines, until_s=killed_s)
    for step, end_s in completions(lines, ranks=ranks, after_s=killed_s).items():
        if step > before:
            return step, end_s
    return None


def steps_redone(lines: Iterable[Line], *, until_step: int, killed_s: float) -> int:
    """How many steps finished before the kill were done again after it."""
    again = {line.step for line in lines if line.event == "step" and line.t_s > killed_s and line.step <= until_step}
    return len(again)


def step_times(completed: dict[int, float]) -> list[float]:
    """Seconds from one complete step to the next."""
    return [end_s - completed[step - 1] for step, end_s in completed.items() if step - 1 in completed]


def median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None
