"""The supervisor as a service: many jobs by name, each with its driver, journal and folder, and what may be asked of them.

It owns no vendor: fleets, journals and telemetry come from factories that wiring passes in, and it serves two sides, the hub of
the worker streams (whose callbacks it routes by worker id) and the control API. When it starts it takes up every job in its
folder that is not over. A driver that stops on an error leaves its job as it is, and the status says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.core.cluster.view import ClusterView
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import CancelRequested, Event, Fault, WorkerHello
from orchestrator.core.supervisor.state import CheckpointRef, State
from orchestrator.runtime import requests
from orchestrator.runtime.books import Books
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, ExportedModel, ExportType
from orchestrator.runtime.checkpoints import CheckpointDesk, place_of
from orchestrator.runtime.control import BadRequestError, Decided, Explanation, NotFoundError, NotPossibleError
from orchestrator.runtime.driver import Driver, resume_driver, start_driver
from orchestrator.runtime.entry import CLUSTER_FILE, Entry, OwnedJournal, put_past
from orchestrator.runtime.explain import explain
from orchestrator.runtime.ledger import Account
from orchestrator.runtime.logs import WorkerLogs
from orchestrator.runtime.ports import (
    Beat,
    CheckpointTools,
    Clock,
    Fleet,
    LogLine,
    NotReady,
    Prober,
    Record,
    Telemetry,
    Welcome,
    Workers,
)
from orchestrator.runtime.status import job_status
from orchestrator.runtime.status_types import JobStatus

PAGE = 500  # records read from a journal at once
WATCH_MS = 500  # longest pause between two looks of a watched status
WATCH_MIN_MS = 100  # shortest one
JOB_FILE = "job.yaml"
RELEASED_FILE = "released"  # in the folder of a job that is over and has left nothing behind

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What wiring provides. The factories are called once per job and process."""

    open_journal: Callable[[Path], OwnedJournal]  # of the job whose folder this is; OSError when it is damaged or owned
    make_fleet: Callable[[Job], Fleet]
    make_telemetry: Callable[[Job], Telemetry]
    newest_checkpoint: Callable[[Job], Awaitable[CheckpointRef | None]]  # complete and verified
    checkpoint_tools: Callable[[], CheckpointTools]  # called in a thread
    workers: Workers
    prober: Prober
    clock: Clock


