"""State that moves between ranks: to other nodes, and when a rank is lost during a recovery."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from orchestrator.core.plan.layout import merge
from orchestrator.core.plan.plan import OPTIMIZER
from orchestrator.core.reshard.recovery import Held, Resume, Source
from orchestrator.runtime.ports import Failed, Left
from tests.unit.engine.engine_world import Trap, job, undisturbed, world

pytestmark = pytest.mark.slow  # all of it: engines in processes of their own


@cache
def reference() -> str:
    """Digest of a run in which nothing fails."""
    return undisturbed(job())[0]


def test_peer_copies_move_when_the_spare_sits_where_a_copy_is() -> None:
    names = [f"w{n}" for n in range(4)]
    with world(job(zero_stage=1, copies=1)) as w:
        w.spawn("w0", "w2", "w3", "spare")
        w.spawn("w1", traps=[Trap("commit", 3)])
        w.start(*names)
        first = w.plan
        w.recover("spare", node="node-w2")  # rank 2 may not keep rank 1's copy any more
        assert first is not None
        assert w.plan is not None
        assert w.plan.layout(OPTIMIZER) != first.layout(OPTIMIZER)
        assert set(w.finish()) == {reference()}


def test_a_spare_lost_during_the_recovery() -> None:
    names = [f"w{n}" for n in range(4)]
    with world(job(zero_stage=1, copies=1)) as w:
        w.spawn("w0", "w2", "w3", "second")
        w.spawn("w1", traps=[Trap("gather", 3)])
        w.spawn("first", traps=[Trap("restoring", 3)])
        w.start(*names)
        w.recover("first")
        w.recover("second")
        assert set(w.finish()) == {reference()}


def test_a_survivor_lost_during_the_recovery_of_a_data_parallel_run() -> None:
    with world(job(size=3)) as w:
        w.spawn("w0", "s0", "s1")
        w.spawn("w1", traps=[Trap("update", 3)])
        w.spawn("w2", traps=[Trap("forming", 3)])
        w.start("w0", "w1", "w2")
        w.recover("s0")
        w.recover("s1")
        assert set(w.finish()) == {reference()}


def test_two_ranks_lost_at_once() -> None:
    with world(job(size=4, zero_stage=1, copies=1)) as w:
        w.spawn("w0", "w2", "s0", "s1")  # ranks 1 and 3 keep no copy of one another
        w.spawn("w1", traps=[Trap("reduce", 3)])
        w.spawn("w3", traps=[Trap("reduce", 3)])
        w.start("w0", "w1", "w2", "w3")
        w.recover("s0", "s1")
        assert set(w.finish()) == {reference()}


def test_a_run_that_broke_before_its_first_step_begins_again_from_the_seed() -> None:
    with world(job(size=2)) as w:
        w.spawn("w0", "spare")
        w.spawn("w1", traps=[Trap("reduce", 1)])
        w.start("w0", "w1")
        resume = w.recover("spare")
        assert resume.step == 0
        assert resume.source is Source.MEMORY
        assert set(w.finish()) == {reference()}


def test_survivors_that_break_between_arrival_and_agreement_hold_both() -> None:
    """What they had is still there for those who have not got it yet, and what they got counts too."""
    with world(job(zero_stage=1, copies=1)) as w:
        w.spawn("w0", "w1", "w3")
        w.spawn("w2", traps=[Trap("agreeing", step) for step in range(1, 6)])
        w.start("w0", "w1", "w2", "w3")
        held = w.leave()
        w.reshard(held, new_job=job(size=3, zero_stage=1, copies=1), workers=["w0", "w1", "w2"])
        plan = w.plan
        assert plan is not None
        w.until(lambda: w.workers["w2"].dead)
        left: dict[str, Held] = {}
        for seat in plan.seats:
            if seat.worker_id == "w2":
                continue
            w.workers[seat.worker_id].send("fence", plan.epoch)
            w.until(lambda worker=w.workers[seat.worker_id]: plan.epoch in worker.outcomes)  # type: ignore[misc]
            outcome = w.workers[seat.worker_id].outcomes[plan.epoch]
            assert isinstance(outcome, Left)
            assert outcome.held is not None
            new = plan.layout(OPTIMIZER).holdings[seat.rank].everything
            assert outcome.held.optimizer == merge(held[seat.worker_id].optimizer + new)
            left[seat.worker_id] = outcome.held
        w.reshard(left, new_job=job(size=2, zero_stage=1, copies=1), workers=["w0", "w1"])
        assert set(w.finish()) == {reference()}


def test_a_rank_that_should_hold_state_and_does_not_says_so() -> None:
    with world(job(size=2)) as w:
        w.spawn("w0", "w1")
        w.start("w0", "w1")
        w.finish()
        assert w.plan is not None
        w.run(replace(w.plan, epoch=2, parent=1), Resume(Source.MEMORY, 4, None, (), (), "", 0, ()))
        for outcome in w.outcomes():
            assert isinstance(outcome, Failed)
            assert outcome.fatal_check
            assert "resumes at 4" in outcome.traceback
