"""What a report tells, taken from the journal's records alone: the loss curve, and for each failure when what happened.

Times are the journal's monotonic milliseconds, so that a report of a run on another machine reads the same. Nothing here knows
about HTML.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.core.job import Job
from orchestrator.core.plan.plan import Plan
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import KillWorker, LeaveEpoch, RunEpoch
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.runtime.ports import Record

Points = tuple[tuple[int, float], ...]  # (step, loss in nats), steps ascending

LAST_STEP = "last step before"
FIRST_SIGN = "first sign"
DETECTED = "detected"
FENCED = "fenced"
PLANNED = "planned"
RESTORED = "state restored"
FIRST_STEP = "first step"
MEANINGS = {
    LAST_STEP: "the newest commit before the failure",
    FIRST_SIGN: "the first fact that hints at it",
    DETECTED: "the supervisor is sure and fences the epoch; of a planned change: the first rank has left",
    FENCED: "every survivor has left the broken epoch and said what it holds",
    PLANNED: "the next epoch is planned and its workers are told",
    RESTORED: "groups are formed and every rank has its state",
    FIRST_STEP: "the first new step is committed",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure, or planned change, and what became of it."""

    number: int
    planned: bool  # the ranks were asked to leave: nothing went wrong
    epoch: int  # that broke, or was left
    at_step: int  # newest committed step when it was detected
    seq: int  # of the record that fenced the epoch
    reason: str
    milestones: tuple[tuple[str, int], ...]  # (name, ms since it was detected), in order of time
    over: bool  # a new step followed

    def ms(self, name: str) -> int | None:
        """Milliseconds of one milestone since the detection, or None when it was not reached."""
        return dict(self.milestones).get(name)

    @property
    def span_ms(self) -> int:
        """From the last step before it to the newest milestone."""
        return self.milestones[-1][1] - self.milestones[0][1]


@dataclass(slots=True)
class _Open:
    record: Record
    planned: bool
    at_step: int
    milestones: dict[str, int] = field(default_factory=dict)  # name -> journal ms

    def closed(self, number: int) -> Failure:
        zero = self.record.at_ms
        return Failure(
            number=number,
            planned=self.planned,
            epoch=self.record.epoch,
            at_step=self.at_step,
            seq=self.record.seq,
            reason=self.record.reason,
            milestones=tuple((name, at - zero) for name, at in self.milestones.items()),
            over=FIRST_STEP in self.milestones,
        )


def bytewise(job: Job) -> bool:
    """Whether a token of this job is a byte, so that nats can be told as bits per byte."""
    return job.task.target == "gpt" and not json.loads(job.task.options_json).get("tokenizer")


def loss_curve(records: Sequence[Record]) -> Points:
    """Training loss by step; of a step that was done again the later value. Losses that are no number are left out."""
    losses = {r.event.step: r.event.loss for r in records if isinstance(r.event, ev.StepCommitted)}
    return tuple((step, loss) for step, loss in sorted(losses.items()) if math.isfinite(loss))


def held_out_curve(records: Sequence[Record]) -> Points:
    """Held-out loss by step."""
    losses = {r.event.step: r.event.loss for r in records if isinstance(r.event, ev.EvalReported)}
    return tuple((step, loss) for step, loss in sorted(losses.items()) if math.isfinite(loss))


def compare(run: Points, other: Points) -> str:
    """In words, whether two curves are equal bit for bit where both have a value."""
    theirs = dict(other)
    common = [(step, loss, theirs[step]) for step, loss in run if step in theirs]
    if not common:
        return "the two runs have no step in common"
    differing = [(step, a, b) for step, a, b in common if a != b]
    if not differing:
        return f"the losses of all {len(common)} common steps are equal, bit for bit"
    step, a, b = differing[0]
    return f"the losses of {len(differing)} of {len(common)} common steps differ, first at step {step}: {a!r} and {b!r}"


def failures(records: Sequence[Record]) -> tuple[Failure, ...]:
    """Every failure and planned change, oldest first.

    One that struck during a recovery is one of its own, and the earlier one stays open.
    """
    done: list[Failure] = []
    current: _Open | None = None
    phase, step = JobPhase.WAITING, records[0].committed_step if records else 0
    commit_ms: int | None = None
    sign_ms: int | None = None
    asked = False  # to leave the present epoch

    for record in records:
        now = JobPhase(record.phase)
        committed = isinstance(record.event, ev.StepCommitted) and record.committed_step > step
        if now is JobPhase.FENCING and phase is not JobPhase.FENCING:
            if current is not None:
                done.append(current.closed(len(done) + 1))
            current = _Open(record, asked and not _kills(record), step)
            if commit_ms is not None:
                current.milestones[LAST_STEP] = commit_ms
            current.milestones[FIRST_SIGN] = record.at_ms if sign_ms is None else sign_ms
            current.milestones[DETECTED] = record.at_ms
        elif current is not None:
            current.planned &= not (now is JobPhase.FENCING and _kills(record))  # it has become a failure
            if now in (JobPhase.WAITING, JobPhase.FORMING):
                current.milestones.setdefault(FENCED, record.at_ms)
            if now is JobPhase.FORMING:
                current.milestones.setdefault(PLANNED, record.at_ms)
            if now is JobPhase.RUNNING or (now is JobPhase.SUCCEEDED and PLANNED in current.milestones):
                current.milestones.setdefault(RESTORED, record.at_ms)
            if committed and RESTORED in current.milestones:
                current.milestones[FIRST_STEP] = record.at_ms
        if current is not None and (FIRST_STEP in current.milestones or now.terminal):
            done.append(current.closed(len(done) + 1))
            current = None
        if committed:
            commit_ms, sign_ms = record.at_ms, None
        elif sign_ms is None and _hints(record):
            sign_ms = record.at_ms
        asked = any(isinstance(c, LeaveEpoch) for c in record.commands) or (asked and now is JobPhase.RUNNING)
        phase, step = now, record.committed_step
    if current is not None:
        done.append(current.closed(len(done) + 1))
    return tuple(done)


def numbers(values: Sequence[int]) -> str:
    """Ascending numbers in few words: 0-3 where they touch, 0,4,8 where they are few, 0,4..28 where they are evenly spaced."""
    if not values:
        return "none"
    if len(values) == 1:
        return str(values[0])
    gaps = {b - a for a, b in itertools.pairwise(values)}
    if gaps == {1}:
        return f"{values[0]}-{values[-1]}"
    if len(values) > 3 and len(gaps) == 1:
        return f"{values[0]},{values[1]}..{values[-1]}"
    return ",".join(str(v) for v in values)


def layers_of(plan: Plan, rank: int) -> str:
    """The model's layers that a rank computes, as their numbers: 0-3, or 0-1,4-5 where it runs several stages."""
    stages = [plan.stages[s] for s in plan.stages_of(rank)]
    return ",".join(numbers(range(s.first, s.last)) for s in stages) or "none"


def newest_plan(records: Sequence[Record]) -> Plan | None:
    """The plan of the last epoch that was started."""
    return next((c.plan for r in reversed(records) for c in r.commands if isinstance(c, RunEpoch)), None)


def _kills(record: Record) -> bool:
    return any(isinstance(c, KillWorker) for c in record.commands)


def _hints(record: Record) -> bool:
    """Whether this record may be the first sign of a failure."""
    event = record.event
    return isinstance(event, ev.WorkerDisconnected | ev.WorkerGone | ev.LeftEpoch) or (
        isinstance(event, ev.Tick | ev.ClusterChanged) and bool(record.reason)
    )
