"""The worker's shell between a scripted engine and a scripted link, on real threads, with no sleeps."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.planner.planner import first_plan
from orchestrator.core.reshard.recovery import Held, Resume, Source
from orchestrator.core.supervisor.commands import (
    Colleague,
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
    CorruptionFound,
    EpochReady,
    Event,
    Fault,
    LeftEpoch,
    RankFinished,
    TaskFailed,
    WorkerDisconnected,
    WorkerHello,
    WorkerMeasured,
)
from orchestrator.core.timeouts import Timeouts, derive
from orchestrator.runtime.ports import Beat, Failed, Finished, Left, LogLine, Pulse, Report, WorkerCommand
from orchestrator.runtime.worker import WorkerShell, all_stacks, resident_bytes
from orchestrator.testkit.jobs import make_costs, make_measure
from tests.unit.runtime.world import GRAPH, job

WAIT_S = 60
ME = "j/w0"
HELD = Held(1, 0, 1, 5, 5, 5, (), (), None)
LIMITS = derive(4000)
COSTS = make_costs(GRAPH)


class FakeEngine:
    """run_epoch waits until it is fenced, or until the test hands it a result."""

    def __init__(self) -> None:
        self.started: queue.Queue[RunEpoch] = queue.Queue()
        self.results: queue.Queue[Any] = queue.Queue()
        self.measuring: queue.Queue[MeasureWorker] = queue.Queue()
        self.measured: queue.Queue[bool] = queue.Queue()  # whether it works
        self.fences: list[int] = []
        self.faults: list[Fault] = []
        self.wishes: list[tuple[str, int]] = []
        self.deaf = False  # stuck in the user's code: a fence reaches nothing

    def warm(self) -> GraphView:
        return GRAPH

    def costs(self) -> ModelCosts | None:
        return COSTS

    def measure(self, order: MeasureWorker, stop: Callable[[], bool]) -> WorkerMeasured | None:
        self.measuring.put(order)
        while not stop():
            with contextlib.suppress(queue.Empty):
                if self.measured.get(timeout=0.01):
                    return WorkerMeasured(0, order.worker_id, make_measure(), COSTS)
                raise RuntimeError("no device")
        return None

    def run_epoch(self, order: RunEpoch, report: Report) -> Left | Finished | Failed:
        self.report = report
        self.started.put(order)
        while True:
            result = self.results.get(timeout=WAIT_S)
            if isinstance(result, int):
                if result < order.plan.epoch:
                    continue  # a fence of an older epoch
                return Left(True, HELD, "fenced")
            if isinstance(result, Exception):
                raise result
            done: Left | Finished | Failed = result
            return done

    def fence(self, epoch: int) -> None:
        self.fences.append(epoch)
        if not self.deaf:
            self.results.put(epoch)

    def leave_after_step(self, epoch: int, *, save: bool) -> None:
        self.wishes.append(("save and leave" if save else "leave", epoch))

    def take_checkpoint(self, epoch: int) -> None:
        self.wishes.append(("checkpoint", epoch))

    def held(self) -> Held | None:
        return HELD

    def pulse(self) -> Pulse:
        return Pulse(6, "forward", 3, 77, False, 12)

    def inject(self, fault: Fault) -> None:
        self.faults.append(fault)

    def store_endpoint(self) -> str:
        return "127.0.0.1:4000"

    def close(self) -> None:
        pass


class FakeLink:
    """Keeps the shell's callbacks for the test to call, as the link's thread would."""

    def __init__(
        self,
        *,
        hello: Callable[[], WorkerHello],
        pulse: Callable[[], Beat],
        on_command: Callable[[WorkerCommand], None],
        on_refused: Callable[[str], None],
    ) -> None:
        self.hello, self.pulse, self.on_command, self.on_refused = hello, pulse, on_command, on_refused
        self.said: queue.Queue[Event] = queue.Queue()
        self.lines: list[LogLine] = []
        self.texts: list[str] = []
        self.goodbyes: list[str] = []
        self.started = threading.Event()
        self.alone_ms = 0

    def start(self) -> None:
        self.started.set()

    def report(self, event: Event) -> None:
        self.said.put(event)

    def log(self, line: LogLine) -> None:
        self.lines.append(line)

    def stacks(self, text: str) -> None:
        self.texts.append(text)

    def disconnected_ms(self) -> int:
        return self.alone_ms

    def close(self, why: str) -> None:
        self.goodbyes.append(why)


class Worker:
    """A shell that runs in a thread, with its engine and link."""

    def __init__(self, *, parent_pid: int = os.getppid(), limits: Timeouts = LIMITS) -> None:
        self.engine = FakeEngine()
        self.ends: queue.Queue[str] = queue.Queue()
        self._made: queue.Queue[FakeLink] = queue.Queue()
        self.shell = WorkerShell(
            worker_id=ME,
            node_id="n0",
            engine=self.engine,
            make_link=self._make_link,
            timeouts=limits,
            end=self.ends.put,
            parent_pid=parent_pid,
        )
        self.thread = threading.Thread(target=self.shell.run, daemon=True)
        self.thread.start()
        self.link = self._made.get(timeout=WAIT_S)
        assert self.link.started.wait(WAIT_S)

    def _make_link(self, **callbacks: Any) -> FakeLink:
        link = FakeLink(**callbacks)
        self._made.put(link)
        return link

    def said(self) -> Event:
        return self.link.said.get(timeout=WAIT_S)

    def runs(self) -> int:
        """The epoch that the engine takes next."""
        return self.engine.started.get(timeout=WAIT_S).plan.epoch

    def settled(self) -> None:
        """Wait until the training thread is out of the engine."""
        with self.shell._changed:
            assert self.shell._changed.wait_for(lambda: not self.shell._busy, timeout=WAIT_S)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.link.on_command(ExitWorker(ME, "the test is over"))
    made.engine.results.put(Left(False, HELD, "the test is over"))
    made.thread.join(WAIT_S)
    assert not made.thread.is_alive()


def order(epoch: int, *, steps: int = 30) -> RunEpoch:
    plan = first_plan(job=job(steps=steps), graph=GRAPH, workers=[(ME, "n0"), ("j/w1", "n1")], epoch=epoch)
    return RunEpoch(ME, plan, Resume(Source.INIT, 0, None, (), (0, 1), "", 0, ()), "127.0.0.1:4000")


def test_its_hello_says_that_it_never_had_a_rank(worker: Worker) -> None:
    hello = worker.link.hello()
    assert (hello.worker_id, hello.node_id, hello.pid, hello.endpoint) == (ME, "n0", os.getpid(), "127.0.0.1:4000")
    assert (hello.graph, hello.epoch, hello.running, hello.held) == (GRAPH, 0, False, None)


def test_an_epoch_runs_and_its_reports_go_up(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.engine.report(EpochReady(0, ME, 1))
    assert worker.said() == EpochReady(0, ME, 1)
    hello = worker.link.hello()
    assert (hello.epoch, hello.running, hello.held) == (1, True, None)


def test_a_fence_reaches_a_running_epoch_and_is_answered_once_with_what_it_holds(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.link.on_command(FenceEpoch(ME, 1))
    assert worker.said() == LeftEpoch(0, ME, 1, True, HELD, "fenced")
    worker.settled()
    assert worker.link.said.empty()
    hello = worker.link.hello()
    assert (hello.epoch, hello.running, hello.held) == (1, False, HELD)


def test_wishes_reach_a_running_engine_and_a_planned_leave_is_no_fence(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.link.on_command(TakeCheckpoint(ME, 1))
    worker.link.on_command(LeaveEpoch(ME, 1))
    worker.link.on_command(LeaveEpoch(ME, 1, save=True))
    assert worker.engine.wishes == [("checkpoint", 1), ("leave", 1), ("save and leave", 1)]
    assert worker.engine.fences == []
    worker.engine.results.put(Left(False, HELD, "as it was asked to"))
    assert worker.said() == LeftEpoch(0, ME, 1, False, HELD, "as it was asked to")
    worker.settled()
    assert worker.link.hello().held == HELD
    worker.link.on_command(order(2))
    assert worker.runs() == 2


def test_what_the_engine_finds_wrong_is_said_before_it_leaves(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    for found in (CorruptionFound(0, ME, 1, 5, (1,), "sums differ"), BadStepFound(0, ME, 1, 6, "loss is nan")):
        worker.engine.report(found)
        assert worker.said() == found


def test_a_fence_of_an_epoch_that_it_never_ran_is_answered_too(worker: Worker) -> None:
    worker.link.on_command(FenceEpoch(ME, 4))
    left = worker.said()
    assert left == LeftEpoch(0, ME, 4, True, HELD, "it was not training in it")
    worker.link.on_command(order(4))  # overtaken by its own fence
    worker.link.on_command(order(5))
    assert worker.runs() == 5


def test_a_fence_takes_back_an_order_that_still_waits(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.engine.deaf = True
    worker.link.on_command(order(2))  # its fence reaches nothing yet
    worker.link.on_command(FenceEpoch(ME, 2))
    worker.engine.results.put(Left(False, HELD, "broke"))
    assert worker.said() == LeftEpoch(0, ME, 1, False, HELD, "broke")
    assert worker.said() == LeftEpoch(0, ME, 2, True, HELD, "its epoch was over already")
    worker.settled()
    assert worker.engine.started.empty()


def test_an_old_fence_does_not_touch_a_newer_epoch(worker: Worker) -> None:
    worker.link.on_command(order(3))
    assert worker.runs() == 3
    worker.link.on_command(FenceEpoch(ME, 2))
    assert worker.engine.fences == []
    assert worker.link.hello().running


def test_repeats_are_harmless(worker: Worker) -> None:
    worker.link.on_command(order(1))
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.link.on_command(order(1))
    worker.link.on_command(FenceEpoch(ME, 1))
    worker.link.on_command(FenceEpoch(ME, 1))
    assert worker.said() == LeftEpoch(0, ME, 1, True, HELD, "fenced")
    worker.settled()
    worker.link.on_command(FenceEpoch(ME, 1))
    again = worker.said()
    assert isinstance(again, LeftEpoch)
    assert again.held == HELD
    worker.link.on_command(order(1))
    assert worker.engine.started.empty()


def test_the_newest_order_wins(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.engine.deaf = True
    worker.link.on_command(order(2))
    worker.link.on_command(order(4))
    worker.link.on_command(order(3))
    worker.engine.results.put(Left(False, HELD, "broke"))
    assert worker.runs() == 4


def test_a_new_epoch_means_that_the_old_one_is_over(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.link.on_command(order(2))
    assert worker.said() == LeftEpoch(0, ME, 1, True, HELD, "fenced")
    assert worker.runs() == 2


def test_a_finished_rank_is_a_member_until_it_is_fenced(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.engine.results.put(Finished(30, "abc"))
    assert worker.said() == RankFinished(0, ME, 1, 30, "abc")
    worker.settled()
    assert worker.link.hello().running
    worker.link.on_command(FenceEpoch(ME, 1))
    assert isinstance(worker.said(), LeftEpoch)
    assert not worker.link.hello().running


def test_an_error_of_the_task_is_reported_and_the_worker_stays(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.engine.results.put(Failed(7, False, "Traceback: boom"))
    assert worker.said() == TaskFailed(0, ME, 1, 7, False, "Traceback: boom")
    assert worker.thread.is_alive()


def test_a_bug_in_the_engine_is_a_failed_check_with_its_traceback(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.engine.results.put(KeyError("oops"))
    failed = worker.said()
    assert isinstance(failed, TaskFailed)
    assert failed.fatal_check
    assert "KeyError: 'oops'" in failed.traceback


def test_an_engine_cannot_report_what_is_not_its_own(worker: Worker) -> None:
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    with pytest.raises(TypeError, match="WorkerDisconnected"):
        worker.engine.report(WorkerDisconnected(0, ME, "x"))


def test_faults_go_to_the_engine_and_stacks_come_back(worker: Worker) -> None:
    fault = Fault("hang", 0, "", 3, 1, 0)
    worker.link.on_command(InjectFault(ME, fault))
    assert worker.engine.faults == [fault]
    due_s = time.monotonic() + WAIT_S
    while "_next_order" not in "".join(worker.link.texts):  # its thread may not be there yet
        assert time.monotonic() < due_s, worker.link.texts[-1]
        worker.link.on_command(DumpStacks(ME))


def test_the_rank_of_a_printed_line_is_that_of_the_present_plan(worker: Worker) -> None:
    worker.shell.log("warm")
    worker.link.on_command(order(1))
    worker.runs()
    worker.shell.log("training")
    assert worker.link.lines == [LogLine(ME, -1, "warm"), LogLine(ME, 0, "training")]


def test_a_beat_tells_where_the_engine_is() -> None:
    worker = Worker()
    beat = worker.link.pulse()
    assert beat == Beat(ME, 0, 6, "forward", 3, 77, False, False, 12, beat.rss_bytes)
    assert beat.rss_bytes > 1_000_000
    worker.link.on_command(ExitWorker(ME, "enough"))
    assert worker.ends.get(timeout=WAIT_S) == "enough"


def test_a_worker_whose_parent_is_gone_says_that_it_is_an_orphan() -> None:
    worker = Worker(parent_pid=1 if os.getppid() != 1 else 2)
    assert worker.link.pulse().orphaned
    worker.link.on_command(ExitWorker(ME, "enough"))
    worker.ends.get(timeout=WAIT_S)


def test_told_to_end_it_leaves_its_epoch_says_goodbye_and_ends() -> None:
    worker = Worker()
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.link.on_command(ExitWorker(ME, "the job succeeded"))
    assert worker.ends.get(timeout=WAIT_S) == "the job succeeded"
    worker.thread.join(WAIT_S)
    assert worker.link.goodbyes == ["the job succeeded"]
    assert worker.engine.fences == [1]
    assert worker.ends.empty()


def test_refused_it_ends_at_once_even_when_its_training_thread_is_stuck() -> None:
    worker = Worker()
    worker.engine.deaf = True
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.link.on_refused("declared lost")
    assert worker.ends.get_nowait() == "refused: declared lost"
    assert worker.link.goodbyes == []
    worker.engine.results.put(Left(False, HELD, "late"))
    worker.thread.join(WAIT_S)
    assert worker.ends.empty()


def test_a_training_thread_that_is_stuck_delays_the_end_only_so_long() -> None:
    worker = Worker(limits=derive(500))
    worker.engine.deaf = True
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.link.on_command(ExitWorker(ME, "cancelled"))
    assert worker.ends.get(timeout=WAIT_S).startswith("cancelled (its training thread did not leave")
    worker.engine.results.put(Left(False, HELD, "late"))
    worker.thread.join(WAIT_S)
    assert worker.ends.empty()


def test_idle_and_forgotten_it_ends() -> None:
    worker = Worker(limits=derive(500))
    worker.link.alone_ms = derive(500).orphan_ms
    assert "heard of no supervisor" in worker.ends.get(timeout=WAIT_S)
    worker.thread.join(WAIT_S)


def test_without_a_supervisor_it_trains_on() -> None:
    worker = Worker(limits=derive(500))
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.link.alone_ms = 10 * derive(500).orphan_ms
    worker.engine.results.put(Finished(30, "abc"))
    assert isinstance(worker.said(), RankFinished)  # only then is it idle, and ends
    assert "heard of no supervisor" in worker.ends.get(timeout=WAIT_S)
    worker.thread.join(WAIT_S)


def test_stacks_name_the_threads() -> None:
    ready, leave = threading.Event(), threading.Event()

    def waits_here() -> None:
        ready.set()
        leave.wait(WAIT_S)

    thread = threading.Thread(target=waits_here, name="the-reader")
    thread.start()
    assert ready.wait(WAIT_S)
    text = all_stacks()
    leave.set()
    thread.join()
    assert "'the-reader'" in text
    assert "waits_here" in text


def test_resident_memory_is_that_of_this_process() -> None:
    assert 5_000_000 < resident_bytes() < 1 << 40


def probe(number: int) -> MeasureWorker:
    return MeasureWorker(ME, 0, number, (Colleague(ME, "n0", "127.0.0.1:4000"),))


def test_its_hello_carries_what_the_model_costs(worker: Worker) -> None:
    assert worker.link.hello().costs == COSTS


def test_it_measures_itself_while_it_has_no_rank(worker: Worker) -> None:
    worker.link.on_command(probe(1))
    assert worker.engine.measuring.get(timeout=WAIT_S).number == 1
    assert worker.link.hello().running is False
    worker.engine.measured.put(True)
    assert worker.said() == WorkerMeasured(0, ME, make_measure(), COSTS)


def test_a_measuring_makes_way_for_an_epoch(worker: Worker) -> None:
    worker.link.on_command(probe(1))
    worker.engine.measuring.get(timeout=WAIT_S)
    worker.link.on_command(order(1))
    assert worker.runs() == 1
    worker.link.on_command(FenceEpoch(ME, 1))
    assert isinstance(worker.said(), LeftEpoch), "and nothing was said about the measuring"


def test_a_measuring_makes_way_for_a_newer_one_and_is_not_repeated(worker: Worker) -> None:
    worker.link.on_command(probe(1))
    worker.engine.measuring.get(timeout=WAIT_S)
    worker.link.on_command(probe(2))
    assert worker.engine.measuring.get(timeout=WAIT_S).number == 2
    worker.link.on_command(probe(2))
    worker.link.on_command(probe(1))
    worker.engine.measured.put(True)
    assert isinstance(worker.said(), WorkerMeasured)
    worker.link.on_command(probe(3))
    assert worker.engine.measuring.get(timeout=WAIT_S).number == 3


def test_a_fence_while_it_measures_is_answered_at_once(worker: Worker) -> None:
    worker.link.on_command(probe(1))
    worker.engine.measuring.get(timeout=WAIT_S)
    worker.link.on_command(FenceEpoch(ME, 1))
    assert isinstance(worker.said(), LeftEpoch)
    worker.engine.measured.put(True)
    assert isinstance(worker.said(), WorkerMeasured)


def test_what_was_to_be_measured_before_an_epoch_is_not_measured_after_it(worker: Worker) -> None:
    worker.link.on_command(order(2))
    assert worker.runs() == 2
    worker.link.on_command(probe(1))  # of epoch 0, overtaken by an order
    worker.link.on_command(FenceEpoch(ME, 2))
    assert isinstance(worker.said(), LeftEpoch)
    worker.link.on_command(MeasureWorker(ME, 2, 2, probe(2).workers))
    assert worker.engine.measuring.get(timeout=WAIT_S).number == 2


def test_a_measuring_that_fails_costs_nothing(worker: Worker) -> None:
    worker.link.on_command(probe(1))
    worker.engine.measuring.get(timeout=WAIT_S)
    worker.engine.measured.put(False)
    worker.link.on_command(probe(2))
    assert worker.engine.measuring.get(timeout=WAIT_S).number == 2
    worker.engine.measured.put(True)
    assert isinstance(worker.said(), WorkerMeasured)
