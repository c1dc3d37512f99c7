"""The supervisor's side of the world: its hub of streams, its fleet and its prober, one of each for every supervisor process.

All of them die with their process: whatever reaches a dead one is lost, whatever it still tries has no effect. While the
process is held up (a slow disk, a pause) nothing is lost, and what arrives waits in its inbox. Each of them asks the checks
whether the journal holds the command that it is told to carry out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.core.supervisor.commands import KillWorker, SpawnWorker
from orchestrator.core.supervisor.events import ClusterChanged, Event, WorkerDisconnected, WorkerGone, WorkerHello
from orchestrator.runtime.ports import Beat, Sink, WorkerCommand

if TYPE_CHECKING:
    from orchestrator.runtime.driver import Driver
    from orchestrator.testkit.sim.links import Stream
    from orchestrator.testkit.sim.worker import Worker
    from orchestrator.testkit.sim.world import World


CATCH_UP_MS = 60.0  # after it was held up, within which it gets to what has come in
KILL_WORKS = 0.8  # of the fleet's kills; the fence must do without them


class Process:
    """One supervisor process: alive or not, held up or not."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.held_up = False
        self._inbox: deque[Callable[[], None]] = deque()

    def run(self, what: Callable[[], None]) -> None:
        """Something reaches the process."""
        if not self.alive:
            return
        if self.held_up or self._inbox:
            self._inbox.append(what)
        else:
            what()

    def hold_up(self, for_ms: float) -> None:
        """The process does nothing for that long, while the world goes on."""
        if self.held_up or for_ms <= 0:
            return
        self.held_up = True
        self.world.timeline.play(for_ms)
        self.go_on()

    def go_on(self) -> None:
        """It gets to what has come in since."""
        self.held_up = False
        rng = self.world.rng  # timers that fell due may come before what the network brought
        self.world.timeline.after(rng.choice((0, rng.uniform(0, CATCH_UP_MS))) if self._inbox else 0, self._catch_up)

    def _catch_up(self) -> None:
        while self._inbox and self.alive and not self.held_up:
            self._inbox.popleft()()


