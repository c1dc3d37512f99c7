"""Epochs: fencing one as a whole, starting the next, ending the job.

Every member of a broken epoch leaves it (and says what it holds) or is lost. Only then is the next plan made, so that no two
workers can ever act for one rank; which plan that is, `choice` decides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.core.job import FailureClass
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import Plan
from orchestrator.core.reshard.recovery import Resume, Source
from orchestrator.core.supervisor.commands import (
    EndJob,
    ExitWorker,
    FenceEpoch,
    InjectFault,
    KillWorker,
    RunEpoch,
    TakeCheckpoint,
)
from orchestrator.core.supervisor.events import Fault
from orchestrator.core.supervisor.staff import going_why, strength
from orchestrator.core.supervisor.state import JobPhase, Outcome, Recovery, Worker, WorkerPhase
from orchestrator.core.supervisor.turn import Turn

RECOVERIES_KEPT = 200
SPAWN_FAILURES_MAX = 3  # when no worker ever came up: it is the task that cannot be built, and it never will be
FLAP_SPAN = 4  # a shrink within so many times grow_after_steps of the last growth doubles the pause before the next
PAUSE_MAX = 64  # times grow_after_steps

# What a worker is lost by that may be its node's fault; one that never came up has its own back-off.
OWN_FAULTS = (FailureClass.WORKER_EXITED, FailureClass.WORKER_HUNG, FailureClass.CORRUPT_STATE)

# What several failures of one epoch amount to: the last of them in this order decides what is done.
STRICTNESS = (
    FailureClass.PLANNED,
    FailureClass.COLLECTIVE_BROKEN,
    FailureClass.SUPERVISOR_LOST,
    FailureClass.WORKER_SLOW,
    FailureClass.UNREACHABLE,
    FailureClass.WORKER_EXITED,
    FailureClass.WORKER_HUNG,
    FailureClass.NODE_LOST,
    FailureClass.BAD_STEP,
    FailureClass.USER_ERROR,
    FailureClass.CORRUPT_STATE,
)


def lose(turn: Turn, worker: Worker, failure: FailureClass, evidence: str) -> None:
    """A worker is lost for good: fence it, and the epoch with it when it was a member."""
    name = turn.name(worker)
    turn.say(f"{name} is lost, {failure}: {evidence}")
    was = worker.phase
    at = turn.state.committed_step if failure in OWN_FAULTS and was is not WorkerPhase.REQUESTED else -1
    turn.worker(worker.worker_id, WorkerPhase.LOST, connected=False, cause=f"{failure}: {evidence}", suspect="", fault_step=at)
    turn.do(KillWorker(worker.worker_id, evidence))
    if was in (WorkerPhase.MEMBER, WorkerPhase.LEFT) and turn.plan().seat_of(worker.worker_id) is not None:
        fence(turn, failure, f"{name} was lost: {evidence}", lost=(worker.worker_id,))


def fence(turn: Turn, failure: FailureClass, why: str, *, lost: tuple[str, ...] = (), at_once: bool = True) -> None:
    """Make every member leave the epoch. A failure costs a unit of the budget, a planned change nothing.

    Not `at_once`: the members were asked to leave at the end of a step, and do so by themselves.
    """
    if turn.state.phase in (JobPhase.FENCING, JobPhase.WAITING):
        _merge(turn, failure, why, lost)
        return
    if failure is not FailureClass.PLANNED:
        if not _charge(turn, why):
            return
        turn.set(change=None)
    state = turn.state
    turn.to_phase(JobPhase.FENCING)
    number = state.recoveries[-1].number + 1 if state.recoveries else 1
    recovery = Recovery(number, state.epoch, failure, lost, state.committed_step, turn.at_ms, reason=why)
    turn.set(recoveries=(*state.recoveries[-RECOVERIES_KEPT + 1 :], recovery), finished={})
    turn.say(f"fencing epoch {state.epoch}" if at_once else f"the ranks leave epoch {state.epoch} after a whole step: {why}")
    if at_once:
        _fence_members(turn)


def _merge(turn: Turn, failure: FailureClass, why: str, lost: tuple[str, ...]) -> None:
    """One thing more about an epoch that is being left already: the strictest class counts."""
    if not turn.state.recoveries:
        return
    last = turn.state.recoveries[-1]
    worse = STRICTNESS.index(failure) > STRICTNESS.index(last.failure)
    if worse and last.failure is FailureClass.PLANNED:
        if not _charge(turn, why):
            return
        turn.say("the planned change has become a failure")
        turn.set(change=None)
        last = replace(last, reason=why)
        _fence_members(turn)
    if worse or lost:
        last = replace(last, failure=failure if worse else last.failure, lost=(*last.lost, *lost))
        turn.set(recoveries=(*turn.state.recoveries[:-1], last))


def _charge(turn: Turn, why: str) -> bool:
    """Take a unit of the budget; False when there was none, and the job has ended."""
    state = turn.state
    if state.suspended or state.continued:
        turn.say("the job gives its machines back: no failure is counted" if state.suspended else "it was suspended: not counted")
        return True
    if state.budget <= 0:
        end(
            turn,
            JobPhase.FAILED,
            Outcome.BUDGET_SPENT,
            f"{why}; the budget of {state.job.resilience.failure_budget} failures is spent "
            f"(one comes back every {state.job.resilience.budget_refill_steps} committed steps)",
        )
        return False
    turn.set(budget=state.budget - 1, budget_step=state.committed_step)
    turn.say(f"budget {turn.state.budget} of {state.job.resilience.failure_budget} left")
    return True


def _fence_members(turn: Turn) -> None:
    for w in turn.members():
        turn.do(FenceEpoch(w.worker_id, turn.state.epoch))


def start(turn: Turn, plan: Plan, resume: Resume) -> None:
    """Start the next epoch."""
    findings = lint(plan)
    if findings:
        raise AssertionError(f"the plan of epoch {plan.epoch} must not run: {'; '.join(findings)}")
    old = turn.state.plan
    turn.to_phase(JobPhase.FORMING)
    turn.set(epoch=plan.epoch, plan=plan, resume=resume, finished={}, digests={}, digest_step=-1, change=None)
    source = {
        Source.INIT: "initialised from the seed",
        Source.CHECKPOINT: f"read from {resume.checkpoint_uri}",
        Source.MEMORY: f"taken from the survivors' memory ({len(resume.transfers)} transfers)",
    }[resume.source]
    turn.say(f"starting epoch {plan.epoch} at step {resume.step}, state {source}: {plan.reason}")
    if old is not None:
        _resized(turn, old, plan)
    for seat in plan.seats:
        turn.worker(seat.worker_id, WorkerPhase.MEMBER, suspect="", stacks_asked=False, slow_since_ms=-1, slow_told=False)
        turn.do(run_epoch(turn, seat.worker_id))
    kept = [w.worker_id for w in turn.unseated()]
    if kept:
        turn.say(f"{', '.join(kept)} keep(s) what it holds until every rank has its state")


def _resized(turn: Turn, old: Plan, plan: Plan) -> None:
    """Note a change of size; a job that shrinks soon after it grew waits longer before it grows again."""
    state = turn.state
    step, usual = state.committed_step, state.job.resilience.grow_after_steps
    if (plan.size, plan.copies) != (old.size, old.copies):
        turn.set(sized_step=step)
    if plan.size > old.size:
        turn.say(f"grown from {old.size} to {plan.size} ranks")
        turn.set(grown_step=step)
    elif plan.size < old.size:
        turn.say(f"shrunk from {old.size} to {plan.size} ranks")
        pause = usual
        if state.grown_step >= 0 and step - state.grown_step < FLAP_SPAN * usual:
            pause = min(PAUSE_MAX * usual, 2 * max(usual, state.grow_pause))
            turn.say(f"that was soon after it grew: it grows again after {pause} steps")
        turn.set(grow_pause=pause)


def _release(turn: Turn, worker: Worker) -> None:
    """A survivor without a seat in the new plan: a spare where one is wanted, else it ends."""
    why = going_why(turn.state, worker)
    alive, wanted = strength(turn.state)
    if not why and alive <= wanted:
        turn.worker(worker.worker_id, WorkerPhase.SPARE, held=None, suspect="")
        turn.say(f"{worker.worker_id} has no seat in epoch {turn.state.epoch} and stays as a spare")
        return
    why = why or "the job needs no more workers"
    turn.worker(worker.worker_id, WorkerPhase.ENDED, held=None, cause=f"{why} and its rank moved")
    turn.do(ExitWorker(worker.worker_id, f"{why}, and your rank has moved"))


def run_epoch(turn: Turn, worker_id: str) -> RunEpoch:
    """The command that starts (or repeats the start of) the current epoch on one member."""
    plan, resume = turn.plan(), turn.state.resume
    assert resume is not None, "an epoch without a resume"
    return RunEpoch(worker_id, plan, resume, turn.state.workers[plan.seats[0].worker_id].endpoint)


def running(turn: Turn) -> None:
    """Every rank has its state."""
    turn.to_phase(JobPhase.RUNNING)
    touch(turn, ready_ms=turn.at_ms)
    turn.say(f"epoch {turn.state.epoch} runs: every rank has its state")
    for w in turn.unseated():
        _release(turn, w)
    faults = turn.state.faults
    turn.set(faults=(), cold="")
    for fault in faults:
        strike(turn, fault)
    if turn.state.checkpoint_wish >= 0:
        for w in turn.members():
            turn.do(TakeCheckpoint(w.worker_id, turn.state.epoch))


def strike(turn: Turn, fault: Fault) -> None:
    """Hand a fault to the member that it is addressed to."""
    plan = turn.plan()
    target = next((s for s in plan.seats if s.rank == fault.rank or (fault.rank < 0 and s.node_id == fault.node_id)), None)
    if target is None:
        turn.say(f"{fault.kind} of {f'rank {fault.rank}' if fault.rank >= 0 else f'node {fault.node_id}'} has no target")
        return
    when = f"in step {fault.at_step}" if fault.at_step else "now"
    turn.say(f"{fault.kind} of {turn.name(turn.state.workers[target.worker_id])} {when}")
    turn.do(InjectFault(target.worker_id, fault))


def touch(turn: Turn, **milestones: Any) -> None:
    """Note a milestone of the recovery under way."""
    recoveries = turn.state.recoveries
    if recoveries and not recoveries[-1].stepped_ms:
        turn.set(recoveries=(*recoveries[:-1], replace(recoveries[-1], **milestones)))


def stepped(turn: Turn) -> None:
    """The first step after a recovery was committed."""
    touch(turn, stepped_ms=turn.at_ms)


def end(turn: Turn, phase: JobPhase, outcome: Outcome, last_word: str) -> None:
    """A terminal state, with the last word; every worker is told to end."""
    turn.to_phase(phase)
    turn.set(outcome=outcome, last_word=last_word, change=None)
    turn.say(f"job {phase}: {last_word.strip().splitlines()[-1] if last_word.strip() else outcome}")
    for w in list(turn.state.workers.values()):
        if w.phase.alive:
            turn.worker(w.worker_id, WorkerPhase.ENDED, cause=f"the job {phase}")
            turn.do(ExitWorker(w.worker_id, f"the job {phase}"))
    turn.do(EndJob(f"{phase}: {outcome}"))


def give_up(turn: Turn, why: str) -> None:
    """End the job when no worker ever came up and often enough was tried."""
    if turn.state.graph is None and turn.state.spawn_failures >= SPAWN_FAILURES_MAX:
        told = f"no worker ever came up, {turn.state.spawn_failures} attempts failed, the last one with:\n{why}"
        end(turn, JobPhase.FAILED, Outcome.USER_ERROR, told)
