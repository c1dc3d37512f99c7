"""A job gives its machines back and goes on later; and a node is gone because somebody who knows says so."""

from __future__ import annotations

import pytest

from orchestrator.core.job import CheckpointSettings, FailureClass
from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import (
    Command,
    ExitWorker,
    KillWorker,
    LeaveEpoch,
    RunEpoch,
    SpawnWorker,
    TakeCheckpoint,
)
from orchestrator.core.supervisor.state import ChangeKind, JobPhase, Outcome, WorkerPhase
from tests.scenarios.story import Story, cluster, observe, only, running

NO_PLACE = CheckpointSettings("", 0, 3)


def suspend(s: Story) -> list[Command]:
    """Somebody suspends the job."""
    return s.tell(ev.SuspendRequested(s.now, "me", ""))


def go_on(s: Story) -> list[Command]:
    """Somebody lets it go on."""
    return s.tell(ev.ContinueRequested(s.now, "me"))


def saved(s: Story, step: int) -> list[Command]:
    """The checkpoint of that step is durable."""
    who = s.plan.seats[0].worker_id
    return s.tell(ev.CheckpointReported(s.now, who, s.state.epoch, step, f"/c/{step}", True, "digest"))


def parked(*, at: int = 3) -> Story:
    """A job that was suspended with a checkpoint of step `at` + 1."""
    s = running(at=at)
    assert len(only(TakeCheckpoint, suspend(s))) == 4
    s.commit(at + 1)
    assert len(only(LeaveEpoch, saved(s, at + 1))) == 4
    s.leave_all(at + 1, fenced=False)
    return s


def machines_gone(s: Story, generation: int = 7) -> list[Command]:
    """No node is left."""
    return s.tell(ev.ClusterChanged(s.now, cluster(generation, 5, dead=(0, 1, 2, 3, 4))))


def machines_back(s: Story, generation: int = 8, nodes: int = 10) -> list[Command]:
    """Other nodes have joined."""
    return s.tell(ev.ClusterChanged(s.now, cluster(generation, nodes, dead=(0, 1, 2, 3, 4))))


def test_it_saves_leaves_after_a_whole_step_and_every_worker_ends() -> None:
    s = parked()
    assert s.state.phase is JobPhase.WAITING
    assert not [w for w in s.state.workers.values() if w.phase.alive]
    assert s.state.recoveries[-1].failure is FailureClass.PLANNED
    assert (s.state.budget, s.state.steps_lost) == (3, 0)
    assert "its machines may go" in s.said[-1]
    assert not observe(s), "and nobody is asked for while it is suspended"


def test_it_goes_on_from_its_checkpoint_on_other_machines_at_full_strength_and_nothing_is_counted() -> None:
    s = parked(at=3)
    machines_gone(s)
    assert not go_on(s)
    assert "from the checkpoint of step 4" in s.said[-1]
    spawned = only(SpawnWorker, machines_back(s))
    assert len(spawned) == 5
    for c in spawned[:3]:
        assert not only(RunEpoch, s.hello(c.worker_id)), "it waits for all, though the policy shrinks"
    out = s.hello(spawned[3].worker_id)
    assert len(only(RunEpoch, out)) == 4
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step, s.state.resume.checkpoint_uri) == (Source.CHECKPOINT, 4, "/c/4")
    assert (s.state.budget, s.state.steps_lost) == (3, 0)
    s.ready()
    assert s.commit(5) == []
    assert not s.state.continued


def test_steps_after_the_checkpoint_are_done_again_and_said_to_be_lost() -> None:
    s = running(at=3)
    suspend(s)
    s.train(6)
    saved(s, 4)
    s.leave_all(6, fenced=False)
    machines_gone(s)
    go_on(s)
    machines_back(s)
    s.hello_all()
    assert s.state.resume is not None
    assert (s.state.resume.step, s.state.committed_step, s.state.steps_lost) == (4, 4, 2)


def test_without_a_place_for_checkpoints_it_begins_again_and_says_so_before_it_does() -> None:
    s = running(at=3, checkpoint=NO_PLACE)
    assert len(only(LeaveEpoch, suspend(s))) == 4
    assert any("will begin again" in said for said in s.said)
    s.leave_all(3, fenced=False)
    machines_gone(s)
    go_on(s)
    assert "from step 0, since there is no durable checkpoint" in s.said[-1]
    machines_back(s)
    s.hello_all()
    assert s.state.phase is JobPhase.FORMING
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step, s.state.steps_lost) == (Source.INIT, 0, 3)
    assert any("begins again at step 0, from the seed" in said for said in s.said)


