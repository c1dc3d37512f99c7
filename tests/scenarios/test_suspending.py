"""A job gives its machines back and goes on later; and a node is gone because somebody who knows says so."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.core.job import CheckpointSettings, FailureClass
from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import (
    Command,
    ExitWorker,
    FenceEpoch,
    KillWorker,
    LeaveEpoch,
    RunEpoch,
    SpawnWorker,
)
from orchestrator.core.supervisor.state import ChangeKind, JobPhase, Outcome, WorkerPhase
from orchestrator.core.timeouts import derive
from tests.scenarios.story import WAIT, Story, cluster, observe, only, running

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


def failed(s: Story, step: int, why: str = "no space left on device") -> list[Command]:
    """The checkpoint of that step could not be written."""
    return s.tell(ev.CheckpointReported(s.now, s.workers[0], s.state.epoch, step, f"/c/{step}", False, why))


def kind(s: Story) -> ChangeKind | None:
    """Of the planned change that is under way."""
    return s.state.change.kind if s.state.change is not None else None


def stopping(*, at: int = 3, **kw: Any) -> Story:
    """A job that is to be suspended: its ranks have committed step `at` + 1, train no further, and write their checkpoint."""
    s = running(at=at, **kw)
    out = suspend(s)
    assert only(LeaveEpoch, out) == [LeaveEpoch(w, s.state.epoch, save=True) for w in s.workers]
    s.commit(at + 1)
    return s


def parked(*, at: int = 3, **kw: Any) -> Story:
    """A job that was suspended with a checkpoint of step `at` + 1."""
    s = stopping(at=at, **kw)
    assert not saved(s, at + 1), "the ranks leave by themselves when it is durable"
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
    assert s.state.parked
    assert not [w for w in s.state.workers.values() if w.phase.alive]
    assert s.state.recoveries[-1].failure is FailureClass.PLANNED
    assert (s.state.budget, s.state.steps_lost) == (3, 0)
    assert "its machines may go" in s.said[-1]
    assert not observe(s), "and nobody is asked for while it is suspended"


@pytest.mark.parametrize("restarted", [False, True])
def test_it_goes_on_from_its_checkpoint_on_other_machines_at_full_strength_and_nothing_is_counted(restarted: bool) -> None:
    s = parked(at=3)
    machines_gone(s)
    if restarted:  # the head went with the rest, and its journal is read by a new one
        s.tell(ev.SupervisorRestarted(s.now))
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


def test_steps_whose_commit_nobody_told_of_are_saved_too_before_the_machines_go() -> None:
    s = running(at=3)
    suspend(s)
    saved(s, 3)  # a periodic one that was under way
    s.leave_all(5, fenced=False)  # and they hold two steps more than was told
    assert "the state of step 5 could not be saved, attempt 1 of 3: nobody said" in s.said[-1]
    assert (s.state.phase, s.state.epoch) == (JobPhase.FORMING, 2), "they begin again, to be saved"
    s.ready()
    assert s.said[-1].endswith("and to save it first")
    s.train(6)
    saved(s, 6)
    s.leave_all(6, fenced=False)
    assert (s.state.parked, s.state.steps_lost) == (True, 0)


def test_one_that_goes_on_before_the_ranks_have_left_does_so_from_memory_without_a_step_done_again() -> None:
    for report in (saved, failed, None):
        s = stopping(at=3)
        assert not go_on(s)
        assert "its ranks are still there and hold its state" in s.said[-1]
        if report is not None:
            report(s, 4)
        before = s.workers
        out = s.leave_all(4, fenced=False)
        assert (s.workers, len(only(RunEpoch, out)), only(ExitWorker, out)) == (before, 4, [])
        assert s.state.resume is not None
        assert (s.state.resume.source, s.state.resume.step, s.state.steps_lost) == (Source.MEMORY, 4, 0)
        s.ready()
        assert not s.commit(5), "nobody is asked to leave again"


def test_one_that_is_suspended_again_before_the_ranks_have_left_is_parked() -> None:
    s = stopping(at=3)
    go_on(s)
    assert not suspend(s), "they were asked already"
    saved(s, 4)
    s.leave_all(4, fenced=False)
    assert (s.state.parked, s.state.phase) == (True, JobPhase.WAITING)


def test_a_rank_that_is_lost_before_the_state_is_saved_costs_no_step_and_it_is_saved_without_it() -> None:
    s = stopping(at=3, budget=0)
    s.gone(s.workers[2])
    assert s.state.change is None
    out = s.leave_all(4)
    assert len(only(RunEpoch, out)) == 4, "the spare has its seat"
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step) == (Source.MEMORY, 4)
    s.ready()
    assert kind(s) is ChangeKind.SUSPEND
    s.commit(5)
    saved(s, 5)
    s.leave_all(5, fenced=False)
    assert (s.state.parked, s.state.budget, s.state.steps_lost) == (True, 0, 0)


def test_a_rank_that_is_lost_when_the_state_is_saved_holds_nothing_up() -> None:
    s = stopping(at=3, budget=0)
    saved(s, 4)
    s.gone(s.workers[2])
    out = s.leave_all(4)
    assert len(only(ExitWorker, out)) == 5, "three ranks, the spare, and one that was on its way for the lost rank"
    assert (s.state.parked, s.state.phase, s.state.steps_lost) == (True, JobPhase.WAITING, 0)
    go_on(s)
    assert "from the checkpoint of step 4" in s.said[-1]


def test_a_lost_rank_that_nobody_replaces_keeps_the_others_until_the_state_is_saved() -> None:
    s = running(at=3, more_nodes=0, spares=0, policies=WAIT)
    suspend(s)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(2,))))
    out = s.leave_all(3)
    assert (s.state.phase, s.state.parked, only(ExitWorker, out)) == (JobPhase.WAITING, False, [])
    assert "waiting for a node or a worker" in s.said[-1]
    out = s.tell(ev.ClusterChanged(s.now, cluster(3, 5, dead=(2,))))
    assert len(only(SpawnWorker, out)) == 1
    assert len(only(RunEpoch, s.hello_all())) == 4
    s.ready()
    s.commit(4)
    saved(s, 4)
    s.leave_all(4, fenced=False)
    assert (s.state.parked, s.state.steps_lost) == (True, 0)


def test_a_planned_change_under_way_comes_first() -> None:
    s = running(at=3)
    s.tell(ev.DrainRequested(s.now, "n1", "me", ""))
    assert kind(s) is ChangeKind.MOVE
    assert not suspend(s)
    s.depart()
    s.ready()
    assert kind(s) is ChangeKind.SUSPEND
    s.commit(5)
    saved(s, 5)
    s.leave_all(5, fenced=False)
    assert (s.state.parked, s.state.steps_lost) == (True, 0)


def test_a_new_supervisor_asks_again_and_goes_on_where_the_old_one_was() -> None:
    s = stopping(at=3)
    s.tell(ev.SupervisorRestarted(s.now))
    first, *others = s.workers
    assert only(LeaveEpoch, s.hello(first, epoch=1, running=True)) == [LeaveEpoch(first, 1, save=True)]
    for rank, w in enumerate(others, 1):  # they have saved it and left while nobody was there
        s.hello(w, epoch=1, held=s.held(rank, at=4))
    assert s.state.phase is JobPhase.FENCING
    saved(s, 4)
    out = s.leave(first, s.held(0, at=4), fenced=False)
    assert len(only(ExitWorker, out)) == 5
    assert (s.state.parked, s.state.steps_lost) == (True, 0)


def test_ranks_that_take_long_to_save_are_not_cut_short_unless_the_job_is_to_go_on() -> None:
    s = stopping(at=3)
    s.now += 2 * derive(s.state.job.resilience.detect_within_ms).leave_ms
    assert not observe(s)
    go_on(s)
    assert len(only(FenceEpoch, observe(s))) == 4
    s.leave_all(4)
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step) == (Source.MEMORY, 4)


def test_a_job_that_had_shrunk_goes_on_at_full_strength() -> None:
    s = running(at=3, more_nodes=0, spares=0)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(3,))))
    s.leave_all(3)
    assert len(s.plan.seats) == 3
    s.ready()
    suspend(s)
    s.commit(4)
    saved(s, 4)
    s.leave_all(4, fenced=False)
    machines_gone(s)
    go_on(s)
    machines_back(s)
    assert len(only(RunEpoch, s.hello_all())) == 4
    assert (len(s.plan.seats), s.plan.parent, s.plan.copies) == (4, 2, 1)
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step, s.state.steps_lost) == (Source.CHECKPOINT, 4, 0)


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


def test_machines_that_go_one_after_the_other_are_no_failure_though_those_left_hold_only_a_part() -> None:
    s = running(at=3, budget=0, more_nodes=0, spares=0)
    suspend(s)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(0, 1))))
    s.leave_all(3)
    assert s.state.outcome is Outcome.NONE, s.state.last_word
    s.tell(ev.ClusterChanged(s.now, cluster(3, 4, dead=(0, 1, 2, 3))))
    assert (s.state.phase, s.state.parked) == (JobPhase.WAITING, True)


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


def test_a_checkpoint_that_fails_is_tried_again_with_the_state_in_memory() -> None:
    s = stopping(at=3)
    failed(s, 4)
    out = s.leave_all(4, fenced=False)
    assert "the state of step 4 could not be saved, attempt 1 of 3: no space left on device" in s.said[-1]
    assert (len(only(RunEpoch, out)), only(ExitWorker, out)) == (4, [])
    s.ready()
    s.commit(5)
    saved(s, 5)
    s.leave_all(5, fenced=False)
    assert (s.state.parked, s.state.steps_lost) == (True, 0)


def test_what_cannot_be_saved_is_given_up_after_a_few_attempts_and_the_job_says_why_and_what_it_costs() -> None:
    s = running(at=3)
    suspend(s)
    out: list[Command] = []
    for step in (4, 5, 6):
        assert s.state.phase is JobPhase.RUNNING
        s.commit(step)
        failed(s, step)
        out = s.leave_all(step, fenced=False)
        s.ready()
    assert (s.state.phase, len(only(ExitWorker, out))) == (JobPhase.WAITING, 5)
    for said in ("attempt 3 of 3: no space left", "6 step(s) are in no checkpoint and will be trained again, from step 0"):
        assert any(said in words for words in s.said)
    machines_gone(s)
    go_on(s)
    machines_back(s)
    s.hello_all()
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.steps_lost, s.state.budget) == (Source.INIT, 6, 3)


def test_a_job_that_changes_its_mind_goes_on_with_the_same_workers() -> None:
    s = running(at=3, checkpoint=NO_PLACE)
    suspend(s)
    before = s.workers
    assert kind(s) is ChangeKind.SUSPEND
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


def test_a_job_that_was_scaled_down_to_one_node_goes_on_there_though_its_copies_need_two() -> None:
    s = running(at=3, slots=2, nodes=2, data=4, more_nodes=0, spares=0)
    assert s.plan.copies == 1
    s.tell(ev.ScaleRequested(s.now, 1, (), "me"))
    s.depart()
    s.ready()
    assert (s.plan.size, s.plan.copies) == (2, 0)
    suspend(s)
    s.commit(5)
    saved(s, 5)
    s.leave_all(5, fenced=False)
    assert s.state.parked
    s.tell(ev.ClusterChanged(s.now, cluster(7, 3, dead=(0, 1), slots=2)))
    go_on(s)
    s.hello_all()
    assert (s.state.phase, s.plan.size, s.plan.copies) == (JobPhase.FORMING, 2, 0), s.said[-1]
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step) == (Source.CHECKPOINT, 5)