class Hub:
    """runtime.ports.Workers."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.driver: Driver | None = None
        self.streams: dict[str, Stream] = {}
        self._refused: dict[str, str] = {}

    async def send(self, command: WorkerCommand) -> bool:
        """False when the worker has no stream."""
        if not self.process.alive:
            return False
        self.world.checks.carried_out(command)
        stream = self.streams.get(command.worker_id)
        if stream is not None:
            stream.down.send(command)
        return stream is not None

    def refuse(self, worker_id: str, why: str) -> None:
        """Fence it for ever."""
        if not self.process.alive:
            return
        self.world.checks.carried_out(KillWorker(worker_id, why))
        self._refused.setdefault(worker_id, why)
        stream = self.streams.get(worker_id)
        if stream is not None:
            stream.down.send(why or "refused")
            self._drop(stream, f"refused: {why}")

    def hear(self, stream: Stream, message: Any) -> None:
        """A message of a worker; None is the end of its stream."""
        self.process.run(lambda: self._hear(stream, message))

    def gone(self, stream: Stream, why: str) -> None:
        """The connection is over."""
        self.process.run(lambda: self._drop(stream, why))

    def _hear(self, stream: Stream, message: Any) -> None:
        driver = self.driver
        if driver is None:
            return
        worker_id = stream.worker.worker_id
        if isinstance(message, WorkerHello):
            self._hello(driver, stream, message)
        elif self.streams.get(worker_id) is not stream:
            return
        elif message is None:
            self._drop(stream, "the worker closed its stream")
        elif isinstance(message, Beat):
            driver.beat(message)
        else:
            driver.sink(message)

    def _hello(self, driver: Driver, stream: Stream, hello: WorkerHello) -> None:
        why = self._refused.get(hello.worker_id, "")
        step = 0
        if not why:
            welcome = driver.welcome(hello.worker_id)
            why, step = (welcome.why or "refused") if not welcome.accepted else "", welcome.committed_step
        if why:
            stream.down.send(why)
            return
        self.world.checks.welcomed(hello.worker_id, driver.state)
        older = self.streams.get(hello.worker_id)
        self.streams[hello.worker_id] = stream
        if older is not None:
            older.hub_knows = True
            older.hub_end("a newer stream took its place")
        stream.down.send(step)
        driver.sink(hello)

    def _drop(self, stream: Stream, why: str) -> None:
        worker_id = stream.worker.worker_id
        if self.streams.get(worker_id) is stream:
            del self.streams[worker_id]
            stream.hub_knows = True
            if self.driver is not None:
                self.driver.sink(WorkerDisconnected(0, worker_id, why))

    def die(self) -> None:
        """The process ended: its streams are reset."""
        for stream in list(self.streams.values()):
            stream.hub_knows = True
            stream.up.closed = True
            world, worker_end, worker = self.world, stream.worker_end, stream.worker
            if not world.control_cut(worker.node_id):
                world.timeline.after(world.rng.uniform(0.5, 30), lambda w=worker, e=worker_end: w.run(e))  # type: ignore[misc]
        self.streams.clear()


class Fleet:
    """runtime.ports.Fleet."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self._sink: Sink | None = None
        self._generation = 0

    async def start(self, sink: Sink) -> None:
        """Watch the cluster."""
        self._sink = sink
        self.cluster_changed()

    async def spawn(self, command: SpawnWorker) -> None:
        """Takes a while; may fail, and may start something that never says hello."""
        if not self.process.alive:
            return
        self.world.checks.carried_out(command)
        await asyncio.sleep(self.world.rng.uniform(0.005, 0.2))
        if self.process.alive:
            self.world.spawn(command.worker_id, command.node_id)

    async def adopt(self, worker_ids: Sequence[str]) -> None:
        """Say who is known to be dead."""
        for worker_id in worker_ids:
            worker = self.world.workers.get(worker_id)
            if worker is None or (not worker.alive and self.world.node(worker.node_id).tells):
                self.tell(WorkerGone(0, worker_id, "the fleet says that it is not there"))

    async def kill(self, command: KillWorker) -> None:
        """Best effort."""
        if not self.process.alive:
            return
        self.world.checks.carried_out(command)
        await asyncio.sleep(self.world.rng.uniform(0.001, 0.05))
        worker = self.world.workers.get(command.worker_id)
        if worker is not None:
            self.process.run(lambda: self._kill(worker))

    async def close(self) -> None:
        """Release what is left."""
        await asyncio.sleep(0.01)
        for worker in list(self.world.workers.values()):
            if self.process.alive and worker.alive and self.world.can_kill(worker):
                worker.die("released")

    def _kill(self, worker: Worker) -> None:
        if self.world.can_kill(worker) and self.world.rng.random() < KILL_WORKS:
            worker.die("killed by the fleet")

    def cluster_changed(self) -> None:
        """Something about the nodes is known anew."""
        self._generation += 1
        self.tell(ClusterChanged(0, self.world.cluster_view(self._generation)))

    def tell(self, event: Event) -> None:
        """A fact for the core."""
        sink = self._sink
        if sink is not None:
            self.process.run(lambda: sink(event))


class Prober:
    """runtime.ports.Prober."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def refused(self, endpoint: str, timeout_ms: int) -> bool:
        """True only when the node answers and the process has ended."""
        worker = self.world.by_endpoint(endpoint)
        if worker is None or self.world.control_cut(worker.node_id) or self.world.node(worker.node_id).silent:
            await asyncio.sleep(timeout_ms / 1000)
            return False
        await asyncio.sleep(self.world.rng.uniform(0.0002, 0.002))
        return not worker.alive and self.world.timeline.now_us >= worker.closed_us