@pytest.mark.parametrize("restarted", [False, True])
def test_machines_that_go_before_the_checkpoint_is_there_are_no_failure(restarted: bool) -> None:
    s = running(at=3, budget=0)
    suspend(s)
    if restarted:
        s.tell(ev.SupervisorRestarted(s.now))
    machines_gone(s)
    assert s.state.phase is JobPhase.WAITING
    assert s.state.outcome is Outcome.NONE
    go_on(s)
    machines_back(s)
    s.hello_all()
    assert s.state.resume is not None
    assert s.state.resume.source is Source.INIT


def test_machines_whose_end_is_heard_of_only_after_it_is_to_go_on_are_no_failure_either() -> None:
    s = running(at=3, budget=0, checkpoint=NO_PLACE)
    suspend(s)  # and the supervisor and all machines go at this moment
    s.tell(ev.SupervisorRestarted(s.now))
    go_on(s)
    machines_gone(s)
    machines_back(s)
    s.hello_all()
    assert s.state.phase is JobPhase.FORMING
    assert s.state.budget == 0


def test_the_first_step_after_it_makes_losses_failures_again() -> None:
    s = parked()
    machines_gone(s)
    go_on(s)
    machines_back(s)
    s.hello_all()
    s.ready()
    s.gone(s.workers[0])
    assert s.state.budget == 3
    s.leave_all(4)
    s.ready()
    s.commit(5)
    s.gone(s.workers[1])
    assert s.state.budget == 2


def test_a_checkpoint_that_fails_does_not_hold_the_suspension_up() -> None:
    s = running(at=3)
    suspend(s)
    s.commit(4)
    who = s.plan.seats[0].worker_id
    out = s.tell(ev.CheckpointReported(s.now, who, s.state.epoch, 4, "/c/4", False, "no space left on device"))
    assert len(only(LeaveEpoch, out)) == 4


def test_a_job_that_changes_its_mind_goes_on_with_the_same_workers() -> None:
    s = running(at=3, checkpoint=NO_PLACE)
    suspend(s)
    before = s.workers
    assert s.state.change is not None
    assert s.state.change.kind is ChangeKind.SUSPEND
    go_on(s)
    out = s.leave_all(3, fenced=False)
    assert (s.workers, len(only(RunEpoch, out)), only(ExitWorker, out)) == (before, 4, [])
    assert s.state.resume is not None
    assert s.state.resume.source is Source.MEMORY


def test_a_job_that_waits_for_its_first_workers_can_be_suspended() -> None:
    s = running(at=0)
    t = Story(s.state.job)
    t.tell(ev.ClusterChanged(t.now, cluster(1, 2)))
    assert len(only(ExitWorker, suspend(t))) == 2
    assert not t.tell(ev.ClusterChanged(t.now, cluster(2, 5)))
    assert len(only(SpawnWorker, go_on(t))) == 5
    t.hello_all()
    assert t.state.phase is JobPhase.FORMING


def test_asking_twice_changes_nothing() -> None:
    s = running(at=3)
    assert not go_on(s)
    assert "not suspended" in s.said[-1]
    suspend(s)
    before = s.state
    assert not suspend(s)
    assert s.state == before


def test_a_node_that_is_known_to_be_gone_is_swapped_at_once_though_the_cluster_still_believes_in_it() -> None:
    s = running(at=3)
    out = s.tell(ev.NodeGone(s.now, "n1", "the agent", "its Node object was deleted"))
    assert [c.worker_id for c in only(KillWorker, out)] == ["j/w1"]
    assert s.state.workers["j/w1"].phase is WorkerPhase.LOST
    assert s.state.recoveries[-1].failure is FailureClass.NODE_LOST
    assert s.state.budget == 2
    out = s.leave_all(3)
    assert len(only(RunEpoch, out)) == 4
    assert "n1" not in {seat.node_id for seat in s.plan.seats}
    assert not [c for c in out if isinstance(c, SpawnWorker) and c.node_id == "n1"]
    before = s.state
    assert not s.tell(ev.NodeGone(s.now, "n1", "the agent", "again"))
    assert s.state == before
    s.tell(ev.NodeGone(s.now, "nowhere", "the agent", "its pod failed"))
    assert s.state == before


def test_a_drained_node_that_is_gone_before_its_ranks_have_moved_is_a_failure() -> None:
    s = running(at=3)
    s.tell(ev.DrainRequested(s.now, "n1", "me", ""))
    s.tell(ev.NodeGone(s.now, "n1", "the agent", "taint node.kubernetes.io/out-of-service"))
    assert s.state.recoveries[-1].failure is FailureClass.NODE_LOST
    assert s.state.change is None
    assert s.state.budget == 2
