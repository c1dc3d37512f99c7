"""Workers and nodes are lost: who is believed to be, what the others do, and where the state comes from."""

from __future__ import annotations

from orchestrator.core.job import FailureClass
from orchestrator.core.plan.layout import Interval
from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import (
    DumpStacks,
    FenceEpoch,
    KillWorker,
    ProbeWorker,
    RunEpoch,
    SpawnWorker,
)
from orchestrator.core.supervisor.machine import refusal
from orchestrator.core.supervisor.state import CheckpointRef, JobPhase, Outcome, WorkerPhase
from tests.scenarios.story import WAIT, Story, cluster, commit_of, make_job, observe, only, running


def test_a_killed_worker_is_swapped_and_only_its_state_moves() -> None:
    s = running(at=3)
    assert only(ProbeWorker, s.tell(ev.WorkerDisconnected(s.now, "j/w2", "EOF")))
    assert s.state.phase is JobPhase.RUNNING, "a broken stream proves nothing"
    out = s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    assert [c.worker_id for c in only(FenceEpoch, out)] == ["j/w0", "j/w1", "j/w3"]
    assert [c.worker_id for c in only(KillWorker, out)] == ["j/w2"]
    assert only(SpawnWorker, out), "its slot is free, so it is replaced in the background"
    runs = only(RunEpoch, s.leave_all(3))
    assert [r.worker_id for r in runs] == ["j/w0", "j/w1", "j/w4", "j/w3"]
    resume = runs[0].resume
    assert (resume.source, resume.step, resume.fresh) == (Source.MEMORY, 3, (2,))
    assert {t.dst for t in resume.transfers} == {2}, "survivors keep what they have"
    optimizer = [(t.src, Interval(t.start, t.stop)) for t in resume.transfers if t.tensor == "optimizer"]
    assert optimizer == [(1, Interval(2048, 4096)), (3, Interval(4096, 6144))]
    s.ready()
    s.commit(4)
    r = s.state.recoveries[-1]
    assert (r.lost, r.at_step, r.steps_lost) == (("j/w2",), 3, 0)
    assert refusal(s.state, "j/w2").startswith("j/w2 was declared lost")


def test_silence_is_shown_half_way_and_decided_at_the_limit() -> None:
    s = running()
    assert observe(s, w1={"silence_ms": 3000}) == []
    assert s.state.workers["j/w1"].suspect
    assert s.state.phase is JobPhase.RUNNING
    observe(s)
    assert not s.state.workers["j/w1"].suspect
    out = observe(s, w1={"silence_ms": 3500})
    assert s.state.workers["j/w1"].phase is WorkerPhase.LOST
    assert len(only(FenceEpoch, out)) == 3


def test_a_standstill_in_user_code_dumps_stacks_first_and_waiting_peers_are_not_to_blame() -> None:
    s = running()
    peers = {f"w{i}": {"stalled_ms": 9999, "in_comm": True} for i in (0, 2, 3)}
    out = observe(s, w1={"stalled_ms": 2700}, **peers)
    assert [c.worker_id for c in only(DumpStacks, out)] == ["j/w1"]
    observe(s, w1={"stalled_ms": 3600}, **peers)
    assert {w.worker_id for w in s.state.workers.values() if w.phase is WorkerPhase.LOST} == {"j/w1"}


def test_a_slow_phase_that_was_seen_before_is_no_hang() -> None:
    s = running()
    assert not only(FenceEpoch, observe(s, w1={"stalled_ms": 9000, "usual_ms": 3000}))


def test_rank_past_the_commit_rolls_everybody_forward() -> None:
    s = running(at=3)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    c = commit_of(4)
    s.leave("j/w0", s.held(0, at=4, commit=c, params=-1))
    s.leave("j/w1", s.held(1, at=3, prepared=True))
    runs = only(RunEpoch, s.leave("j/w3", s.held(3, at=3, prepared=True)))
    resume = runs[0].resume
    assert (resume.step, resume.commit, resume.fresh) == (4, c, (2,))
    assert {t.dst for t in resume.transfers if t.tensor == "params"} == {0, 1, 2, 3}, "the params gather is done again"


