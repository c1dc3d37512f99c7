"""Which plan comes next, once everybody has left an epoch or is lost.

A failure: the first action of its class's policy that is possible. A planned change: what it is for, if that is still possible,
else the epoch begins again as it was. Which workers there are decides on the plan; where its state comes from, `memory` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from orchestrator.core.cluster.machines import elsewhere
from orchestrator.core.job import Action, FailureClass, Job
from orchestrator.core.plan.plan import DATA, PIPELINE, TENSOR, Plan, Seat
from orchestrator.core.planner.planner import PlanError, first_plan, replan, swap_plan
from orchestrator.core.planner.shape import shape_for, stages_per_rank_for
from orchestrator.core.planner.stages import make_stages
from orchestrator.core.reshard.recovery import Unrecoverable
from orchestrator.core.supervisor.epochs import end, start, touch
from orchestrator.core.supervisor.handover import handover
from orchestrator.core.supervisor.measuring import measure
from orchestrator.core.supervisor.memory import Hopeless, cover, from_disk, from_memory, resume_for, trusted
from orchestrator.core.supervisor.moving import movers, parting, replacements
from orchestrator.core.supervisor.picking import Pick, expect, known, pick, take, weighing
from orchestrator.core.supervisor.staff import available
from orchestrator.core.supervisor.state import Change, ChangeKind, JobPhase, Outcome, State, Worker, WorkerPhase
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


def goal_job(state: State) -> Job:
    """The job at its present full strength."""
    return replace(state.chosen or state.job, parallel=state.goal)


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
    why = "" if _on_their_way(turn) or state.cluster is None else why
    if why != state.missing:
        turn.set(missing=why)
        if why:
            turn.say(why)


def _on_their_way(turn: Turn) -> bool:
    state = turn.state
    return any(w.phase is WorkerPhase.REQUESTED for w in state.workers.values()) or turn.at_ms < state.retry_spawn_ms


def next_epoch(turn: Turn) -> None:
    """Begin the next epoch, wait for workers, or end the job."""
    state = turn.state
    failure = state.recoveries[-1].failure
    actions = actions_of(state, failure)
    left = _left(turn)
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
                found = _swapped(turn, troubles)
            case Action.SHRINK:
                words = f"epoch {state.epoch} broke"
                found = _picked(turn, left, troubles, reason=words)
                found = found or _shrunk(turn, left, troubles, waits=Action.WAIT in actions)
            case Action.ROLLBACK:
                if state.checkpoint is None:
                    troubles.append(f"{action}: there is no checkpoint")
                elif found := _swapped(turn, []) or _shrunk(turn, left, troubles, waits=False):
                    turn.set(cold=f"the policy for {failure} says {action}")
            case Action.WAIT:  # for a spare: when one is there, the wait is over
                found = None if Action.SWAP in actions else _swapped(turn, troubles)
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


def _left(turn: Turn) -> list[Worker]:
    return [w for w in turn.seated() if w.phase is WorkerPhase.LEFT]


def _swapped(turn: Turn, troubles: list[str]) -> Plan | None:
    """The same plan with spares in the seats of the lost; with those that gave their seat away, if the state needs them."""
    spares = available(turn)
    found, back = _filled(turn, spares, troubles), [(w.worker_id, w.node_id) for w in turn.unseated()]
    if back and (found is None or not _in_memory(turn, found)):
        again = _filled(turn, [*back, *spares], troubles)
        if found is None or (again is not None and _in_memory(turn, again)):
            return again
    return found


def _filled(turn: Turn, spares: Sequence[tuple[str, str]], troubles: list[str]) -> Plan | None:
    old = turn.plan()
    empty = [s for s in old.seats if turn.state.workers[s.worker_id].phase is not WorkerPhase.LEFT]
    missing = len(empty) - len(spares)
    if missing > 0:
        troubles.append(f"{len(empty)} rank(s) need a worker and {missing} spare(s) are missing")
        return None
    given = {s.rank: w for s, w in zip(empty, spares, strict=False)}
    what = ", ".join(f"rank {r} to {w}" for r, (w, _) in given.items())
    try:
        return swap_plan(old, epoch=turn.state.epoch + 1, replacements=given, reason=f"epoch {old.epoch} broke: {what}")
    except PlanError as e:
        troubles.append(f"no plan with spares: {e}")
        return None


def _picked(turn: Turn, left: Sequence[Worker], troubles: list[str], *, reason: str) -> Plan | None:
    """The planner's plan for whoever is there, where it is asked, if the state is in their memory."""
    state, old = turn.state, turn.plan()
    workers = [*((w.worker_id, w.node_id) for w in left), *available(turn)]
    if not state.planned or not known(turn, workers):
        return None
    key = ("after a loss", *weighing(turn, workers))
    if key == state.weighed:
        return None  # nothing came of it, and while the job waits it is asked after every event
    turn.set(weighed=key)
    for among in (workers, workers[: len(left)]):  # a spare must not take the place of the only holder of some state
        try:
            picked = pick(turn, among, like=old, ranks_max=0 if state.change else old.size)  # a loss is no reason to grow
            plan = _made(turn, picked, among, reason=f"{reason}: {picked.words}")
        except PlanError as e:
            troubles.append(f"the planner finds no plan: {e}")
            return None
        if _in_memory(turn, plan):
            take(turn, picked)
            return plan
    troubles.append("the planner's plan leaves out the only holders of some state")
    return None


