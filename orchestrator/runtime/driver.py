"""The driver: takes facts in, lets the core decide, writes the decision down, and has it carried out, in that order.

One loop per job. Facts wait in one bounded queue; heartbeats never do, they overwrite a slot and are looked at once a tick. There
is no thread and no clock here but the Clock port and asyncio's own timers, so that the same code runs in virtual time. A journal
that cannot be written and a core that raises both stop the driver and leave the job as it is: its workers train on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import EndJob
from orchestrator.core.supervisor.events import (
    ClusterChanged,
    Event,
    Observation,
    StepCommitted,
    SupervisorRestarted,
    Tick,
    WorkerDisconnected,
    WorkerGone,
    WorkerHello,
)
from orchestrator.core.supervisor.machine import initial, refusal, step
from orchestrator.core.supervisor.state import CheckpointRef, State, WorkerPhase
from orchestrator.core.timeouts import Timeouts, derive
from orchestrator.runtime.carrier import Carrier
from orchestrator.runtime.clock import ContinuedClock
from orchestrator.runtime.observe import Observer
from orchestrator.runtime.ports import Beat, Clock, Fleet, Journal, Prober, Record, Telemetry, Welcome, Workers
from orchestrator.runtime.replay import ReplayMismatch, replay, story, tell

EVENTS_MAX = 100_000  # that wait; a supervisor so far behind must not go on as if it knew the present
SNAPSHOT_EVERY = 500  # records
EARLY_S = 0.0005  # a timer may fire early by the loop's clock resolution; less than this is on time
RECENT_MAX = 200  # records kept at hand, for status and for the story of a bug

log = logging.getLogger(__name__)


class JournalFailed(RuntimeError):
    """The journal could not be written, so nothing may be done any more. The workers train on."""


class SupervisorBug(AssertionError):
    """The core raised: our own bug. The message tells the story so far; the workers train on."""


class DriverStopped(RuntimeError):
    """The request came too late: the job is over, or its driver has failed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request."""

    record: Record | None  # of the decision; None when there was nothing to write down
    before: State
    after: State

    @property
    def acted(self) -> bool:
        """Whether anything is different now, or anything is to be done: a request that was refused only has a reason."""
        return self.record is not None and (bool(self.record.commands) or self.before != self.after)


class Driver:
    """One job's driver. `run` is its life; the other methods are called from the same event loop."""

    def __init__(
        self,
        *,
        state: State,
        seq: int,
        resumed: bool,
        fleet: Fleet,
        workers: Workers,
        prober: Prober,
        journal: Journal,
        telemetry: Telemetry,
        clock: Clock,
        timeouts: Timeouts,
        recent: Iterable[Record] = (),
    ) -> None:
        self._state = state
        self._seq = seq
        self._resumed = resumed
        self._fleet = fleet
        self._journal = journal
        self._telemetry = telemetry
        self._clock = clock
        self._timeouts = timeouts
        self._recent: deque[Record] = deque(recent, RECENT_MAX)
        self._queue: deque[tuple[Event, asyncio.Future[Answer] | None]] = deque()
        self._overflowed = False
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._observer = Observer(timeouts)
        self._carrier = Carrier(fleet=fleet, workers=workers, prober=prober, timeouts=timeouts, sink=self.sink)
        self._generation = state.cluster.generation if state.cluster else 0  # a new fleet counts from its own start
        self._connected: dict[str, bool] = {}
        self._ticked_ms = clock.now_ms()
        self._tick_waits = False
        self._ending = state.phase.terminal
        self._stopped = False  # nothing is taken in any more
        self._telemetry_broken = False
        if resumed and not self._ending:
            self.sink(SupervisorRestarted(0))  # before any hello: it says that nobody is connected yet

    # ---- what others see

    @property
    def state(self) -> State:
        """The newest state; everything in it is in the journal."""
        return self._state

    @property
    def seq(self) -> int:
        """Number of the newest record."""
        return self._seq

    @property
    def recent(self) -> tuple[Record, ...]:
        """The newest records, oldest first, at most RECENT_MAX."""
        return tuple(self._recent)

    def beats(self) -> tuple[Beat, ...]:
        """Each worker's newest heartbeat."""
        return self._observer.beats()

    def observed(self) -> dict[str, Observation]:
        """What the last tick saw of each worker."""
        return self._observer.observed()

    def now_ms(self) -> int:
        """The present in the count of the journal's times."""
        return self._clock.now_ms()

    async def changed(self, after_seq: int) -> None:
        """Return when there is a record after `after_seq`; at once when there is one, or when the driver is done."""
        while self._seq <= after_seq and not self._ending:
            await self._changed.wait()

    # ---- what comes in

    def welcome(self, worker_id: str) -> Welcome:
        """Whether a worker that says hello may stay."""
        why = refusal(self._state, worker_id)
        if not why and self._state.phase.terminal:
            why = f"job {self._state.job.name} is over: {self._state.phase}"
        return Welcome(not why, why, self._state.committed_step)

    def sink(self, event: Event) -> None:
        """Take a fact; it is stamped with the present. Returns at once."""
        self._put(event, None)

    async def ask(self, event: Event) -> Answer:
        """Take a request and wait until it is decided on; the record of the decision and the states around it.

        Raises DriverStopped when the driver ends first.
        """
        if self._stopped:
            raise DriverStopped(f"the driver of job {self._state.job.name} has stopped")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._put(event, answer)
        return await answer

    def beat(self, beat: Beat) -> None:
        """Take a heartbeat; the newest one counts."""
        worker = self._state.workers.get(beat.worker_id)
        if worker is not None and worker.phase.alive:
            self._observer.beat(beat)

    def _put(self, event: Event, answer: asyncio.Future[Answer] | None) -> None:
        if self._stopped:
            return  # nobody will look at it; the workers say again what a new supervisor must know
        self._arrived.set()
        if len(self._queue) >= EVENTS_MAX:
            self._overflowed = True
            if answer is not None:
                answer.set_exception(DriverStopped(f"the driver of job {self._state.job.name} has more to do than it can"))
            return
        event = replace(event, at_ms=self._clock.now_ms())
        if isinstance(event, ClusterChanged):
            event = replace(event, view=replace(event.view, generation=self._generation + event.view.generation))
        self._note(event)
        self._queue.append((event, answer))

    # ---- its life

    async def run(self) -> State:
        """Until the job is over; returns its last state.

        Raises JournalFailed, SupervisorBug or whatever the fleet's start raised; cancelled, it leaves everything as it is. Of a
        job that was over before, it only ends the workers that may be left.
        """
        try:
            await self._fleet.start(self.sink)
            if self._ending:  # the supervisor before this one ended the job, and then itself: release what it held
                await self._fleet.adopt(list(self._state.workers))
            elif self._resumed:
                known = [w for w in self._state.workers.values() if w.phase.alive]
                await self._fleet.adopt([w.worker_id for w in known if w.phase is not WorkerPhase.REQUESTED])
            await self._loop()
            await self._end()
            return self._state
        finally:
            self._ending = self._stopped = True
            self._changed.set()
            self._forget_queue()
            await self._carrier.close()

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._timeouts.tick_ms / 1000
        due_s = loop.time() + pause_s
        while not self._ending:
            if loop.time() >= due_s - EARLY_S:
                due_s = loop.time() + pause_s
                self._queue_tick()
            if self._overflowed:
                raise SupervisorBug(f"more than {EVENTS_MAX} events wait; the story so far:\n{story(self._recent)}")
            if self._queue:
                event, answer = self._queue[0]  # until it is handled: whoever asked is answered also when that fails
                before = self._state
                record = self._handle(event)
                self._queue.popleft()
                if answer is not None and not answer.done():
                    answer.set_result(Answer(record, before, self._state))
                await asyncio.sleep(0)  # streams and commands get their turn between any two events
            else:
                await self._wait_until(due_s)

    def _queue_tick(self) -> None:
        """Look at the heartbeats now; behind the facts that came before, so that time in the journal never runs backwards."""
        now_ms = self._clock.now_ms()
        if self._tick_waits:
            self._ticked_ms = now_ms  # behind with events: time in which nobody listened is nobody's silence
            return
        alive = [w.worker_id for w in self._state.workers.values() if w.phase.alive]
        observations = self._observer.tick(alive, now_ms - self._ticked_ms)
        self._ticked_ms = now_ms
        self._tick_waits = True
        self._queue.append((Tick(now_ms, observations), None))

    def _handle(self, event: Event) -> Record | None:
        """Decide, write down, then act; the record, or None when there was nothing to write down."""
        old = self._state
        record = None
        try:
            decision = step(old, event)
        except Exception as error:
            raise SupervisorBug(
                f"the supervisor's core raised on {tell(event)}: {error!r}; the story so far:\n{story(self._recent)}"
            ) from error
        new = decision.state
        if decision.commands or decision.reason or (new is not old and new != old):
            record = Record(
                seq=self._seq + 1,
                at_ms=event.at_ms,
                wall_s=self._clock.wall_s(),
                event=event,
                commands=decision.commands,
                reason=decision.reason,
                phase=new.phase.value,
                epoch=new.epoch,
                committed_step=new.committed_step,
            )
            self._write(record, new)
            self._state = new
            self._seq = record.seq
            self._recent.append(record)
            self._changed.set()
            self._changed = asyncio.Event()
            for command in decision.commands:
                if isinstance(command, EndJob):
                    self._ending = True
                else:
                    self._carrier.carry_out(command)
            self._show(record)
        if isinstance(event, Tick):
            self._tick_waits = False
            self._show(None)
        return record

    def _write(self, record: Record, state: State) -> None:
        try:
            self._journal.append(record, durable=bool(record.commands))
            if record.seq % SNAPSHOT_EVERY == 0:
                self._journal.snapshot(record.seq, state)
        except OSError as error:
            raise JournalFailed(
                f"the journal cannot be written ({error}), so record {record.seq} was not acted on; the workers train on. "
                "Make room on the disk and start the supervisor again"
            ) from error

    def _show(self, record: Record | None) -> None:
        """Telemetry never influences anything, not even by breaking."""
        try:
            if record is not None:
                self._telemetry.decided(record, self._state)
            else:
                self._telemetry.ticked(self._state, self._observer.beats())
        except Exception:
            if not self._telemetry_broken:
                log.exception("telemetry broke; further errors of it are not logged")
            self._telemetry_broken = True

    def _note(self, event: Event) -> None:
        """Signs of life and of steps that went by, and who is connected."""
        match event:
            case WorkerHello():
                self._connected[event.worker_id] = True
            case WorkerDisconnected() | WorkerGone():
                self._connected.pop(event.worker_id, None)
                return
            case StepCommitted():
                self._observer.committed(epoch=event.epoch, step=event.step)
        worker_id = getattr(event, "worker_id", "")
        if worker_id in self._state.workers and worker_id in self._connected:
            self._observer.heard(worker_id)

    async def _wait_until(self, due_s: float) -> None:
        self._arrived.clear()
        try:
            async with asyncio.timeout_at(due_s):
                await self._arrived.wait()
        except TimeoutError:
            pass

    def _forget_queue(self) -> None:
        """There is nothing to decide any more."""
        while self._queue:
            _, answer = self._queue.popleft()
            if answer is not None and not answer.done():
                answer.set_exception(DriverStopped(f"the driver of job {self._state.job.name} has stopped"))

    async def _end(self) -> None:
        """The job is over: let the last words go out and the workers leave by themselves, then release what is left."""
        loop = asyncio.get_running_loop()
        await self._carrier.drain(self._timeouts.lost_ms)
        due_s = loop.time() + self._timeouts.suspect_ms / 1000
        while self._connected and loop.time() < due_s - EARLY_S:
            self._forget_queue()
            await self._wait_until(due_s)
        try:
            async with asyncio.timeout(self._timeouts.spawn_ms / 1000):
                await self._fleet.close()
        except Exception:
            log.exception("the fleet could not be released; its workers end themselves when they hear of no supervisor")


