"""The shell of a worker process: joins the engine, which trains, to the link, which talks to the supervisor.

The engine runs in the thread that calls `run`; commands arrive in the link's thread and take effect at once, because a fence must
reach a training thread that is stuck inside a collective. Commands may come twice, late, or for an epoch that is over: the epoch
decides, and every fence is answered with what the worker holds. A worker that is refused, told to end, or forgotten ends itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Protocol

from orchestrator.core.graph.view import GraphView
from orchestrator.core.supervisor.commands import (
    DumpStacks,
    ExitWorker,
    FenceEpoch,
    InjectFault,
    LeaveEpoch,
    MeasureWorker,
    RunEpoch,
    TakeCheckpoint,
)
from orchestrator.core.supervisor.events import (
    BadStepFound,
    CheckpointReported,
    CorruptionFound,
    DigestReported,
    EpochReady,
    EvalReported,
    Event,
    LeftEpoch,
    RankFinished,
    StepCommitted,
    TaskFailed,
    WorkerHello,
    WorkerMeasured,
)
from orchestrator.core.timeouts import Timeouts
from orchestrator.runtime.ports import Beat, Engine, Failed, Finished, Left, LogLine, WorkerCommand

END_S = 10.0  # saying goodbye and ending the process takes less, see Link.close
LOOK_MS = 500  # how often an idle worker asks itself whether anybody still wants it

WorkerReport = (
    LeftEpoch
    | EpochReady
    | StepCommitted
    | EvalReported
    | DigestReported
    | CheckpointReported
    | TaskFailed
    | RankFinished
    | CorruptionFound
    | BadStepFound
    | WorkerMeasured
)

log = logging.getLogger(__name__)


class Link(Protocol):
    """The stream to the supervisor. No method blocks for the network, except `close`, which is bounded."""

    def start(self) -> None:
        """Connect, and stay connected."""
        ...

    def report(self, event: WorkerReport) -> None:
        """Say it until it is known to be heard."""
        ...

    def log(self, line: LogLine) -> None:
        """Pass a printed line on, if there is room."""
        ...

    def stacks(self, text: str) -> None:
        """Answer a DumpStacks."""
        ...

    def disconnected_ms(self) -> int:
        """How long there has been no supervisor; 0 while connected."""
        ...

    def close(self, why: str) -> None:
        """Say what waits and goodbye."""
        ...


class MakeLink(Protocol):
    """Builds the link around the shell's callbacks, which are called in the link's threads and return soon."""

    def __call__(
        self,
        *,
        hello: Callable[[], WorkerHello],
        pulse: Callable[[], Beat],
        on_command: Callable[[WorkerCommand], None],
        on_refused: Callable[[str], None],
    ) -> Link:
        """hello: said first on each stream; pulse: one heartbeat; on_refused: the worker is fenced for ever."""
        ...


class WorkerShell:
    """One worker's life: `run` returns when it is over, after `end(why)` was called (which normally ends the process).

    `node_id` is the cluster's id of this machine. `parent_pid` is the process that started this one (Ray's daemon): when it is
    gone the worker is an orphan and says so in its heartbeats.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        node_id: str,
        engine: Engine,
        make_link: MakeLink,
        timeouts: Timeouts,
        end: Callable[[str], None],
        parent_pid: int,
    ) -> None:
        self._worker_id = worker_id
        self._node_id = node_id
        self._engine = engine
        self._make_link = make_link
        self._timeouts = timeouts
        self._end_process = end
        self._parent_pid = parent_pid
        self._graph: GraphView | None = None
        self._link: Link | None = None
        self._changed = threading.Condition()  # guards everything below
        self._order: RunEpoch | None = None  # waits for the training thread; the newest wins
        self._probe: MeasureWorker | None = None  # waits for the training thread to be idle
        self._measuring = 0  # number of the newest that was asked for
        self._epoch = 0  # newest that the training thread took
        self._fenced = 0  # newest that was fenced
        self._rank = -1
        self._busy = False  # the training thread is in the engine
        self._inside = False  # it is a member of _epoch: busy, or it finished or failed there and was not fenced since
        self._exit_why = ""
        self._ended = False
        self._over = threading.Event()  # the process was ended, as far as that returns

    def run(self) -> None:
        """Warm up, say hello, then train whenever told to. Blocks until the end; raises what `warm` raises."""
        graph = self._engine.warm()
        with self._changed:
            self._graph = graph
            self._link = self._make_link(
                hello=self._hello, pulse=self._pulse, on_command=self.on_command, on_refused=self.on_refused
            )
        self._link.start()
        while (order := self._next_order()) is not None:
            self._run_epoch(order) if isinstance(order, RunEpoch) else self._measure(order)
        self._end(self._exit_why)
        self._over.wait(END_S)  # another thread may be ending the process: returning now would cut its last words off

    def log(self, text: str) -> None:
        """One printed line, without its line end, for the supervisor; dropped before the link exists."""
        link = self._link
        if link is not None:
            link.log(LogLine(self._worker_id, self._rank, text))

    def inside(self) -> int:
        """The epoch whose training it is in at this moment; 0 for none. From any thread."""
        with self._changed:
            return self._epoch if self._busy else 0

    def cut_off(self, epoch: int, stood_ms: int) -> None:
        """Leave this epoch, because nobody has been within reach; harmless when it is over. See cutoff.py."""
        with self._changed:
            if not self._busy or self._epoch != epoch or epoch <= self._fenced:
                return
            log.warning("worker %s is cut off: it fences itself out of epoch %d after %d ms", self._worker_id, epoch, stood_ms)
        self._on_fence(epoch)

    # ---- what the link calls

    def on_command(self, command: WorkerCommand) -> None:
        """Carry a command out, or leave it to the training thread. Harmless when repeated."""
        match command:
            case RunEpoch():
                self._on_run(command)
            case MeasureWorker():
                self._on_measure(command)
            case FenceEpoch(epoch=epoch):
                self._on_fence(epoch)
            case LeaveEpoch(epoch=epoch, save=save):
                self._engine.leave_after_step(epoch, save=save)  # a wish: an engine that is not in that epoch lets it pass
            case TakeCheckpoint(epoch=epoch):
                self._engine.take_checkpoint(epoch)
            case ExitWorker(why=why):
                self._exit(why)
            case DumpStacks():
                self._say_stacks()
            case InjectFault(fault=fault):
                try:
                    self._engine.inject(fault)
                except (ValueError, RuntimeError) as error:  # an impossible fault is no reason to lose the worker
                    self.log(f"fault {fault.kind} refused: {error}")

    def on_refused(self, why: str) -> None:
        """The supervisor goes on without this worker: end at once, whatever the training thread is doing."""
        self._exit(f"refused: {why}")
        self._end(self._exit_why, goodbye=False)

    def _hello(self) -> WorkerHello:
        with self._changed:
            assert self._graph is not None, "the link starts after the engine is warm"
            return WorkerHello(
                at_ms=0,
                worker_id=self._worker_id,
                node_id=self._node_id,
                pid=os.getpid(),
                endpoint=self._engine.store_endpoint(),
                graph=self._graph,
                epoch=self._epoch,
                running=self._inside,
                held=self._engine.held() if self._epoch and not self._inside else None,
                costs=self._engine.costs(),
            )

    def _pulse(self) -> Beat:
        pulse = self._engine.pulse()
        return Beat(
            worker_id=self._worker_id,
            epoch=self._epoch,
            step=pulse.step,
            phase=pulse.phase,
            phase_ms=pulse.phase_ms,
            progress=pulse.progress,
            in_comm=pulse.in_comm,
            orphaned=os.getppid() != self._parent_pid,
            micro_batch_ms=pulse.micro_batch_ms,
            rss_bytes=resident_bytes(),
        )

    # ---- commands, in the link's thread

    def _on_run(self, order: RunEpoch) -> None:
        epoch = order.plan.epoch
        with self._changed:
            if epoch <= max(self._epoch, self._fenced) or (self._order and epoch <= self._order.plan.epoch):
                return  # a repeat, or one that was overtaken by its own fence
            self._order = order
            leave = self._epoch if self._busy else 0
            self._changed.notify_all()
        if leave:
            self._engine.fence(leave)  # a new epoch means that the old one is over, even if its fence got lost

    def _on_measure(self, order: MeasureWorker) -> None:
        with self._changed:
            if order.number <= self._measuring or order.epoch < self._epoch:
                return  # a repeat, or one that was overtaken by an epoch
            self._measuring, self._probe = order.number, order
            self._changed.notify_all()

    def _on_fence(self, epoch: int) -> None:
        with self._changed:
            if epoch < self._epoch:
                return  # it is in a newer epoch, or left one: that is over already
            self._fenced = max(self._fenced, epoch)
            if self._order is not None and self._order.plan.epoch <= epoch:
                self._order = None
            busy = self._busy
            left = None
            if not busy:
                self._inside = False
                left = LeftEpoch(0, self._worker_id, epoch, True, self._engine.held(), "it was not training in it")
        self._engine.fence(epoch)
        if left is not None:
            self._say(left)  # otherwise the training thread says it when it comes out

    def _exit(self, why: str) -> None:
        with self._changed:
            if self._exit_why:
                return
            self._exit_why = why or "told to end"
            epoch = self._epoch if self._busy else 0
            self._changed.notify_all()
        if epoch:
            self._engine.fence(epoch)
            threading.Thread(target=self._end_late, name="end", daemon=True).start()

    def _end_late(self) -> None:
        """The training thread may be stuck in the user's code; it is not waited for longer than a hang is."""
        deadline = time.monotonic() + self._timeouts.lost_ms / 1000
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self._busy, timeout=deadline - time.monotonic())
            stuck = self._busy and not self._ended
        if stuck:
            self._end(f"{self._exit_why} (its training thread did not leave within {self._timeouts.lost_ms} ms)")

    def _say_stacks(self) -> None:
        link = self._link
        if link is not None:
            link.stacks(all_stacks())

    # ---- the training thread

    def _next_order(self) -> RunEpoch | MeasureWorker | None:
        """The next epoch to run, or what to measure while there is none; None when it is time to end."""
        with self._changed:
            while True:
                if self._exit_why:
                    return None
                if self._order is not None:
                    order, self._order = self._order, None
                    seat = order.plan.seat_of(self._worker_id)
                    self._epoch, self._rank = order.plan.epoch, seat.rank if seat else -1
                    self._busy = self._inside = True
                    self._probe = None  # who was to measure with it waits no longer
                    return order
                if self._probe is not None:
                    probe, self._probe = self._probe, None
                    return probe
                self._changed.wait(timeout=min(LOOK_MS, self._timeouts.orphan_ms) / 1000)
                self._look_for_supervisor()

    def _look_for_supervisor(self) -> None:
        alone_ms = self._link.disconnected_ms() if self._link is not None else 0
        if alone_ms >= self._timeouts.orphan_ms and self._order is None and not self._exit_why:
            self._exit_why = f"it has no rank and has heard of no supervisor for {alone_ms} ms"

    def _measure(self, order: MeasureWorker) -> None:
        """Makes way for an epoch, and for a newer measuring: others wait to begin it together."""

        def stop() -> bool:
            return self._order is not None or self._probe is not None or bool(self._exit_why)

        try:
            found = self._engine.measure(order, stop)
        except Exception:  # it counts as unmeasured, and says why where people look
            log.exception("worker %s could not measure itself", self._worker_id)
            return
        if found is not None:
            self._say(found)

    def _run_epoch(self, order: RunEpoch) -> None:
        epoch = order.plan.epoch
        try:
            result = self._engine.run_epoch(order, self._report)
        except Exception:  # the engine turns the user's errors into results, so this is a bug of ours: do not go on
            result = Failed(self._engine.pulse().step, True, traceback.format_exc())
        self._say(self._outcome(epoch, result))  # before a fence can be answered: what it did comes before that it left
        with self._changed:
            self._busy = False
            fenced = self._fenced
            left = isinstance(result, Left)
            if left or fenced >= epoch:
                self._inside = False
            held = self._engine.held()
            self._changed.notify_all()
        if fenced > epoch or (fenced == epoch and not left):
            self._say(LeftEpoch(0, self._worker_id, fenced, True, held, "its epoch was over already"))

    def _outcome(self, epoch: int, result: Left | Finished | Failed) -> WorkerReport:
        match result:
            case Left(fenced=fenced, held=held, detail=detail):
                return LeftEpoch(0, self._worker_id, epoch, fenced, held, detail)
            case Finished(step=step, digest=digest):
                return RankFinished(0, self._worker_id, epoch, step, digest)
            case Failed(step=step, fatal_check=fatal, traceback=text):
                log.error("worker %s failed in step %d:\n%s", self._worker_id, step, text)
                return TaskFailed(0, self._worker_id, epoch, step, fatal, text)

    def _report(self, event: Event) -> None:
        if not isinstance(event, WorkerReport):
            raise TypeError(f"an engine does not report {type(event).__name__}")
        self._say(event)

    def _say(self, event: WorkerReport) -> None:
        link = self._link
        assert link is not None, "nothing is said before the hello"
        link.report(event)

    def _end(self, why: str, *, goodbye: bool = True) -> None:
        """Say goodbye and end the process; once, from whichever thread comes first."""
        with self._changed:
            if self._ended:
                return
            self._ended = True
            self._changed.notify_all()
        if goodbye and self._link is not None:
            self._link.close(why)
        self._end_process(why)
        self._over.set()


def end_process(why: str) -> None:
    """Flush what was printed and leave without waiting for threads, groups or exit handlers, which may hang or abort."""
    print(f"worker {os.getpid()} ends: {why}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


def all_stacks() -> str:
    """The stacks of all threads, with their names, as faulthandler sees them."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read()
    for thread in threading.enumerate():
        if thread.ident is not None:
            text = text.replace(f"hread 0x{thread.ident:016x}", f"hread {thread.name!r} 0x{thread.ident:016x}")
    return text


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
