"""Epochs: fencing a broken one, planning the next, starting it.

An epoch is fenced as a whole: every member leaves it (and says what it holds) or is lost. Only then is the next plan made, so
that no two workers can ever act for one rank, and the state is restored from what the survivors said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestrator.core.job import FailureClass
from orchestrator.core.plan.layout import Interval, merge, subtract
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import OPTIMIZER, Plan
from orchestrator.core.planner.planner import PlanError, first_plan, swap_plan
from orchestrator.core.reshard.recovery import Held, Resume, Source, Unrecoverable, resolve
from orchestrator.core.supervisor.commands import EndJob, ExitWorker, FenceEpoch, InjectFault, KillWorker, RunEpoch
from orchestrator.core.supervisor.events import Fault
from orchestrator.core.supervisor.staff import available
from orchestrator.core.supervisor.state import JobPhase, Outcome, Recovery, Worker, WorkerPhase
from orchestrator.core.supervisor.turn import Turn

RECOVERIES_KEPT = 200
SPAWN_FAILURES_MAX = 3  # when no worker ever came up: it is the task that cannot be built, and it never will be


def lose(turn: Turn, worker: Worker, failure: FailureClass, evidence: str) -> None:
    """A worker is lost for good: fence it, and the epoch with it when it was a member."""
    name = turn.name(worker)
    turn.say(f"{name} is lost, {failure}: {evidence}")
    was = worker.phase
    turn.worker(worker.worker_id, WorkerPhase.LOST, connected=False, cause=f"{failure}: {evidence}", suspect="")
    turn.do(KillWorker(worker.worker_id, evidence))
    if was in (WorkerPhase.MEMBER, WorkerPhase.LEFT):
        fence(turn, failure, f"{name} was lost: {evidence}", lost=(worker.worker_id,))


def fence(turn: Turn, failure: FailureClass, why: str, *, lost: tuple[str, ...] = (), free: bool = False) -> None:
    """Make every member leave the epoch. A failure costs a unit of the budget unless `free` (a drain)."""
    state = turn.state
    if state.phase in (JobPhase.FENCING, JobPhase.WAITING):
        if state.recoveries and lost:
            last = state.recoveries[-1]  # a broken collective is what a peer's loss looks like before it is known
            failure = failure if last.failure is FailureClass.COLLECTIVE_BROKEN else last.failure
            turn.set(recoveries=(*state.recoveries[:-1], replace(last, failure=failure, lost=(*last.lost, *lost))))
        return
    if not free:
        if state.budget <= 0:
            end(
                turn,
                JobPhase.FAILED,
                Outcome.BUDGET_SPENT,
                f"{why}; the budget of {state.job.resilience.failure_budget} failures is spent "
                f"(one comes back every {state.job.resilience.budget_refill_steps} committed steps)",
            )
            return
        turn.set(budget=state.budget - 1, budget_step=state.committed_step)
        turn.say(f"budget {turn.state.budget} of {state.job.resilience.failure_budget} left")
    turn.to_phase(JobPhase.FENCING)
    number = state.recoveries[-1].number + 1 if state.recoveries else 1
    recovery = Recovery(number, state.epoch, failure, lost, state.committed_step, turn.at_ms, reason=why)
    turn.set(recoveries=(*state.recoveries[-RECOVERIES_KEPT + 1 :], recovery), finished={})
    turn.say(f"fencing epoch {state.epoch}")
    for w in turn.members():
        turn.do(FenceEpoch(w.worker_id, state.epoch))


def advance(turn: Turn) -> None:
    """Do whatever the phase allows now: start the first epoch, finish a fence, use a spare, finish a drain."""
    state = turn.state
    if state.phase is JobPhase.RUNNING:
        _drain(turn)
    if turn.state.phase is JobPhase.FENCING and not turn.members():
        _touch(turn, fenced_ms=turn.at_ms)
        _next_epoch(turn)
    elif turn.state.phase is JobPhase.WAITING:
        _next_epoch(turn) if turn.state.plan else _first_epoch(turn)


def _drain(turn: Turn) -> None:
    members, spares = turn.members(), available(turn)
    going = movable(turn, members, spares=len(spares))
    if going and _apart(turn, [w for w in members if w not in going], spares[: len(going)]):
        names = ", ".join(turn.name(w) for w in going)
        turn.say(f"spares are ready: moving {names} off drained nodes")
        fence(turn, FailureClass.NODE_LOST, f"drain of {names}", free=True)


def movable(turn: Turn, present: Sequence[Worker], *, spares: int) -> list[Worker]:
    """Those on drained nodes that can give their rank away at once: the others hold the whole state, and spares suffice."""
    going: list[Worker] = []
    for w in present:
        if w.node_id in turn.state.drained and _hold_all(turn, [o for o in present if o is not w and o not in going]):
            going.append(w)
    return going if len(going) <= spares else []


def _apart(turn: Turn, stay: Sequence[Worker], spares: Sequence[tuple[str, str]]) -> bool:
    """Whether peer copies, if asked for, find a second node among these."""
    return not turn.state.job.parallel.copies or len({w.node_id for w in stay} | {node for _, node in spares}) > 1


def sole_holder(plan: Plan, rank: int) -> bool:
    """Whether a rank holds a region that no other rank does."""
    holdings = plan.layout(OPTIMIZER).holdings
    others = tuple(i for r, h in enumerate(holdings) if r != rank for i in h.everything)
    return bool(subtract(holdings[rank].everything, others))


def _hold_all(turn: Turn, workers: Sequence[Worker]) -> bool:
    """Whether these hold every region of the state between them: by what they said when they left, else by their seat."""
    held: list[Interval] = []
    for w in workers:
        seat = turn.plan().seat_of(w.worker_id)
        if w.phase is WorkerPhase.LEFT:
            if w.held is not None and _knows(turn, w.held):
                held += _plans(turn)[w.held.plan_epoch].layout(OPTIMIZER).holdings[w.held.rank].everything
        elif seat is not None:
            held += turn.plan().layout(OPTIMIZER).holdings[seat.rank].everything
    return merge(held) == (Interval(0, turn.plan().layout(OPTIMIZER).numel),)


def _knows(turn: Turn, held: Held) -> bool:
    """Whether a plan that is known describes what it holds."""
    plan = _plans(turn).get(held.plan_epoch)
    return plan is not None and 0 <= held.rank < plan.size


def _plans(turn: Turn) -> dict[int, Plan]:
    """The current plan, and those before it that still describe what some survivor holds, by epoch."""
    return {p.epoch: p for p in (*turn.state.past_plans, turn.plan())}


def _first_epoch(turn: Turn) -> None:
    state = turn.state
    ready, need = available(turn), state.job.parallel.data
    if state.graph is None or len(ready) < need:
        _missing(turn, f"{need} ranks need {need} workers, {len(ready)} are ready and no node has room for more")
        return
    homes = {node for _, node in ready}
    if len(homes) == 1 and any(w.phase is WorkerPhase.REQUESTED and w.node_id not in homes for w in state.workers.values()):
        _missing(turn, "")  # one node must not hold all of the state while workers on other nodes are coming up
        return
    epoch = state.epoch + 1
    try:
        plan = first_plan(job=state.job, graph=state.graph, workers=ready, epoch=epoch)
    except PlanError as e:
        _missing(turn, f"no plan: {e}")
        return
    _start(turn, plan, _cold_resume(turn, plan))


def _missing(turn: Turn, why: str) -> None:
    """Say once why the job does not start, unless workers are on their way or are asked for again soon."""
    state = turn.state
    coming = any(w.phase is WorkerPhase.REQUESTED for w in state.workers.values()) or turn.at_ms < state.retry_spawn_ms
    why = "" if coming or state.cluster is None else why
    if why != state.missing:
        turn.set(missing=why)
        if why:
            turn.say(why)


def _cold_resume(turn: Turn, plan: Plan) -> Resume:
    checkpoint = turn.state.checkpoint
    fresh = tuple(range(plan.size))
    if checkpoint is None:
        return Resume(Source.INIT, 0, None, (), fresh, "")
    return Resume(Source.CHECKPOINT, checkpoint.step, None, (), fresh, checkpoint.uri)


def _next_epoch(turn: Turn) -> None:
    state = turn.state
    old = turn.plan()
    spares = available(turn)
    left = [w for w in turn.seated() if w.phase is WorkerPhase.LEFT]
    going = movable(turn, left, spares=len(spares) - (old.size - len(left)))
    if not _apart(turn, [w for w in left if w not in going], spares[: old.size - len(left) + len(going)]):
        going = []  # they stay where they are until a spare on another node is ready
    by_id = {w.worker_id: w for w in left if w not in going}
    stay = {s.rank: by_id[s.worker_id] for s in old.seats if s.worker_id in by_id}
    gone = [s for s in old.seats if s.rank not in stay]
    missing = len(gone) - len(spares)
    if missing > 0:
        _wait(
            turn,
            f"{len(gone)} rank(s) need a worker and {missing} spare(s) are missing: waiting for a node or a worker",
        )
        return
    replacements = {s.rank: w for s, w in zip(gone, spares, strict=False)}
    what = ", ".join(f"rank {r} to {w}" for r, (w, _) in replacements.items()) or "the same workers"
    try:
        plan = swap_plan(old, epoch=state.epoch + 1, replacements=replacements, reason=f"epoch {old.epoch} broke: {what}")
    except PlanError as e:
        _wait(turn, f"no plan: {e}")
        return
    hopeless = _start_with_state(turn, plan, stay)
    if hopeless:
        end(turn, JobPhase.FAILED, Outcome.UNRECOVERABLE, hopeless)


def _start_with_state(turn: Turn, plan: Plan, stay: dict[int, Worker]) -> str:
    """Start `plan` with the best state there is; returns why when there is none."""
    state = turn.state
    held: dict[int, Held] = {}
    for rank, w in stay.items():
        if w.held is None:
            continue
        if _knows(turn, w.held):
            held[rank] = w.held
        else:
            turn.say(f"{turn.name(w)} says that it holds rank {w.held.rank} of epoch {w.held.plan_epoch}, which nobody knows")
    plans = _plans(turn)
    # A survivor that told of a commit may be gone by now; what was resumed by it is known all the same.
    told = [c for c in (state.commit, state.resume.commit if state.resume else None) if c is not None]
    try:
        resume = resolve(plans=plans, new=plan, held=held, known=max(told, key=lambda c: c.step, default=None))
    except Unrecoverable as e:
        never_trained = state.committed_step == (state.checkpoint.step if state.checkpoint else 0)
        if state.checkpoint is None and not never_trained:
            return f"the state of step {state.committed_step} is gone ({e}) and there is no durable checkpoint"
        if not never_trained:
            turn.say(f"the state in memory is gone ({e}): back to the durable checkpoint")
        resume = _cold_resume(turn, plan)
    if resume.step < state.committed_step:
        lost = state.committed_step - resume.step
        turn.say(f"{lost} step(s) are lost: from {state.committed_step} back to {resume.step}")
        turn.set(steps_lost=state.steps_lost + lost, committed_step=resume.step, commit=None, budget_step=resume.step)
        _touch(turn, steps_lost=lost)
    replaced = [s for s in turn.plan().seats if plan.seat_of(s.worker_id) is None and s.node_id not in state.drained]
    restarted = sum(1 for s in replaced if turn.state.workers[s.worker_id].phase is WorkerPhase.LEFT)
    turn.set(survivors_restarted=state.survivors_restarted + restarted)
    needed = {h.plan_epoch for h in held.values()}
    turn.set(past_plans=tuple(p for e, p in sorted(plans.items()) if e in needed))
    _touch(turn, planned_ms=turn.at_ms)
    _start(turn, plan, resume)
    return ""


def _start(turn: Turn, plan: Plan, resume: Resume) -> None:
    findings = lint(plan)
    if findings:
        raise AssertionError(f"the plan of epoch {plan.epoch} must not run: {'; '.join(findings)}")
    turn.to_phase(JobPhase.FORMING)
    turn.set(epoch=plan.epoch, plan=plan, resume=resume, finished={}, digests={}, digest_step=-1)
    source = {
        Source.INIT: "initialised from the seed",
        Source.CHECKPOINT: f"read from {resume.checkpoint_uri}",
        Source.MEMORY: f"taken from the survivors' memory ({len(resume.transfers)} transfers)",
    }[resume.source]
    turn.say(f"starting epoch {plan.epoch} at step {resume.step}, state {source}: {plan.reason}")
    for seat in plan.seats:
        turn.worker(seat.worker_id, WorkerPhase.MEMBER, suspect="", stacks_asked=False)
        turn.do(run_epoch(turn, seat.worker_id))
    for w in list(turn.state.workers.values()):
        if w.phase is WorkerPhase.LEFT and plan.seat_of(w.worker_id) is None:
            turn.worker(w.worker_id, WorkerPhase.ENDED, cause="its node is drained and its rank moved")
            turn.do(ExitWorker(w.worker_id, "your node is drained and your rank has moved"))


def run_epoch(turn: Turn, worker_id: str) -> RunEpoch:
    """The command that starts (or repeats the start of) the current epoch on one member."""
    plan, resume = turn.plan(), turn.state.resume
    assert resume is not None, "an epoch without a resume"
    return RunEpoch(worker_id, plan, resume, turn.state.workers[plan.seats[0].worker_id].endpoint)


def running(turn: Turn) -> None:
    """Every rank has its state."""
    turn.to_phase(JobPhase.RUNNING)
    _touch(turn, ready_ms=turn.at_ms)
    turn.say(f"epoch {turn.state.epoch} runs: every rank has its state")
    faults = turn.state.faults
    turn.set(faults=())
    for fault in faults:
        strike(turn, fault)


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


def _touch(turn: Turn, **milestones: Any) -> None:
    """Note a milestone of the recovery under way."""
    recoveries = turn.state.recoveries
    if recoveries and not recoveries[-1].stepped_ms:
        turn.set(recoveries=(*recoveries[:-1], replace(recoveries[-1], **milestones)))


def stepped(turn: Turn) -> None:
    """The first step after a recovery was committed."""
    _touch(turn, stepped_ms=turn.at_ms)


def _wait(turn: Turn, why: str) -> None:
    if turn.state.phase is JobPhase.FENCING:
        turn.to_phase(JobPhase.WAITING)
        turn.say(why)


def end(turn: Turn, phase: JobPhase, outcome: Outcome, last_word: str) -> None:
    """A terminal state, with the last word; every worker is told to end."""
    turn.to_phase(phase)
    turn.set(outcome=outcome, last_word=last_word)
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
