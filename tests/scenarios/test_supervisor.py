"""The supervisor itself: its end of the job, its restarts, and words that come late or twice."""

from __future__ import annotations

import pytest

from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import (
    EndJob,
    ExitWorker,
    FenceEpoch,
    KillWorker,
    ProbeWorker,
    RunEpoch,
    SpawnWorker,
)
from orchestrator.core.supervisor.machine import refusal, step
from orchestrator.core.supervisor.staff import DEAD_MAX
from orchestrator.core.supervisor.state import JobPhase, Outcome, WorkerPhase
from tests.scenarios.story import Story, make_job, observe, only, running


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


def test_who_leaves_an_epoch_that_was_not_fenced_breaks_it_whatever_it_says() -> None:
    s = running(data=1, zero=0)
    s.leave("j/w0", s.held(0, at=3), fenced=True)
    assert s.state.epoch == 2


def test_a_fence_that_was_not_heard_is_repeated_with_its_reason() -> None:
    s = running(at=3)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    s.now = 3500
    assert len(only(FenceEpoch, observe(s))) == 3
    assert "j/w0" in s.said[-1]


@pytest.mark.parametrize("zero", [0, 1])
def test_stale_words_change_nothing(zero: int) -> None:
    s = running(zero=zero)
    s.tell(ev.WorkerGone(s.now, "j/w2", "refused"))
    before = s.state
    for stale in (
        ev.LeftEpoch(s.now, "j/w0", 0, True, None, ""),
        ev.EpochReady(s.now, "j/w2", 1),
        ev.RankFinished(s.now, "j/w2", 1, 20, "x"),
        ev.StepCommitted(s.now, "j/w2", 1, 9, 1.0, 1.0, 1.0, 1.0, 1.0, 1, False, 1.0),
        ev.WorkerGone(s.now, "j/w2", "again"),
    ):
        decision = step(s.state, stale)
        assert decision.state == before, stale
        assert not decision.commands


def test_a_restarted_supervisor_ends_those_again_that_were_told_to_end() -> None:
    s = running()
    s.tell(ev.WorkerGone(s.now, "j/w4", "refused"))
    s.tell(ev.SpawnFailed(s.now, "j/w5", "no room"))
    assert s.state.workers["j/w5"].phase is WorkerPhase.ENDED
    killed = {c.worker_id for c in only(KillWorker, s.tell(ev.SupervisorRestarted(s.now)))}
    assert killed == {"j/w4", "j/w5"}


def test_dead_workers_are_forgotten_one_day_and_refused_all_the_same() -> None:
    s = running(at=0, steps=DEAD_MAX + 20, budget_refill_steps=1)
    spare = "j/w4"
    for n in range(1, DEAD_MAX + 11):
        s.commit(n)  # so that the losses are far apart
        asked = only(SpawnWorker, s.tell(ev.WorkerGone(s.now, spare, "refused")))
        spare = asked[0].worker_id
        s.hello(spare)
    assert len([w for w in s.state.workers.values() if not w.phase.alive]) == DEAD_MAX
    assert {seat.worker_id for seat in s.plan.seats} <= set(s.state.workers)
    assert "not a worker" in refusal(s.state, "j/w4")
    assert "declared lost" in refusal(s.state, f"j/w{DEAD_MAX + 13}")
