"""What a journal proves about a run, computed from its records alone: no summary of the supervisor is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.core.plan.plan import Plan
from orchestrator.core.supervisor.commands import ExpectEpoch, KillWorker, RunEpoch
from orchestrator.core.supervisor.events import RankFinished, StepCommitted
from orchestrator.core.supervisor.state import State
from orchestrator.runtime.ports import Record
from orchestrator.runtime.replay import story

Wanted = Callable[[Record], bool]


def at_step(step: int) -> Wanted:
    """Whether a record is at this committed step or beyond it."""
    return lambda r: r.committed_step >= step


def is_in(phase: str, *, epoch: int) -> Wanted:
    """Whether the job is in this phase of this epoch after a record."""
    return lambda r: (r.phase, r.epoch) == (phase, epoch)


def says(words: str) -> Wanted:
    """Whether a record's reason has these words."""
    return lambda r: words in r.reason


def starts(epoch: int) -> Wanted:
    """Whether a record starts this epoch."""
    return lambda r: any(isinstance(c, RunEpoch) and c.plan.epoch == epoch for c in r.commands)


def steps_in(epoch: int) -> Wanted:
    """Whether a record is a step committed in this epoch."""
    return lambda r: isinstance(r.event, StepCommitted) and r.event.epoch == epoch


def loses(worker_id: str) -> Wanted:
    """Whether a record declares this worker lost."""
    return lambda r: any(isinstance(c, KillWorker) and c.worker_id == worker_id for c in r.commands)


@dataclass(frozen=True, slots=True)
class Facts:
    """One job, as far as it is in its journal."""

    records: Sequence[Record]
    state: State | None = None  # the last one, where the job was followed to its end

    @property
    def losses(self) -> dict[int, float]:
        """Committed step -> loss; a step that was committed twice counts with its newest."""
        return {r.event.step: r.event.loss for r in self.records if isinstance(r.event, StepCommitted)}

    @property
    def digest(self) -> str:
        """The final one; empty unless all ranks told the same."""
        told = {r.event.worker_id: r.event.digest for r in self.records if isinstance(r.event, RankFinished)}
        return next(iter(told.values())) if len(set(told.values())) == 1 else ""

    @property
    def steps_lost(self) -> int:
        """Steps that the journal takes back."""
        pairs = zip(self.records, self.records[1:], strict=False)
        return sum(max(0, a.committed_step - b.committed_step) for a, b in pairs)

    @property
    def epochs(self) -> dict[int, dict[int, str]]:
        """Epoch -> rank -> worker id."""
        return {e: {s.rank: s.worker_id for s in plan.seats} for e, plan in sorted(self.plans.items())}

    @property
    def plans(self) -> dict[int, Plan]:
        """By epoch."""
        return {c.plan.epoch: c.plan for r in self.records for c in r.commands if isinstance(c, RunEpoch)}

    @property
    def expected(self) -> dict[int, ExpectEpoch]:
        """What was predicted, by epoch; of a job that leaves its plan to the planner."""
        return {c.epoch: c for r in self.records for c in r.commands if isinstance(c, ExpectEpoch)}

    @property
    def killed(self) -> dict[str, str]:
        """Worker id -> why it was declared lost (or did not come up)."""
        return {c.worker_id: c.why for r in self.records for c in r.commands if isinstance(c, KillWorker)}

    def said(self, words: str) -> list[Record]:
        """Records whose reason has these words."""
        return [r for r in self.records if says(words)(r)]

    def __str__(self) -> str:
        return story(self.records)


def assert_as_if_nothing_happened(run: Facts, calm: Facts, *, swapped: Sequence[int]) -> None:
    """Completed, no step lost, equal bits and losses, and only these ranks have another process than at the start."""
    assert run.state is not None
    assert run.state.outcome == "completed", f"{run.state.last_word}\n{run}"
    assert run.steps_lost == 0, str(run)
    assert run.losses == calm.losses, str(run)
    assert run.digest, str(run)
    assert run.digest == calm.digest, str(run)
    epochs = list(run.epochs.values())
    changed = sorted(rank for rank, worker in epochs[0].items() if epochs[-1][rank] != worker)
    assert changed == sorted(swapped), f"{epochs}\n{run}"
