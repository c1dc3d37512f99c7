"""A supervisor's world for the command line's tests: records and statuses that the real core made, and fakes of the wiring.

Nothing here starts a process or opens a socket; the fake client answers from a script and notes what it was asked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.apps.cli.main import app
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.planner import first_plan
from orchestrator.core.reshard.recovery import Commit
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command
from orchestrator.core.supervisor.machine import step
from orchestrator.core.supervisor.state import JobPhase, Outcome
from orchestrator.runtime.control import ControlError, Explanation
from orchestrator.runtime.ports import LogLine, Record
from orchestrator.runtime.status import job_status
from orchestrator.runtime.status_types import JobStatus
from tests.scenarios.story import GRAPH, Story, make_job

EXAMPLE = Path(__file__).parents[3] / "examples/gpt-docs/job.yaml"
HTML_IN_REASON = "<script>alert('no')</script> & \"quotes\""


class Recorded(Story):
    """A story that keeps the records a driver would have journaled."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.records: list[Record] = []

    def tell(self, event: ev.Event) -> list[Command]:
        """One event, one record when something came of it."""
        self.now += 10
        event = replace(event, at_ms=self.now)
        before = self.state
        decision = step(before, event)
        self.state = decision.state
        if decision.commands or decision.reason or decision.state != before:
            self.records.append(
                Record(
                    seq=len(self.records) + 1,
                    at_ms=self.now,
                    wall_s=1_700_000_000 + self.now / 1000,
                    event=event,
                    commands=decision.commands,
                    reason=decision.reason,
                    phase=self.state.phase.value,
                    epoch=self.state.epoch,
                    committed_step=self.state.committed_step,
                )
            )
        return list(decision.commands)

    def status(self) -> JobStatus:
        """What people see now."""
        return job_status(self.state, recent=self.records, beats=(), observed={}, goodput=0.9, now_ms=self.now)

    def loses(self, rank: int, *, at: int) -> None:
        """The worker of a rank dies while the step after `at` is computed; a spare takes over and the next step commits."""
        lost = self.plan.seats[rank].worker_id
        self.now += 90
        self.tell(ev.WorkerDisconnected(0, lost, "connection reset"))
        self.tell(ev.WorkerGone(0, lost, f"its port refuses connections {HTML_IN_REASON}"))
        self.leave_all(at, but=(lost,))
        self.now += 30
        self.ready()
        self.commit(at + 1)

    def finish(self, steps: int) -> None:
        """Every rank reports the last step."""
        for seat in self.plan.seats:
            self.tell(ev.RankFinished(0, seat.worker_id, self.state.epoch, steps, "d" * 64))


def story(*, steps: int = 6, fail_at: int | None = 3) -> Recorded:
    """A run that succeeds, with one worker lost after step `fail_at`."""
    told = Recorded(make_job(steps=steps))
    told.launch(5)
    told.ready()
    for n in range(1, steps + 1):
        if fail_at is not None and n == fail_at + 1:
            told.loses(2, at=fail_at)
        else:
            told.commit(n)
    told.tell(ev.EvalReported(0, told.plan.seats[0].worker_id, told.state.epoch, steps, 1.5))
    told.finish(steps)
    assert told.state.phase is JobPhase.SUCCEEDED, told.said
    return told


def running_status() -> JobStatus:
    """A job in the middle of its run."""
    told = Recorded(make_job())
    told.launch(5)
    told.ready()
    told.commit(1)
    return told.status()


def ended(outcome: Outcome) -> JobStatus:
    """A job that is over."""
    phase = {Outcome.COMPLETED: JobPhase.SUCCEEDED, Outcome.CANCELLED: JobPhase.CANCELLED}.get(outcome, JobPhase.FAILED)
    return replace(running_status(), phase=phase, outcome=outcome, last_word=f"because {outcome}", eta_s=None)