def test_commit_that_only_the_supervisor_knows_counts() -> None:
    s = running(at=3)
    s.commit(4, "j/w2")  # says it, then dies
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    out = [c for r, w in ((0, "j/w0"), (1, "j/w1"), (3, "j/w3")) for c in s.leave(w, s.held(r, at=3, prepared=True))]
    assert only(RunEpoch, out)[0].resume.step == 4
    assert s.state.steps_lost == 0


def test_node_loss_takes_its_workers_and_a_later_node_brings_spares_back() -> None:
    s = running()
    out = s.tell(ev.ClusterChanged(s.now, cluster(2, 5, dead=(1,))))
    assert [c.worker_id for c in only(KillWorker, out)] == ["j/w1"]
    assert not only(SpawnWorker, out), "no room"
    assert only(RunEpoch, s.leave_all(3))
    assert [c.node_id for c in only(SpawnWorker, s.tell(ev.ClusterChanged(s.now, cluster(3, 6, dead=(1,)))))] == ["n5"]


def test_two_lost_at_once_with_both_holders_of_a_shard_fall_back_to_the_checkpoint() -> None:
    s = running(at=3, spares=1, policies=WAIT)
    s.tell(ev.CheckpointReported(s.now, "j/w0", 1, 2, "file:///c", True, "d"))
    s.tell(ev.WorkerGone(s.now, "j/w1", "refused"))
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    s.leave_all(3)
    out = []
    for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]:
        out += s.hello(w.worker_id)
    resume = only(RunEpoch, out)[0].resume
    assert (resume.source, resume.step) == (Source.CHECKPOINT, 2)
    assert s.state.steps_lost == 1
    assert s.state.committed_step == 2


def test_two_lost_at_once_without_a_checkpoint_ends_with_a_clear_last_word() -> None:
    s = running(at=3, spares=2, nodes=4)
    s.tell(ev.WorkerGone(s.now, "j/w1", "refused"))
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    s.leave_all(3)
    s.hello_all()
    assert (s.state.phase, s.state.outcome) == (JobPhase.FAILED, Outcome.UNRECOVERABLE)
    assert "no durable checkpoint" in s.state.last_word


def test_a_loss_during_a_recovery_uses_what_the_older_plan_described() -> None:
    s = running(at=3, spares=1)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    old = {w: s.held(r, at=3) for r, w in ((0, "j/w0"), (1, "j/w1"), (3, "j/w3"))}
    for w, h in old.items():
        s.leave(w, h)
    assert s.state.epoch == 2
    spare = next(w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED)
    s.hello(spare.worker_id)
    s.tell(ev.WorkerGone(s.now, "j/w4", "refused"))  # the spare that had just been given the rank
    out = [c for w, h in old.items() for c in s.tell(ev.LeftEpoch(s.now, w, 2, True, h, "fenced while restoring"))]
    runs = only(RunEpoch, out)
    assert [r.worker_id for r in runs] == ["j/w0", "j/w1", spare.worker_id, "j/w3"]
    assert (runs[0].plan.epoch, runs[0].resume.step, runs[0].resume.fresh) == (3, 3, (2,))


def test_budget_is_spent_without_progress_and_refills_with_it() -> None:
    s = running(at=3, budget=1)
    s.tell(ev.LeftEpoch(s.now, "j/w0", 1, False, s.held(0, at=3), "reset by peer"))
    s.leave_all(3)
    s.ready()
    for n in range(4, 9):
        s.commit(n)
    assert s.state.budget == 1
    s.tell(ev.LeftEpoch(s.now, "j/w0", 2, False, s.held(0, at=8), "reset by peer"))
    s.leave_all(8)
    s.ready()
    s.tell(ev.LeftEpoch(s.now, "j/w0", 3, False, s.held(0, at=8), "reset by peer"))
    assert (s.state.phase, s.state.outcome) == (JobPhase.FAILED, Outcome.BUDGET_SPENT)


def test_a_commit_that_a_recovery_went_by_outlives_who_told_of_it() -> None:
    s = running(at=3, spares=2)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 7)))
    s.hello_all()
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    s.leave("j/w0", s.held(0, at=4, commit=commit_of(4), params=-1))
    prepared = {w: s.held(r, at=3, prepared=True) for r, w in ((1, "j/w1"), (3, "j/w3"))}
    out = [c for w, h in prepared.items() for c in s.leave(w, h)]
    assert only(RunEpoch, out)[0].resume.step == 4
    s.tell(ev.WorkerGone(s.now, "j/w0", "refused"))  # before anybody has rolled forward
    out = []
    for member in [w for w in s.state.workers.values() if w.phase is WorkerPhase.MEMBER]:
        held = prepared.get(member.worker_id)
        out += s.tell(ev.LeftEpoch(s.now, member.worker_id, 2, True, held, "fenced while restoring"))
    runs = only(RunEpoch, out)
    assert (runs[0].plan.epoch, runs[0].resume.source, runs[0].resume.step) == (3, Source.MEMORY, 4)


