"""The goodput ledger: where the time of a job went, from its journal alone.

Goodput is the share of the time since the first step that went into steps that count; ETTR (effective training time ratio) counts
the start as well. Phases that people wait in are measured exactly. In a step interval that a failure interrupted, as much as a
step usually takes is productive, and the rest (the failure unnoticed, and work done twice) is lost. What a planned change costs
(growing, shrinking on request, a drain) is one cause of its own, from the last step before it to the first after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

from orchestrator.core.supervisor.commands import KillWorker, LeaveEpoch
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.runtime.ports import Record

USUAL_STEPS = 50  # the newest undisturbed steps, whose median is the usual time


class Cause(StrEnum):
    """What time was lost to, after the first step."""

    WAITING = "waiting"  # for a worker or a node
    FENCING = "fencing"  # survivors leave the broken epoch
    FORMING = "forming"  # the next epoch forms groups and restores state
    INTERRUPTED = "interrupted"  # a failure not yet noticed, and the work that the interrupted step needed twice
    REDONE = "redone"  # steps that had been committed once and were lost
    PLANNED = "planned"  # a planned change, all of it: nothing had gone wrong


_BY_PHASE = {JobPhase.WAITING: Cause.WAITING, JobPhase.FENCING: Cause.FENCING, JobPhase.FORMING: Cause.FORMING}


@dataclass(frozen=True, slots=True)
class Account:
    """The ledger's balance, in milliseconds."""

    startup_ms: int  # until the first step was committed
    productive_ms: int
    lost_ms: tuple[tuple[Cause, int], ...]  # every cause, in its declared order
    open_ms: int  # since the newest committed step: not yet judged
    steps: int  # committed steps that count

    @property
    def goodput(self) -> float | None:
        """Productive share of the judged time since the first step; None before there is any."""
        judged = self.productive_ms + sum(ms for _, ms in self.lost_ms)
        return self.productive_ms / judged if judged else None

    @property
    def ettr(self) -> float | None:
        """Productive share of all judged time; None before the first step."""
        judged = self.startup_ms + self.productive_ms + sum(ms for _, ms in self.lost_ms)
        return self.productive_ms / judged if judged and self.steps else None


@dataclass(slots=True)
class Ledger:
    """Feed it every record in order."""

    _began_ms: int | None = None
    _at_ms: int = 0
    _phase: JobPhase = JobPhase.WAITING
    _step: int | None = None
    _highest: int = 0  # newest step ever committed
    _steps: int = 0
    _startup_ms: int = 0
    _productive_ms: int = 0
    _lost_ms: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(Cause, 0))
    _running_ms: int = 0  # in the present step interval
    _phases_ms: dict[Cause, int] = field(default_factory=dict)  # in the present step interval
    _planned: bool = False  # the ranks were asked to leave, and no failure came between
    _usual_ms: deque[float] = field(default_factory=lambda: deque(maxlen=USUAL_STEPS))

    @classmethod
    def of(cls, records: Iterable[Record]) -> Ledger:
        """The ledger of a whole journal."""
        ledger = cls()
        for record in records:
            ledger.add(record)
        return ledger

    def add(self, record: Record) -> None:
        """Book the time up to this record."""
        if self._began_ms is None:
            self._began_ms = self._at_ms = record.at_ms
            self._step = self._highest = record.committed_step
        passed = max(0, record.at_ms - self._at_ms)
        self._at_ms += passed
        if not self._phase.terminal:
            self._pass(passed)
        if any(isinstance(c, LeaveEpoch) for c in record.commands):
            self._planned = True
        elif any(isinstance(c, KillWorker) for c in record.commands) and JobPhase(record.phase) is JobPhase.FENCING:
            self._planned = False  # a loss among the ranks: it has become a failure
        before = self._step or 0
        self._phase, self._step = JobPhase(record.phase), record.committed_step
        if record.committed_step > before:
            self._close_interval(record.committed_step - before, redone=record.committed_step <= self._highest)
            self._highest = max(self._highest, record.committed_step)

    def account(self) -> Account:
        """The balance at the newest record."""
        return Account(
            startup_ms=self._startup_ms if self._steps else self._open_ms,
            productive_ms=self._productive_ms,
            lost_ms=tuple(self._lost_ms.items()),
            open_ms=self._open_ms if self._steps else 0,
            steps=self._steps,
        )

    @property
    def _open_ms(self) -> int:
        return self._running_ms + sum(self._phases_ms.values())

    def _pass(self, passed: int) -> None:
        cause = _BY_PHASE.get(self._phase)
        if cause is None:
            self._running_ms += passed
        else:
            self._phases_ms[cause] = self._phases_ms.get(cause, 0) + passed

    def _close_interval(self, steps: int, *, redone: bool) -> None:
        if not self._steps:
            self._startup_ms = self._open_ms
        else:
            self._book(steps, redone=redone)
        if not redone:
            self._steps += steps
        self._running_ms, self._phases_ms = 0, {}

    def _book(self, steps: int, *, redone: bool) -> None:
        planned = self._planned and bool(self._phases_ms)
        if planned:
            self._planned = False
        for cause, ms in self._phases_ms.items():
            self._lost_ms[Cause.PLANNED if planned else cause] += ms
        if redone:
            self._lost_ms[Cause.REDONE] += self._running_ms
        elif not self._phases_ms:
            self._productive_ms += self._running_ms
            self._usual_ms.append(self._running_ms / steps)
        else:
            usual = round(median(self._usual_ms) * steps) if self._usual_ms else self._running_ms
            productive = min(self._running_ms, usual)
            self._productive_ms += productive
            self._lost_ms[Cause.PLANNED if planned else Cause.INTERRUPTED] += self._running_ms - productive
