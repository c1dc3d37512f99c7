"""Hand-made fakes of every port on the supervisor's side, and a loop whose time is virtual.

A whole job with its failures runs in milliseconds, and the same way each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import DeviceKind, Job
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS
from orchestrator.core.reshard.recovery import Commit, Held
from orchestrator.core.supervisor.commands import (
    ExitWorker,
    FenceEpoch,
    KillWorker,
    LeaveEpoch,
    RunEpoch,
    SpawnWorker,
    TakeCheckpoint,
)
from orchestrator.core.supervisor.events import (
    CheckpointReported,
    ClusterChanged,
    EpochReady,
    LeftEpoch,
    RankFinished,
    StepCommitted,
    WorkerDisconnected,
    WorkerGone,
    WorkerHello,
)
from orchestrator.core.supervisor.state import State
from orchestrator.core.timeouts import derive
from orchestrator.runtime.driver import Driver, resume_driver, start_driver
from orchestrator.runtime.ports import Beat, Record, Sink, WorkerCommand
from orchestrator.testkit.jobs import make_graph, make_job

STEP_MS = 100
GRAPH = make_graph(4096)


def job(*, name: str = "j", steps: int = 30, ranks: int = 2, spares: int = 1, failures: int = 5) -> Job:
    """A small job."""
    return make_job(
        name=name,
        steps=steps,
        micro_batches=ranks,
        warmup_steps=1,
        data=ranks,
        spares=spares,
        failure_budget=failures,
    )


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        real_select = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None) -> Any:
            if timeout is None:
                raise RuntimeError("everybody waits and no timer is set")
            self._now += timeout
            return real_select(0)

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        """Virtual seconds."""
        return self._now


def virtually(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


class LoopClock:
    """runtime.ports.Clock on the running loop's time."""

    def __init__(self, start_ms: int = 1_000) -> None:
        self.start_ms = start_ms

    def now_ms(self) -> int:
        """Milliseconds of the loop."""
        return self.start_ms + round(asyncio.get_running_loop().time() * 1000)

    def wall_s(self) -> float:
        """The same in seconds, from some day on."""
        return 1_700_000_000 + self.now_ms() / 1000


