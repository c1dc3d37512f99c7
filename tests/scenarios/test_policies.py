"""What is done about a loss is the first action of its class's policy that is possible."""

from __future__ import annotations

import pytest

from orchestrator.core.job import Action, FailureClass, FailurePolicy
from orchestrator.core.plan.plan import DATA, PIPELINE
from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import FenceEpoch, RunEpoch, SpawnWorker
from orchestrator.core.supervisor.state import JobPhase, Outcome, WorkerPhase
from orchestrator.spec.policies import LOSSES, policies
from tests.scenarios.story import DEEP, cluster, observe, only, running


def of_losses(*actions: Action) -> tuple[FailurePolicy, ...]:
    return policies(dict.fromkeys(LOSSES, actions))


def test_a_spare_that_is_ready_is_better_than_fewer_ranks() -> None:
    s = running(at=3)
    s.gone("j/w2")
    assert len(only(RunEpoch, s.leave_all(3))) == 4
    assert s.workers == ["j/w0", "j/w1", "j/w4", "j/w3"]


def test_without_a_spare_the_job_shrinks_at_once_and_loses_nothing() -> None:
    s = running(at=3, spares=0)
    assert only(SpawnWorker, s.gone("j/w3")), "a worker is on its way in its place, and is not waited for"
    runs = only(RunEpoch, s.leave_all(3))
    assert len(runs) == 3
    assert (runs[0].plan.axis(DATA), runs[0].resume.source, runs[0].resume.step, runs[0].resume.fresh) == (
        3,
        Source.MEMORY,
        3,
        (),
    )
    assert "1 spare(s) are missing" in s.said[-1]
    assert "shrunk from 4 to 3 ranks" in s.said[-1]
    s.ready()
    s.commit(4)
    assert (s.state.steps_lost, s.state.recoveries[-1].failure) == (0, FailureClass.WORKER_EXITED)


def test_the_job_never_shrinks_below_its_least_number_of_ranks() -> None:
    s = running(at=3, spares=0, ranks_min=4)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(3,))))
    assert not only(RunEpoch, s.leave_all(3))
    assert s.state.phase is JobPhase.WAITING
    assert "3 worker(s) are left and at least 4 ranks are needed; waiting for a node or a worker" in s.said[-1]
    s.tell(ev.ClusterChanged(s.now, cluster(3, 5, dead=(3,))))
    assert len(only(RunEpoch, s.hello_all())) == 4


def test_a_policy_that_says_fail_ends_the_job_and_says_what_was_tried() -> None:
    s = running(at=3, spares=0, policies=of_losses(Action.SWAP, Action.FAIL))
    s.gone("j/w3")
    s.leave_all(3)
    assert (s.state.phase, s.state.outcome) == (JobPhase.FAILED, Outcome.UNRECOVERABLE)
    assert "the policy for worker-exited is swap, fail" in s.state.last_word
    assert "1 spare(s) are missing" in s.state.last_word


@pytest.mark.parametrize("saved", [True, False])
def test_a_policy_that_says_rollback_needs_a_checkpoint(saved: bool) -> None:
    s = running(at=3, spares=0, policies=of_losses(Action.ROLLBACK, Action.SHRINK))
    if saved:
        s.tell(ev.CheckpointReported(s.now, "j/w0", 1, 2, "/c/2", True, "d"))
    s.gone("j/w3")
    resume = only(RunEpoch, s.leave_all(3))[0].resume
    assert (resume.source, resume.step) == ((Source.CHECKPOINT, 2) if saved else (Source.MEMORY, 3))
    assert s.state.steps_lost == (1 if saved else 0)
    assert s.plan.size == 3


def test_what_a_rollback_gave_up_is_not_used_when_its_epoch_breaks_as_it_forms() -> None:
    s = running(at=3, policies=of_losses(Action.ROLLBACK))
    s.tell(ev.CheckpointReported(s.now, "j/w0", 1, 2, "/c/2", True, "d"))
    s.gone("j/w3")
    s.leave_all(3)
    old = s.held(0, at=3)
    for w in s.workers:
        s.leave(w, old, fenced=False)
    assert s.state.resume is not None
    assert (s.state.epoch, s.state.resume.source) == (3, Source.CHECKPOINT)
    s.ready()
    assert not s.state.cold


