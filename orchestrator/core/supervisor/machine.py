"""The supervisor's decision function: step(state, event) -> Decision(state, commands, reason).

It is the one place where failure handling is decided. It knows no clock and no network; every event says when it happened and
every command says what is wanted. An event that changes nothing returns the same state, no commands and an empty reason.
"""

from __future__ import annotations

from orchestrator.core.job import FailureClass, Job
from orchestrator.core.reshard.recovery import Commit, Held
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import (
    ExitWorker,
    FenceEpoch,
    KillWorker,
    ProbeWorker,
    SpawnWorker,
)
from orchestrator.core.supervisor.epochs import (
    advance,
    end,
    fence,
    give_up,
    lose,
    run_epoch,
    running,
    sole_holder,
    stepped,
    strike,
)
from orchestrator.core.supervisor.staff import back_off, forget, staff
from orchestrator.core.supervisor.state import (
    CheckpointRef,
    Decision,
    JobPhase,
    Outcome,
    State,
    Worker,
    WorkerPhase,
)
from orchestrator.core.supervisor.turn import Turn
from orchestrator.core.supervisor.watch import tick


def initial(job: Job, *, checkpoint: CheckpointRef | None, now_ms: int) -> State:
    """The state before the first event. With a checkpoint the job resumes from it."""
    step_ = checkpoint.step if checkpoint else 0
    return State(
        job=job,
        phase_since_ms=now_ms,
        budget=job.resilience.failure_budget,
        budget_step=step_,
        committed_step=step_,
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
            staff(turn)
            advance(turn)
            forget(turn)
    return turn.decision()


def _handle(turn: Turn, event: ev.Event) -> None:
    match event:
        case ev.Tick():
            tick(turn, event)
        case ev.StepCommitted():
            _step_committed(turn, event)
        case ev.ClusterChanged():
            _cluster_changed(turn, event)
        case ev.WorkerHello():
            _hello(turn, event)
        case ev.WorkerDisconnected():
            _disconnected(turn, event)
        case ev.WorkerGone():
            worker = turn.state.workers.get(event.worker_id)
            if worker is not None and worker.phase.alive:
                node = turn.state.cluster.node(worker.node_id) if turn.state.cluster else None
                lost_node = node is None or not node.healthy
                lose(turn, worker, FailureClass.NODE_LOST if lost_node else FailureClass.WORKER_EXITED, event.evidence)
                if worker.phase is WorkerPhase.REQUESTED:
                    back_off(turn)
                    if not lost_node:
                        give_up(turn, event.evidence)
        case ev.SpawnFailed():
            worker = turn.state.workers.get(event.worker_id)
            if worker is not None and worker.phase is WorkerPhase.REQUESTED:
                turn.worker(event.worker_id, WorkerPhase.ENDED, cause=event.why)
                turn.say(f"{event.worker_id} could not be started: {event.why}")
                turn.do(KillWorker(event.worker_id, event.why))
                back_off(turn)
                give_up(turn, event.why)
        case ev.LeftEpoch():
            _left(turn, event)
        case ev.EpochReady():
            _ready(turn, event)
        case ev.EvalReported():
            if event.step > turn.state.eval_step:
                turn.set(eval_step=event.step, eval_loss=event.loss)
                turn.say(f"held-out loss {event.loss:.4f} after step {event.step}")
        case ev.DigestReported():
            _digest(turn, event)
        case ev.CheckpointReported():
            _checkpoint(turn, event)
        case ev.TaskFailed():
            _task_failed(turn, event)
        case ev.RankFinished():
            _finished(turn, event)
        case ev.CancelRequested():
            end(turn, JobPhase.CANCELLED, Outcome.CANCELLED, f"cancelled by {event.who}")
        case ev.DrainRequested():
            _drain(turn, event)
        case ev.FaultRequested():
            _fault(turn, event)
        case ev.SupervisorRestarted():
            _restarted(turn)


def _current(turn: Turn, worker_id: str, epoch: int) -> Worker | None:
    """The worker when it is a member speaking of the current epoch."""
    worker = turn.state.workers.get(worker_id)
    if worker is None or worker.phase is not WorkerPhase.MEMBER or epoch != turn.state.epoch:
        return None
    return worker


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
        turn.set(graph=event.graph, spawn_failures=0, retry_spawn_ms=0)
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
                _leave(turn, worker, event.held, "it never began the epoch")
        elif not event.running and worker.worker_id not in turn.state.finished:
            _leave(turn, worker, event.held, "it left the epoch while the stream was broken")
        elif turn.state.phase is JobPhase.FENCING:
            turn.do(FenceEpoch(worker.worker_id, turn.state.epoch))
    elif worker.phase is WorkerPhase.LEFT and event.held is not None:
        turn.worker(worker.worker_id, held=event.held)


def _disconnected(turn: Turn, event: ev.WorkerDisconnected) -> None:
    worker = turn.state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive or not worker.connected:
        return
    turn.worker(worker.worker_id, connected=False)
    turn.say(f"the stream of {turn.name(worker)} broke ({event.detail}): probing it; unreachable is not failed")
    turn.do(ProbeWorker(worker.worker_id, worker.endpoint))


def _left(turn: Turn, event: ev.LeftEpoch) -> None:
    worker = _current(turn, event.worker_id, event.epoch)
    if worker is not None:
        how = "was told to leave" if event.fenced else "broke out of"
        _leave(turn, worker, event.held, f"it {how} epoch {event.epoch}: {event.detail}")


def _leave(turn: Turn, worker: Worker, held: Held | None, why: str) -> None:
    turn.worker(worker.worker_id, WorkerPhase.LEFT, held=held, left_epoch=turn.state.epoch)
    at = f"holds step {held.applied_step}" if held is not None else "holds no state"
    turn.say(f"{turn.name(worker)} {at}: {why}")
    fence(turn, FailureClass.COLLECTIVE_BROKEN, f"{turn.name(worker)} left: {why}")  # nothing new where it is fenced already


def _ready(turn: Turn, event: ev.EpochReady) -> None:
    worker = _current(turn, event.worker_id, event.epoch)
    if worker is None or worker.ready_epoch == event.epoch:
        return
    turn.worker(worker.worker_id, ready_epoch=event.epoch)
    if turn.state.phase is JobPhase.FORMING and all(w.ready_epoch == turn.state.epoch for w in turn.seated()):
        running(turn)


def _step_committed(turn: Turn, event: ev.StepCommitted) -> None:
    state = turn.state
    worker = state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive or event.step <= state.committed_step or event.epoch > state.epoch:
        return
    if event.epoch < state.epoch and state.resume is not None and event.step > state.resume.step:
        return  # said again after a break, of steps that were lost since: this epoch began before them
    if event.step != state.committed_step + 1:
        turn.say(f"steps {state.committed_step + 1} to {event.step - 1} were committed while nobody was told")
    if state.phase is JobPhase.FORMING and event.epoch == state.epoch:
        running(turn)
    budget, budget_step = state.budget, state.budget_step
    refill = state.job.resilience.budget_refill_steps
    if budget < state.job.resilience.failure_budget and event.step - budget_step >= refill:
        budget, budget_step = budget + 1, event.step
        turn.say(f"{refill} steps without a failure: budget {budget} of {state.job.resilience.failure_budget}")
    turn.set(
        committed_step=event.step,
        commit=Commit(event.step, event.loss, event.grad_norm, event.scale),
        loss=event.loss,
        budget=budget,
        budget_step=budget_step,
    )
    stepped(turn)


def _digest(turn: Turn, event: ev.DigestReported) -> None:
    worker = _current(turn, event.worker_id, event.epoch)
    if worker is None or event.step < turn.state.digest_step:
        return
    digests = dict(turn.state.digests) if event.step == turn.state.digest_step else {}
    digests[event.worker_id] = event.digest
    turn.set(digests=digests, digest_step=event.step)
    if len(set(digests.values())) > 1:
        told = ", ".join(f"{w}: {d[:12]}" for w, d in sorted(digests.items()))
        why = f"the ranks' digests of step {event.step} differ, so at least one holds corrupt state: {told}"
        end(turn, JobPhase.FAILED, Outcome.CORRUPT_STATE, why)
    elif len(digests) == turn.plan().size:
        turn.say(f"digest of step {event.step} is equal on all {len(digests)} ranks: {event.digest[:12]}")


def _checkpoint(turn: Turn, event: ev.CheckpointReported) -> None:
    known = turn.state.checkpoint
    worker = turn.state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive or (event.ok and known is not None and event.step <= known.step):
        return
    resume = turn.state.resume
    if event.ok:
        older = (known, *turn.state.older_checkpoints) if known is not None else ()
        kept = older[: turn.state.job.checkpoint.keep - 1]
        turn.set(checkpoint=CheckpointRef(event.step, event.uri, event.detail), older_checkpoints=kept)
        turn.say(f"checkpoint of step {event.step} is durable at {event.uri}")
    elif resume is not None and resume.checkpoint_uri == event.uri and event.epoch == turn.state.epoch:
        turn.say(f"checkpoint of step {event.step} cannot be used: {event.detail}")
        if known is not None and known.uri == event.uri:
            older = turn.state.older_checkpoints
            turn.set(checkpoint=older[0] if older else None, older_checkpoints=older[1:])
            turn.say(f"falling back to that of step {older[0].step}" if older else "there is no older one")
    else:
        turn.say(f"checkpoint of step {event.step} failed, training goes on: {event.detail}")


def _task_failed(turn: Turn, event: ev.TaskFailed) -> None:
    worker = _current(turn, event.worker_id, event.epoch)
    if worker is None:
        return
    outcome = Outcome.CORRUPT_STATE if event.fatal_check else Outcome.USER_ERROR
    what = "a check failed" if event.fatal_check else "the task's own code raised"
    turn.say(f"{FailureClass.CORRUPT_STATE if event.fatal_check else FailureClass.USER_ERROR}: retrying would not help")
    end(turn, JobPhase.FAILED, outcome, f"{what} on {turn.name(worker)} in step {event.step}:\n{event.traceback}")


def _finished(turn: Turn, event: ev.RankFinished) -> None:
    worker = _current(turn, event.worker_id, event.epoch)
    if worker is None or turn.state.phase is JobPhase.FENCING:
        return
    if turn.state.phase is JobPhase.FORMING:
        running(turn)
    finished = {**turn.state.finished, event.worker_id: event.digest}
    turn.set(finished=finished)
    if len(finished) < turn.plan().size:
        return
    digests = set(finished.values())
    if len(digests) > 1:
        end(turn, JobPhase.FAILED, Outcome.CORRUPT_STATE, f"the ranks' final digests differ: {sorted(finished.items())}")
    else:
        end(turn, JobPhase.SUCCEEDED, Outcome.COMPLETED, f"step {event.step} of {turn.state.job.train.steps} is done")


def _drain(turn: Turn, event: ev.DrainRequested) -> None:
    state = turn.state
    if event.node_id in state.drained or state.cluster is None or state.cluster.node(event.node_id) is None:
        turn.say(f"drain of {event.node_id} by {event.who}: nothing to do")
        return
    alone = (
        [s.rank for s in state.plan.seats if s.node_id == event.node_id and sole_holder(state.plan, s.rank)] if state.plan else []
    )
    if alone:
        ranks = ", ".join(str(r) for r in alone)
        turn.say(f"drain of {event.node_id} by {event.who} refused: nobody else holds the state of rank(s) {ranks}")
        return
    turn.set(drained=(*state.drained, event.node_id))
    turn.say(f"node {event.node_id[:12]} is to be drained, says {event.who}: its ranks move as soon as spares are ready")
    for w in list(state.workers.values()):
        if w.node_id == event.node_id and w.phase in (WorkerPhase.SPARE, WorkerPhase.REQUESTED):
            turn.worker(w.worker_id, WorkerPhase.ENDED, cause="its node is drained")
            turn.do(ExitWorker(w.worker_id, "your node is drained"))


def _fault(turn: Turn, event: ev.FaultRequested) -> None:
    if event.fault.at_step and event.fault.at_step <= turn.state.committed_step:
        turn.say(f"chaos by {event.who}: {event.fault.kind} refused, step {event.fault.at_step} is done already")
    elif turn.state.phase is JobPhase.RUNNING:
        turn.say(f"chaos by {event.who}")
        strike(turn, event.fault)
    else:
        turn.set(faults=(*turn.state.faults, event.fault))
        turn.say(f"chaos by {event.who}: {event.fault.kind} waits until an epoch runs")


def _restarted(turn: Turn) -> None:
    """Another process takes over: clocks start anew, and whatever may not have been carried out is repeated."""
    turn.set(phase_since_ms=turn.at_ms, retry_spawn_ms=0)
    back = 0
    for w in list(turn.state.workers.values()):
        if not w.phase.alive:  # also those that were only told to end: a process or a slot of theirs may be left
            turn.do(KillWorker(w.worker_id, w.cause))
            continue
        turn.worker(w.worker_id, connected=False, since_ms=turn.at_ms)
        if w.phase is WorkerPhase.REQUESTED:
            turn.do(SpawnWorker(w.worker_id, w.node_id))
        else:
            back += 1
            turn.do(ProbeWorker(w.worker_id, w.endpoint))
    turn.say(f"{FailureClass.SUPERVISOR_LOST}: a new supervisor replayed the journal and waits for {back} worker(s)")
