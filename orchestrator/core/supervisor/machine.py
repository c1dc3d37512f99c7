"""The supervisor's decision function: step(state, event) -> Decision(state, commands, reason).

It is the one place where failure handling is decided. It knows no clock and no network; every event says when it happened and
every command says what is wanted. An event that changes nothing returns the same state, no commands and an empty reason.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.job import FailureClass, Job
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor import measuring, reports, suspending, wishes
from orchestrator.core.supervisor.changes import consider, leave_word
from orchestrator.core.supervisor.choice import first_epoch, next_epoch
from orchestrator.core.supervisor.commands import (
    ExitWorker,
    FenceEpoch,
    KillWorker,
    ProbeWorker,
    SpawnWorker,
    TakeCheckpoint,
)
from orchestrator.core.supervisor.epochs import end, give_up, lose, run_epoch, touch
from orchestrator.core.supervisor.errors import weigh
from orchestrator.core.supervisor.staff import back_off, dismiss_surplus, forget, staff
from orchestrator.core.supervisor.state import (
    CheckpointRef,
    Decision,
    JobPhase,
    Outcome,
    State,
    WorkerPhase,
)
from orchestrator.core.supervisor.turn import Turn
from orchestrator.core.supervisor.watch import tick


def initial(job: Job, *, checkpoint: CheckpointRef | None, now_ms: int) -> State:
    """The state before the first event. With a checkpoint the job resumes from it."""
    step_ = checkpoint.step if checkpoint else 0
    return State(
        job=job,
        began_ms=now_ms,
        phase_since_ms=now_ms,
        budget=job.resilience.failure_budget,
        budget_step=step_,
        committed_step=step_,
        sized_step=step_,
        grow_pause=job.resilience.grow_after_steps,
        checkpoint=checkpoint,
    )


def refusal(state: State, worker_id: str) -> str:
    """Why a worker that says hello must be refused and end itself; empty when it is welcome."""
    worker = state.workers.get(worker_id)
    if worker is None:
        return f"{worker_id} is not a worker of job {state.job.name}"
    if worker.phase is WorkerPhase.LOST:
        return f"{worker_id} was declared lost and fenced ({worker.cause}); epoch {state.epoch} goes on without it"
    if worker.phase is WorkerPhase.ENDED:
        return f"{worker_id} was told to end: {worker.cause}"
    return ""


def step(state: State, event: ev.Event) -> Decision:
    """Decide. Pure: the same state and event give the same decision, in any process."""
    turn = Turn(state, event.at_ms)
    if not state.phase.terminal:
        _handle(turn, event)
        if not turn.state.phase.terminal:
            weigh(turn)
            staff(turn)
            _advance(turn)
            forget(turn)
    return turn.decision()


def _advance(turn: Turn) -> None:
    """Do whatever the phase allows now: start the first epoch, finish a fence, use a spare, begin a planned change."""
    phase = turn.state.phase
    if suspending.advance(turn):
        return
    if phase is JobPhase.RUNNING:
        dismiss_surplus(turn)
        measuring.measure_spares(turn)
        consider(turn)
    elif phase is JobPhase.FENCING and not turn.members():
        touch(turn, fenced_ms=turn.at_ms)
        next_epoch(turn)
    elif phase is JobPhase.WAITING:
        next_epoch(turn) if turn.state.plan else first_epoch(turn)


def _handle(turn: Turn, event: ev.Event) -> None:
    match event:
        case ev.Tick():
            tick(turn, event)
        case ev.StepCommitted():
            reports.step_committed(turn, event)
        case ev.ClusterChanged():
            _cluster_changed(turn, event)
        case ev.WorkerHello():
            _hello(turn, event)
        case ev.WorkerMeasured():
            measuring.measured(turn, event)
        case ev.WorkerDisconnected():
            _disconnected(turn, event)
        case ev.WorkerGone():
            _gone(turn, event)
        case ev.SpawnFailed():
            _spawn_failed(turn, event)
        case ev.LeftEpoch():
            reports.left(turn, event)
        case ev.EpochReady():
            reports.ready(turn, event)
        case ev.EvalReported():
            reports.evaluated(turn, event)
        case ev.DigestReported():
            reports.digest(turn, event)
        case ev.CheckpointReported():
            reports.checkpointed(turn, event)
        case ev.TaskFailed():
            reports.task_failed(turn, event)
        case ev.RankFinished():
            reports.finished(turn, event)
        case ev.CorruptionFound():
            reports.corruption(turn, event)
        case ev.BadStepFound():
            reports.bad_step(turn, event)
        case ev.CancelRequested():
            end(turn, JobPhase.CANCELLED, Outcome.CANCELLED, f"cancelled by {event.who}")
        case ev.DrainRequested():
            wishes.drain(turn, event)
        case ev.NodeGone():
            _node_gone(turn, event)
        case ev.SuspendRequested():
            suspending.suspend(turn, event)
        case ev.ContinueRequested():
            suspending.go_on(turn, event)
        case ev.ScaleRequested():
            wishes.scale(turn, event)
        case ev.ReplaceRequested():
            wishes.replace_worker(turn, event)
        case ev.CheckpointRequested():
            wishes.checkpoint(turn, event)
        case ev.FaultRequested():
            wishes.fault(turn, event)
        case ev.SupervisorRestarted():
            _restarted(turn)


def _cluster_changed(turn: Turn, event: ev.ClusterChanged) -> None:
    before = turn.state.cluster
    if before is not None and event.view.generation <= before.generation:
        return
    turn.set(cluster=event.view)
    nodes = {n.node_id: n for n in event.view.nodes}
    old = {n.node_id: n.healthy for n in before.nodes} if before else {}
    joined = [n.node_id[:12] for n in event.view.nodes if n.healthy and not old.get(n.node_id)]
    left = [i[:12] for i, healthy in old.items() if healthy and not (i in nodes and nodes[i].healthy)]
    if joined:
        turn.say(f"node(s) {', '.join(joined)} joined")
    if left:
        turn.say(f"node(s) {', '.join(left)} are gone")
    for worker in list(turn.state.workers.values()):
        node = nodes.get(worker.node_id)
        if worker.phase.alive and (node is None or not node.healthy) and not turn.state.phase.terminal:
            lose(turn, worker, FailureClass.NODE_LOST, f"the cluster says that node {worker.node_id[:12]} is dead")


def _node_gone(turn: Turn, event: ev.NodeGone) -> None:
    """Somebody who knows says that a node is gone: its workers are lost at once, and none is started there any more."""
    state = turn.state
    node = state.cluster.node(event.node_id) if state.cluster else None
    there = state.alive_on(event.node_id)
    failing = tuple(n for n in state.failing if n != event.node_id)
    if node is None or (event.node_id in state.drained and not there and failing == state.failing):
        turn.say(f"{event.who} says that node {event.node_id[:12]} is gone ({event.evidence}): nothing to do")
        return
    turn.say(f"node {event.node_id[:12]} is gone, says {event.who}: {event.evidence}")
    turn.set(failing=failing)  # a node that only fails may be used again
    if event.node_id not in state.drained:
        turn.set(drained=(*state.drained, event.node_id))
    for worker in there:
        if not turn.state.phase.terminal:
            lose(turn, worker, FailureClass.NODE_LOST, f"{event.who}: {event.evidence}")


def _hello(turn: Turn, event: ev.WorkerHello) -> None:
    worker = turn.state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive:
        return  # refused at the door (`refusal`)
    if worker.phase is WorkerPhase.REQUESTED:
        graph = turn.state.graph
        if graph is not None and graph.fingerprint != event.graph.fingerprint:
            why = "its model or its first loss differs from the other workers': it has other code, data, torch or arithmetic"
            turn.worker(worker.worker_id, WorkerPhase.ENDED, cause=why)
            turn.say(f"{worker.worker_id} is refused: {why}")
            turn.do(ExitWorker(worker.worker_id, why))
            back_off(turn)
            return
        turn.set(graph=event.graph, costs=turn.state.costs or event.costs, spawn_failures=0, retry_spawn_ms=0)
        turn.worker(worker.worker_id, WorkerPhase.SPARE, pid=event.pid, endpoint=event.endpoint, connected=True, suspect="")
        turn.say(f"{worker.worker_id} is ready on node {worker.node_id[:12]}, pid {event.pid}")
        return
    worker = turn.worker(worker.worker_id, connected=True, endpoint=event.endpoint, suspect="")
    turn.say(f"{turn.name(worker)} is connected again")
    if worker.phase is WorkerPhase.MEMBER:
        if event.epoch < turn.state.epoch:
            if turn.state.phase is JobPhase.FORMING:
                turn.do(run_epoch(turn, worker.worker_id))
            else:
                reports.leave(turn, worker, event.held, "what it never began", fenced=False)
        elif not event.running and worker.worker_id not in turn.state.finished:
            reports.leave(turn, worker, event.held, "the epoch while its stream was broken", fenced=False)
        elif turn.state.phase is JobPhase.FENCING:
            turn.do(FenceEpoch(worker.worker_id, turn.state.epoch))
        elif turn.state.phase is JobPhase.RUNNING:
            _wish_again(turn, worker.worker_id)
    elif worker.phase is WorkerPhase.LEFT and event.held is not None:
        turn.worker(worker.worker_id, held=event.held)


def _gone(turn: Turn, event: ev.WorkerGone) -> None:
    worker = turn.state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive:
        return
    node = turn.state.cluster.node(worker.node_id) if turn.state.cluster else None
    lost_node = node is None or not node.healthy
    lose(turn, worker, FailureClass.NODE_LOST if lost_node else FailureClass.WORKER_EXITED, event.evidence)
    if worker.phase is WorkerPhase.REQUESTED:
        back_off(turn)
        if not lost_node:
            give_up(turn, event.evidence)


def _spawn_failed(turn: Turn, event: ev.SpawnFailed) -> None:
    worker = turn.state.workers.get(event.worker_id)
    if worker is None or worker.phase is not WorkerPhase.REQUESTED:
        return
    turn.worker(event.worker_id, WorkerPhase.ENDED, cause=event.why)
    turn.say(f"{event.worker_id} could not be started: {event.why}")
    turn.do(KillWorker(event.worker_id, event.why))
    back_off(turn)
    give_up(turn, event.why)


def _disconnected(turn: Turn, event: ev.WorkerDisconnected) -> None:
    worker = turn.state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive or not worker.connected:
        return
    turn.worker(worker.worker_id, connected=False)
    turn.say(f"the stream of {turn.name(worker)} broke ({event.detail}): probing it; unreachable is not failed")
    turn.do(ProbeWorker(worker.worker_id, worker.endpoint))


def _wish_again(turn: Turn, worker_id: str) -> None:
    """What was asked of a member may be lost with its stream."""
    if turn.state.change is not None:
        turn.say("it is asked again to leave after the step under way")
        turn.do(leave_word(turn.state, worker_id))
    if turn.state.checkpoint_wish >= 0:
        turn.say("it is asked again for a checkpoint")
        turn.do(TakeCheckpoint(worker_id, turn.state.epoch))


def _restarted(turn: Turn) -> None:
    """Another process takes over: clocks start anew, and whatever may not have been carried out is repeated."""
    change = turn.state.change
    turn.set(phase_since_ms=turn.at_ms, retry_spawn_ms=0, change=replace(change, asked_ms=turn.at_ms) if change else None)
    back = 0
    for w in list(turn.state.workers.values()):
        if not w.phase.alive:  # also those that were only told to end: a process or a slot of theirs may be left
            turn.do(KillWorker(w.worker_id, w.cause))
            continue
        asked_ms = w.asked_ms if w.measure is not None else -1
        turn.worker(w.worker_id, connected=False, since_ms=turn.at_ms, slow_since_ms=-1, asked_ms=asked_ms)
        if w.phase is WorkerPhase.REQUESTED:
            turn.do(SpawnWorker(w.worker_id, w.node_id))
        else:
            back += 1
            turn.do(ProbeWorker(w.worker_id, w.endpoint))
    turn.say(f"{FailureClass.SUPERVISOR_LOST}: a new supervisor replayed the journal and waits for {back} worker(s)")