class MemoryJournal:
    """runtime.ports.Journal in memory; `fail_at` is the record that the disk has no room for."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self.written: list[Record] = []
        self.durable: list[int] = []
        self.snapshots: list[tuple[int, State]] = []
        self.fail_at = -1

    def create(self, job: Job) -> None:
        """Once."""
        if self._job is not None:
            raise FileExistsError("exists")
        self._job = job

    @property
    def exists(self) -> bool:
        """Whether it was created."""
        return self._job is not None

    def append(self, record: Record, *, durable: bool) -> None:
        """In order."""
        if record.seq == self.fail_at:
            raise OSError(28, "No space left on device")
        assert record.seq == len(self.written) + 1
        self.written.append(record)
        if durable:
            self.durable.append(record.seq)

    def snapshot(self, seq: int, state: State) -> None:
        """Kept all, the newest counts."""
        self.snapshots.append((seq, state))

    def load(self) -> tuple[State | None, int, Sequence[Record]]:
        """Newest snapshot and what follows."""
        if not self.snapshots:
            return None, 0, list(self.written)
        seq, state = self.snapshots[-1]
        return state, seq, self.written[seq:]

    def job(self) -> Job:
        """Its job."""
        assert self._job is not None
        return self._job

    def records(self, *, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """A page."""
        return self.written[after : after + limit]

    def close(self) -> None:
        """Nothing to close."""


class Silent:
    """runtime.ports.Telemetry that counts."""

    def __init__(self) -> None:
        self.decisions = 0
        self.ticks = 0

    def decided(self, record: Record, state: State) -> None:
        """Counted."""
        self.decisions += 1

    def ticked(self, state: State, beats: Iterable[Beat]) -> None:
        """Counted."""
        self.ticks += 1


class FakeWorker:
    """A worker process: says hello, beats, trains in step with the others, breaks when a peer dies."""

    def __init__(self, world: World, worker_id: str, node_id: str) -> None:
        self.world = world
        self.worker_id = worker_id
        self.node_id = node_id
        self.alive = True
        self.connected = False
        self.stopped = False  # SIGSTOP
        self.order: RunEpoch | None = None
        self.running = False
        self.step = 0
        self.epoch = 0
        self.progress = 0
        self.commands: list[WorkerCommand] = []
        self.tasks: list[asyncio.Task[None]] = []

    def go(self, work: Coroutine[Any, Any, None]) -> None:
        """A task of this process."""
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def live(self, delay_ms: int) -> None:
        """Warm up, connect, beat."""
        await asyncio.sleep(delay_ms / 1000)
        self.connect()
        heartbeat_ms = derive(4000).heartbeat_ms
        while self.alive:
            if self.connected and not self.stopped:
                phase = "forward" if self.running else "idle"
                self.world.driver.beat(Beat(self.worker_id, self.epoch, self.step, phase, 0, self.progress, False, False, 10, 1))
            await asyncio.sleep(heartbeat_ms / 1000)

    def connect(self) -> None:
        """Say hello."""
        hello = WorkerHello(
            0, self.worker_id, self.node_id, 7, f"{self.worker_id}:1", GRAPH, self.epoch, self.running, self.held(), None
        )
        if self.world.driver.welcome(self.worker_id).accepted:
            self.connected = True
            self.world.driver.sink(hello)

    def held(self) -> Held | None:
        """Its state, when it is out."""
        if self.running or self.order is None or self.epoch == 0:
            return None
        seat = self.order.plan.seat_of(self.worker_id)
        assert seat is not None
        commit = Commit(self.step, 1.0, 1.0, 1.0, False, 1.0) if self.step else None
        plan, at = self.order.plan, self.step
        optimizer, params = (plan.layout(name).holdings[seat.rank].everything for name in (OPTIMIZER, PARAMS))
        return Held(self.epoch, seat.rank, 1, at, at, at, optimizer, params, commit)

    def take(self, command: WorkerCommand) -> None:
        """A command arrived."""
        self.commands.append(command)
        match command:
            case RunEpoch() if command.plan.epoch > self.epoch:
                self.order, self.epoch, self.running = command, command.plan.epoch, True
                self.step = command.resume.step
                self.go(self.train(command.plan.epoch))
            case FenceEpoch(epoch=epoch):
                self.leave(epoch, fenced=True)
            case LeaveEpoch(epoch=epoch):
                self.world.wish_to_leave(epoch)
            case TakeCheckpoint(epoch=epoch) if self.running and epoch == self.epoch:
                at = self.step + 1
                self.say(CheckpointReported(0, self.worker_id, epoch, at, f"/c/{at}", True, "digest"))
            case ExitWorker():
                self.die(kill=False)

    async def train(self, epoch: int) -> None:
        """Steps of STEP_MS, each a report."""
        await asyncio.sleep(0.02)
        self.say(EpochReady(0, self.worker_id, epoch))
        while self.step < self.world.job.train.steps:
            await asyncio.sleep(STEP_MS / 1000)
            if not self.running or self.epoch != epoch or self.world.broken(epoch):
                return
            self.step += 1
            self.progress += 1
            loss = 2.0 / self.step
            self.say(StepCommitted(0, self.worker_id, epoch, self.step, loss, 1.0, 1.0, 0.1, STEP_MS, 64, False, loss))
            if self.step == self.world.leave_at.get(epoch):
                self.leave(epoch, fenced=False)
                return
        self.running = False
        self.say(RankFinished(0, self.worker_id, epoch, self.step, "digest"))

    def leave(self, epoch: int, *, fenced: bool) -> None:
        """Out of the epoch."""
        if self.stopped:
            return
        self.running = False
        self.say(LeftEpoch(0, self.worker_id, epoch, fenced, self.held(), "left"))

    def say(self, event: StepCommitted | LeftEpoch | EpochReady | RankFinished | CheckpointReported) -> None:
        """Report, when there is a stream."""
        if self.connected and not self.stopped:
            self.world.driver.sink(event)

    def die(self, *, kill: bool) -> None:
        """The process ends."""
        if not self.alive:
            return
        self.alive = self.running = False
        for task in self.tasks:
            task.cancel()
        if self.connected:
            self.connected = False
            self.world.driver.sink(WorkerDisconnected(0, self.worker_id, "reset" if kill else "closed"))


class World:
    """Fleet, Workers and Prober around fake workers on `nodes` nodes of one slot."""

    def __init__(self, job: Job, *, nodes: int = 4) -> None:
        self.job = job
        self.nodes = [f"n{i}" for i in range(nodes)]
        self.workers: dict[str, FakeWorker] = {}
        self.refused_ids: dict[str, str] = {}
        self.killed: list[str] = []
        self.adopted: list[str] = []
        self.closed = False
        self.leave_at: dict[int, int] = {}  # epoch -> step after which its ranks leave, because somebody asked
        self.sink: Sink | None = None
        self.spawn_errors: dict[str, Exception] = {}
        self.driver: Driver
        self.telemetry = Silent()

    def start(self, journal: MemoryJournal, clock: LoopClock) -> Driver:
        """A driver for the job, new or resumed as the journal says."""
        parts: dict[str, Any] = {
            "fleet": WorldFleet(self),
            "workers": self,
            "prober": self,
            "journal": journal,
            "telemetry": self.telemetry,
            "clock": clock,
            "checkpoint": None,
        }
        self.driver = resume_driver(**parts) if journal.exists else start_driver(self.job, **parts)
        return self.driver

    def view(self) -> ClusterView:
        """What the cluster looks like."""
        nodes = (NodeView(n, f"10.0.0.{i}", DeviceKind.CPU, 1, 1 << 30, True) for i, n in enumerate(self.nodes))
        return ClusterView(1, tuple(nodes))

    def broken(self, epoch: int) -> bool:
        """Whether a member of this epoch is dead or stopped, so that collectives hang for the others."""
        return any((w.stopped or not w.alive) and w.epoch == epoch for w in self.workers.values())

    def wish_to_leave(self, epoch: int) -> None:
        """The ranks agree on the first step after which all of them can leave."""
        self.leave_at.setdefault(epoch, max(w.step for w in self.workers.values() if w.epoch == epoch) + 1)

    def rank(self, rank: int) -> FakeWorker:
        """The worker in a seat."""
        plan = self.driver.state.plan
        assert plan is not None
        return self.workers[plan.seats[rank].worker_id]

    async def until(self, condition: Callable[[State], bool], limit_s: float = 600) -> None:
        """Wait (virtually) for a state."""
        async with asyncio.timeout(limit_s):
            while not condition(self.driver.state):  # noqa: ASYNC110 -- virtual time, and any state may be asked for
                await asyncio.sleep(0.005)

    # ---- Workers

    async def send(self, command: WorkerCommand) -> bool:
        """To the worker, a moment later."""
        worker = self.workers.get(command.worker_id)
        if worker is None or not worker.connected:
            return False
        await asyncio.sleep(0.001)
        if worker.alive and not worker.stopped:
            worker.take(command)
        return True

    def refuse(self, worker_id: str, why: str) -> None:
        """For ever."""
        self.refused_ids[worker_id] = why
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.connected = False

    # ---- Prober

    async def refused(self, endpoint: str, timeout_ms: int) -> bool:
        """Nobody listens on a dead worker's port."""
        worker = self.workers.get(endpoint.rpartition(":")[0])
        return worker is not None and not worker.alive

    # ---- Fleet

    async def spawn(self, command: SpawnWorker) -> None:
        """A new process."""
        if command.worker_id in self.spawn_errors:
            raise self.spawn_errors[command.worker_id]
        if command.worker_id not in self.workers:
            worker = FakeWorker(self, command.worker_id, command.node_id)
            self.workers[command.worker_id] = worker
            worker.go(worker.live(500))

    async def adopt(self, worker_ids: Sequence[str]) -> None:
        """Watch again."""
        self.adopted.extend(worker_ids)
        for worker_id in worker_ids:
            if not self.workers[worker_id].alive:
                self.driver.sink(WorkerGone(0, worker_id, "known to be dead"))

    async def kill(self, command: KillWorker) -> None:
        """By force."""
        self.killed.append(command.worker_id)
        if command.worker_id in self.workers:
            self.workers[command.worker_id].die(kill=True)

    async def close(self) -> None:
        """All gone."""
        self.closed = True
        for worker in self.workers.values():
            worker.die(kill=True)


class WorldFleet:
    """The Fleet face of a World (its `start` differs from the World's)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.spawn, self.adopt, self.kill, self.close = world.spawn, world.adopt, world.kill, world.close

    async def start(self, sink: Sink) -> None:
        """The first look."""
        self._world.sink = sink
        sink(ClusterChanged(0, self._world.view()))
