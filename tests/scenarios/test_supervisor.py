"""Stories of failures, told to the core event by event."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.plan.layout import Interval
from orchestrator.core.reshard.recovery import Commit, Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import (
    DumpStacks,
    EndJob,
    ExitWorker,
    FenceEpoch,
    InjectFault,
    KillWorker,
    ProbeWorker,
    RunEpoch,
    SpawnWorker,
)
from orchestrator.core.supervisor.machine import refusal, step
from orchestrator.core.supervisor.staff import DEAD_MAX
from orchestrator.core.job import FailureClass
from orchestrator.core.supervisor.state import CheckpointRef, JobPhase, Outcome, WorkerPhase
from tests.scenarios.story import GRAPH, Story, cluster, make_job, only


def running(at: int = 3, **kw: int) -> Story:
    job = make_job(**kw)
    s = Story(job)
    assert len(s.launch(5, slots=job.cluster.slots_per_node)) == job.parallel.data
    s.ready()
    assert s.state.phase is JobPhase.RUNNING
    for n in range(1, at + 1):
        s.commit(n)
    return s


def observe(s: Story, **of: dict[str, int | bool]) -> list[object]:
    """A tick with one observation per live worker; overrides by worker number, e.g. w2={'silence_ms': 3600}."""
    base = {"silence_ms": 0, "stalled_ms": 0, "usual_ms": 100, "in_comm": False, "orphaned": False, "micro_batch_ms": 50}
    out = []
    for w in s.state.workers.values():
        if w.phase.alive:
            out.append(ev.Observation(worker_id=w.worker_id, **{**base, **of.get(w.worker_id.split("/")[1], {})}))  # type: ignore[arg-type]
    return list(s.tell(ev.Tick(s.now, tuple(out))))


def test_launch_asks_for_ranks_and_spares_one_per_slot() -> None:
    s = Story(make_job())
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(0, cluster(1, 5))))
    assert [(c.worker_id, c.node_id) for c in asked] == [(f"j/w{i}", f"n{i}") for i in range(5)]
    assert s.hello("j/w0") == []
    assert s.state.phase is JobPhase.WAITING


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
    assert len(only(FenceEpoch, out)) == 3  # type: ignore[arg-type]


def test_a_standstill_in_user_code_dumps_stacks_first_and_waiting_peers_are_not_to_blame() -> None:
    s = running()
    peers = {f"w{i}": {"stalled_ms": 9999, "in_comm": True} for i in (0, 2, 3)}
    out = observe(s, w1={"stalled_ms": 2700}, **peers)
    assert [c.worker_id for c in only(DumpStacks, out)] == ["j/w1"]  # type: ignore[arg-type]
    observe(s, w1={"stalled_ms": 3600}, **peers)
    assert {w.worker_id for w in s.state.workers.values() if w.phase is WorkerPhase.LOST} == {"j/w1"}


def test_a_slow_phase_that_was_seen_before_is_no_hang() -> None:
    s = running()
    assert not only(FenceEpoch, observe(s, w1={"stalled_ms": 9000, "usual_ms": 3000}))  # type: ignore[arg-type]


def test_rank_past_the_commit_rolls_everybody_forward() -> None:
    s = running(at=3)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    c = Commit(4, 2.0, 1.0, 1.0)
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


def test_no_spare_waits_visibly_and_goes_on_when_one_comes() -> None:
    s = running(spares=0)
    s.tell(ev.WorkerGone(s.now, "j/w3", "refused"))
    assert not only(RunEpoch, s.leave_all(3))
    assert s.state.phase is JobPhase.WAITING
    assert "1 spare(s) are missing" in s.said[-1]
    new = max(s.state.workers, key=lambda w: int(w.split("/w")[1]))
    assert only(RunEpoch, s.hello(new))


def test_two_lost_at_once_with_both_holders_of_a_shard_fall_back_to_the_checkpoint() -> None:
    s = running(at=3, spares=1)
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
    for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]:
        s.hello(w.worker_id)
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


def test_user_error_ends_the_job_with_the_traceback() -> None:
    s = running()
    out = s.tell(ev.TaskFailed(s.now, "j/w1", 1, 4, False, "Traceback ...\nValueError: bad shape"))
    assert s.state.outcome is Outcome.USER_ERROR
    assert "ValueError: bad shape" in s.state.last_word
    assert len(only(ExitWorker, out)) == 5
    assert only(EndJob, out)


def test_unequal_digests_stop_the_run_and_say_who() -> None:
    s = running()
    for w in ("j/w0", "j/w1", "j/w2"):
        s.tell(ev.DigestReported(s.now, w, 1, 3, "aaaa"))
    s.tell(ev.DigestReported(s.now, "j/w3", 1, 3, "bbbb"))
    assert s.state.outcome is Outcome.CORRUPT_STATE
    assert "j/w3: bbbb" in s.state.last_word


def test_finish_needs_every_rank_with_equal_digests() -> None:
    s = running()
    for seat in s.plan.seats:
        assert s.state.phase is JobPhase.RUNNING
        s.tell(ev.RankFinished(s.now, seat.worker_id, 1, 20, "d"))
    assert (s.state.phase, s.state.outcome) == (JobPhase.SUCCEEDED, Outcome.COMPLETED)


def test_a_restarted_supervisor_repeats_what_may_not_have_happened() -> None:
    s = running()
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))  # fences; the fence commands may be lost with the supervisor
    out = s.tell(ev.SupervisorRestarted(s.now + 2000))
    assert {c.worker_id for c in only(ProbeWorker, out)} == {"j/w0", "j/w1", "j/w3", "j/w4"}
    assert only(KillWorker, out)
    assert only(FenceEpoch, s.hello("j/w0", epoch=1, running=True))
    s.leave("j/w0", s.held(0, at=3))
    out = s.hello("j/w1", epoch=1, running=False, held=s.held(1, at=3))
    assert s.state.workers["j/w1"].phase is WorkerPhase.LEFT
    s.hello("j/w4")
    s.hello("j/w3", epoch=1, running=True)
    assert only(RunEpoch, s.leave("j/w3", s.held(3, at=3)))


def test_a_worker_that_never_got_the_run_command_gets_it_again() -> None:
    s = Story(make_job())
    s.launch(5)
    assert s.state.phase is JobPhase.FORMING
    s.tell(ev.SupervisorRestarted(0))
    assert only(RunEpoch, s.hello("j/w0", epoch=0))


def test_drain_waits_for_a_spare_and_costs_no_budget() -> None:
    s = running(at=3)
    out = s.tell(ev.DrainRequested(s.now, "n1", "me"))
    assert len(only(FenceEpoch, out)) == 4
    runs = only(RunEpoch, s.leave_all(3))
    assert "j/w1" not in [r.worker_id for r in runs]
    assert s.state.budget == 3
    assert s.state.workers["j/w1"].phase is WorkerPhase.ENDED


def test_a_drain_never_takes_the_only_holder_of_state() -> None:
    for s, node in ((running(data=1, zero=0), "n0"), (running(data=2, nodes=1, slots=1), "n1")):
        before = s.state
        assert not s.tell(ev.DrainRequested(s.now, node, "me"))
        assert s.state == before
        assert "refused: nobody else holds the state of rank(s)" in s.said[-1]


def test_both_holders_of_a_shard_are_drained_one_after_the_other() -> None:
    s = running(at=3, spares=2)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 8)))
    for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]:
        s.hello(w.worker_id)
    s.state = replace(s.state, drained=("n1", "n2"))
    assert only(FenceEpoch, observe(s))  # type: ignore[arg-type]
    for _ in range(2):
        s.leave_all(3)
        assert s.state.resume is not None
        assert (s.state.resume.source, s.state.resume.step) == (Source.MEMORY, 3)
        s.ready()
        for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]:
            s.hello(w.worker_id)
    assert s.state.phase is JobPhase.RUNNING
    assert not {"n1", "n2"} & {seat.node_id for seat in s.plan.seats}


def test_a_drained_rank_keeps_its_seat_when_its_spare_is_needed_elsewhere() -> None:
    s = running(at=3, nodes=4)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    s.tell(ev.ClusterChanged(s.now, cluster(2, 5, dead=(2,))))
    s.tell(ev.DrainRequested(s.now, "n1", "me"))
    runs = only(RunEpoch, s.leave_all(3))
    assert [r.worker_id for r in runs] == ["j/w0", "j/w1", "j/w4", "j/w3"], "no seat is left empty for a drain"


def test_a_commit_that_a_recovery_went_by_outlives_who_told_of_it() -> None:
    s = running(at=3, spares=2)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 7)))
    for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]:
        s.hello(w.worker_id)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    s.leave("j/w0", s.held(0, at=4, commit=Commit(4, 2.0, 1.0, 1.0), params=-1))
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


def test_what_nobody_can_hold_is_not_believed() -> None:
    s = running(at=3)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    s.leave("j/w0", replace(s.held(0, at=3), plan_epoch=77))
    out = [c for r, w in ((1, "j/w1"), (3, "j/w3")) for c in s.leave(w, s.held(r, at=3))]
    assert "which nobody knows" in s.said[-1]
    assert only(RunEpoch, out)[0].resume.fresh == (0, 2)


def test_who_leaves_an_epoch_that_was_not_fenced_breaks_it_whatever_it_says() -> None:
    s = running(data=1, zero=0)
    s.leave("j/w0", s.held(0, at=3), fenced=True)
    assert s.state.epoch == 2


def test_a_fence_that_was_not_heard_is_repeated_with_its_reason() -> None:
    s = running(at=3)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    s.now = 3500
    assert len(only(FenceEpoch, observe(s))) == 3  # type: ignore[arg-type]
    assert "j/w0" in s.said[-1]


def test_spawn_failures_back_off() -> None:
    s = Story(make_job())
    s.tell(ev.ClusterChanged(0, cluster(1, 5)))
    assert not only(SpawnWorker, s.tell(ev.SpawnFailed(0, "j/w0", "no room")))
    s.now = 999
    assert not only(SpawnWorker, observe(s))  # type: ignore[arg-type]
    s.now = 1000
    assert only(SpawnWorker, observe(s))  # type: ignore[arg-type]


def test_a_worker_that_ends_before_its_hello_backs_off_too() -> None:
    s = Story(make_job())
    s.tell(ev.ClusterChanged(0, cluster(1, 5)))
    assert not only(SpawnWorker, s.tell(ev.WorkerGone(0, "j/w0", "exit code 1")))
    s.now = 1000
    assert only(SpawnWorker, observe(s))  # type: ignore[arg-type]


def test_other_code_is_refused() -> None:
    s = Story(make_job())
    s.tell(ev.ClusterChanged(0, cluster(1, 5)))
    s.hello("j/w0")
    w = s.state.workers["j/w1"]
    out = s.tell(ev.WorkerHello(0, w.worker_id, w.node_id, 1, "e:1", replace(GRAPH, fingerprint="x"), 0, False, None))
    assert only(ExitWorker, out)


def test_resume_from_a_checkpoint() -> None:
    s = Story(make_job(), checkpoint=CheckpointRef(10, "file:///c/10", "d"))
    resume = s.launch(5)[0].resume
    assert (resume.source, resume.step, resume.checkpoint_uri) == (Source.CHECKPOINT, 10, "file:///c/10")


@pytest.mark.parametrize("zero", [0, 1])
def test_stale_words_change_nothing(zero: int) -> None:
    s = running(zero=zero)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    before = s.state
    for stale in (
        ev.LeftEpoch(s.now, "j/w0", 0, True, None, ""),
        ev.EpochReady(s.now, "j/w2", 1),
        ev.RankFinished(s.now, "j/w2", 1, 20, "x"),
        ev.StepCommitted(s.now, "j/w2", 1, 9, 1.0, 1.0, 1.0, 1.0, 1.0, 1),
        ev.WorkerGone(s.now, "j/w2", "again"),
    ):
        decision = step(s.state, stale)
        assert decision.state == before, stale
        assert not decision.commands


def test_a_task_that_cannot_be_built_ends_the_job_with_its_traceback() -> None:
    s = Story(make_job())
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(0, cluster(1, 5))))
    while s.state.phase is JobPhase.WAITING:
        for c in asked:
            s.tell(ev.SpawnFailed(s.now, c.worker_id, "TaskError: no class Digit in convnet.py"))
        assert s.now <= 10_000, "it is retried for ever"
        s.now += 1000
        asked = only(SpawnWorker, observe(s))  # type: ignore[arg-type]
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


# ---- stories that the simulator found


def hello_all(s: Story, *but: str) -> list[RunEpoch]:
    """Every worker that was asked for says hello."""
    out: list[RunEpoch] = []
    for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED and w.node_id not in but]:
        out += only(RunEpoch, s.hello(w.worker_id))
    return out


def test_two_lost_ranks_go_to_spares_on_two_nodes_when_copies_need_them() -> None:
    s = Story(make_job(data=2, nodes=2, spares=2, slots=2))
    s.tell(ev.ClusterChanged(0, cluster(1, 2, slots=2)))
    assert len(hello_all(s)) == 2
    s.tell(ev.WorkerGone(s.now, "j/w0", "refused"))  # before any state was there
    s.tell(ev.WorkerGone(s.now, "j/w1", "refused"))
    runs = hello_all(s) or only(RunEpoch, observe(s))  # type: ignore[arg-type]
    assert s.state.phase is JobPhase.FORMING
    assert {seat.node_id for seat in s.plan.seats} == {"n0", "n1"}
    assert runs or s.state.epoch == 2


def test_workers_on_one_node_only_ask_for_one_elsewhere_when_copies_need_it() -> None:
    s = running(data=2, nodes=2, spares=0, slots=2)
    assert {seat.node_id for seat in s.plan.seats} == {"n0", "n1"}
    s.tell(ev.ClusterChanged(s.now, cluster(2, 2, dead=(1,), slots=2)))
    assert not hello_all(s), "its replacement sits beside the survivor"
    s.leave_all(3)
    assert not hello_all(s)
    assert s.state.phase is JobPhase.WAITING
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(s.now, cluster(3, 3, dead=(1,), slots=2))))
    assert [c.node_id for c in asked] == ["n2"]
    assert len(hello_all(s)) == 2
    assert s.plan.seats[1].node_id == "n2"


def test_a_drain_waits_for_a_spare_on_another_node_than_the_copys() -> None:
    s = Story(make_job(data=2, nodes=2, spares=1, slots=2))
    assert len(s.launch(2, slots=2)) == 2
    s.ready()
    hello_all(s)
    assert [w.node_id for w in s.state.workers.values() if w.phase is WorkerPhase.SPARE] == ["n0"]
    assert not s.tell(ev.DrainRequested(s.now, "n1", "me"))
    assert s.state.phase is JobPhase.RUNNING, "with both ranks on n0 there would be no copy elsewhere"
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(s.now, cluster(2, 3, slots=2))))
    assert [c.node_id for c in asked] == ["n2"]
    assert len(only(FenceEpoch, s.hello(asked[0].worker_id))) == 2
    assert len(only(RunEpoch, s.leave_all(0))) == 2
    assert [seat.node_id for seat in s.plan.seats] == ["n0", "n2"]


def test_the_first_plan_does_not_put_all_ranks_on_the_node_that_is_ready_first() -> None:
    s = Story(make_job(data=2, nodes=2, spares=1, slots=2, zero=0))
    s.tell(ev.ClusterChanged(0, cluster(1, 2, slots=2)))
    on_n0 = [w.worker_id for w in s.state.workers.values() if w.node_id == "n0"]
    assert len(on_n0) == 2
    for worker_id in on_n0:
        assert s.hello(worker_id) == []
    assert len(hello_all(s)) == 2
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


def test_a_damaged_checkpoint_gives_way_to_the_one_before() -> None:
    s = running(at=6)
    assert s.state.job.checkpoint.keep == 3
    for at in (2, 4, 6):
        s.tell(ev.CheckpointReported(s.now, "j/w0", 1, at, f"/c/{at}", True, "d"))
    assert s.state.checkpoint == CheckpointRef(6, "/c/6", "d")
    assert [c.step for c in s.state.older_checkpoints] == [4, 2]
    s.tell(ev.CheckpointReported(s.now, "j/w0", 1, 6, "/c/6", False, "a disk was full"))
    assert s.state.checkpoint == CheckpointRef(6, "/c/6", "d"), "a failure to write says nothing about what was written"
    ranks = [seat.worker_id for seat in s.state.plan.seats] if s.state.plan else []
    for rank in ranks:
        s.tell(ev.WorkerGone(s.now, rank, "refused"))
    for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]:
        s.hello(w.worker_id)
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.checkpoint_uri) == (Source.CHECKPOINT, "/c/6")
    epoch = s.state.epoch
    reader, other = [seat.worker_id for seat in s.state.plan.seats][:2] if s.state.plan else ["", ""]
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
    for w in [w for w in s.state.workers.values() if w.phase is WorkerPhase.REQUESTED]:
        s.hello(w.worker_id)
    assert s.state.resume is not None
    assert (s.state.epoch, s.state.resume.source, s.state.committed_step) == (2, Source.CHECKPOINT, 2)
    s.tell(ev.StepCommitted(s.now, "j/w0", 1, 6, 2.0, 1.0, 1.0, 1e-3, 100.0, 64))  # its stream broke: it says all again
    assert s.state.committed_step == 2
    s.ready()
    s.commit(3)
    assert (s.state.committed_step, s.state.steps_lost) == (3, 4)


def test_a_restarted_supervisor_ends_those_again_that_were_told_to_end() -> None:
    s = running()
    s.tell(ev.WorkerGone(s.now, "j/w4", "refused"))
    s.tell(ev.SpawnFailed(s.now, "j/w5", "no room"))
    assert s.state.workers["j/w5"].phase is WorkerPhase.ENDED
    killed = {c.worker_id for c in only(KillWorker, s.tell(ev.SupervisorRestarted(s.now)))}
    assert killed == {"j/w4", "j/w5"}


def test_dead_workers_are_forgotten_one_day_and_refused_all_the_same() -> None:
    s = running()
    spare = "j/w4"
    for _ in range(DEAD_MAX + 10):
        asked = only(SpawnWorker, s.tell(ev.WorkerGone(s.now, spare, "refused")))
        spare = asked[0].worker_id
        s.hello(spare)
    assert len([w for w in s.state.workers.values() if not w.phase.alive]) == DEAD_MAX
    assert {seat.worker_id for seat in s.plan.seats} <= set(s.state.workers)
    assert "not a worker" in refusal(s.state, "j/w4")
    assert "declared lost" in refusal(s.state, f"j/w{DEAD_MAX + 13}")


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
    assert len(hello_all(s)) == 4


def test_a_collective_that_broke_is_put_down_to_the_worker_that_was_lost() -> None:
    s = running()
    s.leave("j/w1", s.held(1, at=3), fenced=False)
    assert s.state.recoveries[-1].failure is FailureClass.COLLECTIVE_BROKEN
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    assert (s.state.recoveries[-1].failure, s.state.recoveries[-1].lost) == (FailureClass.WORKER_EXITED, ("j/w2",))
