"""A job that has fewer ranks than it should grows back, not too often; and it is scaled when somebody asks."""

from __future__ import annotations

from typing import Any

from orchestrator.core.job import FailureClass
from orchestrator.core.plan.plan import DATA, PIPELINE
from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, FenceEpoch, LeaveEpoch, RunEpoch, SpawnWorker
from orchestrator.core.supervisor.state import ChangeKind, JobPhase, WorkerPhase
from tests.scenarios.story import DEEP, Story, cluster, observe, only, running


def shrunk(*, at: int = 3, **kw: Any) -> Story:
    """Four ranks became three; the fourth node is dead."""
    s = running(at=at, spares=0, more_nodes=0, budget_refill_steps=1000, **kw)
    lose_node(s, 3)
    assert s.plan.size == 3
    return s


def lose_node(s: Story, number: int) -> None:
    """The node dies, and the survivors go on."""
    generation = s.state.cluster.generation if s.state.cluster else 0
    s.tell(ev.ClusterChanged(s.now, cluster(generation + 1, 4, dead=(number,))))
    s.leave_all(s.state.committed_step)
    s.ready()


def node_returns(s: Story) -> list[Command]:
    """All four nodes are there, and a worker on the last of them is ready."""
    generation = s.state.cluster.generation if s.state.cluster else 0
    assert only(SpawnWorker, s.tell(ev.ClusterChanged(s.now, cluster(generation + 1, 4))))
    return s.hello_all()


def test_it_grows_back_once_enough_steps_went_by_since_it_shrank() -> None:
    s = shrunk()
    assert not node_returns(s)
    assert not only(LeaveEpoch, s.train(6))
    asked = only(LeaveEpoch, s.train(7))
    assert [c.worker_id for c in asked] == s.workers
    assert s.state.phase is JobPhase.RUNNING, "they train on until the step is done"
    budget = s.state.budget
    runs = only(RunEpoch, s.depart())
    assert len(runs) == 4
    assert (runs[0].plan.axis(DATA), runs[0].resume.source, runs[0].resume.step) == (4, Source.MEMORY, 8)
    s.ready()
    s.commit(9)
    recovery = s.state.recoveries[-1]
    assert (recovery.failure, recovery.lost, recovery.steps_lost, s.state.budget) == (FailureClass.PLANNED, (), 0, budget)
    assert s.state.change is None
    assert "from 3 to 4 ranks" in recovery.reason


def test_it_waits_for_a_second_worker_that_will_be_there_soon() -> None:
    s = running(at=3, spares=0, more_nodes=0, zero=0)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(2, 3))))
    s.leave_all(3)
    s.ready()
    assert s.plan.size == 2
    s.train(12)
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(s.now, cluster(3, 4))))
    assert len(asked) == 2
    assert not only(LeaveEpoch, s.hello(asked[0].worker_id)), "one change instead of two"
    assert len(only(LeaveEpoch, s.hello(asked[1].worker_id))) == 2
    s.depart()
    assert s.plan.size == 4


def test_it_does_not_wait_for_a_worker_that_fails_to_come_up() -> None:
    s = running(at=3, spares=0, more_nodes=0, zero=0)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(2, 3))))
    s.leave_all(3)
    s.ready()
    s.train(12)
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(s.now, cluster(3, 4))))
    s.hello(asked[0].worker_id)
    assert len(only(LeaveEpoch, s.tell(ev.SpawnFailed(s.now, asked[1].worker_id, "no room")))) == 2
    s.depart()
    assert s.plan.size == 3