@dataclass
class FakeClient:
    """orchestrator.adapters.grpc.client.ControlClient from a script; `asked` notes every request that changes something."""

    statuses: list[JobStatus | ControlError] = field(default_factory=list)  # of watch_status; the last one is get's
    records: list[Record] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    fails: ControlError | None = None  # raised by everything
    on_watch: Callable[[], None] = lambda: None  # called before the last status
    on_cancel: Callable[[], None] = lambda: None
    on_inject: Callable[[], None] = lambda: None
    closed: bool = False

    def close(self) -> None:
        self.closed = True

    def submit(self, job: Job, *, yaml_text: str) -> str:
        self._fail()
        self.asked.append(("submit", job.name, yaml_text))
        return job.name

    def get(self, name: str = "") -> JobStatus:
        self._fail()
        last = self.statuses[-1]
        assert isinstance(last, JobStatus)
        return last

    def list_jobs(self) -> tuple[JobStatus, ...]:
        self._fail()
        return (self.get(),)

    def watch_status(self, name: str = "") -> Iterator[JobStatus]:
        self._fail()
        while self.statuses:
            if len(self.statuses) == 1:
                self.on_watch()
                yield self.get()
                return
            item = self.statuses.pop(0)
            if isinstance(item, ControlError):
                raise item
            yield item

    def watch_events(self, name: str = "", *, after_seq: int = 0, follow: bool = False) -> Iterator[Record]:
        self._fail()
        yield from (r for r in self.records if r.seq > after_seq)

    def tail_logs(self, name: str = "", *, rank: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        self._fail()
        yield from (line for line in self.lines if rank is None or line.rank == rank)

    def explain(self, name: str = "", *, seq: int) -> Explanation:
        self._fail()
        self.asked.append(("explain", name, seq))
        return Explanation(self.records[seq - 1], ("a worker was lost", "so a spare took over"))

    def inject(self, name: str = "", *, fault: ev.Fault, who: str) -> None:
        self._fail()
        self.asked.append(("inject", name, fault))
        self.on_inject()

    def cancel(self, name: str = "", *, who: str) -> None:
        self._fail()
        self.asked.append(("cancel", name, who))
        self.on_cancel()

    def drain(self, name: str = "", *, node_id: str, who: str) -> None:
        self._fail()
        self.asked.append(("drain", name, node_id))

    def _fail(self) -> None:
        if self.fails is not None:
            raise self.fails


class NotRunning(Exception):
    """Stands for wiring.NotRunning."""


@dataclass
class FakeSession:
    """wiring.Session."""

    client: FakeClient
    address: str = "127.0.0.1:7070"
    stopped: int = 0

    def stop(self) -> None:
        self.stopped += 1

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class FakeWiring(ModuleType):
    """orchestrator.apps.wiring; set `session` to what is there, `broken` to what a start raises."""

    NotRunning = NotRunning

    def __init__(self) -> None:
        super().__init__("orchestrator.apps.wiring")
        self.session: FakeSession | None = None
        self.on_start: Callable[[], None] = lambda: None
        self.broken: Exception | None = None
        self.ended: list[str] = []
        self.calls: list[tuple[Any, ...]] = []

    @property
    def client(self) -> FakeClient:
        assert self.session is not None
        return self.session.client

    def _start(self, told: tuple[Any, ...], on_progress: Callable[[str], None]) -> FakeSession:
        self.calls.append(told)
        on_progress("starting the cluster")
        self.on_start()
        if self.broken is not None:
            raise self.broken
        assert self.session is not None
        return self.session

    def start_local(self, job: Job, *, home: Path, cluster: str = "local", on_progress: Callable[[str], None]) -> FakeSession:
        return self._start(("start_local", job.name, home, cluster), on_progress)

    def attach(self, address: str, *, home: Path, on_progress: Callable[[str], None]) -> FakeSession:
        return self._start(("attach", address, home), on_progress)

    def find(self, *, home: Path, cluster: str | None) -> FakeSession:
        self.calls.append(("find", home, cluster))
        if self.session is None:
            raise NotRunning(f"no supervisor is recorded under {home}; start one with: orchestrator run job.yaml")
        return self.session

    def down(self, *, home: Path, cluster: str | None) -> list[str]:
        self.calls.append(("down", home, cluster))
        return self.ended

    def describe(self, job: Job) -> GraphView:
        if self.broken is not None:
            raise self.broken
        return GRAPH

    def preview_plan(self, job: Job, graph: GraphView) -> Plan:
        workers = [(f"w{i}", f"n{i % job.cluster.nodes}") for i in range(job.parallel.data)]
        return first_plan(job=job, graph=graph, workers=workers, epoch=1)


def install(monkeypatch: pytest.MonkeyPatch, client: FakeClient | None = None) -> FakeWiring:
    """Put a fake wiring in place; without a client nothing runs."""
    fake = FakeWiring()
    fake.session = FakeSession(client) if client is not None else None
    monkeypatch.setitem(sys.modules, "orchestrator.apps.wiring", fake)
    return fake


def cli(*arguments: str | Path, home: Path) -> Result:
    """Run the program in this process, as a shell without a terminal would."""
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"ORCHESTRATOR_HOME": str(home)})


def statuses(*items: JobStatus | ControlError) -> list[JobStatus | ControlError]:
    """A script for watch_status."""
    return list(items)


def losses(records: Iterable[Record]) -> list[float]:
    """Training losses in order."""
    return [r.event.loss for r in records if isinstance(r.event, ev.StepCommitted)]


__all__ = ["Commit", "Recorded", "cli", "ended", "install", "losses", "running_status", "statuses", "story"]
