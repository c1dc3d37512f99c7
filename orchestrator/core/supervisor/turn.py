"""One turn of the state machine: the state as it changes while one event is handled, and what is to be done about it.

Handlers read and replace through a Turn; outside of `machine.step` nothing mutable exists. Every change of phase goes through
the transition table, and what is not in the table stops us with the story so far.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.strategy import Choice
from orchestrator.core.reshard.recovery import Resume
from orchestrator.core.supervisor import table
from orchestrator.core.supervisor.commands import Command
from orchestrator.core.supervisor.state import Decision, JobPhase, State, Worker, WorkerPhase


class InvalidTransition(AssertionError):
    """A transition that is not in the table: our own bug. The message tells the story of the turn."""


class Turn:
    """The state in the making."""

    def __init__(self, state: State, at_ms: int) -> None:
        self.state = state
        self.at_ms = at_ms
        self.commands: list[Command] = []
        self.reasons: list[str] = []
        self.choice: Choice | None = None  # that the planner made in this turn, and that was taken
        self.resumes: list[tuple[Plan, Resume]] = []  # found out in this turn: a large one takes seconds

    def decision(self) -> Decision:
        """The frozen result."""
        return Decision(self.state, tuple(self.commands), "; ".join(self.reasons))

    def say(self, reason: str) -> None:
        """Add to the reason of this decision."""
        self.reasons.append(reason)

    def do(self, command: Command) -> None:
        """Add a command."""
        self.commands.append(command)

    def set(self, **changes: Any) -> None:
        """Replace fields of the state other than its phase."""
        self.state = replace(self.state, **changes)

    def to_phase(self, phase: JobPhase) -> None:
        """Move the job; raises InvalidTransition when the table does not have it."""
        if (self.state.phase, phase) not in table.JOB:
            raise InvalidTransition(f"job {self.state.phase} -> {phase}; so far: {'; '.join(self.reasons) or 'nothing'}")
        self.state = replace(self.state, phase=phase, phase_since_ms=self.at_ms)

    def worker(self, worker_id: str, phase: WorkerPhase | None = None, **changes: Any) -> Worker:
        """Replace a worker; a change of phase is held against the table."""
        old = self.state.workers[worker_id]
        if phase is not None and phase is not old.phase:
            if (old.phase, phase) not in table.WORKER:
                raise InvalidTransition(
                    f"worker {worker_id} {old.phase} -> {phase}; so far: {'; '.join(self.reasons) or 'nothing'}"
                )
            changes |= {"phase": phase, "since_ms": self.at_ms}
        new = replace(old, **changes)
        if new != old:
            self.state = replace(self.state, workers={**self.state.workers, worker_id: new})
        return new

    def add_worker(self, worker: Worker) -> None:
        """A worker that did not exist."""
        self.state = replace(
            self.state,
            workers={**self.state.workers, worker.worker_id: worker},
            next_worker=self.state.next_worker + 1,
        )

    def plan(self) -> Plan:
        """The current plan; there must be one."""
        assert self.state.plan is not None, "no plan yet"
        return self.state.plan

    def members(self) -> list[Worker]:
        """Workers inside the current epoch, by rank."""
        return [w for w in self.seated() if w.phase is WorkerPhase.MEMBER]

    def seated(self) -> list[Worker]:
        """The workers of the current plan's seats, by rank, whatever became of them."""
        return [self.state.workers[s.worker_id] for s in self.state.plan.seats] if self.state.plan else []

    def unseated(self) -> list[Worker]:
        """Workers that gave their seat away and keep their state until the epoch that does without them runs."""
        if self.state.plan is None:
            return []
        seated = {s.worker_id for s in self.state.plan.seats}
        return [w for i, w in self.state.workers.items() if w.phase is WorkerPhase.LEFT and i not in seated]

    def name(self, worker: Worker) -> str:
        """How people read of a worker: its rank if it has one, its id, its node."""
        seat = self.state.plan.seat_of(worker.worker_id) if self.state.plan else None
        rank = f"rank {seat.rank} " if seat else ""
        return f"{rank}({worker.worker_id} on node {worker.node_id[:12]})"