def test_a_node_that_comes_and_goes_makes_it_wait_longer_each_time() -> None:
    s = shrunk(steps=200, budget=9)
    pauses = []
    for _ in range(3):
        node_returns(s)
        began = s.state.sized_step
        while s.state.change is None:
            s.commit(s.state.committed_step + 1)
            assert s.state.committed_step < 100
        pauses.append(s.state.committed_step - began)
        s.depart()
        s.ready()
        s.commit(s.state.committed_step + 1)
        assert s.plan.size == 4
        lose_node(s, 3)
        assert s.plan.size == 3
    assert pauses == [4, 8, 16]
    assert s.state.grow_pause == 32
    s.train(s.state.committed_step + 40)
    node_returns(s)
    s.depart()
    s.ready()
    s.train(s.state.committed_step + 16)
    lose_node(s, 3)
    assert s.state.grow_pause == 4, "it was large for long"


def test_a_worker_lost_while_the_ranks_leave_makes_the_change_a_failure() -> None:
    s = shrunk()
    node_returns(s)
    s.train(7)
    plan, budget = s.plan, s.state.budget
    s.commit(8)
    first, second, third = s.workers
    s.leave(first, s.held(0, at=8), fenced=False)
    assert (s.state.phase, s.state.recoveries[-1].failure) == (JobPhase.FENCING, FailureClass.PLANNED)
    out = s.gone(second)
    assert [c.worker_id for c in only(FenceEpoch, out)] == [third], "it may hang in a collective with the dead"
    assert (s.state.recoveries[-1].failure, s.state.budget) == (FailureClass.WORKER_EXITED, budget - 1)
    assert s.state.change is None
    runs = only(RunEpoch, s.leave(third, s.held(2, at=8)))
    assert s.plan.epoch == plan.epoch + 1
    assert (len(runs), runs[0].resume.step, runs[0].resume.source) == (3, 8, Source.MEMORY)


def test_the_spare_that_it_was_to_grow_with_is_lost_and_the_epoch_begins_again_as_it_was() -> None:
    s = shrunk()
    node_returns(s)
    s.train(7)
    spare = next(w for w in s.state.workers.values() if w.phase is WorkerPhase.SPARE)
    s.gone(spare.worker_id)
    s.tell(ev.ClusterChanged(s.now, cluster(4, 4, dead=(3,))))
    s.depart()
    assert (s.plan.size, s.state.epoch, s.state.resume.step if s.state.resume else 0) == (3, 3, 8)
    assert "the grow comes to nothing" in s.said[-1]
    s.ready()
    node_returns(s)
    assert not only(LeaveEpoch, s.train(12)), "not at once again"
    assert only(LeaveEpoch, s.commit(13))


def test_ranks_that_do_not_leave_in_time_are_fenced() -> None:
    s = shrunk()
    node_returns(s)
    s.train(7)
    s.now = 79_000
    assert not only(FenceEpoch, observe(s))
    s.now = 80_000
    assert len(only(FenceEpoch, observe(s))) == 3
    assert s.state.recoveries[-1].failure is FailureClass.PLANNED
    s.leave_all(7)
    assert (s.plan.size, s.state.steps_lost) == (4, 0)


def test_a_restarted_supervisor_asks_again() -> None:
    s = shrunk()
    node_returns(s)
    s.train(7)
    s.now = 500_000
    s.tell(ev.SupervisorRestarted(s.now))
    assert only(LeaveEpoch, s.hello(s.workers[0], epoch=2, running=True))
    assert not only(FenceEpoch, observe(s)), "its limit begins anew"
    s.commit(8)
    held = s.held(0, at=8)
    s.hello(s.workers[0], epoch=2, running=False, held=held)
    assert s.state.recoveries[-1].failure is FailureClass.PLANNED


def test_groups_that_break_while_the_ranks_are_to_leave_are_a_failure() -> None:
    s = shrunk()
    node_returns(s)
    s.train(7)
    budget = s.state.budget
    out = s.leave(s.workers[0], s.held(0, at=7, params=-1), fenced=False)
    assert len(only(FenceEpoch, out)) == 2
    assert (s.state.recoveries[-1].failure, s.state.budget) == (FailureClass.COLLECTIVE_BROKEN, budget - 1)