def _made(turn: Turn, picked: Pick, workers: Sequence[tuple[str, str]], *, reason: str) -> Plan:
    """What the planner chose, as a plan. Raises PlanError."""
    state, held = turn.state, trusted(turn)
    assert state.graph is not None
    parallel = picked.job.parallel
    return replan(
        parent=turn.plan(),
        job=picked.job,
        graph=state.graph,
        workers=workers,
        held={i: held[i] for i, _ in workers if i in held},
        epoch=state.epoch + 1,
        pipeline=parallel.pipeline,
        data=parallel.data,
        layers_per_stage=picked.layers,
        seats=picked.seats,
        reason=reason,
    )


def _shrunk(turn: Turn, left: Sequence[Worker], troubles: list[str], *, waits: bool) -> Plan | None:
    """A plan for whoever is there: never larger than the one before, and if it can be one that keeps the state in memory.

    With those that gave their seat away, if the state needs them. None as well where no such plan keeps it, the survivors hold
    all of it, and the policy `waits`: for a worker, then. Where none will come, a durable checkpoint is better than to wait.
    """
    waits = waits and (turn.state.checkpoint is None or _on_their_way(turn))
    found = _smaller(turn, left, troubles)
    back = turn.unseated()
    if back and (found is None or not _in_memory(turn, found)):
        again = _smaller(turn, [*left, *back], troubles)
        if found is None or (again is not None and _in_memory(turn, again)):
            found = again
    if found is not None and waits and not _in_memory(turn, found) and _in_memory(turn, _with_survivors(turn)):
        troubles.append("the survivors hold the whole state, and no smaller plan would keep all of it")
        return None
    return found


def _with_survivors(turn: Turn) -> Plan:
    """The present plan with those that gave their seat away in seats of the lost: to ask what they all hold, never to run."""
    back = [w for w in turn.unseated() if w.held is not None]
    seats = []
    for s in turn.plan().seats:
        empty = turn.state.workers[s.worker_id].phase is not WorkerPhase.LEFT
        worker = back.pop() if empty and back else turn.state.workers[s.worker_id]
        seats.append(Seat(s.rank, worker.worker_id, worker.node_id))
    return replace(turn.plan(), seats=tuple(seats))


