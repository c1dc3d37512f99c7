"""A supervisor's world for the command line's tests: records and statuses that the real core made, and fakes of the wiring.

Nothing here starts a process or opens a socket; the fake client answers from a script and notes what it was asked.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

from orchestrator.apps.cli.main import app
from orchestrator.core.cluster.resources import Resources
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.plan import MeshAxis
from orchestrator.core.planner.strategy import Choice, Option
from orchestrator.core.reshard.recovery import Commit
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, ExpectEpoch, RunEpoch
from orchestrator.core.supervisor.machine import step
from orchestrator.core.supervisor.state import JobPhase, Outcome, WorkerPhase
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, DamagedFile, ExportedModel, ExportType
from orchestrator.runtime.control import ControlError, Decided, Explanation
from orchestrator.runtime.ports import LogLine, Record
from orchestrator.runtime.status import job_status
from orchestrator.runtime.status_types import JobStatus, NodeStatus, PlanStatus, WorkerStatus
from tests.scenarios.story import GRAPH, Story, make_job
from tests.unit.apps import planned

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


def expecting(records: Iterable[Record], option: Option, choice: Choice | None = None) -> list[Record]:
    """The same records where every epoch was expected to do what `option` says; the first came from `choice`."""
    out = []
    for record in records:
        epochs = {c.plan.epoch for c in record.commands if isinstance(c, RunEpoch)}
        more = tuple(ExpectEpoch(e, option, choice if e == 1 else None) for e in epochs)
        out.append(replace(record, commands=(*more, *record.commands)))
    return out


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


def checkpoint(step: int, *, trouble: str = "") -> CheckpointInfo:
    """A checkpoint of job j."""
    return CheckpointInfo(
        step=step,
        uri=f"/c/step-{step:08d}",
        complete=not trouble,
        trouble=trouble,
        job="j",
        digest=f"{step:x}" * 64 if not trouble else "",
        size_bytes=2_500_000,
        files=5,
        epoch=3,
        ranks=4,
        plan="epoch 3, 4 ranks" if not trouble else "",
    )


class FakeTools:
    """runtime.ports.CheckpointTools over a list; what is in `damaged` is."""

    def __init__(self, *infos: CheckpointInfo, damaged: dict[int, tuple[DamagedFile, ...]] | None = None) -> None:
        self.infos = infos
        self.damaged = damaged or {}
        self.places: list[str] = []

    def list(self, uri: str) -> tuple[CheckpointInfo, ...]:
        self.places.append(uri)
        return self.infos

    def verify(self, uri: str, *, step: int | None) -> CheckpointVerdict:
        self.places.append(uri)
        info = next(i for i in self.infos if step in (None, i.step))
        damaged = self.damaged.get(info.step, ())
        trouble = f"{len(damaged)} of {info.files} files" if damaged else ""
        return CheckpointVerdict(info=info, damaged=damaged, digest="" if damaged else info.digest, trouble=trouble)

    def export(self, uri: str, *, step: int | None, path: str, dtype: ExportType) -> ExportedModel:
        self.places.append(uri)
        info = next(i for i in self.infos if step in (None, i.step))
        return ExportedModel(
            path=path, job=info.job, step=info.step, digest=info.digest, tensors=7, size_bytes=1_000_000, dtype=dtype
        )


MESH = (MeshAxis("pipeline", 1), MeshAxis("data", 2), MeshAxis("tensor", 1))


def plain_status(*, on: Sequence[str] = ("n0", "n1"), spares: Sequence[str] = ("n2",), rss: int = 1, **changes: Any) -> JobStatus:
    """A job whose ranks sit on the nodes `on`, by hand; worker w5 sits on node n5, `changes` are fields of JobStatus."""
    ids = sorted({*on, *spares})

    def worker(node: str, rank: int) -> WorkerStatus:
        return WorkerStatus(
            worker_id=f"j/w{node[1:]}",
            node_id=node,
            rank=rank,
            phase=WorkerPhase.MEMBER if rank >= 0 else WorkerPhase.SPARE,
            step=7,
            doing="forward",
            doing_ms=3,
            silence_ms=0,
            connected=True,
            suspect="",
            cause="",
            pid=1,
            micro_batch_ms=5,
            rss_bytes=rss,
        )

    mesh = (MeshAxis("pipeline", 1), MeshAxis("data", len(on)), MeshAxis("tensor", 1))
    plan = PlanStatus(
        epoch=1, mesh=mesh, ranks=len(on), zero_stage=1, copies=1, micro_batches=8, layers_per_stage=(4,), reason="so be it"
    )
    made = JobStatus(
        name="j",
        phase=JobPhase.RUNNING,
        outcome=Outcome.NONE,
        last_word="",
        step=7,
        steps=20,
        loss=1.5,
        eval_loss=None,
        epoch=1,
        tokens_per_s=100.0,
        eta_s=3.0,
        goodput=0.9,
        recoveries=0,
        steps_lost=0,
        survivors_restarted=0,
        budget=3,
        budget_max=3,
        workers=(*(worker(n, r) for r, n in enumerate(on)), *(worker(n, -1) for n in spares)),
        nodes=tuple(
            NodeStatus(node_id=n, address=f"10.0.0.{n[1:]}", healthy=True, schedulable=True, slots=1, workers=1) for n in ids
        ),
        decision=None,
        checkpoint=None,
        plan=plan,
        prediction=None,
        target=MESH,
        shrunk=False,
        change=None,
        skipped=0,
    )
    return replace(made, **changes)


def told(seq: int, reason: str, event: ev.Event | None = None) -> Record:
    """A record of a running job with a reason."""
    return Record(seq, seq * 10, 1_700_000_000.0, event or ev.SupervisorRestarted(seq * 10), (), reason, "running", 1, 7)


@dataclass
class FakeClient:
    """orchestrator.adapters.grpc.client.ControlClient from a script; `asked` notes every request that changes something."""

    statuses: list[JobStatus | ControlError] = field(default_factory=list)  # of watch_status; the last one is get's
    records: list[Record] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    looks: list[JobStatus] = field(default_factory=list)  # of get, one after the other, when there are any
    fails: ControlError | None = None  # raised by everything
    on_watch: Callable[[], None] = lambda: None  # called before the last status
    on_cancel: Callable[[], None] = lambda: None
    on_inject: Callable[[], None] = lambda: None
    tools: FakeTools = field(default_factory=lambda: FakeTools())
    closed: bool = False

    def close(self) -> None:
        self.closed = True

    def submit(self, job: Job, *, yaml_text: str) -> str:
        self._fail()
        self.asked.append(("submit", job.name, yaml_text))
        return job.name

    def get(self, name: str = "") -> JobStatus:
        self._fail()
        if self.looks:
            return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
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

    def drain(self, name: str = "", *, node_id: str, who: str, why: str = "") -> Decided:
        return self._decide("drain", name, node_id, why)

    def scale(self, name: str = "", *, nodes: int = 0, layers_per_stage: tuple[int, ...] = (), who: str) -> Decided:
        return self._decide("scale", name, nodes, layers_per_stage)

    def replace_worker(self, name: str = "", *, worker_id: str = "", rank: int | None = None, who: str) -> Decided:
        return self._decide("replace", name, worker_id, rank)

    def take_checkpoint(self, name: str = "", *, who: str) -> Decided:
        return self._decide("checkpoint", name)

    def list_checkpoints(self, name: str = "", *, uri: str = "") -> tuple[CheckpointInfo, ...]:
        self._fail()
        return self.tools.list(uri)

    def verify_checkpoint(self, name: str = "", *, uri: str = "", step: int | None = None) -> CheckpointVerdict:
        self._fail()
        self.asked.append(("verify", name, uri, step))
        return self.tools.verify(uri, step=step)

    def export_checkpoint(
        self, name: str = "", *, uri: str = "", step: int | None = None, path: str, dtype: ExportType = ExportType.FP32
    ) -> ExportedModel:
        self._fail()
        self.asked.append(("export", name, uri, step, path, dtype))
        return self.tools.export(uri, step=step, path=path, dtype=dtype)

    def _decide(self, what: str, *told: Any) -> Decided:
        self._fail()
        self.asked.append((what, *told))
        return Decided(40, f"{what} it is")

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
        self.tools = FakeTools()  # of this process, without a supervisor
        self.uris: dict[str, str] = {}  # of the jobs that have a journal here
        self.calls: list[tuple[Any, ...]] = []
        self.graph = GRAPH
        self.costs = planned.costs_of(GRAPH)

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

    def checkpoint_tools(self) -> FakeTools:
        return self.tools

    def checkpoint_uri(self, job: str, *, home: Path) -> str:
        return self.uris.get(job, "")

    def find(self, *, home: Path, cluster: str | None, timeout_ms: int = 10_000) -> FakeSession:
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
        return self.graph

    def local_costs(self, job: Job) -> ModelCosts:
        if self.broken is not None:
            raise self.broken
        return self.costs

    def traced_costs(self, job: Job) -> ModelCosts:
        if self.broken is not None:
            raise self.broken
        return replace(self.costs, kinds=tuple(replace(kind, timings=()) for kind in self.costs.kinds))

    def local_resources(self, job: Job) -> Resources:
        return planned.resources(job.cluster.nodes, job.cluster.slots_per_node)


def install(monkeypatch: pytest.MonkeyPatch, client: FakeClient | None = None) -> FakeWiring:
    """Put a fake wiring in place; without a client nothing runs."""
    fake = FakeWiring()
    fake.session = FakeSession(client) if client is not None else None
    monkeypatch.setitem(sys.modules, "orchestrator.apps.wiring", fake)
    return fake


command_of = functools.cache(typer.main.get_command)  # the runner itself would build every command anew for every call


def cli(*arguments: str | Path, home: Path) -> Result:
    """Run the program in this process, as a shell without a terminal would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", command_of)
        return CliRunner().invoke(app, [str(a) for a in arguments], env={"ORCHESTRATOR_HOME": str(home)})


def statuses(*items: JobStatus | ControlError) -> list[JobStatus | ControlError]:
    """A script for watch_status."""
    return list(items)


def losses(records: Iterable[Record]) -> list[float]:
    """Training losses in order."""
    return [r.event.loss for r in records if isinstance(r.event, ev.StepCommitted)]


__all__ = ["Commit", "Recorded", "cli", "ended", "install", "losses", "running_status", "statuses", "story"]
