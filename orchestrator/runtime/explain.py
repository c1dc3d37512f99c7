"""Tells the story of one decision (what was known, what was decided and why, what came of it), and of the plan of each epoch.

Everything comes from the journal, so that the answer for a failure of last week is the same as at the time.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.strategy import Choice, Option
from orchestrator.core.supervisor.commands import Command, ExpectEpoch, RunEpoch
from orchestrator.runtime.control import Explanation, NotFoundError
from orchestrator.runtime.ports import Journal, Record
from orchestrator.runtime.prediction import PredictionStatus, predictions
from orchestrator.runtime.replay import tell

BEFORE = 3  # reasoned records told of what led to it
AFTER = 6  # and of what came of it
_LOOK_BACK = 200
_LOOK_AHEAD = 200


@dataclass(frozen=True, slots=True)
class EpochStory:
    """The plan of one epoch: why there was another one, what it was expected to do, what else was weighed, what came of it."""

    plan: Plan
    seq: int  # of the record that started it
    reason: str  # of that decision
    expected: Option | None  # None: nobody predicted anything, the job leaves nothing to the planner
    choice: Choice | None  # that the plan came from; None: a rule or a person made it
    prediction: PredictionStatus | None


def plan_stories(records: Sequence[Record]) -> tuple[EpochStory, ...]:
    """The plans of all epochs that were started, oldest first; memory is not in the journal and not held against anything."""
    held = {p.epoch: p for p in predictions(records, peak_rss_bytes={})}
    out: dict[int, EpochStory] = {}
    for record in records:
        plan = next((c.plan for c in record.commands if isinstance(c, RunEpoch)), None)
        if plan is None or plan.epoch in out:
            continue
        expected = next((c for c in record.commands if isinstance(c, ExpectEpoch) and c.epoch == plan.epoch), None)
        out[plan.epoch] = EpochStory(
            plan=plan,
            seq=record.seq,
            reason=record.reason,
            expected=expected.option if expected is not None else None,
            choice=expected.choice if expected is not None else None,
            prediction=held.get(plan.epoch),
        )
    return tuple(out.values())


def explain(journal: Journal, *, seq: int) -> Explanation:
    """The story of record `seq`. Raises NotFoundError when there is no such record."""
    around = journal.records(after=max(0, seq - 1 - _LOOK_BACK), limit=_LOOK_BACK + 1 + _LOOK_AHEAD)
    record = next((r for r in around if r.seq == seq), None)
    if record is None:
        raise NotFoundError(f"the journal has no record {seq}")
    before = [r for r in around if r.seq < seq and r.reason][-BEFORE:]
    after = [r for r in around if r.seq > seq and r.reason][:AFTER]
    lines = [
        f"decision {seq} at {_clock(record)}, step {record.committed_step}, epoch {record.epoch}",
        *_section("what led to it", [_line(r, record) for r in before]),
        *_section("what was learned", [tell(record.event)]),
        *_section("what was decided, and why", record.reason.split("; ") if record.reason else ["noted, nothing to do"]),
        *_section("what was done", [_command(c) for c in record.commands] or ["nothing"]),
        f"the job then was {record.phase}",
        *_section("what came of it", [_line(r, record) for r in after] or ["nothing yet"]),
    ]
    return Explanation(record, tuple(lines))


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in lines)] if lines else []


def _line(record: Record, origin: Record) -> str:
    return f"#{record.seq} {record.at_ms - origin.at_ms:+d} ms: {record.reason}"


def _command(command: Command) -> str:
    who = getattr(command, "worker_id", "")
    why = getattr(command, "why", "")
    return type(command).__name__ + (f" {who}" if who else "") + (f": {why}" if why else "")


def _clock(record: Record) -> str:
    return datetime.datetime.fromtimestamp(record.wall_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