class SupervisorService:
    """Implements runtime.control.ControlHandler, and the callbacks of the hub. All of it lives on one event loop.

    `jobs_dir` holds one folder per job, of this `cluster` and perhaps of others, whose jobs are left alone. `on_failure(job name,
    error)` is told when a driver stops on an error.
    """

    def __init__(
        self,
        *,
        jobs_dir: Path,
        parts: Parts,
        cluster: str = "local",
        on_failure: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self._jobs_dir = jobs_dir
        self._cluster = cluster
        self._parts = parts
        self._desk = CheckpointDesk(parts.checkpoint_tools)
        self._on_failure = on_failure
        self._jobs: dict[str, Entry] = {}
        self._broken: dict[str, str] = {}  # jobs that could not be taken up, and why
        self._next_worker: dict[str, int] = {}  # of jobs put away: ids of workers are never used again
        self._submitting = asyncio.Lock()
        self._started = False
        self._closing = False
        self._shut_down = asyncio.Event()
        self._shutdown_task: asyncio.Task[None] | None = None

    # ---- its life

    async def start(self) -> tuple[str, ...]:
        """Take up every job whose journal says that it is not over; their names. Those that are over can be looked at."""
        resumed = []
        for folder in sorted(p for p in self._jobs_dir.iterdir() if p.is_dir() and not p.name.startswith(".")):
            try:
                if self._cluster_of(folder) != self._cluster:
                    continue
                entry = await self._reopen(folder)
            except Exception as error:  # one bad journal must not keep the other jobs from going on
                log.exception("job %s cannot be taken up", folder.name)
                self._broken[folder.name] = f"{type(error).__name__}: {error}"
                continue
            if entry is not None:
                self._jobs[folder.name] = entry
                over = entry.driver.state.phase.terminal
                if not over:
                    resumed.append(folder.name)
                if not over or not (folder / RELEASED_FILE).exists():
                    self._run(entry)
        self._started = True
        return tuple(resumed)

    async def wait_shut_down(self) -> None:
        """Return when somebody asked for a shutdown and every job has ended."""
        await self._shut_down.wait()

    async def close(self) -> None:
        """Stop the drivers and leave the jobs as they are: workers train on and another supervisor takes over."""
        self._closing = True
        for entry in self._jobs.values():
            if entry.task is not None:
                entry.task.cancel()
        await asyncio.gather(*(e.task for e in self._jobs.values() if e.task is not None), return_exceptions=True)
        for entry in self._jobs.values():
            await self._shut(entry)

    async def finished(self, name: str) -> State:
        """Wait until the driver of a job ends; its last state. Raises what stopped the driver, or NotFoundError."""
        entry = self._entry(name)
        if entry.task is not None:
            await asyncio.wait([entry.task])
        if entry.error is not None:
            raise entry.error
        return entry.driver.state

    async def account(self, name: str) -> Account:
        """The goodput ledger of a job, complete."""
        entry = self._entry(name)
        await entry.reading
        account = entry.books.account
        assert account is not None, "the books have caught up"
        return account

    # ---- the hub's callbacks

    def welcome(self, hello: WorkerHello) -> Welcome:
        """Whether a worker may stay.

        Raises NotReady when that cannot be known: the worker must try again, for a refusal would end it.
        """
        entry = self._of(hello.worker_id)
        job = hello.worker_id.rpartition("/")[0]
        if not self._started or self._closing or job in self._broken:
            raise NotReady(f"whether {hello.worker_id} is still wanted is not known here now")
        if entry is None:
            return Welcome(False, f"no job here asked for a worker {hello.worker_id}", 0)
        return entry.driver.welcome(hello.worker_id)

    def sink(self, event: Event) -> None:
        """A fact about a worker, to the driver of its job."""
        entry = self._of(getattr(event, "worker_id", ""))
        if entry is None:
            log.warning("%s of no job is dropped", event)
        else:
            entry.driver.sink(event)

    def on_beat(self, beat: Beat) -> None:
        """A heartbeat."""
        entry = self._of(beat.worker_id)
        if entry is not None:
            entry.driver.beat(beat)

    def on_log(self, line: LogLine) -> None:
        """A line that a worker printed."""
        entry = self._of(line.worker_id)
        if entry is not None:
            entry.logs.append(line, wall_s=self._parts.clock.wall_s())

    def on_stacks(self, worker_id: str, text: str) -> None:
        """The stacks of a worker that stands still: into its log."""
        entry = self._of(worker_id)
        if entry is not None:
            seat = entry.driver.state.plan.seat_of(worker_id) if entry.driver.state.plan else None
            for line in ("---- stacks of all threads:", *text.splitlines(), "---- end of stacks"):
                self.on_log(LogLine(worker_id, seat.rank if seat else -1, line))

    # ---- ControlHandler

    async def submit(self, *, job: Job, yaml_text: str) -> str:
        """Start a job; returns its name. Submitting a running job again is no error; a job that is over starts anew."""
        async with self._submitting:
            if self._closing:
                raise NotPossibleError("the supervisor is shutting down")
            if job.name in self._broken:
                raise NotPossibleError(f"the journal of job {job.name} cannot be used: {self._broken[job.name]}")
            old = self._jobs.get(job.name)
            if old is not None:
                if not old.driver.state.phase.terminal:
                    if old.job == job:
                        return job.name
                    raise NotPossibleError(f"another job called {job.name} is {old.driver.state.phase}; choose another name")
                await self._put_away(old)
            await self._begin(job, yaml_text, self._next_worker.get(job.name, 0))
            return job.name

    async def get(self, name: str) -> JobStatus:
        """The status now."""
        return self._status(self._entry(name))

    async def list_jobs(self) -> Sequence[JobStatus]:
        """Status of every job, by name."""
        return [self._status(e) for _, e in sorted(self._jobs.items())]

    async def watch_events(self, name: str, *, after_seq: int, follow: bool) -> AsyncGenerator[Record, None]:
        """Journal records after `after_seq`, oldest first; with `follow` also those to come, until the driver ends."""
        entry = self._entry(name)
        while True:
            over = entry.over
            page = entry.journal.records(after=after_seq, limit=PAGE)
            for record in page:
                after_seq = record.seq
                yield record
            if not page and (over or not follow):
                return
            if not page:
                await entry.driver.changed(after_seq)
                await asyncio.sleep(0)

    async def watch_status(self, name: str) -> AsyncGenerator[JobStatus, None]:
        """The status now and after each change, at most ten times a second, until the driver ends."""
        entry = self._entry(name)
        shown: JobStatus | None = None
        while True:
            over, seq = entry.over, entry.driver.seq
            status = self._status(entry)
            if status != shown:
                shown = status
                yield status
            if over:
                return
            await asyncio.sleep(WATCH_MIN_MS / 1000)
            with suppress(TimeoutError):
                async with asyncio.timeout((WATCH_MS - WATCH_MIN_MS) / 1000):
                    await entry.driver.changed(seq)

    async def tail_logs(self, name: str, *, rank: int | None, follow: bool) -> AsyncGenerator[LogLine, None]:
        """Lines that workers printed, those kept first; of one rank, or of all."""
        entry = self._entry(name)
        async for line in entry.logs.tail(entry.job.name, rank=rank, follow=follow and not entry.over):
            yield line

    async def explain(self, name: str, *, seq: int) -> Explanation:
        """The story of one record."""
        return explain(self._entry(name).journal, seq=seq)

    async def inject(self, name: str, *, fault: Fault, who: str) -> None:
        """Journal a fault and hand it on."""
        await requests.inject(self._running(name), fault=fault, who=who)

    async def cancel(self, name: str, *, who: str) -> None:
        """Ask the job to end; returns when the request is journaled."""
        await self._running(name).ask(CancelRequested(0, who))

    async def drain(self, name: str, *, node_id: str, who: str, why: str) -> Decided:
        """Ask for a node to be emptied."""
        return await requests.drain(self._running(name), node_id=node_id, who=who, why=why)

    async def node_gone(self, name: str, *, node_id: str, who: str, evidence: str) -> Decided:
        """Have the workers of a node that will not come back replaced at once."""
        return await requests.node_gone(self._running(name), node_id=node_id, who=who, evidence=evidence)

    async def suspend(self, name: str, *, who: str, why: str) -> Decided:
        """Have the job give its machines back for a while."""
        return await requests.suspend(self._running(name), who=who, why=why)

    async def go_on(self, name: str, *, who: str) -> Decided:
        """Have a suspended job go on."""
        return await requests.go_on(self._running(name), who=who)

    async def scale(self, name: str, *, nodes: int, layers_per_stage: tuple[int, ...], who: str) -> Decided:
        """Ask for another number of nodes that train, or other pipeline stages."""
        return await requests.scale(self._running(name), nodes=nodes, layers_per_stage=layers_per_stage, who=who)

    async def replace_worker(self, name: str, *, worker_id: str, rank: int | None, who: str) -> Decided:
        """Ask that a worker gives its rank to a spare."""
        return await requests.replace_worker(self._running(name), worker_id=worker_id, rank=rank, who=who)

    async def take_checkpoint(self, name: str, *, who: str) -> Decided:
        """Ask for a durable checkpoint after the step under way."""
        return await requests.take_checkpoint(self._running(name), who=who)

    async def list_checkpoints(self, name: str, *, uri: str) -> Sequence[CheckpointInfo]:
        """What lies where the job's checkpoints are (or at `uri`), newest first; of a job that is over too."""
        place = place_of(self._entry(name).job, uri)
        return await self._desk.ask(lambda tools: tools.list(place))

    async def verify_checkpoint(self, name: str, *, uri: str, step: int | None) -> CheckpointVerdict:
        """Read all of one checkpoint; without a step the newest."""
        place = place_of(self._entry(name).job, uri)
        return await self._desk.ask(lambda tools: tools.verify(place, step=step))

    async def export_checkpoint(self, name: str, *, uri: str, step: int | None, path: str, dtype: ExportType) -> ExportedModel:
        """Write a checkpoint's model to a safetensors file here; without a step the newest complete one's."""
        place = place_of(self._entry(name).job, uri)
        if not Path(path).is_absolute():
            raise BadRequestError(f"{path!r} is no absolute path: the file is written on the supervisor's machine")
        return await self._desk.ask(lambda tools: tools.export(place, step=step, path=path, dtype=dtype))

    async def cluster(self) -> ClusterView:
        """The newest view of the cluster."""
        views = [e.driver.state.cluster for e in self._jobs.values() if not e.over]
        newest = max((v for v in views if v is not None), key=lambda v: v.generation, default=None)
        if newest is None:
            raise NotPossibleError("no running job has seen the cluster yet")
        return newest

    async def shutdown(self, *, who: str) -> None:
        """Cancel every job, so that nothing is left running; `wait_shut_down` returns when all have ended."""
        self._closing = True
        for entry in self._jobs.values():
            if not entry.over:
                entry.driver.sink(CancelRequested(0, f"{who} (shutdown)"))
        tasks = [e.task for e in self._jobs.values() if e.task is not None]
        if self._shutdown_task is None:
            self._shutdown_task = asyncio.create_task(self._finish_shutdown(tasks), name="shutdown")

    # ---- inside

    async def _finish_shutdown(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        self._shut_down.set()

    async def _reopen(self, folder: Path) -> Entry | None:
        with self._journal_of(folder) as journal:
            if not journal.exists:
                journal.close()
                return None
            job = journal.job()
            fresh = not journal.records(limit=1)  # else the journal knows the checkpoint, and storage may be slow
            checkpoint = await self._parts.newest_checkpoint(job) if fresh else None
            return self._entry_with(folder, job, journal, partial(resume_driver, checkpoint=checkpoint))

    @contextmanager
    def _journal_of(self, folder: Path) -> Iterator[OwnedJournal]:
        """The journal of the job in a folder, given up again when what follows fails."""
        journal = self._parts.open_journal(folder)
        try:
            yield journal
        except BaseException:
            journal.close()
            raise

    def _entry_with(self, folder: Path, job: Job, journal: OwnedJournal, make_driver: Callable[..., Driver]) -> Entry:
        books = Books(self._parts.make_telemetry(job), journal)
        driver = make_driver(
            fleet=self._parts.make_fleet(job),
            workers=self._parts.workers,
            prober=self._parts.prober,
            journal=journal,
            telemetry=books,
            clock=self._parts.clock,
        )
        return Entry(job, journal, driver, books, WorkerLogs(folder / "logs"))

    def _cluster_of(self, folder: Path) -> str:
        """Whose job this is; ours where nobody wrote it down."""
        try:
            return (folder / CLUSTER_FILE).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return self._cluster

    async def _begin(self, job: Job, yaml_text: str, next_worker: int) -> None:
        folder = self._jobs_dir / job.name
        if (theirs := self._cluster_of(folder)) != self._cluster:
            raise NotPossibleError(f"there is a job {job.name} of the cluster {theirs} already; choose another name (--name)")
        checkpoint = await self._parts.newest_checkpoint(job)
        try:
            with self._journal_of(folder) as journal:
                (folder / CLUSTER_FILE).write_text(self._cluster, encoding="utf-8")  # before there is a job in it
                (folder / JOB_FILE).write_text(yaml_text, encoding="utf-8")
                begin = partial(start_driver, job, checkpoint=checkpoint, next_worker=next_worker)
                entry = self._entry_with(folder, job, journal, begin)
        except OSError as error:
            raise NotPossibleError(f"job {job.name} cannot have a journal: {error}") from error
        self._jobs[job.name] = entry
        self._run(entry)

    async def _put_away(self, old: Entry) -> None:
        """A job that is over makes room for one of the same name; its folder moves in one instant."""
        if old.task is not None:
            await asyncio.wait([old.task])  # it may still be releasing its workers
        await self._shut(old)
        self._next_worker[old.job.name] = old.driver.state.next_worker
        del self._jobs[old.job.name]
        put_past(self._jobs_dir / old.job.name)

    async def _shut(self, entry: Entry) -> None:
        entry.reading.cancel()
        await asyncio.wait([entry.reading])
        entry.logs.close()
        entry.journal.close()

    def _run(self, entry: Entry) -> None:
        entry.task = asyncio.create_task(self._drive(entry), name=f"driver of {entry.job.name}")

    async def _drive(self, entry: Entry) -> None:
        try:
            await entry.driver.run()
            (self._jobs_dir / entry.job.name / RELEASED_FILE).touch()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            log.critical("the driver of job %s stopped: %s", entry.job.name, error, exc_info=error)
            if isinstance(error, Exception) and entry.driver.state.phase.terminal:
                return  # how it ended stands; what it left behind is released by the next supervisor
            entry.error = error
            if self._on_failure is not None:
                self._on_failure(entry.job.name, error)
            if not isinstance(error, Exception):
                raise
        finally:
            entry.logs.close()

    def _status(self, entry: Entry) -> JobStatus:
        driver = entry.driver
        return job_status(
            driver.state,
            recent=driver.recent,
            beats=driver.beats(),
            observed=driver.observed(),
            goodput=entry.books.goodput,
            now_ms=driver.now_ms(),
            trouble=f"the supervisor stopped, the workers train on: {entry.error}" if entry.error else "",
        )

    def _of(self, worker_id: str) -> Entry | None:
        return self._jobs.get(worker_id.rpartition("/")[0])

    def _entry(self, name: str) -> Entry:
        if name in self._broken:
            raise NotPossibleError(f"the journal of job {name} cannot be used: {self._broken[name]}")
        if name:
            entry = self._jobs.get(name)
            if entry is None:
                known = ", ".join(sorted(self._jobs)) or "none"
                raise NotFoundError(f"there is no job called {name}; there are: {known}")
            return entry
        if len(self._jobs) == 1:
            return next(iter(self._jobs.values()))
        if not self._jobs:
            raise NotFoundError("there is no job")
        raise BadRequestError(f"name one of the jobs: {', '.join(sorted(self._jobs))}")

    def _running(self, name: str) -> Entry:
        entry = self._entry(name)
        if entry.error is not None:
            raise NotPossibleError(f"the driver of job {entry.job.name} has stopped: {entry.error}")
        if entry.over:
            raise NotPossibleError(f"job {entry.job.name} is over: {entry.driver.state.phase}")
        return entry
