"""A running job as the benches that disturb it see it: its status from the control API, its steps from the workers' step log."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.baselines import steps
from bench.bench_task import DIGEST_EVERY
from bench.harness import Run
from orchestrator.adapters.grpc.client import ControlClient
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import DigestReported
from orchestrator.core.supervisor.state import JobPhase, WorkerPhase
from orchestrator.runtime.ports import Record
from orchestrator.runtime.status_types import JobStatus, WorkerStatus

WAIT_S = 120.0
LOOK_S = 0.05


class BenchFailed(Exception):
    """Something did not happen in time, or the job ended; the message says what."""


class JobWatch:
    """One job of a session; its workers append to `log`."""

    def __init__(self, client: ControlClient, job: Job, log: Path) -> None:
        self.client, self.job, self._log = client, job, log

    def status(self) -> JobStatus:
        """Raises BenchFailed when the job is over."""
        status = self.client.get(self.job.name)
        if status.phase.terminal:
            raise BenchFailed(f"the job has {status.phase}: {status.last_word}")
        return status

    def members(self) -> list[WorkerStatus]:
        """Workers with a rank."""
        return [w for w in self.status().workers if w.phase is WorkerPhase.MEMBER]

    def last_seq(self) -> int:
        """Of the newest record that has a reason; those after it are newer than now."""
        decision = self.status().decision
        return decision.seq if decision is not None else 0

    def records(self, *, after_seq: int) -> tuple[Record, ...]:
        """The journal's, up to now."""
        return tuple(self.client.watch_events(self.job.name, after_seq=after_seq))

    def lines(self) -> list[steps.Line]:
        """The step log as it is now."""
        return steps.parse(self._log.read_text()) if self._log.exists() else []

    def wait(self, what: str, check: Callable[[], Any], *, look_s: float = LOOK_S, over: bool = False) -> Any:
        """The first thing that `check` returns which is not None; `over` where the job may be over. Raises BenchFailed."""
        deadline = time.monotonic() + WAIT_S
        while (value := check()) is None:
            if time.monotonic() > deadline:
                if not over:
                    self.status()
                raise BenchFailed(f"{what}: not within {WAIT_S:.0f} s")
            time.sleep(look_s)
        return value

    def wait_for_spares(self, count: int) -> None:
        """So many are warm, and the job runs."""

        def ready() -> bool | None:
            status = self.status()
            warm = sum(w.phase is WorkerPhase.SPARE and w.connected for w in status.workers)
            return True if warm >= count and status.phase is JobPhase.RUNNING else None

        self.wait(f"{count} warm spare(s)", ready, look_s=0.5)

    def end_after_digest(self, *, who: str) -> Run:
        """Let the job go on until one more digest is there, cancel it, and wait for its end."""
        wanted = (self.status().step // DIGEST_EVERY + 1) * DIGEST_EVERY
        self.wait(f"step {wanted + 1}", lambda: True if self.status().step > wanted else None)
        self.client.cancel(self.job.name, who=who)
        self.wait("the end of the cancelled job", lambda: self.client.get(self.job.name).phase.terminal or None, over=True)
        return Run(self.job, self.client.get(self.job.name), self.records(after_seq=0))


def digests_of(records: Sequence[Record]) -> dict[int, str]:
    """Step -> digest, where every rank that reported one reported the same."""
    found: dict[int, set[str]] = {}
    for r in records:
        if isinstance(r.event, DigestReported):
            found.setdefault(r.event.step, set()).add(r.event.digest)
    return {step: digests.pop() for step, digests in sorted(found.items()) if len(digests) == 1}


def equal_digests(calm: dict[int, str], stormy: dict[int, str], *, until: int) -> bool:
    """Whether both have a digest each DIGEST_EVERY steps up to `until`, and the same ones."""
    wanted = range(DIGEST_EVERY, until + 1, DIGEST_EVERY)
    return len(wanted) > 0 and all(s in calm and calm[s] == stormy.get(s) for s in wanted)
