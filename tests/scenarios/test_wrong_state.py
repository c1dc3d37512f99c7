"""State that is wrong: corrupt replicas, steps that must not count, words that cannot be true, and checkpoints on request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.job import Action, CheckpointSettings, FailureClass
from orchestrator.core.plan.layout import Interval
from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, FenceEpoch, KillWorker, RunEpoch, TakeCheckpoint
from orchestrator.core.supervisor.state import JobPhase, Outcome, WorkerPhase
from orchestrator.spec.policies import policies
from tests.scenarios.story import Story, only, running

ROLLBACK = policies({FailureClass.CORRUPT_STATE: (Action.ROLLBACK, Action.FAIL)})


def corrupt(s: Story, *accused: int, by: int = 0) -> list[Command]:
    """A rank says that the vote was against these."""
    who, n = s.workers[by], s.state.committed_step
    return s.tell(ev.CorruptionFound(s.now, who, s.state.epoch, n, accused, "sums 1 and 2"))


def saved(s: Story, n: int) -> None:
    """A checkpoint of step n is durable."""
    s.tell(ev.CheckpointReported(s.now, s.workers[0], s.state.epoch, n, f"/c/{n}", True, "d"))


def test_the_accused_is_lost_and_what_it_holds_is_not_used() -> None:
    s = running(at=3, zero=0)
    out = corrupt(s, 2)
    assert [c.worker_id for c in only(KillWorker, out)] == ["j/w2"]
    assert len(only(FenceEpoch, out)) == 3
    assert s.state.recoveries[-1].failure is FailureClass.CORRUPT_STATE
    assert not corrupt(s, 2, by=1), "the second report says nothing new"
    runs = only(RunEpoch, s.leave_all(3))
    assert s.workers == ["j/w0", "j/w1", "j/w4", "j/w3"]
    assert (runs[0].resume.source, runs[0].resume.fresh) == (Source.MEMORY, (2,))
    assert not [t for t in runs[0].resume.transfers if t.src == 2]


def test_the_accused_that_had_left_already_is_not_used_either() -> None:
    s = running(at=3, zero=0)
    s.leave("j/w2", s.held(2, at=3), fenced=False)
    assert s.state.recoveries[-1].failure is FailureClass.COLLECTIVE_BROKEN
    corrupt(s, 2)
    assert (s.state.workers["j/w2"].phase, s.state.recoveries[-1].failure) == (WorkerPhase.LOST, FailureClass.CORRUPT_STATE)
    s.leave_all(3)
    assert s.state.resume is not None
    assert s.state.resume.fresh == (2,)


def test_without_a_spare_the_job_shrinks_away_from_the_accused() -> None:
    s = running(at=3, zero=0, spares=0)
    corrupt(s, 1)
    s.leave_all(3)
    assert s.plan.size == 3
    assert "policy for corrupt-state: shrink" in s.said[-1]


def test_when_only_the_accused_held_a_region_the_checkpoint_is_used_if_the_policy_says_so() -> None:
    both = policies({FailureClass.CORRUPT_STATE: (Action.SWAP, Action.ROLLBACK, Action.FAIL)})
    for with_rollback in (True, False):
        s = running(at=3, zero=1, copies=0, policies=both if with_rollback else policies())
        saved(s, 2)
        corrupt(s, 1)
        s.leave_all(3)
        if with_rollback:
            assert s.state.resume is not None
            assert (s.state.resume.source, s.state.committed_step) == (Source.CHECKPOINT, 2)
        else:
            assert s.state.outcome is Outcome.CORRUPT_STATE
            assert "the policy for corrupt-state has no rollback" in s.state.last_word


def test_no_majority_goes_back_to_the_checkpoint_with_everybody() -> None:
    s = running(at=3, zero=0, policies=ROLLBACK)
    saved(s, 2)
    assert len(only(FenceEpoch, corrupt(s))) == 4
    assert not corrupt(s, by=1)
    s.commit(4)
    assert s.state.committed_step == 3, "nothing of that past counts any more"
    runs = only(RunEpoch, s.leave_all(3))
    assert s.workers == ["j/w0", "j/w1", "j/w2", "j/w3"]
    assert (runs[0].resume.source, runs[0].resume.step, runs[0].resume.fresh) == (Source.CHECKPOINT, 2, (0, 1, 2, 3))
    s.commit(3)
    assert (s.state.phase, s.state.committed_step, s.state.cold) == (JobPhase.RUNNING, 3, "")


@pytest.mark.parametrize("checkpoint", [True, False])
def test_no_majority_and_no_way_back_ends_the_job(checkpoint: bool) -> None:
    s = running(at=3, zero=0) if checkpoint else running(at=3, zero=0, policies=ROLLBACK)
    if checkpoint:
        saved(s, 2)
    corrupt(s)
    assert s.state.outcome is Outcome.CORRUPT_STATE
    assert ("the policy has no rollback" if checkpoint else "there is no durable checkpoint") in s.state.last_word


# ---- bad steps


def test_a_bad_step_is_skipped_after_a_rollback_and_ever_after() -> None:
    s = running(at=3, budget=9)
    saved(s, 2)
    out = s.tell(ev.BadStepFound(s.now, "j/w0", 1, 4, "loss is nan"))
    assert len(only(FenceEpoch, out)) == 4
    assert not s.tell(ev.BadStepFound(s.now, "j/w1", 1, 4, "loss is nan"))
    resume = only(RunEpoch, s.leave_all(3))[0].resume
    assert (resume.source, resume.step, resume.skip_steps) == (Source.CHECKPOINT, 2, (4,))
    assert s.state.recoveries[-1].failure is FailureClass.BAD_STEP
    s.ready()
    s.train(3)
    s.commit(4, skipped=True)
    assert (s.state.skipped, s.state.committed_step) == (1, 4)
    assert "step 4 (loss 2, gradient norm 1) was skipped: no update was applied" in s.said[-1]
    assert s.state.commit is not None
    assert s.state.commit.skipped
    s.gone("j/w2")
    assert only(RunEpoch, s.leave_all(4))[0].resume.skip_steps == (4,)


def test_a_bad_step_without_a_checkpoint_goes_back_by_one_in_memory() -> None:
    s = running(at=3)
    s.tell(ev.BadStepFound(s.now, "j/w0", 1, 4, "loss is nan"))
    runs = []
    for rank, w in enumerate(s.workers):
        runs += only(RunEpoch, s.leave(w, s.held(rank, at=3, prepared=True)))
    resume = runs[0].resume
    assert (resume.source, resume.step, resume.skip_steps) == (Source.MEMORY, 3, (4,))
    assert s.state.steps_lost == 0


# ---- what cannot be true


def test_what_nobody_can_hold_is_not_believed() -> None:
    for change, words in (
        ({"plan_epoch": 77}, "epoch 77, which nobody knows"),
        ({"tensor": 2}, "cut for 2 tensor ranks"),
        ({"optimizer": (Interval(0, 1 << 40),)}, "do not fit a vector of 8192 elements"),
        ({"params": (Interval(0, 9000),)}, "do not fit a vector of 8192 elements"),
    ):
        s = running(at=3)
        s.gone("j/w2")
        s.leave("j/w0", replace(s.held(0, at=3), **change))
        out = [c for r, w in ((1, "j/w1"), (3, "j/w3")) for c in s.leave(w, s.held(r, at=3))]
        assert words in s.said[-1]
        assert s.state.phase is JobPhase.FAILED or only(RunEpoch, out)[0].resume.fresh == (0, 2)


# ---- a checkpoint now


def test_a_checkpoint_is_asked_of_every_rank_until_one_is_reported() -> None:
    s = running(at=3)
    out = s.tell(ev.CheckpointRequested(s.now, "me"))
    assert [c.worker_id for c in only(TakeCheckpoint, out)] == s.workers
    saved(s, 3)
    assert s.state.checkpoint_wish == 3, "that was one from before the request"
    s.tell(ev.SupervisorRestarted(s.now))
    assert len(only(TakeCheckpoint, s.hello("j/w1", epoch=1, running=True))) == 1
    s.hello("j/w4")
    s.gone("j/w2")
    s.leave_all(3)
    assert len(only(TakeCheckpoint, s.ready())) == 4, "the next epoch hears of it too"
    s.commit(4)
    saved(s, 4)
    assert (s.state.checkpoint_wish, s.said[-1].split("; ")[-1]) == (-1, "that is the one that was asked for")


def test_a_checkpoint_that_failed_was_tried() -> None:
    s = running(at=3)
    s.tell(ev.CheckpointRequested(s.now, "me"))
    s.tell(ev.CheckpointReported(s.now, "j/w0", 1, 4, "/c/4", False, "disk full"))
    assert (s.state.checkpoint_wish, s.state.checkpoint) == (-1, None)


def test_a_job_without_a_place_for_checkpoints_says_so() -> None:
    s = running(at=3, checkpoint=CheckpointSettings("", 0, 3))
    assert not s.tell(ev.CheckpointRequested(s.now, "me"))
    assert "refused" in s.said[-1]
    assert s.state.checkpoint_wish == -1
