"""Time: what a tick's observations mean for each worker.

Silence and standstill are judged by the ladder of time-outs alone. Half-way to the limit a worker is shown as unreachable (or its
stacks are asked for) and nothing else happens; at the limit it is lost. A worker that waits inside a collective is never to blame
for standing still: somebody else is.
"""

from __future__ import annotations

from orchestrator.core.job import FailureClass
from orchestrator.core.supervisor.changes import hurry
from orchestrator.core.supervisor.commands import DumpStacks, FenceEpoch, KillWorker
from orchestrator.core.supervisor.epochs import fence, give_up, lose
from orchestrator.core.supervisor.events import Observation, Tick
from orchestrator.core.supervisor.pace import judge_pace
from orchestrator.core.supervisor.staff import back_off
from orchestrator.core.supervisor.state import JobPhase, Worker, WorkerPhase
from orchestrator.core.supervisor.turn import Turn
from orchestrator.core.timeouts import Timeouts, derive

USUAL_FACTOR = 4  # a phase may take this many times its longest so far before it counts as a hang


def tick(turn: Turn, event: Tick) -> None:
    """Judge every observation, then the epoch as a whole."""
    limits = derive(turn.state.job.resilience.detect_within_ms)
    seen = {o.worker_id: o for o in event.observations}
    for o in event.observations:
        worker = turn.state.workers.get(o.worker_id)
        if worker is not None and worker.phase.alive and not turn.state.phase.terminal:
            _judge(turn, worker, o, limits)
    if turn.state.phase.terminal:
        return
    _judge_epoch(turn, seen, limits)
    if turn.state.phase is JobPhase.RUNNING:
        judge_pace(turn, seen, limits)


def _judge(turn: Turn, worker: Worker, o: Observation, limits: Timeouts) -> None:
    if worker.phase is WorkerPhase.REQUESTED:
        if o.silence_ms >= limits.spawn_ms:
            why = f"it did not say hello within {limits.spawn_ms / 1000:.0f} s"
            turn.worker(worker.worker_id, WorkerPhase.ENDED, cause=why)
            turn.say(f"{worker.worker_id} did not come up: {why}")
            turn.do(KillWorker(worker.worker_id, why))
            back_off(turn)
            give_up(turn, why)
        return
    if o.orphaned:
        lose(turn, worker, FailureClass.NODE_LOST, "it says itself that its node's Ray daemon is gone")
        return
    if o.silence_ms >= limits.lost_ms:
        node = turn.state.cluster.node(worker.node_id) if turn.state.cluster else None
        failure = FailureClass.WORKER_HUNG if worker.connected else FailureClass.UNREACHABLE
        if node is not None and not node.healthy:
            failure = FailureClass.NODE_LOST
        how = "its stream is open but" if worker.connected else "its stream is broken and"
        lose(turn, worker, failure, f"{how} it has been silent for {o.silence_ms} ms (limit {limits.lost_ms} ms)")
        return
    if o.silence_ms >= limits.suspect_ms:
        if not worker.suspect:
            turn.worker(worker.worker_id, suspect=f"silent for {o.silence_ms} ms")
            turn.say(f"{turn.name(worker)} is unreachable for {o.silence_ms} ms: not failed until {limits.lost_ms} ms")
    elif worker.suspect.startswith("silent"):
        turn.worker(worker.worker_id, suspect="")
        turn.say(f"{turn.name(worker)} is back: it was unreachable, not failed")
    if worker.phase is WorkerPhase.MEMBER and not o.in_comm:
        _judge_progress(turn, turn.state.workers[worker.worker_id], o, limits)


def _judge_progress(turn: Turn, worker: Worker, o: Observation, limits: Timeouts) -> None:
    limit = max(limits.lost_ms, USUAL_FACTOR * o.usual_ms) if o.usual_ms else limits.first_step_ms
    if o.stalled_ms >= limit:
        usual = f"; it usually takes at most {o.usual_ms} ms" if o.usual_ms else ""
        lose(
            turn,
            worker,
            FailureClass.WORKER_HUNG,
            f"it sends heartbeats but its training thread has stood still for {o.stalled_ms} ms (limit {limit} ms{usual})",
        )
    elif o.stalled_ms >= limit * 3 // 4 and not worker.stacks_asked:
        turn.worker(worker.worker_id, stacks_asked=True)
        turn.say(f"{turn.name(worker)} stands still for {o.stalled_ms} ms: asking for its stacks")
        turn.do(DumpStacks(worker.worker_id))
    elif worker.stacks_asked and o.stalled_ms < limits.suspect_ms:
        turn.worker(worker.worker_id, stacks_asked=False)


def _judge_epoch(turn: Turn, seen: dict[str, Observation], limits: Timeouts) -> None:
    state = turn.state
    members = turn.members()
    age = turn.at_ms - state.phase_since_ms
    if state.phase is JobPhase.FENCING and age >= limits.lost_ms:
        for w in members:
            o = seen.get(w.worker_id)
            if o is not None and o.in_comm and o.stalled_ms >= limits.lost_ms:
                lose(turn, w, FailureClass.WORKER_HUNG, f"it did not leave the fenced epoch within {limits.lost_ms} ms")
            elif w.connected and age % limits.lost_ms < limits.tick_ms * 2:
                turn.say(f"{turn.name(w)} is told again to leave epoch {state.epoch}: the first word may be lost with a stream")
                turn.do(FenceEpoch(w.worker_id, state.epoch))
    elif state.phase is JobPhase.FORMING and age >= limits.prove_ms:
        late = [turn.name(w) for w in members if w.ready_epoch != state.epoch]
        fence(
            turn,
            FailureClass.COLLECTIVE_BROKEN,
            f"epoch {state.epoch} did not prove itself within {limits.prove_ms / 1000:.0f} s: {', '.join(late)} not ready",
        )
    elif state.phase is JobPhase.RUNNING and members:
        waits = [seen.get(w.worker_id) for w in members]
        if all(o is not None and o.in_comm and o.stalled_ms >= 2 * limits.lost_ms for o in waits):
            fence(
                turn,
                FailureClass.COLLECTIVE_BROKEN,
                f"every rank waits inside a collective for {2 * limits.lost_ms} ms",
            )
        elif state.change is not None and turn.at_ms - state.change.asked_ms >= limits.leave_ms:
            hurry(turn, limits.leave_ms)
