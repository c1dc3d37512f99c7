"""How a job starts, or says why it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import (
    ExitWorker,
    InjectFault,
    SpawnWorker,
)
from orchestrator.core.supervisor.state import CheckpointRef, JobPhase, Outcome, WorkerPhase
from tests.scenarios.story import GRAPH, Story, cluster, make_job, observe, only, running


def test_launch_asks_for_ranks_and_spares_one_per_slot() -> None:
    s = Story(make_job())
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(0, cluster(1, 5))))
    assert [(c.worker_id, c.node_id) for c in asked] == [(f"j/w{i}", f"n{i}") for i in range(5)]
    assert s.hello("j/w0") == []
    assert s.state.phase is JobPhase.WAITING


def test_spawn_failures_back_off() -> None:
    s = Story(make_job())
    s.tell(ev.ClusterChanged(0, cluster(1, 5)))
    assert not only(SpawnWorker, s.tell(ev.SpawnFailed(0, "j/w0", "no room")))
    s.now = 999
    assert not only(SpawnWorker, observe(s))
    s.now = 1000
    assert only(SpawnWorker, observe(s))


def test_a_worker_that_ends_before_its_hello_backs_off_too() -> None:
    s = Story(make_job())
    s.tell(ev.ClusterChanged(0, cluster(1, 5)))
    assert not only(SpawnWorker, s.tell(ev.WorkerGone(0, "j/w0", "exit code 1")))
    s.now = 1000
    assert only(SpawnWorker, observe(s))


def test_other_code_is_refused() -> None:
    s = Story(make_job())
    s.tell(ev.ClusterChanged(0, cluster(1, 5)))
    s.hello("j/w0")
    w = s.state.workers["j/w1"]
    out = s.tell(ev.WorkerHello(0, w.worker_id, w.node_id, 1, "e:1", replace(GRAPH, fingerprint="x"), 0, False, None, None))
    assert only(ExitWorker, out)


def test_resume_from_a_checkpoint() -> None:
    s = Story(make_job(), checkpoint=CheckpointRef(10, "file:///c/10", "d"))
    resume = s.launch(5)[0].resume
    assert (resume.source, resume.step, resume.checkpoint_uri) == (Source.CHECKPOINT, 10, "file:///c/10")


def test_a_task_that_cannot_be_built_ends_the_job_with_its_traceback() -> None:
    s = Story(make_job())
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(0, cluster(1, 5))))
    while s.state.phase is JobPhase.WAITING:
        for c in asked:
            s.tell(ev.SpawnFailed(s.now, c.worker_id, "TaskError: no class Digit in convnet.py"))
        assert s.now <= 10_000, "it is retried for ever"
        s.now += 1000
        asked = only(SpawnWorker, observe(s))
    assert s.state.outcome is Outcome.USER_ERROR
    assert "no class Digit" in s.state.last_word


def test_one_failed_start_among_many_is_only_retried() -> None:
    s = running()
    s.tell(ev.WorkerGone(s.now, "j/w4", "refused"))
    for _ in range(5):
        s.now += 60_000
        observe(s)
        asked = [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]
        s.tell(ev.SpawnFailed(s.now, asked[0].worker_id, "no room"))
    assert s.state.phase is JobPhase.RUNNING


def test_a_fault_asked_for_before_the_start_waits_for_the_epoch() -> None:
    s = Story(make_job())
    fault = ev.Fault("kill-worker", 2, "", 5, 1, 0)
    assert not s.tell(ev.FaultRequested(0, fault, "me"))
    s.launch(5)
    for seat in s.plan.seats[:3]:
        s.tell(ev.EpochReady(s.now, seat.worker_id, 1))
    out = s.tell(ev.EpochReady(s.now, s.plan.seats[3].worker_id, 1))
    assert [(c.worker_id, c.fault) for c in only(InjectFault, out)] == [(s.plan.seats[2].worker_id, fault)]
    for n in range(1, 6):
        s.commit(n)
    assert not s.tell(ev.FaultRequested(0, fault, "me")), "step 5 is done"


def test_the_first_plan_does_not_put_all_ranks_on_the_node_that_is_ready_first() -> None:
    s = Story(make_job(data=2, nodes=2, spares=1, slots=2, zero=0))
    s.tell(ev.ClusterChanged(0, cluster(1, 2, slots=2)))
    on_n0 = [w.worker_id for w in s.state.workers.values() if w.node_id == "n0"]
    assert len(on_n0) == 2
    for worker_id in on_n0:
        assert s.hello(worker_id) == []
    assert len(s.hello_all()) == 2
    assert {seat.node_id for seat in s.plan.seats} == {"n0", "n1"}


def test_a_task_that_no_worker_can_build_ends_the_job_also_when_the_processes_just_end() -> None:
    s = Story(make_job())
    s.tell(ev.ClusterChanged(0, cluster(1, 5)))
    for attempt in range(3):
        assert not s.state.phase.terminal
        for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]:
            if not s.state.phase.terminal:
                s.tell(ev.WorkerGone(s.now, w.worker_id, f"it ended with TaskError: no such class, attempt {attempt}"))
        s.now = max(s.now, s.state.retry_spawn_ms)
        if not s.state.phase.terminal:
            s.tell(ev.Tick(s.now, ()))
    assert (s.state.phase, s.state.outcome) == (JobPhase.FAILED, Outcome.USER_ERROR)
    assert "TaskError: no such class, attempt 2" in s.state.last_word


@pytest.mark.parametrize(
    ("nodes", "slots", "words"),
    [
        (3, 1, "4 ranks need 4 workers, 3 are ready and no node has room for more"),
        (1, 5, "peer copies need workers on at least two"),
    ],
)
def test_a_job_that_cannot_start_says_why_and_once(nodes: int, slots: int, words: str) -> None:
    s = Story(make_job())
    s.launch(nodes, slots=slots)
    assert s.state.phase is JobPhase.WAITING
    assert words in s.said[-1]
    told = len(s.said)
    observe(s)
    assert len(s.said) == told
    s.tell(ev.ClusterChanged(s.now, cluster(2, 5, slots=slots)))
    assert not s.state.missing
    assert len(s.hello_all()) == 4
