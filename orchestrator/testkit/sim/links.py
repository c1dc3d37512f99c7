"""The wire between a worker and the supervisor: streams that deliver in order or break, and what is said again after a break.

Each message takes its own time, never overtaking another one. A cut holds messages back until it heals or an end gives up; a
break loses whatever is under way in either direction and each end learns of it in its own time. The outbox repeats the rules
of the real one (adapters/grpc/outbox.py), which this package may not import.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.core.supervisor.events import (
    CheckpointReported,
    DigestReported,
    EvalReported,
    StepCommitted,
    WorkerMeasured,
)

if TYPE_CHECKING:
    from orchestrator.testkit.sim.hub import Hub
    from orchestrator.testkit.sim.worker import Worker
    from orchestrator.testkit.sim.world import World


# As in adapters/grpc/link.py; tests/sim holds the two together. Together they must leave a worker time to find a supervisor that
# came back at another address before it is silent for too long.
RESOLVE_AFTER = 3
BACKOFF_MAX = 4


class _Lane:
    """One direction."""

    def __init__(self, world: World, deliver: Callable[[Any], None], is_cut: Callable[[], bool]) -> None:
        self.world = world
        self.deliver = deliver
        self.is_cut = is_cut
        self.free_us = 0
        self.held: deque[Any] = deque()
        self.closed = False

    def send(self, message: Any) -> None:
        """Put a message on the wire."""
        timeline = self.world.timeline
        at_us = max(self.free_us, timeline.now_us + round(self.world.wire_ms() * 1000))
        self.free_us = at_us
        timeline.after((at_us - timeline.now_us) / 1000, lambda: self._arrive(message))

    def _arrive(self, message: Any) -> None:
        if self.closed:
            return
        if self.held or self.is_cut():
            self.held.append(message)
        else:
            self.deliver(message)

    def heal(self) -> None:
        """What was held back comes through."""
        while self.held and not self.closed and not self.is_cut():
            self.deliver(self.held.popleft())


class Stream:
    """One connection of a worker to one supervisor process."""

    def __init__(self, world: World, worker: Worker, hub: Hub) -> None:
        self.world = world
        self.worker = worker
        self.hub = hub
        cut = lambda: world.control_cut(worker.node_id)  # noqa: E731
        self.up = _Lane(world, lambda m: hub.hear(self, m), cut)
        self.down = _Lane(world, lambda m: worker.run(lambda: worker.link.hear(self, m)), cut)
        self.hub_knows = False  # that it is over
        self.worker_knows = False

    def end_of_worker(self) -> None:
        """The worker's process closed it, last words first."""
        self.worker_knows = True
        self.up.send(None)

    def break_now(self, why: str, *, hub_ms: float, worker_ms: float) -> None:
        """Whatever is under way is lost; the ends learn of it after these times."""
        self.up.closed = self.down.closed = True
        self.world.timeline.after(hub_ms, lambda: self.hub_end(why))
        self.world.timeline.after(worker_ms, lambda: self.worker.run(self.worker_end))

    def hub_end(self, why: str) -> None:
        """The supervisor's side sees the end."""
        self.up.closed = self.down.closed = True
        if not self.hub_knows:
            self.hub_knows = True
            self.hub.gone(self, why)
        if not self.world.control_cut(self.worker.node_id):
            self.world.timeline.after(self.world.wire_ms(), lambda: self.worker.run(self.worker_end))

    def worker_end(self) -> None:
        """The worker's side sees the end."""
        self.up.closed = self.down.closed = True
        if not self.worker_knows:
            self.worker_knows = True
            self.worker.link.lost(self)
        if not self.world.control_cut(self.worker.node_id):
            self.world.timeline.after(self.world.wire_ms(), lambda: self.hub_end("the connection broke"))

    def heal(self) -> None:
        """The path works again."""
        if self.hub_knows or self.worker_knows:
            (self.worker_end if self.hub_knows else lambda: self.hub_end("reset by peer"))()
        self.up.heal()
        self.down.heal()