def test_peer_copies_return_with_the_second_node() -> None:
    s = running(at=3, data=2, nodes=2, more_nodes=0, spares=0)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 2, dead=(1,))))
    s.leave_all(3)
    s.ready()
    assert (s.plan.size, s.plan.copies) == (1, 0)
    s.train(8)
    s.tell(ev.ClusterChanged(s.now, cluster(3, 2)))
    s.hello_all()
    s.depart()
    assert (s.plan.size, s.plan.copies) == (2, 1)


def test_two_ranks_on_one_node_get_their_copies_back_by_a_move() -> None:
    s = running(at=3, data=2, nodes=2, more_nodes=0, spares=0, slots=2)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 2, dead=(1,), slots=2)))
    s.hello_all()
    s.leave_all(3)
    s.ready()
    assert (s.plan.size, s.plan.copies, {x.node_id for x in s.plan.seats}) == (2, 0, {"n0"})
    s.train(8)
    s.tell(ev.ClusterChanged(s.now, cluster(3, 2, slots=2)))
    s.hello_all()
    kinds = []
    while s.plan.copies == 0:
        if s.state.change is None:
            s.commit(s.state.committed_step + 1)
        else:
            kinds.append(s.state.change.kind)
            s.depart()
            s.ready()
        assert s.state.committed_step < 30
    assert {x.node_id for x in s.plan.seats} == {"n0", "n1"}
    assert kinds == [ChangeKind.HANDOVER, ChangeKind.MOVE, ChangeKind.GROW]
    assert s.state.steps_lost == 0


# ---- scale


def aim(s: Story) -> ChangeKind | None:
    """What the planned change under way is for."""
    return s.state.change.kind if s.state.change else None


def test_scaled_down_it_gives_whole_nodes_back_and_what_only_they_hold_is_handed_over_first() -> None:
    s = running(at=3, data=4, copies=0, spares=0, more_nodes=0)
    out = s.tell(ev.ScaleRequested(s.now, 2, (), "me"))
    assert len(only(LeaveEpoch, out)) == 4
    assert aim(s) is ChangeKind.HANDOVER
    s.depart()
    assert (s.plan.size, s.state.resume.source if s.state.resume else "") == (4, Source.MEMORY)
    s.ready()
    assert aim(s) is ChangeKind.MOVE
    s.depart()
    assert s.workers == ["j/w0", "j/w1"]
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step, s.state.steps_lost) == (Source.MEMORY, 5, 0)
    assert [w.phase for w in s.state.workers.values()].count(WorkerPhase.LEFT) == 2, "until the others have its state"
    s.ready()
    assert [w.phase for w in s.state.workers.values()].count(WorkerPhase.ENDED) == 2
    assert not only(LeaveEpoch, s.train(12)), "it is at full strength now"


def test_scaled_down_with_copies_there_is_nothing_to_hand_over() -> None:
    s = running(at=3, data=4, zero=0, spares=0, more_nodes=0)
    s.tell(ev.ScaleRequested(s.now, 3, (), "me"))
    s.depart()
    assert s.workers == ["j/w0", "j/w1", "j/w2"]


def test_spares_that_a_smaller_job_does_not_want_end() -> None:
    s = running(at=3, zero=0, spares=2, more_nodes=0)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 8)))
    s.hello_all()
    s.gone("j/w3")
    s.leave_all(3)
    s.ready()
    s.hello_all()
    s.tell(ev.ScaleRequested(s.now, 2, (), "me"))
    s.depart()
    s.ready()
    phases = [w.phase for w in s.state.workers.values()]
    assert (phases.count(WorkerPhase.MEMBER), phases.count(WorkerPhase.SPARE)) == (2, 2)
    s.tell(ev.ScaleRequested(s.now, 1, (), "me"))
    s.depart()
    s.ready()
    phases = [w.phase for w in s.state.workers.values()]
    assert (phases.count(WorkerPhase.MEMBER), phases.count(WorkerPhase.SPARE)) == (1, 2)


