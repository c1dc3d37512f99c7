"""Planned changes of a running job: nothing went wrong, and nothing is lost.

While an epoch runs, its plan is compared with what should be: full strength, no rank on a drained node or a slow worker, the
pipeline cut as it should be. The first difference that can be mended now becomes a change: the ranks are asked to leave at the
end of a step, and `choice` makes the plan. What cannot be mended yet waits, and is looked at again after every event.
"""

from __future__ import annotations

from collections import Counter

from orchestrator.core.cluster.machines import machine_of
from orchestrator.core.job import FailureClass
from orchestrator.core.plan.plan import DATA, PIPELINE, TENSOR
from orchestrator.core.planner.shape import shape_for
from orchestrator.core.supervisor.candidates import goal_job
from orchestrator.core.supervisor.choice import usual_cut
from orchestrator.core.supervisor.commands import LeaveEpoch
from orchestrator.core.supervisor.epochs import fence
from orchestrator.core.supervisor.handover import missing
from orchestrator.core.supervisor.measuring import measure
from orchestrator.core.supervisor.moving import movers, parting, replacements, without
from orchestrator.core.supervisor.picking import better, known, weighing
from orchestrator.core.supervisor.staff import apart, available, coming, going_why
from orchestrator.core.supervisor.state import Change, ChangeKind, JobPhase, State, WorkerPhase
from orchestrator.core.supervisor.turn import Turn

SCALED = "the job is scaled down"  # why a worker of a larger job gives its rank away


def consider(turn: Turn) -> None:
    """Begin the planned change that is due and possible, if there is one."""
    state = turn.state
    if state.phase is not JobPhase.RUNNING or state.change is not None or state.finished:
        return
    if state.committed_step <= state.change_step or state.committed_step >= state.job.train.steps:
        return
    _mark_surplus(turn)
    change = _move(turn) or _reshape(turn) or _grow(turn)
    if change is not None:
        ask(turn, change)


def ask(turn: Turn, change: Change) -> None:
    """Ask every rank to leave at the end of a step."""
    turn.set(change=change)
    saved = ", and to save it first" if saves(turn.state) else ""
    turn.say(f"planned change, {change.kind}: {change.why}; the ranks are asked to leave after the step under way{saved}")
    for w in turn.members():
        turn.do(leave_word(turn.state, w.worker_id))


def saves(state: State) -> bool:
    """Whether the ranks write a checkpoint before they leave: of a job that is suspended and has a place for it."""
    return state.change is not None and state.change.kind is ChangeKind.SUSPEND and bool(state.job.checkpoint.uri)


def leave_word(state: State, worker_id: str) -> LeaveEpoch:
    """What a member is asked for the change that is under way; always the same, however often it is asked."""
    return LeaveEpoch(worker_id, state.epoch, saves(state))


def hurry(turn: Turn, limit_ms: int) -> None:
    """The ranks were asked to leave and still train: fence them, at the cost of the step under way.

    Not those of a suspended job that save their state: cut short, all that they trained since the last checkpoint would be lost.
    """
    assert turn.state.change is not None
    if turn.state.suspended and saves(turn.state):
        return
    turn.say(f"the step under way takes more than {limit_ms / 1000:.0f} s: not waiting for it")
    fence(turn, FailureClass.PLANNED, turn.state.change.why)


def depart(turn: Turn) -> None:
    """The first rank has left as it was asked to; the others are about to."""
    assert turn.state.change is not None
    fence(turn, FailureClass.PLANNED, turn.state.change.why, at_once=False)


def _mark_surplus(turn: Turn) -> None:
    """A job that was scaled down: choose who goes. Whole nodes, those of the highest ranks first, one of each machine in turn."""
    state, plan = turn.state, turn.plan()
    members = turn.members()
    surplus = plan.size - state.goal.ranks - sum(1 for w in members if going_why(state, w))
    if surplus <= 0:
        return
    order: dict[str, tuple[int, int]] = {}
    beside: Counter[str] = Counter()
    for i, node in enumerate(dict.fromkeys(w.node_id for w in members)):
        order[node] = beside[machine_of(node)], i
        beside[machine_of(node)] += 1
    last_first = sorted(members, key=lambda w: (order[w.node_id], members.index(w)), reverse=True)
    for w in last_first[:surplus]:
        turn.worker(w.worker_id, unwanted=SCALED, without=True)


