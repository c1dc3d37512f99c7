"""Which plan comes next, once everybody has left an epoch or is lost.

A failure: the first action of its class's policy that is possible. A planned change: what it is for, if that is still possible,
else the epoch begins again as it was. Which workers there are decides on the plan; where its state comes from, `memory` decides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from orchestrator.core.cluster.machines import elsewhere
from orchestrator.core.job import Action, FailureClass
from orchestrator.core.plan.plan import DATA, PIPELINE, Plan
from orchestrator.core.planner.planner import PlanError, first_plan, swap_plan
from orchestrator.core.planner.shape import shape_for, stages_per_rank_for
from orchestrator.core.planner.stages import make_stages
from orchestrator.core.supervisor.candidates import (
    by_planner,
    goal_job,
    in_memory,
    on_their_way,
    replanned,
    shrunk,
    swapped,
    who_left,
)
from orchestrator.core.supervisor.epochs import end, start, touch
from orchestrator.core.supervisor.handover import handover
from orchestrator.core.supervisor.measuring import measure
from orchestrator.core.supervisor.memory import Hopeless, from_disk, resume_for
from orchestrator.core.supervisor.moving import movers, parting, replacements
from orchestrator.core.supervisor.picking import Pick, expect, known, pick, take, weighing
from orchestrator.core.supervisor.staff import available
from orchestrator.core.supervisor.state import Change, ChangeKind, JobPhase, Outcome, State, WorkerPhase
from orchestrator.core.supervisor.turn import Turn

# Classes that have no policy of their own: what is done about the workers that are lost with them.
LIKE = {
    FailureClass.UNREACHABLE: FailureClass.NODE_LOST,
    FailureClass.COLLECTIVE_BROKEN: FailureClass.WORKER_EXITED,
    FailureClass.BAD_STEP: FailureClass.WORKER_EXITED,
    FailureClass.SUPERVISOR_LOST: FailureClass.WORKER_EXITED,
    FailureClass.PLANNED: FailureClass.WORKER_EXITED,
}


def actions_of(state: State, failure: FailureClass) -> tuple[Action, ...]:
    """The policy that counts for a class."""
    return state.job.resilience.actions(LIKE.get(failure, failure))


def usual_cut(state: State) -> tuple[int, ...]:
    """Layers per stage at full strength when no rank is slow."""
    assert state.graph is not None
    goal = state.goal
    if goal.layers_per_stage:
        return goal.layers_per_stage
    per_rank = stages_per_rank_for(state.job, state.graph, goal.pipeline)
    stages = make_stages(state.graph, tensor=goal.tensor, pipeline=goal.pipeline, stages_per_rank=per_rank)
    return tuple(s.last - s.first for s in stages)


def first_epoch(turn: Turn) -> None:
    """Start the first epoch, at full strength, or say what is missing; also of a job that goes on with none but new workers."""
    state = turn.state
    ready, need = available(turn), state.ranks_wanted
    if state.graph is None or len(ready) < need:
        _missing(turn, f"{need} ranks need {need} workers, {len(ready)} are ready and no node has room for more")
        return
    on_their_way = [w.node_id for w in state.workers.values() if w.phase is WorkerPhase.REQUESTED]
    if elsewhere((node for _, node in ready), on_their_way):
        _missing(turn, "")  # one machine must not hold all of the state while workers on others are coming up
        return
    if state.planned:
        if not measure(turn, [state.workers[i] for i, _ in ready]):
            return
        key = weighing(turn, ready)
        if key == state.weighed:
            return  # there was no plan for them, and that was said
        turn.set(weighed=key)
    picked: Pick | None = None
    try:
        job = goal_job(state)
        if state.planned and known(turn, ready):
            picked = pick(turn, ready, like=None)
            job = picked.job
        elif job.parallel.ranks == 1 or (len({node for _, node in ready}) == 1 and (state.scaled or state.plan)):
            # scaled down before it began, or it goes on where there is one node: no place for copies, and no mistake in the job
            job = replace(job, parallel=replace(job.parallel, copies=0))
        seats, why = (
            (picked.seats, picked.words) if picked else ((), "nobody measured in time" if state.planned else "as the job asks")
        )
        plan = first_plan(job=job, graph=state.graph, workers=ready, epoch=state.epoch + 1, seats=seats, why=why)
    except PlanError as e:
        _missing(turn, f"no plan: {e}")
        return
    turn.set(sized_step=state.committed_step, missing="")
    if picked is not None:
        take(turn, picked)
    if state.plan is not None:
        turn.set(recut=())
        _begin(turn, replace(plan, parent=state.plan.epoch), ())
        return
    expect(turn, plan)
    start(turn, plan, from_disk(turn, plan))


def _missing(turn: Turn, why: str) -> None:
    """Say once why the job does not start, unless workers are on their way or are asked for again soon."""
    state = turn.state
    why = "" if on_their_way(turn) or state.cluster is None else why
    if why != state.missing:
        turn.set(missing=why)
        if why:
            turn.say(why)


def next_epoch(turn: Turn) -> None:
    """Begin the next epoch, wait for workers, or end the job."""
    state = turn.state
    failure = state.recoveries[-1].failure
    actions = actions_of(state, failure)
    left = who_left(turn)
    if state.change is not None:
        _change(turn, state.change)
        return
    if len(left) == turn.plan().size:
        plan = swap_plan(turn.plan(), epoch=state.epoch + 1, replacements={}, reason=f"epoch {state.epoch} broke: same workers")
        _begin(turn, plan, actions)
        return
    scaled_down = turn.plan().size > state.goal.ranks <= len(left) + len(available(turn))
    if scaled_down and Action.SHRINK not in actions:  # nobody asks for more workers than full strength
        actions = (*actions[:-1], Action.SHRINK, actions[-1])
    troubles: list[str] = []
    for action in actions:
        found: Plan | None = None
        match action:
            case Action.SWAP:
                found = swapped(turn, troubles)
            case Action.SHRINK:
                words = f"epoch {state.epoch} broke"
                found = by_planner(turn, left, troubles, reason=words)
                found = found or shrunk(turn, left, troubles, waits=Action.WAIT in actions)
            case Action.ROLLBACK:
                if state.checkpoint is None:
                    troubles.append(f"{action}: there is no checkpoint")
                elif found := swapped(turn, []) or shrunk(turn, left, troubles, waits=False):
                    turn.set(cold=f"the policy for {failure} says {action}")
            case Action.WAIT:  # for a spare: when one is there, the wait is over
                found = None if Action.SWAP in actions else swapped(turn, troubles)
            case Action.FAIL:
                outcome = Outcome.CORRUPT_STATE if failure is FailureClass.CORRUPT_STATE else Outcome.UNRECOVERABLE
                why = f"{state.recoveries[-1].reason}; the policy for {failure} is {', '.join(actions)}"
                end(turn, JobPhase.FAILED, outcome, "; ".join([why, *troubles]))
                return
            case Action.REPORT | Action.RECUT:
                continue  # nothing that fills a seat
        if found is not None:
            if action is not Action.SWAP:
                turn.say("; ".join([f"policy for {failure}: {action}", *troubles]))
            _begin(turn, found, actions)
            return
    if turn.state.phase is JobPhase.FENCING:
        turn.to_phase(JobPhase.WAITING)
        turn.say("; ".join([*troubles, "waiting for a node or a worker"]))


def _begin(turn: Turn, plan: Plan, actions: tuple[Action, ...]) -> None:
    """Start a plan with the best state that there is, or end the job when there is none."""
    try:
        resume = resume_for(turn, plan, actions)
    except Hopeless as e:
        corrupt = turn.state.recoveries[-1].failure is FailureClass.CORRUPT_STATE
        end(turn, JobPhase.FAILED, Outcome.CORRUPT_STATE if corrupt else Outcome.UNRECOVERABLE, str(e))
        return
    touch(turn, planned_ms=turn.at_ms)
    if turn.state.recut and len(plan.stages) != len(turn.plan().stages):
        turn.set(recut=())  # another pipeline: the cut that spared a slow rank went with it
    expect(turn, plan)
    start(turn, plan, resume)


# ---- planned changes


def _change(turn: Turn, change: Change) -> None:
    """What the ranks left for, or the epoch as it was when that is not possible any more."""
    troubles: list[str] = []
    plan = _changed(turn, change, troubles)
    if change.kind is ChangeKind.MOVE and not (plan and in_memory(turn, plan)):
        change = replace(change, kind=ChangeKind.HANDOVER)  # more have to go than when it was asked for
        plan = _changed(turn, change, troubles)
    if plan is not None and not in_memory(turn, plan):
        troubles.append("its ranks would not hold the whole state")
        plan = None
    if plan is None:
        turn.say("; ".join([f"the {change.kind} comes to nothing", *troubles]))
        turn.set(change_step=turn.state.committed_step + turn.state.job.resilience.grow_after_steps)
        reason = f"the {change.kind} came to nothing: same workers"
        plan = swap_plan(turn.plan(), epoch=turn.state.epoch + 1, replacements={}, reason=reason)
    elif change.kind is ChangeKind.RECUT:
        usual = change.layers_per_stage == usual_cut(turn.state)
        turn.set(recut=() if usual else change.layers_per_stage, sized_step=turn.state.committed_step)
    _begin(turn, plan, ())


def _changed(turn: Turn, change: Change, troubles: list[str]) -> Plan | None:
    state, old = turn.state, turn.plan()
    assert state.graph is not None
    left, spares = who_left(turn), available(turn)
    reason = f"{change.kind}: {change.why}"
    match change.kind:
        case ChangeKind.HANDOVER:
            going = movers(state, left)
            if not going:
                troubles.append("nobody has to go any more")
                return None
            parted = going if replacements(turn, going, left) else parting(turn, going, left)[0]
            base: Plan | None
            if len(parted) == old.size:  # nobody stays: another replica of all of it, on spares
                shape = (old.axis(PIPELINE), old.axis(DATA) + 1)
                base = replanned(turn, left, spares, shape=shape, reason=reason, troubles=troubles)
            else:
                base = swap_plan(old, epoch=state.epoch + 1, replacements={}, reason=reason)
            if base is None:
                return None
            names = {w.worker_id for w in parted}
            return handover(base, [s.rank for s in base.seats if s.worker_id in names])
        case ChangeKind.MOVE:
            going = movers(state, left)
            given = replacements(turn, going, left)
            if given:
                what = ", ".join(f"rank {r} to {w}" for r, (w, _) in given.items())
                try:
                    return swap_plan(old, epoch=state.epoch + 1, replacements=given, reason=f"{reason}: {what}")
                except PlanError as e:
                    troubles.append(str(e))
                    return None
            parted, best = parting(turn, going, left)
            stay = [w for w in left if w not in parted]
        case ChangeKind.RECUT:
            shape = (old.axis(PIPELINE), old.axis(DATA))
            return replanned(turn, left, [], shape=shape, reason=reason, troubles=troubles, layers=change.layers_per_stage)
        case ChangeKind.SUSPEND:  # and it is to go on before it had begun, or its state is still to be saved
            troubles.append("what the ranks hold is to be saved first" if state.suspended else "the job is to go on")
            return None
        case ChangeKind.REPLAN:
            return by_planner(turn, left, troubles, reason=str(change.kind))
        case ChangeKind.GROW | ChangeKind.RESHAPE:
            stay, best = left, shape_for(goal_job(state), state.graph, len(left) + len(spares))
        case _:
            assert_never(change.kind)
    if best is None:
        troubles.append("too few workers stay")
        return None
    goal = state.goal
    asked = goal.layers_per_stage if best[0] == goal.pipeline and not state.recut else ()
    plan = replanned(turn, stay, spares, shape=best, reason=reason, troubles=troubles, layers=asked)
    if plan is not None and change.kind is ChangeKind.GROW and (plan.size, plan.copies) <= (old.size, old.copies):
        troubles.append("the workers that it was for are gone")
        return None
    return plan