def test_two_lost_ranks_go_to_spares_on_two_nodes_when_copies_need_them() -> None:
    s = Story(make_job(data=2, nodes=2, spares=2, slots=2))
    s.tell(ev.ClusterChanged(0, cluster(1, 2, slots=2)))
    assert len(s.hello_all()) == 2
    s.tell(ev.WorkerGone(s.now, "j/w0", "refused"))  # before any state was there
    s.tell(ev.WorkerGone(s.now, "j/w1", "refused"))
    runs = s.hello_all() or only(RunEpoch, observe(s))
    assert s.state.phase is JobPhase.FORMING
    assert {seat.node_id for seat in s.plan.seats} == {"n0", "n1"}
    assert runs or s.state.epoch == 2


def test_a_damaged_checkpoint_gives_way_to_the_one_before() -> None:
    s = running(at=6, policies=WAIT)
    assert s.state.job.checkpoint.keep == 3
    for at in (2, 4, 6):
        s.tell(ev.CheckpointReported(s.now, "j/w0", 1, at, f"/c/{at}", True, "d"))
    assert s.state.checkpoint == CheckpointRef(6, "/c/6", "d")
    assert [c.step for c in s.state.older_checkpoints] == [4, 2]
    s.tell(ev.CheckpointReported(s.now, "j/w0", 1, 6, "/c/6", False, "a disk was full"))
    assert s.state.checkpoint == CheckpointRef(6, "/c/6", "d"), "a failure to write says nothing about what was written"
    ranks = s.workers
    for rank in ranks:
        s.tell(ev.WorkerGone(s.now, rank, "refused"))
    s.hello_all()
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.checkpoint_uri) == (Source.CHECKPOINT, "/c/6")
    epoch = s.state.epoch
    reader, other = s.workers[:2]
    s.tell(ev.CheckpointReported(s.now, reader, epoch, 6, "/c/6", False, "half a file"))
    assert s.state.checkpoint == CheckpointRef(4, "/c/4", "d")
    s.tell(ev.CheckpointReported(s.now, other, epoch, 6, "/c/6", False, "half a file"))
    assert s.state.checkpoint == CheckpointRef(4, "/c/4", "d"), "the second complaint is about the same one"
    for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.MEMBER]:
        s.tell(ev.LeftEpoch(s.now, w.worker_id, epoch, False, None, "half a file"))
    assert s.state.resume.checkpoint_uri == "/c/4"
    assert (s.state.committed_step, s.state.steps_lost) == (4, 2)


def test_a_step_that_was_lost_since_is_not_committed_by_an_old_word() -> None:
    s = running(at=6, spares=0)
    s.tell(ev.CheckpointReported(s.now, "j/w0", 1, 2, "/c/2", True, "d"))
    for rank in (1, 2):  # both holders of a shard
        s.tell(ev.WorkerGone(s.now, f"j/w{rank}", "refused"))
    s.leave_all(6)
    s.hello_all()
    assert s.state.resume is not None
    assert (s.state.epoch, s.state.resume.source, s.state.committed_step) == (2, Source.CHECKPOINT, 2)
    s.tell(
        ev.StepCommitted(s.now, "j/w0", 1, 6, 2.0, 1.0, 1.0, 1e-3, 100.0, 64, False, 2.0)
    )  # its stream broke: it says all again
    assert s.state.committed_step == 2
    s.ready()
    s.commit(3)
    assert (s.state.committed_step, s.state.steps_lost) == (3, 4)


def test_a_collective_that_broke_is_put_down_to_the_worker_that_was_lost() -> None:
    s = running()
    s.leave("j/w1", s.held(1, at=3), fenced=False)
    assert s.state.recoveries[-1].failure is FailureClass.COLLECTIVE_BROKEN
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    assert (s.state.recoveries[-1].failure, s.state.recoveries[-1].lost) == (FailureClass.WORKER_EXITED, ("j/w2",))
