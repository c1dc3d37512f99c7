"""One worker process: alive, stopped or dead, with the shell of runtime/worker.py retold in callbacks.

The real shell lives in threads; its rules (which command counts in which epoch, what is answered to a fence, what a hello
says) are repeated here one by one, including the moment in which an order waits for the training thread. Everything that the
process does goes through `later` and `run`, so that a stopped process does nothing and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

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
    Event,
    LeftEpoch,
    RankFinished,
    TaskFailed,
    WorkerGone,
    WorkerHello,
    WorkerMeasured,
)
from orchestrator.core.timeouts import derive
from orchestrator.runtime.ports import Beat, Failed, Finished, Left, WorkerCommand
from orchestrator.testkit.jobs import make_measure
from orchestrator.testkit.sim.links import Link
from orchestrator.testkit.sim.training import CHECKPOINT, LEAVE, SAVE, Training

if TYPE_CHECKING:
    from orchestrator.testkit.sim.world import World

LOOK_MS = 500


class Worker:
    """A process. `boot` brings it up."""

    def __init__(self, world: World, worker_id: str, node_id: str) -> None:
        self.world = world
        self.worker_id = worker_id
        self.node_id = node_id
        self.timeouts = derive(world.job.resilience.detect_within_ms)
        self.number = int(worker_id.rsplit("w", 1)[1])
        self.endpoint = f"10.0.0.{self.number}:7000"
        self.alive = True
        self.why_dead = ""
        self.closed_us = 0  # from when on its port refuses
        self.stopped = False
        self.hung = False  # its training thread
        self.hangs_for_ms = 0.0  # when it next computes a micro-batch; -1: for ever
        self.orphaned = False
        self.slowness = 1.0
        self._parked: list[Callable[[], None]] = []
        self._thread_parked: list[Callable[[], None]] = []
        self.training = Training(self)
        self.link = Link(
            self,
            heartbeat_ms=self.timeouts.heartbeat_ms,
            reconnect_ms=self.timeouts.reconnect_ms,
            connect_limit_ms=self.timeouts.suspect_ms,
        )
        # the shell
        self._order: RunEpoch | None = None
        self._epoch = self._fenced = 0
        self._busy = self._inside = False
        self._exiting = False
        # the cut-off watch: where it stood, since when it stands there and hears nothing
        self._stood: tuple[int, int] = (0, 0)
        self._mute_us = 0

    # ---- the process

    def boot(self, after_ms: float) -> None:
        """Say hello after that long."""
        self.later(after_ms, self.link.start)
        self.later(after_ms + LOOK_MS, self._look_for_supervisor)
        self.later(after_ms + LOOK_MS, self._look_for_cut)

    def later(self, delay_ms: float, what: Callable[[], None], *, thread: bool = False) -> None:
        """The process does it in `delay_ms`, in its training thread or in another one."""
        self.world.timeline.after(delay_ms, lambda: self.run(what, thread=thread))

    def run(self, what: Callable[[], None], *, thread: bool = False) -> None:
        """The process does it now, if it does anything."""
        if not self.alive:
            return
        if self.stopped:
            self._parked.append(lambda: self.run(what, thread=thread))
        elif thread and self.hung:
            self._thread_parked.append(what)
        else:
            what()

    def stop(self) -> None:
        """SIGSTOP."""
        self.stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        if self.alive and self.stopped:
            self.stopped = False
            parked, self._parked = self._parked, []
            for what in parked:
                what()
            self.world.recheck()

    def in_user_code(self) -> None:
        """The training thread is in the user's code, where it may hang."""
        for_ms, self.hangs_for_ms = self.hangs_for_ms, 0
        if for_ms:
            self.hung = True
        if for_ms > 0:
            self.world.timeline.after(for_ms, self.release)

    def release(self) -> None:
        """The training thread goes on."""
        if self.alive and self.hung:
            self.hung = False
            parked, self._thread_parked = self._thread_parked, []
            for what in parked:
                self.run(what, thread=True)

    def die(self, why: str, *, silently: bool = False) -> None:
        """The process ends; silently: with its node, so that nobody is told."""
        if not self.alive:
            return
        self.alive = False
        self.why_dead = why
        world = self.world
        world.tell_story(f"{self.worker_id} ends: {why}")
        self.closed_us = world.timeline.now_us + round(world.rng.uniform(0, 20_000))
        group = self.training.group
        if silently:
            return
        self.link.close()
        if group is not None and not world.node(self.node_id).cut_data:
            group.lost(self.training.new_rank, f"{self.worker_id} closed the connection", everybody=world.everybody_sees)
        if world.node(self.node_id).tells:
            world.timeline.after(world.rng.uniform(20, 600), lambda: world.fleet_says(WorkerGone(0, self.worker_id, why)))

    # ---- the shell: what the link calls

    def hello(self) -> WorkerHello:
        """What it is, now."""
        held = self.training.held() if self._epoch and not self._inside else None
        return WorkerHello(
            0,
            self.worker_id,
            self.node_id,
            100 + self.number,
            self.endpoint,
            self.world.graph,
            self._epoch,
            self._inside,
            held,
            self.world.costs,
        )

    def beat(self) -> Beat:
        """One heartbeat."""
        t = self.training
        phase_ms = (self.world.timeline.now_us - t.since_us) // 1000
        return Beat(
            self.worker_id,
            self._epoch,
            t.step,
            t.phase,
            phase_ms,
            t.progress,
            t.in_comm,
            self.orphaned,
            round(t.mb_ms),
            0,
        )

    def say(self, event: Event) -> None:
        """Report something."""
        self.link.report(event)

    def refused(self, why: str) -> None:
        """The supervisor goes on without it."""
        self.die(f"refused: {why}")

    def on_command(self, command: WorkerCommand) -> None:
        """A command arrived."""
        match command:
            case RunEpoch():
                self._on_run(command)
            case FenceEpoch(epoch=epoch):
                self._on_fence(epoch)
            case LeaveEpoch(epoch=epoch, save=save):
                self.training.wish(epoch, SAVE if save else LEAVE)
                self.world.hook("leave", self)
            case TakeCheckpoint(epoch=epoch):
                self.training.wish(epoch, CHECKPOINT)
            case ExitWorker(why=why):
                self._exit(why)
            case MeasureWorker():
                self._measure()
            case DumpStacks() | InjectFault():
                pass

    def _on_run(self, order: RunEpoch) -> None:
        epoch = order.plan.epoch
        if epoch <= max(self._epoch, self._fenced) or (self._order and epoch <= self._order.plan.epoch):
            return
        self.world.hook("run", self)
        self._order = order
        if self._busy:
            self.training.fence(self._epoch)
        else:
            self._wake()

    def _measure(self) -> None:
        """It takes a while; who trains or waits for an epoch has no time for it."""
        if self.world.costs is None:
            return
        measure = make_measure(slowness=self.slowness)
        done = WorkerMeasured(0, self.worker_id, measure, self.world.costs)
        self.later(self.world.rng.uniform(5, 1500), lambda: None if self._busy else self.say(done), thread=True)

    def _on_fence(self, epoch: int) -> None:
        if epoch < self._epoch:
            return
        self.world.hook("fence", self)
        self._fenced = max(self._fenced, epoch)
        if self._order is not None and self._order.plan.epoch <= epoch:
            self._order = None
        left = None
        if not self._busy:
            self._inside = False
            left = LeftEpoch(0, self.worker_id, epoch, True, self.training.held(), "it was not training in it")
        self.training.fence(epoch)
        if left is not None:
            self.say(left)

    def _exit(self, why: str) -> None:
        if self._exiting:
            return
        self._exiting = True
        if self._busy:
            self.training.fence(self._epoch)
            self.later(self.timeouts.lost_ms, lambda: self.die(f"{why} (its training thread did not leave)"))
        else:
            self.die(why)

    # ---- the shell: the training thread

    def _wake(self) -> None:
        self.later(self.world.rng.uniform(0, 2), self._take_order, thread=True)

    def _take_order(self) -> None:
        if self._order is None or self._busy or self._exiting:
            return
        order, self._order = self._order, None
        epoch = order.plan.epoch
        self.world.checks.joins(self, self._epoch, epoch)
        self._epoch = epoch
        self._busy = self._inside = True
        self.training.begin(order, lambda result: self._outcome(epoch, result))

    def _outcome(self, epoch: int, result: Left | Finished | Failed) -> None:
        match result:
            case Left(fenced=fenced, held=held, detail=detail):
                self.say(LeftEpoch(0, self.worker_id, epoch, fenced, held, detail))
            case Finished(step=step, digest=digest):
                self.say(RankFinished(0, self.worker_id, epoch, step, digest))
            case Failed(step=step, fatal_check=fatal, traceback=text):
                self.say(TaskFailed(0, self.worker_id, epoch, step, fatal, text))
        self._busy = False
        left = isinstance(result, Left)
        if left or self._fenced >= epoch:
            self._inside = False
        if self._fenced > epoch or (self._fenced == epoch and not left):
            why = "its epoch was over already"
            self.say(LeftEpoch(0, self.worker_id, self._fenced, True, self.training.held(), why))
        self.world.hook("left", self)
        if self._exiting:
            self.die("told to end")
        elif self._order is not None:
            self._wake()

    def _look_for_supervisor(self) -> None:
        if not self._busy and self._order is None and self.link.disconnected_ms() >= self.timeouts.orphan_ms:
            self.die("it has no rank and hears of no supervisor")
        else:
            self.later(LOOK_MS, self._look_for_supervisor)

    def _look_for_cut(self) -> None:
        """As runtime/cutoff.py: it stands still in a collective, and all the while the supervisor's machine is mute."""
        t, now_us = self.training, self.world.timeline.now_us
        at = (self._epoch, t.progress)
        if not (self._busy and t.in_comm) or at != self._stood or not self.world.control_cut(self.node_id):
            self._stood, self._mute_us = at, now_us
        elif now_us - self._mute_us >= self.timeouts.lost_ms * 1000:
            self.world.tell_story(f"{self.worker_id} is cut off and fences itself out of epoch {self._epoch}")
            self._on_fence(self._epoch)
        self.later(LOOK_MS, self._look_for_cut)

    @property
    def inside(self) -> bool:
        """Whether it is in an epoch now."""
        return self.alive and self._inside

    @property
    def epoch(self) -> int:
        """The newest epoch that it took."""
        return self._epoch