class Outbox:
    """What a worker has to say; said again after a welcome as far as it may not have been heard."""

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()
        self.said: deque[Any] = deque()

    def rewind(self, committed_step: int) -> None:
        """A new stream was welcomed."""
        kept = [*self.said, *self.waiting]
        newest_epoch = max((r.epoch for r in kept if not isinstance(r, WorkerMeasured)), default=0)
        newest = {type(r): r for r in kept}

        def again(report: Any) -> bool:
            match report:
                case StepCommitted(step=step):
                    return bool(step > committed_step)
                case EvalReported(step=step) | DigestReported(step=step) | CheckpointReported(step=step):
                    return bool(step >= committed_step) or report is newest[type(report)]
                case WorkerMeasured():
                    return report is newest[WorkerMeasured]
                case _:
                    return bool(report.epoch == newest_epoch)

        waiting = [r for r in self.waiting if not isinstance(r, StepCommitted) or r.step > committed_step]
        self.waiting = deque([*(r for r in self.said if again(r)), *waiting])
        self.said.clear()

    def take(self) -> Any:
        """The next report; it counts as said from here on."""
        report = self.waiting.popleft()
        self.said.append(report)
        return report


class Link:
    """A worker's end: connects for ever, beats while connected, says what waits."""

    def __init__(self, worker: Worker, *, heartbeat_ms: int, reconnect_ms: int, connect_limit_ms: int) -> None:
        self.worker = worker
        self.world = worker.world
        self.heartbeat_ms = heartbeat_ms
        self.reconnect_ms = reconnect_ms
        self.connect_limit_ms = connect_limit_ms
        self.outbox = Outbox()
        self.stream: Stream | None = None
        self.welcomed = False
        self.failures = 0
        self.knows = worker.world.address  # where it believes the supervisor to be
        self.last_connected_us = worker.world.timeline.now_us

    def start(self) -> None:
        """Connect now."""
        hello = self.worker.hello()
        world = self.world
        hub = world.hub
        if world.control_cut(self.worker.node_id):
            self.worker.later(self.connect_limit_ms, self._failed)
        elif hub is None or self.knows != world.address:
            self.worker.later(world.wire_ms(), self._failed)
        else:
            stream = self.stream = Stream(world, self.worker, hub)
            stream.up.send(hello)
            self.worker.later(self.connect_limit_ms, lambda: self._expect_welcome(stream))

    def report(self, event: Any) -> None:
        """Say it, now or when there is somebody to hear it."""
        self.outbox.waiting.append(event)
        self._flush()

    def disconnected_ms(self) -> float:
        """How long there has been no supervisor."""
        return 0 if self.welcomed else (self.world.timeline.now_us - self.last_connected_us) / 1000

    def hear(self, stream: Stream, message: Any) -> None:
        """A message from the supervisor."""
        if stream is not self.stream:
            return
        if isinstance(message, int):  # a welcome: the newest committed step that the supervisor knows
            self.outbox.rewind(message)
            self.welcomed = True
            self.failures = 0
            self._beat(stream)
            self._flush()
        elif isinstance(message, str):  # a refusal
            self.worker.refused(message)
        else:
            self.worker.on_command(message)

    def lost(self, stream: Stream) -> None:
        """The stream is over."""
        if stream is not self.stream:
            return
        self.stream = None
        if self.welcomed:
            self.welcomed = False
            self.last_connected_us = self.world.timeline.now_us
            self.worker.later(self._pause(), self.start)
        else:
            self._failed()

    def close(self) -> None:
        """The process ends."""
        if self.stream is not None:
            self.stream.end_of_worker()

    def _expect_welcome(self, stream: Stream) -> None:
        if stream is self.stream and not self.welcomed:
            stream.worker_end()

    def _failed(self) -> None:
        self.failures += 1
        if self.failures % RESOLVE_AFTER == 0 and self.world.hub is not None and not self.world.control_cut(self.worker.node_id):
            self.knows = self.world.address
        self.worker.later(self._pause(), self.start)

    def _pause(self) -> float:
        factor: float = min(BACKOFF_MAX, 2 ** min(self.failures, 10) / 2)
        return self.reconnect_ms * factor * self.world.rng.uniform(0.5, 1.0)

    def _flush(self) -> None:
        while self.welcomed and self.stream is not None and self.outbox.waiting:
            self.stream.up.send(self.outbox.take())

    def _beat(self, stream: Stream) -> None:
        if stream is self.stream and self.welcomed:
            stream.up.send(self.worker.beat())
            self.worker.later(self.heartbeat_ms, lambda: self._beat(stream))