def test_the_strictest_of_several_failures_decides() -> None:
    by_class = {FailureClass.NODE_LOST: (Action.FAIL,), FailureClass.WORKER_EXITED: (Action.SWAP, Action.SHRINK, Action.WAIT)}
    s = running(at=3, spares=2, policies=policies(by_class))
    s.gone("j/w2")
    classes = [s.state.recoveries[-1].failure]
    s.tell(ev.ClusterChanged(s.now, cluster(2, 5, dead=(1,))))
    classes.append(s.state.recoveries[-1].failure)
    assert classes == [FailureClass.WORKER_EXITED, FailureClass.NODE_LOST]
    s.leave_all(3)
    assert s.state.outcome is Outcome.UNRECOVERABLE
    assert s.state.recoveries[-1].lost == ("j/w2", "j/w1")


def test_a_silent_worker_falls_under_the_policy_for_a_lost_node() -> None:
    s = running(at=3, spares=0, policies=policies({FailureClass.NODE_LOST: (Action.SHRINK, Action.WAIT)}))
    s.tell(ev.WorkerDisconnected(s.now, "j/w1", "EOF"))
    observe(s, w1={"silence_ms": 3500})
    assert s.state.recoveries[-1].failure is FailureClass.UNREACHABLE
    assert len(only(RunEpoch, s.leave_all(3))) == 3


def test_one_loss_after_another_ends_with_one_rank_that_holds_everything() -> None:
    s = running(at=3, spares=0, budget=9)
    at = 3
    for left in (3, 2, 1):
        gone = s.workers[-1]
        node = int(s.state.workers[gone].node_id[1:])
        s.tell(ev.ClusterChanged(s.now, cluster(s.state.epoch + 1, 5, dead=tuple(range(node, 5)))))
        s.leave_all(at)
        assert s.plan.size == left
        assert s.state.resume is not None
        assert (s.state.resume.source, s.state.resume.step) == (Source.MEMORY, at)
        s.ready()
        at += 1
        s.commit(at)
    assert s.state.steps_lost == 0
    assert s.plan.copies == 0, "on one node there is no place for copies"


def test_two_lost_at_once_shrink_to_what_is_left() -> None:
    s = running(at=3, spares=0, more_nodes=0)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(0, 2))))
    s.leave_all(3)
    assert (s.plan.size, s.state.phase) == (2, JobPhase.FORMING)
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step) == (Source.MEMORY, 3)


def test_a_loss_while_the_smaller_plan_forms_shrinks_once_more_from_what_was_received() -> None:
    s = running(at=3, spares=0, zero=0, budget=9)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(3,))))
    before = {w: s.held(s.plan.seats[r].rank, at=3) for r, w in enumerate(s.workers)}
    s.leave_all(3)
    assert (s.plan.size, s.state.phase) == (3, JobPhase.FORMING)
    out = s.tell(ev.ClusterChanged(s.now, cluster(3, 4, dead=(2, 3))))
    assert len(only(FenceEpoch, out)) == 2
    for w in [w for w in s.workers if s.state.workers[w].phase is WorkerPhase.MEMBER]:
        s.tell(ev.LeftEpoch(s.now, w, 2, True, before[w], "fenced while resharding"))
    assert s.plan.size == 2
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step) == (Source.MEMORY, 3)


def test_a_pipeline_loses_a_replica_and_its_fourth_worker_becomes_a_spare() -> None:
    s = running(at=3, data=2, pipeline=2, zero=0, spares=0, graph=DEEP)
    lost = s.workers[3]
    node = int(s.state.workers[lost].node_id[1:])
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(node, 4))))
    s.leave_all(3)
    assert (s.plan.axis(PIPELINE), s.plan.axis(DATA)) == (2, 1)
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step) == (Source.MEMORY, 3)
    s.ready()
    spares = [w for w in s.state.workers.values() if w.phase is WorkerPhase.SPARE]
    assert len(spares) == 1
    assert spares[0].held is None


def test_the_survivor_that_alone_holds_a_stage_keeps_a_seat() -> None:
    s = running(at=3, data=2, pipeline=2, zero=0, spares=0, graph=DEEP)
    for rank in range(4):
        fresh = running(at=3, data=2, pipeline=2, zero=0, spares=0, graph=DEEP)
        node = int(fresh.state.workers[fresh.workers[rank]].node_id[1:])
        fresh.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(node, 4))))
        fresh.leave_all(3)
        assert fresh.state.resume is not None
        assert (fresh.state.resume.source, fresh.state.steps_lost) == (Source.MEMORY, 0), rank
