"""Plans that could come next, of whoever is there: with spares in the seats of the lost, a smaller one, or the planner's.

None of them is begun here: each is made of the workers that are left and the spares, and is asked whether they hold the state in
their memory. `troubles` collects why there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.core.job import Job
from orchestrator.core.plan.plan import TENSOR, Plan, Seat
from orchestrator.core.planner.planner import PlanError, replan, swap_plan
from orchestrator.core.planner.shape import shape_for
from orchestrator.core.reshard.recovery import Unrecoverable
from orchestrator.core.supervisor.memory import cover, from_memory, trusted
from orchestrator.core.supervisor.picking import Pick, known, pick, take, weighing
from orchestrator.core.supervisor.staff import available
from orchestrator.core.supervisor.state import State, Worker, WorkerPhase
from orchestrator.core.supervisor.turn import Turn


def goal_job(state: State) -> Job:
    """The job at its present full strength."""
    return replace(state.chosen or state.job, parallel=state.goal)


def on_their_way(turn: Turn) -> bool:
    """Whether a worker is coming up, or is asked for again soon."""
    state = turn.state
    return any(w.phase is WorkerPhase.REQUESTED for w in state.workers.values()) or turn.at_ms < state.retry_spawn_ms


def who_left(turn: Turn) -> list[Worker]:
    """Those of the present plan who have left its epoch and still hold their state."""
    return [w for w in turn.seated() if w.phase is WorkerPhase.LEFT]


def swapped(turn: Turn, troubles: list[str]) -> Plan | None:
    """The same plan with spares in the seats of the lost; with those that gave their seat away, if the state needs them."""
    spares = available(turn)
    found, back = _filled(turn, spares, troubles), [(w.worker_id, w.node_id) for w in turn.unseated()]
    if back and (found is None or not in_memory(turn, found)):
        again = _filled(turn, [*back, *spares], troubles)
        if found is None or (again is not None and in_memory(turn, again)):
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


def by_planner(turn: Turn, left: Sequence[Worker], troubles: list[str], *, reason: str) -> Plan | None:
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
        if in_memory(turn, plan):
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


def shrunk(turn: Turn, left: Sequence[Worker], troubles: list[str], *, waits: bool) -> Plan | None:
    """A plan for whoever is there: never larger than the one before, and if it can be one that keeps the state in memory.

    With those that gave their seat away, if the state needs them. None as well where no such plan keeps it, the survivors hold
    all of it, and the policy `waits`: for a worker, then. Where none will come, a durable checkpoint is better than to wait.
    """
    waits = waits and (turn.state.checkpoint is None or on_their_way(turn))
    found = _smaller(turn, left, troubles)
    back = turn.unseated()
    if back and (found is None or not in_memory(turn, found)):
        again = _smaller(turn, [*left, *back], troubles)
        if found is None or (again is not None and in_memory(turn, again)):
            found = again
    if found is not None and waits and not in_memory(turn, found) and in_memory(turn, _with_survivors(turn)):
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
        plan = replanned(turn, kept, spares, shape=(pipeline, data), reason=words, troubles=troubles)
        if plan is not None:
            plans.append(plan)
            if in_memory(turn, plan):
                return plan
    if not plans:
        pipeline, data = shape
        words = f"epoch {old.epoch} broke: {pipeline * data * old.axis(TENSOR)} of {old.size} ranks go on"
        return replanned(turn, left, spares, shape=shape, reason=words, troubles=troubles)
    return plans[0]


def replanned(
    turn: Turn,
    left: Sequence[Worker],
    spares: Sequence[tuple[str, str]],
    *,
    shape: tuple[int, int],
    reason: str,
    troubles: list[str],
    layers: tuple[int, ...] = (),
) -> Plan | None:
    """A plan of another shape, pipeline x data, for these workers; None, and what troubles, where there is none."""
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


def in_memory(turn: Turn, plan: Plan) -> bool:
    """Whether the ranks of a plan can go on from what workers hold."""
    try:
        from_memory(turn, plan)
    except Unrecoverable:
        return False
    return True
