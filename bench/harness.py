"""What the benches share: a job on a session, watched to its end, and the facts that its journal proves.

Nothing here trusts a summary: steps lost, survivors restarted and equality of runs are computed from the journal's records.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.adapters.grpc.client import ControlClient
from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import EvalReported, Fault, RankFinished, StepCommitted, WorkerGone
from orchestrator.runtime.ports import Record
from orchestrator.runtime.status_types import JobStatus


@dataclass(frozen=True, slots=True)
class Run:
    """One job that ended."""

    job: Job
    status: JobStatus
    records: tuple[Record, ...]

    @property
    def losses(self) -> dict[int, float]:
        """Committed step -> loss, as the journal has it."""
        return {r.event.step: r.event.loss for r in self.records if isinstance(r.event, StepCommitted)}

    @property
    def digest(self) -> str:
        """The final digest of parameters and optimizer state; empty unless every rank reported the same one."""
        last = {r.event.worker_id: r.event.digest for r in self.records if isinstance(r.event, RankFinished)}
        return next(iter(last.values())) if len(set(last.values())) == 1 else ""

    @property
    def held_out(self) -> float | None:
        """Newest held-out loss, nats."""
        found = [r.event.loss for r in self.records if isinstance(r.event, EvalReported)]
        return found[-1] if found else None

    @property
    def steps_lost(self) -> int:
        """Steps that the journal shows as taken back, or never committed though a later one was."""
        back = 0
        newest = 0
        seen: set[int] = set()
        for r in self.records:
            back += max(0, newest - r.committed_step)
            newest = r.committed_step
            if isinstance(r.event, StepCommitted):
                seen.add(r.event.step)
        return back + sum(1 for step in range(1, newest + 1) if step not in seen)

    @property
    def epochs(self) -> list[dict[int, str]]:
        """For each epoch that was started, rank -> worker id."""
        plans = {
            c.plan.epoch: {s.rank: s.worker_id for s in c.plan.seats}
            for r in self.records
            for c in r.commands
            if isinstance(c, RunEpoch)
        }
        return [plans[e] for e in sorted(plans)]

    @property
    def survivors_restarted(self) -> int:
        """Workers that lost their place in the next epoch although nothing proved them dead and nobody declared them lost."""
        lost = {w for r in self.status.workers if r.phase == "lost" for w in [r.worker_id]}
        gone = {r.event.worker_id for r in self.records if isinstance(r.event, WorkerGone)}
        changed = 0
        for before, after in zip(self.epochs, self.epochs[1:], strict=False):
            changed += sum(1 for w in before.values() if w not in after.values() and w not in lost | gone)
        return changed


def run_job(
    client: ControlClient, job: Job, *, faults: Sequence[Fault] = (), on_status: Callable[[JobStatus], None] = lambda s: None
) -> Run:
    """Submit, inject, wait for the end."""
    client.submit(job, yaml_text="")
    for fault in faults:
        client.inject(job.name, fault=fault, who="bench")
    status = client.get(job.name)
    for status in client.watch_status(job.name):
        on_status(status)
    return Run(job, client.get(job.name), tuple(client.watch_events(job.name)))


def say(text: str) -> None:
    """Talk goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def figures(bench: str, **values: float | int | str | None) -> None:
    """The last line of every bench."""
    print(json.dumps({"bench": bench, "figures": values}), flush=True)