def test_a_spare_on_its_way_is_not_wanted_any_more_once_the_job_is_smaller() -> None:
    s = running(at=3, zero=0, spares=0, more_nodes=0)
    s.gone("j/w3")
    s.leave_all(3)
    s.ready()
    assert s.plan.size == 3
    s.tell(ev.ScaleRequested(s.now, 3, (), "me"))
    assert [w.phase for w in s.state.workers.values()].count(WorkerPhase.REQUESTED) == 0
    assert "the job needs no more workers" in s.said[-1]


def test_scaled_up_it_asks_for_workers_and_does_not_wait_for_steps_to_go_by() -> None:
    s = running(at=3, data=2, nodes=2, more_nodes=2, spares=0)
    out = s.tell(ev.ScaleRequested(s.now, 4, (), "me"))
    assert len(only(SpawnWorker, out)) == 2
    assert len(only(LeaveEpoch, s.hello_all())) == 2
    s.depart()
    assert (s.plan.size, s.plan.axis(DATA)) == (4, 4)


def test_a_scale_that_makes_no_sense_is_refused_with_a_reason() -> None:
    s = running(at=3, ranks_min=2)
    for nodes, layers, words in (
        (9, (), "8 micro-batches per step cannot feed 9 data-parallel ranks"),
        (1, (), "fewer than the least that the job trains with, 2"),
        (0, (2, 2), "do not add up to the model's 1 layers"),
    ):
        before = s.state
        assert not s.tell(ev.ScaleRequested(s.now, nodes, layers, "me"))
        assert words in s.said[-1]
        assert s.state == before
    s.tell(ev.ScaleRequested(s.now, 4, (), "me"))
    assert "nothing to do" in s.said[-1]


def test_other_stages_may_be_asked_for() -> None:
    s = running(at=3, data=1, pipeline=2, nodes=2, zero=0, spares=0, graph=DEEP)
    assert [st.last - st.first for st in s.plan.stages] == [2, 2]
    assert len(only(LeaveEpoch, s.tell(ev.ScaleRequested(s.now, 0, (3, 1), "me")))) == 2
    s.depart()
    assert [st.last - st.first for st in s.plan.stages] == [3, 1]
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.steps_lost) == (Source.MEMORY, 0)
    s.ready()
    assert not only(LeaveEpoch, s.train(12))


def test_as_many_ranks_in_another_arrangement() -> None:
    s = running(at=3, data=2, pipeline=2, zero=0, spares=0, graph=DEEP)
    s.tell(ev.ScaleRequested(s.now, 0, (1, 1, 1, 1), "me"))
    assert aim(s) is ChangeKind.RESHAPE
    s.depart()
    assert (s.plan.axis(PIPELINE), s.plan.axis(DATA), s.state.steps_lost) == (4, 1, 0)
    s.ready()
    assert not only(LeaveEpoch, s.train(12))


def test_who_gave_its_seat_away_takes_one_again_when_too_few_are_left() -> None:
    s = running(at=3, more_nodes=0, spares=0, data=2, pipeline=2, graph=DEEP, ranks_min=2)
    s.tell(ev.CheckpointReported(s.now, s.workers[0], 1, 3, "/c/3", True, "digest"))
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4, dead=(3,))))
    s.leave_all(3)
    assert (s.workers, s.state.workers["j/w1"].phase) == (["j/w0", "j/w2"], WorkerPhase.LEFT)
    s.tell(ev.ClusterChanged(s.now, cluster(3, 4, dead=(0, 3))))
    assert only(RunEpoch, s.leave("j/w2", None)), s.said[-1]
    assert s.state.resume is not None
    assert (sorted(s.workers), s.state.resume.source) == (["j/w1", "j/w2"], Source.CHECKPOINT)