def start_driver(
    job: Job,
    *,
    checkpoint: CheckpointRef | None,
    fleet: Fleet,
    workers: Workers,
    prober: Prober,
    journal: Journal,
    telemetry: Telemetry,
    clock: Clock,
    next_worker: int = 0,
) -> Driver:
    """A driver for a new job. Raises FileExistsError when the journal already has one.

    `next_worker` numbers the first worker: past those of an earlier job of this name, so that no id is ever used twice.
    """
    state = replace(initial(job, checkpoint=checkpoint, now_ms=clock.now_ms()), next_worker=next_worker)
    journal.create(job)
    journal.snapshot(0, state)
    return Driver(
        state=state,
        seq=0,
        resumed=False,
        fleet=fleet,
        workers=workers,
        prober=prober,
        journal=journal,
        telemetry=telemetry,
        clock=clock,
        timeouts=derive(job.resilience.detect_within_ms),
    )


def resume_driver(
    *,
    checkpoint: CheckpointRef | None,
    fleet: Fleet,
    workers: Workers,
    prober: Prober,
    journal: Journal,
    telemetry: Telemetry,
    clock: Clock,
) -> Driver:
    """A driver that goes on where the journal stopped. `checkpoint` counts only when nothing was journaled yet.

    Raises ReplayMismatch when this program decides otherwise than the journal says.
    """
    job = journal.job()
    past = replay(journal)
    if past.mismatches:
        told = "\n  ".join(past.mismatches[:5])
        raise ReplayMismatch(
            f"job {job.name}: this program disagrees with the journal in {len(past.mismatches)} place(s), so it must not "
            f"take the job over:\n  {told}"
        )
    state = past.state
    if state is None:
        state = initial(job, checkpoint=checkpoint, now_ms=clock.now_ms())
        journal.snapshot(0, state)
    recent: Sequence[Record] = past.records[-RECENT_MAX:] or journal.records(after=max(0, past.seq - RECENT_MAX))
    last = recent[-1] if recent else None
    if last is not None:
        clock = ContinuedClock(clock, last_ms=last.at_ms, last_wall_s=last.wall_s)
    return Driver(
        state=state,
        seq=past.seq,
        resumed=True,
        fleet=fleet,
        workers=workers,
        prober=prober,
        journal=journal,
        telemetry=telemetry,
        clock=clock,
        timeouts=derive(job.resilience.detect_within_ms),
        recent=recent,
    )
