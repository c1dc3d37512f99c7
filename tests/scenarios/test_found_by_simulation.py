"""What the simulator found: each was a seed of `make sim` once."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import Action, CheckpointSettings, DeviceKind
from orchestrator.core.plan.plan import PIPELINE
from orchestrator.core.planner.strategy import Space
from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import MeasureWorker, RunEpoch, SpawnWorker
from orchestrator.core.supervisor.handover import missing
from orchestrator.core.supervisor.state import JobPhase, WorkerPhase
from orchestrator.spec.policies import LOSSES, policies
from orchestrator.testkit.jobs import make_costs, make_measure
from tests.scenarios.story import DEEP, Story, cluster, commit_of, held_of, make_job, only, running

WAIT_ONLY = policies(dict.fromkeys(LOSSES, (Action.WAIT,)))


def test_waiting_ends_when_a_spare_is_there_also_when_the_policy_does_not_say_swap() -> None:
    s = running(spares=0, policies=WAIT_ONLY)
    s.gone("j/w3")
    assert not only(RunEpoch, s.leave_all(3))
    assert s.state.phase == JobPhase.WAITING
    s.hello_all()
    assert [r.phase for r in [s.state]] == [JobPhase.FORMING]
    assert s.plan.size == 4


def test_a_job_that_was_scaled_down_does_not_wait_for_workers_that_nobody_asks_for() -> None:
    s = running(spares=0, more_nodes=0, policies=WAIT_ONLY)
    s.tell(ev.ScaleRequested(s.now, 2, (), "me"))
    s.gone("j/w3")
    runs = only(RunEpoch, s.leave_all(3))
    assert len(runs) == s.plan.size == 2, "full strength is two ranks, and three workers are there"


def test_a_job_that_is_scaled_to_one_rank_before_it_began_does_not_wait_for_a_peer() -> None:
    s = Story(make_job(spares=0))
    s.tell(ev.ScaleRequested(s.now, 1, (), "me"))
    assert len(s.launch(1)) == 1
    assert s.plan.copies == 0


def test_a_commit_that_only_a_survivor_without_a_seat_knows_of_counts() -> None:
    s = running(at=5, data=2, pipeline=2, spares=0, more_nodes=0, graph=DEEP)
    first, *_, last = s.workers
    s.gone(last)
    for rank in (0, 2):
        s.leave(s.workers[rank], s.held(rank, at=5, prepared=True, commit=commit_of(5)))
    s.leave(s.workers[1], s.held(1, at=6, commit=commit_of(6)))
    assert s.plan.axis(PIPELINE) == s.plan.size == 2
    assert "j/w1" not in s.workers
    assert first in s.workers
    assert s.state.resume is not None
    assert (s.state.resume.step, s.state.resume.commit) == (6, commit_of(6))


def on(*node_ids: str, generation: int = 1) -> ev.ClusterChanged:
    """The cluster: nodes of one slot each, of which several may share a machine (`n0@m1`)."""
    return ev.ClusterChanged(
        0, ClusterView(generation, tuple(NodeView(n, "", DeviceKind.CPU, 1, 1 << 30, True) for n in node_ids))
    )


def started(s: Story, *node_ids: str, at: int) -> None:
    """Every worker that is asked for on these nodes says hello, the first epoch runs, and `at` steps are committed."""
    out = [c for spawn in only(SpawnWorker, s.tell(on(*node_ids))) for c in s.hello(spawn.worker_id)]
    for asked in only(MeasureWorker, out):
        s.tell(ev.WorkerMeasured(s.now, asked.worker_id, make_measure(), make_costs(DEEP)))
    s.ready()
    s.train(at)


def test_survivors_that_hold_everything_wait_for_a_worker_when_no_smaller_plan_would_keep_all_of_it() -> None:
    s = Story(make_job(data=2, tensor=2, spares=0, nodes=4, checkpoint=CheckpointSettings("", 0, 1)))
    started(s, "n0@a", "n1@a", "n2@b", "n3@a", at=5)
    alone = next(seat.worker_id for seat in s.plan.seats if seat.node_id == "n2@b")
    s.gone(alone)
    assert not only(RunEpoch, s.leave_all(5))
    assert s.state.phase == JobPhase.WAITING, s.said[-1]
    assert only(RunEpoch, s.hello_all())
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step, s.plan.size) == (Source.MEMORY, 5, 4)


def test_a_job_scaled_beyond_the_planners_replicas_keeps_two_of_everything() -> None:
    space = Space(pipelines=(1,), tensors=(1,), datas=(4,), zeros=(1,), ranks_max=5)
    job = make_job(nodes=5, spares=0, grow_after=1)
    s = Story(replace(job, planner=replace(job.planner, auto=True, space=space)), graph=DEEP, costs=make_costs(DEEP))
    started(s, *(f"n{i}" for i in range(5)), at=2)
    assert (s.plan.size, s.plan.shard, s.plan.copies) == (4, 2, 0), "replicas hold each half"
    s.tell(ev.ScaleRequested(s.now, 5, (), "me"))
    s.depart()
    assert (s.plan.size, s.plan.shard) == (5, 5)
    assert not any(missing(s.plan, [rank]) for rank in range(5))


def test_a_machine_that_dies_while_a_drained_rank_moves_takes_no_state_along() -> None:
    s = running(at=3, data=3, spares=1, checkpoint=CheckpointSettings("", 0, 1))
    s.tell(ev.DrainRequested(s.now, "n0", "me", ""))
    old = s.plan
    s.depart()
    assert "j/w0" not in s.workers
    s.gone("j/w1")  # the epoch forms: what rank 1 owned has its copy on rank 2, or on the one that is to go
    for worker_id in s.workers:
        seat = old.seat_of(worker_id)
        if seat is not None and worker_id != "j/w1":
            s.leave(worker_id, held_of(old, seat.rank, at=4))
        elif seat is None:
            s.leave(worker_id, None)
    assert s.state.phase is not JobPhase.FAILED, s.state.last_word
    s.hello_all()
    assert s.state.resume is not None
    assert (s.state.phase, s.state.resume.source, s.state.resume.step) == (JobPhase.FORMING, Source.MEMORY, 4)
    s.ready()
    assert (s.state.steps_lost, s.state.workers["j/w0"].phase.alive) == (0, "j/w0" in s.workers)


def test_who_gave_its_seat_away_and_dies_before_the_next_epoch_runs_breaks_nothing() -> None:
    s = running(at=3)
    s.tell(ev.DrainRequested(s.now, "n1", "me", ""))
    s.depart()
    assert s.state.workers["j/w1"].phase == WorkerPhase.LEFT
    s.gone("j/w1")
    assert (s.state.phase, s.state.budget) == (JobPhase.FORMING, 3)
    s.ready()
    assert s.state.phase == JobPhase.RUNNING


def test_a_failing_node_that_is_said_to_be_gone_is_not_used_again() -> None:
    s = running(at=3, spares=0, budget=10, grow_after=100)
    for n in (1, 4, 5):
        s.gone(f"j/w{n}")
        s.leave_all(s.state.committed_step)
        s.hello_all()
        s.ready()
    assert s.state.failing == ("n1",), s.said
    assert "n1" in s.state.drained
    s.tell(ev.NodeGone(s.now, "n1", "kubernetes", "the Node object was deleted"))
    s.gone(s.workers[0])
    s.tell(ev.ClusterChanged(s.now, cluster(5, 5, dead=(2, 3, 4))))
    assert "n1" in s.state.drained, "room or no room"
    assert not any(w.node_id == "n1" for w in s.state.workers.values() if w.phase == WorkerPhase.REQUESTED)


def test_a_job_with_no_spare_left_shrinks_onto_who_gave_its_seat_away_when_the_state_needs_it() -> None:
    s = running(at=3, data=3, nodes=3, spares=0, more_nodes=0, slots=2, checkpoint=CheckpointSettings("", 0, 1))
    s.tell(ev.ReplaceRequested(s.now, "j/w0", "me"))
    s.hello_all()
    old = s.plan
    s.depart()
    (heir,) = set(s.workers) - {seat.worker_id for seat in old.seats}
    s.gone("j/w1", heir)
    s.leave("j/w2", held_of(old, 2, at=4))
    assert s.state.phase == JobPhase.FORMING, s.said[-1]
    assert set(s.workers) == {"j/w0", "j/w2"}
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step) == (Source.MEMORY, 4)
