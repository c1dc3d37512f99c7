"""Staffing: which workers to start where, and who may take a seat.

The job wants one worker per rank plus its spares. A worker that is lost is replaced in the background when a node has room, one
request per missing worker at once, not one after another; failures to start are retried with a growing pause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from orchestrator.core.cluster.machines import elsewhere, machine_of
from orchestrator.core.plan.plan import DATA, Plan
from orchestrator.core.supervisor.commands import ExitWorker, SpawnWorker
from orchestrator.core.supervisor.state import State, Worker, WorkerPhase
from orchestrator.core.supervisor.turn import Turn

RETRY_FIRST_MS = 1_000
RETRY_MAX_MS = 60_000
DEAD_MAX = 256  # lost and ended workers that are remembered, the newest; one that is forgotten is refused as a stranger


def going_why(state: State, worker: Worker) -> str:
    """Why a worker is to give its rank to somebody else; empty when it may stay."""
    return worker.unwanted or ("its node is drained" if worker.node_id in state.drained else "")


def strength(state: State) -> tuple[int, int]:
    """(workers that are there or on their way and may stay, workers that are wanted: full strength and spares)."""
    alive = sum(1 for w in state.workers.values() if w.phase.alive and not going_why(state, w))
    return alive, state.ranks_wanted + state.job.cluster.spares


def staff(turn: Turn) -> None:
    """Ask for workers until ranks and spares are met or the nodes are full."""
    state = turn.state
    if state.cluster is None or state.phase.terminal or turn.at_ms < state.retry_spawn_ms or state.parked:
        return
    alive, wanted = strength(state)
    there = [w.node_id for w in state.workers.values() if w.phase.alive]
    used, beside = Counter(there), Counter(map(machine_of, there))
    nodes = [n for n in state.cluster.healthy() if n.node_id not in state.drained]
    here = [w.node_id for w in state.workers.values() if w.phase.alive and not going_why(state, w)]
    apart = elsewhere(here, (n.node_id for n in nodes if used[n.node_id] < n.slots))
    if state.goal.copies and alive >= wanted and apart:
        wanted, nodes = alive + 1, [n for n in nodes if n.node_id in apart]  # copies need a worker on a second machine
    asked: list[str] = []
    while alive < wanted:
        room = [n for n in nodes if used[n.node_id] < n.slots]
        if not room:
            break
        node = min(room, key=lambda n: (beside[machine_of(n.node_id)], used[n.node_id], n.node_id))
        worker_id = f"{state.job.name}/w{turn.state.next_worker}"
        turn.add_worker(Worker(worker_id, node.node_id, WorkerPhase.REQUESTED, turn.at_ms))
        turn.do(SpawnWorker(worker_id, node.node_id))
        used[node.node_id] += 1
        beside[machine_of(node.node_id)] += 1
        alive += 1
        asked.append(f"{worker_id} on node {node.node_id[:12]}")
    if asked:
        turn.say(f"{alive - len(asked)} of {wanted} workers (ranks and spares) are there: starting {', '.join(asked)}")


def dismiss_surplus(turn: Turn) -> None:
    """End the newest spares of a job that was scaled down and runs at its full strength: their nodes are given back."""
    state, goal = turn.state, turn.state.goal
    if state.scaled is None or state.plan is None or state.plan.size != goal.ranks or state.plan.copies < goal.copies:
        return
    alive, wanted = strength(state)
    waits = (WorkerPhase.SPARE, WorkerPhase.REQUESTED)
    idle = [w for w in state.workers.values() if w.phase in waits and not going_why(state, w)]
    if apart(state, state.plan, [w.node_id for w in idle]):
        return  # one of them is to take a rank
    for w in idle[::-1][: max(0, alive - wanted)]:
        why = "the job needs no more workers"
        turn.worker(w.worker_id, WorkerPhase.ENDED, cause=why)
        turn.say(f"{w.worker_id} ends: {why}")
        turn.do(ExitWorker(w.worker_id, why))


def apart(state: State, plan: Plan, others: Iterable[str]) -> frozenset[str]:
    """Those of the nodes `others` that a rank is to move to: all are on one machine (or node), and the state is to be on two.

    It is where copies are asked for; where nodes share machines, that of replicas is too.
    """
    here = {s.node_id for s in plan.seats}
    twice = plan.copies or state.goal.copies or (len(here) > 1 and plan.shard < plan.axis(DATA))
    return elsewhere(here, others) if twice and plan.size > 1 else frozenset()


def back_off(turn: Turn) -> None:
    """A worker failed to start: wait longer each time before asking again. Those that fail together count once."""
    if turn.at_ms < turn.state.retry_spawn_ms:
        return
    failures = turn.state.spawn_failures + 1
    pause = min(RETRY_MAX_MS, RETRY_FIRST_MS * 2 ** min(failures - 1, 10))
    turn.set(spawn_failures=failures, retry_spawn_ms=turn.at_ms + pause)
    turn.say(f"next attempt to start workers in {pause / 1000:.0f} s")


def forget(turn: Turn) -> None:
    """Forget the oldest dead workers, so that a job of many failures does not grow; those with a seat in the plan stay."""
    state = turn.state
    if len(state.workers) <= DEAD_MAX:
        return
    dead = [i for i, w in state.workers.items() if not w.phase.alive and not (state.plan and state.plan.seat_of(i))]
    gone = set(dead[: max(0, len(dead) - DEAD_MAX)])
    if gone:
        turn.set(workers={i: w for i, w in state.workers.items() if i not in gone})


def coming(state: State) -> bool:
    """Whether workers are on their way that will be here soon: asked for, and the last attempts did not fail."""
    return not state.spawn_failures and any(w.phase is WorkerPhase.REQUESTED for w in state.workers.values())


def available(turn: Turn) -> list[tuple[str, str]]:
    """(worker_id, node_id) of connected spares on nodes that may be used.

    Each is on the machine, and of its nodes on the one, that those before leave emptiest.
    """
    state = turn.state
    usable = {n.node_id for n in state.cluster.healthy()} if state.cluster else set()
    taken = [w.node_id for w in turn.seated() if w.phase in (WorkerPhase.MEMBER, WorkerPhase.LEFT)]
    busy, beside = Counter(taken), Counter(map(machine_of, taken))
    spares = [
        w
        for w in state.workers.values()
        if w.phase is WorkerPhase.SPARE and w.connected and not w.suspect and w.node_id in usable and not going_why(state, w)
    ]
    out: list[tuple[str, str]] = []
    while spares:
        chosen = min(spares, key=lambda w: (beside[machine_of(w.node_id)], busy[w.node_id], w.node_id, w.worker_id))
        spares.remove(chosen)
        busy[chosen.node_id] += 1
        beside[machine_of(chosen.node_id)] += 1
        out.append((chosen.worker_id, chosen.node_id))
    return out
