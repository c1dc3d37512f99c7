"""Where the next epoch's state comes from: the survivors' memory, else the newest durable checkpoint, else the seed.

What a survivor says it holds is believed when it can be true at all. Nobody believes a worker that was outvoted (it is lost by
then), nor anybody where it is not known who is wrong: then the state in memory is cold and the checkpoint counts.
"""

from __future__ import annotations

from orchestrator.core.graph.space import space_of
from orchestrator.core.job import Action, FailureClass
from orchestrator.core.plan.layout import Intervals, merge
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan
from orchestrator.core.reshard.recovery import Commit, Held, Resume, Source, Unrecoverable, resolve
from orchestrator.core.supervisor.epochs import touch
from orchestrator.core.supervisor.state import State, Worker, WorkerPhase
from orchestrator.core.supervisor.turn import Turn


class Hopeless(Exception):
    """There is no state to go on from; the message is the job's last word."""


def unfit(state: State, held: Held) -> str:
    """Why what a worker says it holds cannot be; empty when it can."""
    assert state.graph is not None
    assert state.plan is not None
    if held.plan_epoch > state.epoch:
        return f"it is of epoch {held.plan_epoch}, which nobody knows"
    if held.tensor not in {state.plan.axis(TENSOR), state.job.parallel.tensor}:
        return f"it is cut for {held.tensor} tensor ranks, as this job never was"
    numel = space_of(state.graph, held.tensor).numel
    for name, intervals in ((OPTIMIZER, held.optimizer), (PARAMS, held.params)):
        if any(i.stop > numel for i in intervals):
            return f"its {name} regions do not fit a vector of {numel} elements"
    return ""


def trusted(turn: Turn) -> dict[str, Held]:
    """What the survivors hold, by worker, as far as it is believed."""
    out = {}
    for w in (*turn.seated(), *turn.unseated()):
        if w.phase is WorkerPhase.LEFT and w.held is not None and not turn.state.cold and not unfit(turn.state, w.held):
            out[w.worker_id] = w.held
    return out


def from_memory(turn: Turn, plan: Plan) -> Resume:
    """How `plan` gets its state from those of its workers that hold some. Raises Unrecoverable."""
    state = turn.state
    if state.cold:
        raise Unrecoverable(state.cold)
    for found, resume in turn.resumes:
        if found is plan:
            return resume
    held = trusted(turn)
    # A survivor that told of a commit may be gone by now; what was resumed by it is known all the same. Who knows of one only by
    # what it holds may have no seat in the plan.
    heard = (state.commit, state.resume.commit if state.resume else None, *(h.commit for h in held.values()))
    told = [c for c in heard if c is not None]
    known: Commit | None = max(told, key=lambda c: c.step, default=None)
    resume = resolve(
        new=plan,
        held={s.rank: held[s.worker_id] for s in plan.seats if s.worker_id in held},
        known=known,
        graph=state.graph,
        skip_steps=state.skip_steps,
    )
    turn.resumes.append((plan, resume))
    return resume


def from_disk(turn: Turn, plan: Plan) -> Resume:
    """From the newest checkpoint, or from the seed when there is none."""
    checkpoint = turn.state.checkpoint
    fresh = tuple(range(plan.size))
    skip = turn.state.skip_steps
    if checkpoint is None:
        return Resume(Source.INIT, 0, None, (), fresh, "", 0, skip)
    return Resume(Source.CHECKPOINT, checkpoint.step, None, (), fresh, checkpoint.uri, 0, skip)


def resume_for(turn: Turn, plan: Plan, actions: tuple[Action, ...]) -> Resume:
    """The best state that there is for a plan. Raises Hopeless."""
    state = turn.state
    for w in turn.seated():
        why = unfit(state, w.held) if w.phase is WorkerPhase.LEFT and w.held is not None else ""
        if why:
            turn.say(f"{turn.name(w)} is not believed: {why}")
    try:
        resume = from_memory(turn, plan)
    except Unrecoverable as e:
        trained = state.committed_step != (state.checkpoint.step if state.checkpoint else 0)
        if state.checkpoint is None and (trained or state.cold) and not (state.continued or state.suspended):
            raise Hopeless(f"the state of step {state.committed_step} is gone ({e}) and there is no durable checkpoint") from None
        corrupt = bool(state.recoveries) and state.recoveries[-1].failure is FailureClass.CORRUPT_STATE
        if corrupt and trained and not state.cold and Action.ROLLBACK not in actions:
            raise Hopeless(
                f"without the accused the state of step {state.committed_step} is gone ({e}), and the policy for "
                f"{FailureClass.CORRUPT_STATE} has no {Action.ROLLBACK}"
            ) from None
        if trained and state.checkpoint is None:
            turn.say("the job was suspended and has no durable checkpoint: it begins again at step 0, from the seed")
        elif trained:
            turn.say(f"the state in memory is gone ({e}): back to the durable checkpoint")
        resume = from_disk(turn, plan)
    if resume.step < state.committed_step:
        lost = state.committed_step - resume.step
        turn.say(f"{lost} step(s) are lost: from {state.committed_step} back to {resume.step}")
        turn.set(steps_lost=state.steps_lost + lost, committed_step=resume.step, commit=None, budget_step=resume.step)
        turn.set(sized_step=min(state.sized_step, resume.step), grown_step=min(state.grown_step, resume.step))
        turn.set(change_step=min(state.change_step, resume.step))
        touch(turn, steps_lost=lost)
    return resume


def cover(turn: Turn, workers: list[Worker], count: int) -> list[Worker]:
    """`count` of these workers that hold whatever all of them hold; fewer are left out where that is not possible."""
    held = trusted(turn)

    def union(of: list[Worker]) -> Intervals:
        return merge(i for w in of if w.worker_id in held for i in held[w.worker_id].optimizer)

    kept = list(workers)
    everything = union(kept)
    for w in reversed(workers):
        if len(kept) <= count:
            break
        rest = [o for o in kept if o is not w]
        if union(rest) == everything:
            kept = rest
    return kept
