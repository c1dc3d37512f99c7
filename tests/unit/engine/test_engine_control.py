"""Fences, refusals, faults, and errors that must not be taken for failures."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.core.job import BadStep, CheckpointSettings
from orchestrator.core.reshard.recovery import Resume, Source
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import (
    BadStepFound,
    CheckpointReported,
    CorruptionFound,
    EvalReported,
    Fault,
    StepCommitted,
)
from orchestrator.engine.checkpoint import verify
from orchestrator.engine.commit import CHECKPOINT, LEAVE
from orchestrator.engine.control import Control
from orchestrator.engine.engine import TorchEngine
from orchestrator.engine.faults import FaultBox, InjectedError
from orchestrator.engine.rank_state import aligned
from orchestrator.runtime.ports import Failed, Left
from tests.unit.engine.engine_world import Trap, job, undisturbed, world

pytestmark = pytest.mark.slow  # all of it: engines in processes of their own


def test_a_fence_interrupts_forming_and_the_epoch_stays_refused() -> None:
    with world(job(size=2)) as w:
        w.spawn("w0", "w1")
        w.start("w0", "w1")
        w.finish()
        assert w.plan is not None
        later = replace(w.plan, epoch=2, parent=1)
        alone = w.workers["w0"]
        w.plan = later
        resume = Resume(Source.INIT, 0, None, (), (0, 1), "", 0, ())
        alone.send("run", RunEpoch("w0", later, resume, alone.endpoint))  # the other one never comes
        w.until(lambda: w.ask(alone, "ask", "pulse").phase == "forming")
        alone.send("fence", 2)
        w.until(lambda: 2 in alone.outcomes)
        left = alone.outcomes[2]
        assert isinstance(left, Left)
        assert left.fenced
        assert left.held is not None
        assert (left.held.plan_epoch, left.held.applied_step) == (1, 6)  # it keeps what it had

        alone.send("fence", 4)
        for epoch, why in ((2, "not newer"), (4, "fenced before")):
            alone.outcomes.pop(epoch, None)
            alone.send("run", RunEpoch("w0", replace(later, epoch=epoch, parent=1), resume, alone.endpoint))
            w.until(lambda e=epoch: e in alone.outcomes)  # type: ignore[misc]
            refused = alone.outcomes[epoch]
            assert isinstance(refused, Left)
            assert refused.fenced
            assert why in refused.detail


def test_a_stopped_rank_is_swapped_and_refused_when_it_goes_on() -> None:
    the_job = job(size=3)
    with world(the_job) as w:
        w.spawn("w0", "w2", "spare")
        (zombie,) = w.spawn("w1", traps=[Trap("batch", 3, "hold")])
        w.start("w0", "w1", "w2")
        w.until(lambda: ("batch", 3) in zombie.at)
        os.kill(zombie.process.pid, signal.SIGSTOP)
        zombie.dead = True  # what a supervisor concludes from its silence
        resume = w.recover("spare")
        assert resume.step == 2
        assert set(w.finish()) == {undisturbed(the_job)[0]}
        zombie.dead = False
        before = len(zombie.events)
        os.kill(zombie.process.pid, signal.SIGCONT)
        zombie.send("fence", 1)
        zombie.send("release")
        w.until(lambda: 1 in zombie.outcomes)
        left = zombie.outcomes[1]
        assert isinstance(left, Left)
        assert left.held is not None
        assert left.held.applied_step == 2
        assert not [e for e in zombie.events[before:] if isinstance(e, StepCommitted)]


def test_survivors_keep_the_micro_batches_they_have() -> None:
    with world(job(size=2)) as w:
        (survivor,) = w.spawn("w0")
        w.spawn("spare")
        w.spawn("w1", traps=[Trap("reduce", 3)])
        w.start("w0", "w1")
        w.recover("spare")
        w.finish()
        entered = w.ask(survivor, "ask", "entered")
        assert entered["reduce", 3] == 2
        assert entered["forward", 3] == 3  # its three micro-batches of step 3, once
        assert w.ask(w.workers["spare"], "ask", "entered")["forward", 3] == 3


@pytest.mark.parametrize(("options", "words"), [({"raise_at": 3}, "own mistake"), ({"exit_at": 3}, "own way out")])
def test_an_exception_in_the_users_code_carries_its_traceback(options: dict[str, object], words: str) -> None:
    with world(job(size=2, **options)) as w:  # type: ignore[arg-type]
        w.spawn("w0", "w1")
        w.start("w0", "w1")
        w.until(lambda: any(1 in m.outcomes for m in w.members()))
        for m in w.members():
            m.send("fence", 1)
        outcomes = w.outcomes()
        failed = [o for o in outcomes if isinstance(o, Failed)]
        assert failed
        assert all(not f.fatal_check and f.step == 3 for f in failed)
        assert f"the user's {words}" in failed[0].traceback
        assert "engine_task.py" in failed[0].traceback
        assert all(isinstance(o, Failed | Left) for o in outcomes)


def test_a_loss_that_is_no_number_stops_the_run_with_words() -> None:
    with world(job(size=2, explode_at=4)) as w:
        w.spawn("w0", "w1")
        w.start("w0", "w1")
        for outcome in w.outcomes():
            assert isinstance(outcome, Failed)
            assert outcome.fatal_check
            assert outcome.step == 4
            assert "step 4" in outcome.traceback
            assert "micro-batches 0 (nan), 1 (nan)" in outcome.traceback
        assert max(e.step for m in w.members() for e in m.events if isinstance(e, StepCommitted)) == 3


@pytest.mark.parametrize(
    ("tensor", "zero", "size", "accused"),
    [("params", 0, 2, ()), ("params", 0, 3, (1,)), ("exp_avg_sq", 1, 2, ())],
    ids=["two holders", "a majority", "a copy"],
)
def test_a_flipped_bit_is_named_and_the_majority_says_by_whom(
    tensor: str, zero: int, size: int, accused: tuple[int, ...]
) -> None:
    names = [f"w{n}" for n in range(size)]
    with world(job(size=size, zero_stage=zero, copies=zero)) as w:
        w.spawn(*[n for n in names if n != "w1"])
        (hit,) = w.spawn("w1", traps=[Trap("digest", 4, "hold")])
        w.start(*names)
        w.until(lambda: ("digest", 4) in hit.at)
        w.ask(hit, "flip", tensor, 1030)
        hit.send("release")
        for outcome in w.outcomes():
            assert isinstance(outcome, Left)
            assert not outcome.fenced
        for member in w.members():
            (found,) = [e for e in member.events if isinstance(e, CorruptionFound)]
            assert (found.step, found.accused) == (4, accused)
            assert f"{tensor}, block 1 " in found.detail


@pytest.mark.parametrize("choice", list(BadStep), ids=str)
def test_a_step_that_is_not_a_number(choice: BadStep) -> None:
    """It ends the run, is skipped as if it were always so, or is told so that the supervisor can roll back."""
    the_job = job(size=2, zero_stage=1, explode_at=3, fields={"on_bad_step": choice})
    with world(the_job) as w:
        w.spawn("w0", "w1")
        w.start("w0", "w1")
        if choice is BadStep.SKIP:
            assert set(w.finish()) == {undisturbed(the_job)[0]}
            assert [s for s, c in w.workers["w1"].commits().items() if c.skipped] == [3]
            return
        for outcome, worker in zip(w.outcomes(), w.members(), strict=True):
            if choice is BadStep.FAIL:
                assert isinstance(outcome, Failed)
                assert "step 3: the loss is not finite" in outcome.traceback
            else:
                assert isinstance(outcome, Left)
                assert outcome.held is not None
                assert outcome.held.applied_step == 2
                assert [e.step for e in worker.events if isinstance(e, BadStepFound)] == [3]
        if choice is BadStep.ROLLBACK:  # here: back by no step, but past the bad one
            held = {n: o.held for n, o in zip(("w0", "w1"), w.outcomes(), strict=True) if isinstance(o, Left) and o.held}
            w.reshard(held, new_job=the_job, workers=["w0", "w1"], skip_steps=(3,))
            skipping = replace(the_job, resilience=replace(the_job.resilience, on_bad_step=BadStep.SKIP))
            assert set(w.finish()) == {undisturbed(skipping)[0]}


def test_a_checkpoint_on_demand(tmp_path: Path) -> None:
    with world(job(size=2, checkpoint=CheckpointSettings(str(tmp_path / "c"), 0, 3))) as w:
        w.spawn("w0", "w1")
        w.workers["w1"].send("checkpoint", 1)  # a wish may be faster than the order to begin
        w.start("w0", "w1")
        w.finish()
        steps = [e.step for e in w.workers["w0"].events if isinstance(e, CheckpointReported) and e.ok]
        assert len(steps) == 2, "one that was asked for, one at the end"
        assert steps[0] < steps[1] == 6


@pytest.mark.parametrize("full", [False, True])
def test_ranks_that_are_to_be_saved_train_no_further_and_leave_when_they_know_what_became_of_it(
    tmp_path: Path, full: bool
) -> None:
    if full:
        (tmp_path / "c").write_text("no folder can be made here")
    the_job = job(size=2, zero_stage=1, checkpoint=CheckpointSettings(str(tmp_path / "c"), 0, 3))
    with world(the_job) as w:
        w.spawn("w0", "w1")
        w.workers["w1"].send("leave", 1, True)  # known before its first step
        w.start("w0", "w1")
        held = w.left()
        assert {h.applied_step for h in held.values()} == {1}
        told = [e for n in ("w0", "w1") for e in w.workers[n].events if isinstance(e, CheckpointReported)]
        assert {(e.step, e.ok) for e in told} == {(1, not full)}
        assert [len(verify(e.uri).files) > 0 for e in told if e.ok] == [True] * (not full), "durable before they left"
        w.reshard(held, new_job=the_job, workers=["w0", "w1"])
        assert set(w.finish()) == {undisturbed(the_job)[0]}, "they go on from memory"
        assert sorted(e.step for e in w.workers["w0"].events if isinstance(e, StepCommitted)) == [1, 2, 3, 4, 5, 6]


def test_ranks_that_are_saved_wait_for_the_slowest_and_a_fence_ends_the_wait(tmp_path: Path) -> None:
    with world(job(size=2, zero_stage=1, checkpoint=CheckpointSettings(str(tmp_path / "c"), 0, 3))) as w:
        w.spawn("w0")
        w.spawn("w1", traps=[Trap("checkpoint", 1, "hold")])
        quick, slow = w.workers["w0"], w.workers["w1"]
        quick.send("leave", 1, True)
        w.start("w0", "w1")
        w.until(lambda: bool(slow.at))
        w.until(lambda: w.ask(quick, "ask", "pulse").phase == "checkpoint")
        assert not quick.outcomes
        for worker in (quick, slow):
            worker.send("fence", 1)
        slow.send("release")
        for outcome in w.outcomes():
            assert isinstance(outcome, Left)
            assert (outcome.fenced, outcome.held and outcome.held.applied_step) == (True, 1)
        assert not any(e.ok for e in quick.events if isinstance(e, CheckpointReported))


def test_evaluation_leaves_no_trace() -> None:
    the_job = job(size=2)
    blind = replace(the_job, train=replace(the_job.train, eval_micro_batches=0))
    with world(the_job) as w:
        w.spawn("w0", "w1")
        w.start("w0", "w1")
        digests = w.finish()
        evals = [e for m in w.members() for e in m.events if isinstance(e, EvalReported)]
        assert [e.step for e in evals] == [3, 6]
    with world(replace(the_job, parallel=replace(the_job.parallel, data=1))) as w:
        w.spawn("alone")
        w.start("alone")
        w.finish()
        assert [(e.step, e.loss) for e in w.workers["alone"].events if isinstance(e, EvalReported)] == [
            (e.step, e.loss) for e in evals
        ]
    assert set(digests) == {undisturbed(blind)[0]}


def test_faults_strike_where_they_are_sent() -> None:
    the_job = job(size=2)
    with world(the_job) as w:
        w.spawn("w0", "w1", "spare")
        victim = w.workers["w1"]
        victim.send("inject", Fault("kill-worker", 1, "", 4, 2, 0))
        w.start("w0", "w1")
        resume = w.recover("spare")
        assert resume.step == 3
        assert victim.process.exitcode in (None, -signal.SIGKILL)
        assert set(w.finish()) == {undisturbed(the_job)[0]}


def test_a_hang_of_limited_length_is_only_a_pause() -> None:
    the_job = job(size=2)
    with world(the_job) as w:
        w.spawn("w0", "w1")
        w.workers["w1"].send("inject", Fault("hang", 1, "", 2, 1, 1500))
        w.start("w0", "w1")
        digests = w.finish()
        assert w.workers["w0"].commits()[2].step_ms >= 750.0  # it waited for the one that was stopped, though it may come late
        assert set(digests) == {undisturbed(the_job)[0]}


def test_a_wish_waits_for_its_epoch_and_ends_with_it() -> None:
    control = Control()
    control.wish(3, CHECKPOINT)  # faster than the order to begin
    assert control.enter(2) == ""
    control.wish(2, CHECKPOINT)
    control.wish(2, LEAVE)
    control.wish(1, CHECKPOINT)  # late
    assert (control.wishes(), control.wishes()) == (LEAVE | CHECKPOINT, 0)
    control.wish(2, LEAVE)
    control.leave()
    assert control.enter(3) == ""
    assert (control.wishes(), control.wishes()) == (CHECKPOINT, 0)


@pytest.mark.parametrize(("parallel", "vectors"), [({}, 3), ({"pipeline": 2}, 0), ({"zero_stage": 3}, 0), ({"tensor": 2}, 0)])
def test_whole_vectors_are_kept_only_where_a_rank_needs_them(parallel: dict[str, int], vectors: int) -> None:
    zero_stage = parallel.pop("zero_stage", 0)
    engine = TorchEngine(job(size=2, zero_stage=zero_stage, target="layered_task.py:Layered", fields=parallel), "127.0.0.1")
    try:
        graph = engine.warm()
        assert engine._body is not None
        assert engine._body.pool.free_bytes == 4 * graph.padded_numel * vectors
    finally:
        engine.close()


def test_faults_wait_for_their_step() -> None:
    box = FaultBox()
    box.add(Fault("raise", 0, "", 3, 1, 0))
    box.strike(step=2, micro_batch=5)
    box.strike(step=3, micro_batch=0)
    with pytest.raises(InjectedError, match="step 3 before own micro-batch 2"):
        box.strike(step=3, micro_batch=2)  # the place itself was passed
    box.strike(step=3, micro_batch=3)
    with pytest.raises(ValueError, match="unknown fault 'explode'"):
        box.add(Fault("explode", 0, "", 0, 0, 0))
    with pytest.raises(RuntimeError, match="not a raylet"):
        box.add(Fault("kill-node", 0, "", 0, 0, 0))


def test_a_batch_begins_at_a_whole_cache_line() -> None:
    """MKL's product of one row has other bits where the row begins elsewhere."""
    memory = torch.randn(80)
    rows = [memory[k : k + 64].view(1, 64) for k in range(16)]
    for given in rows:
        got = aligned(given)
        assert got.data_ptr() % 64 == 0
        assert torch.equal(got, given)
    assert aligned(memory) is memory
