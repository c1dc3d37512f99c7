"""Who is to give a rank away, and to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.core.cluster.machines import elsewhere, machine_of
from orchestrator.core.job import Action, FailureClass
from orchestrator.core.plan.plan import TENSOR
from orchestrator.core.planner.shape import shape_for
from orchestrator.core.supervisor.staff import available, going_why
from orchestrator.core.supervisor.state import State, Worker
from orchestrator.core.supervisor.turn import Turn

SLOW = "it is slow"  # how the reason begins for which a slow worker gives its rank away


def movers(state: State, present: Sequence[Worker]) -> list[Worker]:
    """Those that are to give their rank away. When all of several are, one stays for now: somebody must hand the state on."""
    going = [w for w in present if going_why(state, w)]
    return going[:-1] if len(going) == len(present) > 1 else going


def without(state: State, worker: Worker) -> bool:
    """Whether the job may go on with fewer ranks to be rid of this one."""
    if worker.unwanted:
        return worker.without
    return Action.SHRINK in state.job.resilience.actions(FailureClass.NODE_LOST)


def parting(turn: Turn, going: Sequence[Worker], present: Sequence[Worker]) -> tuple[list[Worker], tuple[int, int] | None]:
    """Who will have no rank after a move without replacements, and the shape (pipeline, data) after it; None when there is none.

    Those that go, and of those that stay the last ones, where the smaller shape has no place for all of them.
    """
    state, plan = turn.state, turn.plan()
    assert state.graph is not None
    stay = [w for w in present if w not in going]
    job = replace(state.job, parallel=state.goal)
    shape = shape_for(job, state.graph, min(len(stay) + len(available(turn)), plan.size))
    if shape is None:
        return list(going), None
    return [*going, *stay[shape[0] * shape[1] * plan.axis(TENSOR) :]], shape


def replacements(turn: Turn, going: Sequence[Worker], present: Sequence[Worker]) -> dict[int, tuple[str, str]]:
    """A spare for the rank of each of `going`; empty when there are too few, or when they are not to be replaced.

    A slow worker's rank does not go to its own machine. Peer copies keep a second node; where nodes share machines, the ranks
    keep a second machine as long as a spare is on one.
    """
    state, plan = turn.state, turn.plan()
    if plan.size > state.goal.ranks:
        return {}
    slow = {machine_of(w.node_id) for w in going if w.unwanted.startswith(SLOW)}
    spares = [s for s in available(turn) if machine_of(s[1]) not in slow]
    if not going or len(spares) < len(going):
        return {}
    given = spares[: len(going)]
    nodes = {w.node_id for w in present if w not in going} | {node for _, node in given}
    if plan.copies and len(nodes) == 1:
        return {}
    if len(nodes) > 1 and (apart := elsewhere(nodes, (node for _, node in spares))):
        given[-1] = next(s for s in spares if s[1] in apart)
    seats = {s.worker_id: s.rank for s in plan.seats}
    return {seats[w.worker_id]: spare for w, spare in zip(going, given, strict=True)}