def _move(turn: Turn) -> Change | None:
    state, plan = turn.state, turn.plan()
    members = turn.members()
    going = movers(state, members)
    if not going:
        return None
    without_rank = list(going)
    if not replacements(turn, going, members):
        without_rank, shape = parting(turn, going, members)
        ranks_after = shape[0] * shape[1] * plan.axis(TENSOR) if shape else 0
        if not plan.size > state.goal.ranks <= ranks_after:  # then there are ranks enough without them
            if coming(state):
                return None  # a spare will be here soon: better than to shrink and to grow again
            if not all(without(state, w) for w in going):
                return None
        if shape is None:
            return None
    names = ", ".join(turn.name(w) for w in going)
    why = f"{names} moved: {', '.join(dict.fromkeys(going_why(state, w) for w in going))}"
    ids = {w.worker_id for w in without_rank}
    ranks = [s.rank for s in plan.seats if s.worker_id in ids]
    if len(ranks) == plan.size:
        if not available(turn) or plan.axis(DATA) >= plan.micro_batches:
            return None  # nobody can take the state over
        return Change(ChangeKind.HANDOVER, f"another worker takes over what only {names} hold(s), before it goes", turn.at_ms)
    if missing(plan, ranks):
        return Change(ChangeKind.HANDOVER, f"the others take over what only {names} hold(s), before it goes", turn.at_ms)
    return Change(ChangeKind.MOVE, why, turn.at_ms)


def _reshape(turn: Turn) -> Change | None:
    """As many ranks as it should have, in another arrangement; or its pipeline cut as it should be again."""
    state, plan = turn.state, turn.plan()
    goal = state.goal
    if plan.size != goal.ranks:
        return None
    if (plan.axis(PIPELINE), plan.axis(DATA)) != (goal.pipeline, goal.data):
        shape = f"pipeline {goal.pipeline} x data {goal.data}"
        return Change(ChangeKind.RESHAPE, f"{shape}, as somebody asked for", turn.at_ms)
    if state.recut:
        if not _settled(turn) or any(w.slow_since_ms >= 0 for w in turn.members()):
            return None
        usual, why = usual_cut(state), "no rank is slow any more: the layers are cut {} again"
    else:
        usual, why = goal.layers_per_stage, "the layers are cut {}, as somebody asked for"
    layers = tuple(s.last - s.first for s in plan.stages)
    if layers == usual or len(layers) != len(usual):
        return None
    return Change(ChangeKind.RECUT, why.format("-".join(map(str, usual))), turn.at_ms, usual)


def _settled(turn: Turn) -> bool:
    """Whether it is long enough since the last change of size."""
    state = turn.state
    return state.committed_step - state.sized_step >= state.grow_pause


def improve(turn: Turn) -> Change | None:
    """Another plan for the workers that there are now, where the planner finds one that is worth a change. Weighed once."""
    state, members, spares = turn.state, turn.members(), available(turn)
    workers = [*((w.worker_id, w.node_id) for w in members), *spares]
    told = [state.workers[i] for i, _ in workers]
    if coming(state) or any(going_why(state, w) for w in members):
        return None
    if any(w.phase is WorkerPhase.SPARE and w.measure is None for w in told) and not measure(turn, told):
        return None
    key = weighing(turn, workers)
    if key == state.weighed or not known(turn, workers):
        return None
    turn.set(weighed=key)
    why = better(turn, workers)
    return Change(ChangeKind.REPLAN, why, turn.at_ms) if why else None


def _grow(turn: Turn) -> Change | None:
    """More ranks when there are spares for them; peer copies again, and on a second machine, when there is a place for them."""
    state, plan = turn.state, turn.plan()
    members, spares = turn.members(), available(turn)
    if not _settled(turn) or any(going_why(state, w) for w in members):
        return None
    here = {w.node_id for w in members}
    further = apart(state, plan, [node for _, node in spares])
    if state.planned:
        return improve(turn) or (_spread(turn) if further and len(here) > 1 else None)
    if plan.size < state.goal.ranks:
        assert state.graph is not None
        shape = shape_for(goal_job(state), state.graph, plan.size + len(spares)) if spares else None
        ranks = shape[0] * shape[1] * plan.axis(TENSOR) if shape else 0
        if ranks <= plan.size or (coming(state) and ranks < state.goal.ranks):
            return None  # when more workers will be here soon: one change instead of two
        return Change(ChangeKind.GROW, f"{len(spares)} spare(s) are ready: from {plan.size} to {ranks} ranks", turn.at_ms)
    if plan.copies < state.goal.copies and len(here) > 1:
        return Change(ChangeKind.GROW, "the ranks are on two nodes: peer copies are possible again", turn.at_ms)
    return _spread(turn) if further else None


def _spread(turn: Turn) -> Change | None:
    """A rank to a spare on another machine than all of them are on, or node where they are on one."""
    members = turn.members()
    several = len({w.node_id for w in members}) > 1
    why = "all state is on one machine" if several else "peer copies need a second node"
    turn.worker(members[-1].worker_id, unwanted=why, without=False)
    return _move(turn)