def _smaller(turn: Turn, left: Sequence[Worker], troubles: list[str]) -> Plan | None:
    state, old = turn.state, turn.plan()
    assert state.graph is not None
    job, spares = goal_job(state), available(turn)
    present = len(left) + len(spares)
    shape = shape_for(job, state.graph, min(present, old.size))
    if shape is None:
        least = max(state.job.resilience.ranks_min, old.axis(TENSOR))
        troubles.append(f"{present} worker(s) are left and at least {least} ranks are needed")
        return None
    shapes = [shape]
    wide = (1, len(left) // old.axis(TENSOR))
    if 1 <= wide[1] <= job.train.micro_batches and wide != shape:
        shapes.append(wide)  # every survivor in one data axis: for when no smaller number of them holds the whole state
    plans: list[Plan] = []
    for pipeline, data in shapes:
        ranks = pipeline * data * old.axis(TENSOR)
        kept = cover(turn, list(left), ranks)
        if len(kept) > ranks:
            continue
        words = f"epoch {old.epoch} broke: {ranks} of {old.size} ranks go on"
        plan = _replanned(turn, kept, spares, shape=(pipeline, data), reason=words, troubles=troubles)
        if plan is not None:
            plans.append(plan)
            if _in_memory(turn, plan):
                return plan
    if not plans:
        pipeline, data = shape
        words = f"epoch {old.epoch} broke: {pipeline * data * old.axis(TENSOR)} of {old.size} ranks go on"
        return _replanned(turn, left, spares, shape=shape, reason=words, troubles=troubles)
    return plans[0]


def _replanned(
    turn: Turn,
    left: Sequence[Worker],
    spares: Sequence[tuple[str, str]],
    *,
    shape: tuple[int, int],
    reason: str,
    troubles: list[str],
    layers: tuple[int, ...] = (),
) -> Plan | None:
    state = turn.state
    assert state.graph is not None
    held, job = trusted(turn), goal_job(state)
    if state.planned:  # the planner does without copies only where its own plan has replicas
        job = replace(job, parallel=replace(job.parallel, copies=max(state.job.planner.space.copies)))
    try:
        return replan(
            parent=turn.plan(),
            job=job,
            graph=state.graph,
            workers=[*((w.worker_id, w.node_id) for w in left), *spares],
            held={w.worker_id: held[w.worker_id] for w in left if w.worker_id in held},
            epoch=state.epoch + 1,
            pipeline=shape[0],
            data=shape[1],
            layers_per_stage=layers,
            reason=reason,
        )
    except PlanError as e:
        troubles.append(f"no plan of {shape[0]} x {shape[1]}: {e}")
        return None


def _in_memory(turn: Turn, plan: Plan) -> bool:
    try:
        from_memory(turn, plan)
    except Unrecoverable:
        return False
    return True


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
    if change.kind is ChangeKind.MOVE and not (plan and _in_memory(turn, plan)):
        change = replace(change, kind=ChangeKind.HANDOVER)  # more have to go than when it was asked for
        plan = _changed(turn, change, troubles)
    if plan is not None and not _in_memory(turn, plan):
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
    left, spares = _left(turn), available(turn)
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
                base = _replanned(turn, left, spares, shape=shape, reason=reason, troubles=troubles)
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
            return _replanned(turn, left, [], shape=shape, reason=reason, troubles=troubles, layers=change.layers_per_stage)
        case ChangeKind.SUSPEND:  # and it is to go on before it had begun, or its state is still to be saved
            troubles.append("what the ranks hold is to be saved first" if state.suspended else "the job is to go on")
            return None
        case ChangeKind.REPLAN:
            return _picked(turn, left, troubles, reason=str(change.kind))
        case ChangeKind.GROW | ChangeKind.RESHAPE:
            stay, best = left, shape_for(goal_job(state), state.graph, len(left) + len(spares))
        case _:
            assert_never(change.kind)
    if best is None:
        troubles.append("too few workers stay")
        return None
    goal = state.goal
    asked = goal.layers_per_stage if best[0] == goal.pipeline and not state.recut else ()
    plan = _replanned(turn, stay, spares, shape=best, reason=reason, troubles=troubles, layers=asked)
    if plan is not None and change.kind is ChangeKind.GROW and (plan.size, plan.copies) <= (old.size, old.copies):
        troubles.append("the workers that it was for are gone")
        return None
    return plan
