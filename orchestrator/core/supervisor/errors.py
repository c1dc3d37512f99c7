"""Rising error counts: a node on which workers are lost one after another is emptied before it dies itself.

The rule: when LOSSES workers that had come up were lost on a node by a fault that may be the node's (they exited, hung, or held
corrupt state) within the last `budget_refill_steps` committed steps, the node is failing. It is drained, like on a person's word,
while the other nodes have room for the job at full strength, and on two machines where peer copies are wanted (on two nodes, if
all are on one machine). So this never costs a rank, never empties the last node, and never brings the job below its least number
of ranks.

Without that room it is only said, once. If the room is lost later, the node is used again: a job on a bad node is better than
one that waits for ever. Nodes that a person (or Ray) drained are left alone.
"""

from __future__ import annotations

from orchestrator.core.cluster.machines import elsewhere
from orchestrator.core.cluster.view import ClusterView
from orchestrator.core.supervisor.state import State
from orchestrator.core.supervisor.turn import Turn
from orchestrator.core.supervisor.wishes import empty

LOSSES = 3


def weigh(turn: Turn) -> None:
    """Drain the nodes that have begun to fail, use those again that cannot be spared, forget those that are well or gone."""
    state = turn.state
    if state.cluster is None or not (state.failing or any(w.fault_step >= 0 for w in state.workers.values())):
        return
    window = state.job.resilience.budget_refill_steps
    losses = _losses(state, window)
    for node in state.cluster.healthy():
        node_id, name = node.node_id, node.node_id[:12]
        known, drained = node_id in turn.state.failing, node_id in turn.state.drained
        over, room = losses.get(node_id, 0) >= LOSSES, _room_without(turn.state, state.cluster, node_id)
        why = f"{LOSSES} workers were lost on it within {window} steps: rising error counts"
        if drained and known and not room and turn.state.change is None:
            turn.set(drained=tuple(n for n in turn.state.drained if n != node_id))
            turn.say(f"node {name} is used again though {why}; the other nodes have no room for the ranks any more")
        elif not drained and (over or known) and room:
            turn.set(failing=_with(turn.state.failing, node_id))
            turn.say(f"node {name} is to be drained ({why}): its ranks move as soon as they can")
            empty(turn, node_id)
        elif not drained and over and not known:
            turn.set(failing=_with(turn.state.failing, node_id))
            turn.say(f"node {name} is not drained though {why}; the other nodes have no room for the ranks")
        elif not drained and known and not over:
            turn.set(failing=tuple(n for n in turn.state.failing if n != node_id))
            turn.say(f"node {name} is well: fewer than {LOSSES} workers were lost on it within {window} steps")
    _forget_gone(turn, state.cluster)


def _losses(state: State, window: int) -> dict[str, int]:
    """node id -> workers that were lost on it by its fault within the window."""
    losses: dict[str, int] = {}
    for w in state.workers.values():
        if w.fault_step >= 0 and state.committed_step - w.fault_step < window:
            losses[w.node_id] = losses.get(w.node_id, 0) + 1
    return losses


def _room_without(state: State, cluster: ClusterView, node_id: str) -> bool:
    """Whether the job fits at full strength on the nodes that may be used, without this one."""
    others = [n for n in cluster.healthy() if n.node_id != node_id and n.node_id not in state.drained]
    alone = elsewhere((n.node_id for n in others), [node_id])
    return sum(n.slots for n in others) >= state.goal.ranks and not (state.goal.copies and alone)


def _with(nodes: tuple[str, ...], node_id: str) -> tuple[str, ...]:
    return nodes if node_id in nodes else (*nodes, node_id)


def _forget_gone(turn: Turn, cluster: ClusterView) -> None:
    """What the cluster does not know any more needs no mark."""
    gone = [n for n in turn.state.failing if cluster.node(n) is None]
    if gone:
        turn.set(
            failing=tuple(n for n in turn.state.failing if n not in gone),
            drained=tuple(n for n in turn.state.drained if n not in gone),
        )
