"""Makes the status that people see, from the durable state, the newest heartbeats and the newest records.

It tells the truth of this moment: a rate is that of the steps committed now, not of better days, a worker that is silent shows
how long, and what is not known yet is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from orchestrator.core.plan.plan import DATA, PIPELINE, TENSOR, MeshAxis
from orchestrator.core.supervisor.events import Observation, StepCommitted
from orchestrator.core.supervisor.state import JobPhase, State, Worker
from orchestrator.runtime.ports import Beat, Record
from orchestrator.runtime.prediction import PredictionStatus, prediction_of
from orchestrator.runtime.status_types import ChangeStatus, DecisionStatus, JobStatus, NodeStatus, PlanStatus, WorkerStatus

RATE_STEPS = 20  # newest steps that rate and ETA are taken from
LATE_FACTOR = 3  # a step that takes this many times the usual lowers the rate that is shown


def job_status(
    state: State,
    *,
    recent: Sequence[Record],
    beats: Sequence[Beat],
    observed: Mapping[str, Observation],
    goodput: float | None,
    now_ms: int,
    trouble: str = "",
) -> JobStatus:
    """The status. `recent`: newest records, oldest first. `trouble`: why the supervisor itself stopped, or empty."""
    rate, step_ms = _pace(state, recent, now_ms)
    left = state.job.train.steps - state.committed_step
    return JobStatus(
        name=state.job.name,
        phase=state.phase,
        outcome=state.outcome,
        last_word=trouble or state.last_word,
        step=state.committed_step,
        steps=state.job.train.steps,
        loss=state.loss,
        eval_loss=state.eval_loss,
        epoch=state.epoch,
        tokens_per_s=rate,
        eta_s=left * step_ms / 1000 if step_ms is not None and not state.phase.terminal else None,
        goodput=goodput,
        recoveries=state.recoveries[-1].number if state.recoveries else 0,  # older ones are not all kept
        steps_lost=state.steps_lost,
        survivors_restarted=state.survivors_restarted,
        budget=state.budget,
        budget_max=state.job.resilience.failure_budget,
        workers=_workers(state, {b.worker_id: b for b in beats}, observed),
        nodes=_nodes(state),
        decision=_decision(recent),
        checkpoint=state.checkpoint,
        plan=_plan(state),
        prediction=_prediction(state, recent, beats),
        target=_target(state),
        shrunk=state.plan is not None and state.plan.size < state.goal.ranks,
        change=ChangeStatus(kind=state.change.kind, why=state.change.why) if state.change is not None else None,
        skipped=state.skipped,
        suspended=state.suspended,
    )


def _pace(state: State, recent: Sequence[Record], now_ms: int) -> tuple[float | None, float | None]:
    """(tokens per second, milliseconds per step) of the newest steps; a rate of 0 while nothing trains."""
    commits = [(r.at_ms, r.event) for r in recent if isinstance(r.event, StepCommitted)][-RATE_STEPS:]
    if not commits or state.phase.terminal:
        return None, None
    if state.phase is not JobPhase.RUNNING:
        return 0.0, None
    step_ms = median(e.step_ms for _, e in commits)
    tokens = median(e.tokens for _, e in commits)
    since_ms = now_ms - commits[-1][0]
    if since_ms > LATE_FACTOR * step_ms:
        step_ms = float(since_ms)
    return (tokens * 1000 / step_ms if step_ms > 0 else None), step_ms


def _workers(state: State, beats: Mapping[str, Beat], observed: Mapping[str, Observation]) -> tuple[WorkerStatus, ...]:
    ranks = {s.worker_id: s.rank for s in state.plan.seats} if state.plan else {}
    no_rank = len(ranks)

    def order(worker: Worker) -> tuple[bool, int]:
        return not worker.phase.alive, ranks.get(worker.worker_id, no_rank)

    return tuple(
        _worker(w, ranks.get(w.worker_id, -1), beats.get(w.worker_id), observed.get(w.worker_id))
        for w in sorted(state.workers.values(), key=order)
    )


def _worker(worker: Worker, rank: int, beat: Beat | None, observation: Observation | None) -> WorkerStatus:
    alive = worker.phase.alive
    return WorkerStatus(
        worker_id=worker.worker_id,
        node_id=worker.node_id,
        rank=rank,
        phase=worker.phase,
        step=beat.step if beat and alive else 0,
        doing=beat.phase if beat and alive else "",
        doing_ms=beat.phase_ms if beat and alive else 0,
        silence_ms=observation.silence_ms if observation and alive else 0,
        connected=worker.connected,
        suspect=worker.suspect,
        cause=worker.cause,
        pid=worker.pid,
        micro_batch_ms=beat.micro_batch_ms if beat and alive else 0,
        rss_bytes=beat.rss_bytes if beat and alive else 0,
    )


def _nodes(state: State) -> tuple[NodeStatus, ...]:
    if state.cluster is None:
        return ()
    alive: dict[str, int] = {}
    for w in state.workers.values():
        if w.phase.alive:
            alive[w.node_id] = alive.get(w.node_id, 0) + 1
    return tuple(
        NodeStatus(
            node_id=n.node_id,
            address=n.address,
            healthy=n.healthy,
            schedulable=n.schedulable and n.node_id not in state.drained,
            slots=n.slots,
            workers=alive.get(n.node_id, 0),
        )
        for n in state.cluster.nodes
    )


def _decision(recent: Sequence[Record]) -> DecisionStatus | None:
    newest = next((r for r in reversed(recent) if r.reason), None)
    if newest is None:
        return None
    return DecisionStatus(seq=newest.seq, wall_s=newest.wall_s, event=type(newest.event).__name__, reason=newest.reason)


def _plan(state: State) -> PlanStatus | None:
    plan = state.plan
    if plan is None:
        return None
    return PlanStatus(
        epoch=plan.epoch,
        mesh=plan.mesh,
        ranks=plan.size,
        zero_stage=plan.zero_stage,
        copies=plan.copies,
        micro_batches=plan.micro_batches,
        layers_per_stage=tuple(s.last - s.first for s in plan.stages),
        reason=plan.reason,
    )


def _prediction(state: State, recent: Sequence[Record], beats: Sequence[Beat]) -> PredictionStatus | None:
    if state.predicted is None or state.plan is None:
        return None
    mine = [r.event for r in recent if isinstance(r.event, StepCommitted) and r.event.epoch == state.epoch]
    rss = {b.worker_id: b.rss_bytes for b in beats}
    return prediction_of(state.predicted, state.plan, steps_ms=[e.step_ms for e in mine], peak_rss_bytes=rss)


def _target(state: State) -> tuple[MeshAxis, ...]:
    goal = state.goal
    return MeshAxis(PIPELINE, goal.pipeline), MeshAxis(DATA, goal.data), MeshAxis(TENSOR, goal.tensor)
