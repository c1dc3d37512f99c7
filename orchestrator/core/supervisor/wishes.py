"""What people (and those who watch machines) ask for: to drain, scale, replace, save, cancel, or to break something on purpose.

A wish becomes a mark in the state that says what should be; `changes` makes it so when it can. The reason tells who asked and
what stands in the way.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.job import ParallelSettings
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.changes import SCALED
from orchestrator.core.supervisor.commands import ExitWorker, TakeCheckpoint
from orchestrator.core.supervisor.epochs import strike
from orchestrator.core.supervisor.state import JobPhase, State, Worker, WorkerPhase
from orchestrator.core.supervisor.turn import Turn


def drain(turn: Turn, event: ev.DrainRequested) -> None:
    """Empty a node."""
    state = turn.state
    because = f" ({event.why})" if event.why else ""
    if event.node_id in state.drained and event.node_id in state.failing:
        turn.set(failing=tuple(n for n in state.failing if n != event.node_id))
        turn.say(f"node {event.node_id[:12]} is drained already and stays so, says {event.who}{because}")
        return
    if event.node_id in state.drained or state.cluster is None or state.cluster.node(event.node_id) is None:
        turn.say(f"drain of {event.node_id} by {event.who}{because}: nothing to do")
        return
    turn.set(failing=tuple(n for n in state.failing if n != event.node_id))
    turn.say(f"node {event.node_id[:12]} is to be drained, says {event.who}{because}: its ranks move as soon as they can")
    empty(turn, event.node_id)


def empty(turn: Turn, node_id: str) -> None:
    """Mark a node as drained, and end those on it that have no rank."""
    turn.set(drained=(*turn.state.drained, node_id))
    for w in list(turn.state.workers.values()):
        if w.node_id == node_id and w.phase in (WorkerPhase.SPARE, WorkerPhase.REQUESTED):
            _dismiss(turn, w, "its node is drained")


def _dismiss(turn: Turn, worker: Worker, why: str) -> None:
    turn.worker(worker.worker_id, WorkerPhase.ENDED, cause=why)
    turn.do(ExitWorker(worker.worker_id, why))


def replace_worker(turn: Turn, event: ev.ReplaceRequested) -> None:
    """Give a worker's rank to a spare."""
    worker = turn.state.workers.get(event.worker_id)
    if worker is None or not worker.phase.alive:
        turn.say(f"replacement of {event.worker_id} by {event.who}: there is no such worker alive")
        return
    turn.say(f"{turn.name(worker)} is to be replaced, says {event.who}")
    if worker.phase in (WorkerPhase.SPARE, WorkerPhase.REQUESTED):
        _dismiss(turn, worker, f"{event.who} asked for its replacement")
        return
    turn.worker(worker.worker_id, unwanted=f"{event.who} asked for its replacement", without=False)
    turn.say("its rank moves as soon as a spare is ready")


def scale(turn: Turn, event: ev.ScaleRequested) -> None:
    """Another number of nodes to train, or other pipeline stages."""
    found = scaled(turn.state, nodes=event.nodes, layers_per_stage=event.layers_per_stage)
    if isinstance(found, str):
        turn.say(f"scale by {event.who} refused: {found}")
        return
    if found == turn.state.goal:
        turn.say(f"scale by {event.who}: nothing to do")
        return
    turn.say(
        f"full strength is {found.ranks} ranks from now on, says {event.who}: "
        f"pipeline {found.pipeline} x data {found.data} x tensor {found.tensor}"
    )
    state = turn.state
    turn.set(scaled=found, recut=(), change_step=-1, sized_step=state.committed_step - state.grow_pause)  # it waits for nothing
    for w in list(state.workers.values()):
        if w.unwanted == SCALED:
            turn.worker(w.worker_id, unwanted="", without=False)


def scaled(state: State, *, nodes: int, layers_per_stage: tuple[int, ...]) -> ParallelSettings | str:
    """The job's parallel settings for that wish, or why there are none."""
    job, goal = state.job, state.goal
    if state.planned:  # the grouping was the planner's idea, and so was it to do without copies where replicas gave them
        goal = replace(goal, shard=0, copies=max(state.job.planner.space.copies))
    pipeline = goal.pipeline
    if layers_per_stage:
        layers = len(state.graph.layers) if state.graph else sum(layers_per_stage)
        if min(layers_per_stage) < 1 or sum(layers_per_stage) != layers:
            return f"layers per stage {layers_per_stage} do not add up to the model's {layers} layers"
        if len(layers_per_stage) % goal.stages_per_rank:
            return f"{len(layers_per_stage)} stages cannot be dealt out, {goal.stages_per_rank} to a rank"
        pipeline = len(layers_per_stage) // goal.stages_per_rank
    ranks = nodes * job.cluster.slots_per_node if nodes else goal.ranks
    data = ranks // (pipeline * goal.tensor)
    if data < 1:
        return f"{ranks} rank(s) are fewer than one replica of pipeline {pipeline} x tensor {goal.tensor} needs"
    if data > job.train.micro_batches:
        return f"{job.train.micro_batches} micro-batches per step cannot feed {data} data-parallel ranks"
    kept = layers_per_stage or (goal.layers_per_stage if pipeline == goal.pipeline else ())
    found = replace(goal, pipeline=pipeline, data=data, layers_per_stage=kept)
    if found.ranks < job.resilience.ranks_min:
        return f"{found.ranks} rank(s) are fewer than the least that the job trains with, {job.resilience.ranks_min}"
    if found.shard and data % found.shard:
        return f"{data} data-parallel ranks cannot be grouped by {found.shard}, over which the state is sharded"
    return found


def checkpoint(turn: Turn, event: ev.CheckpointRequested) -> None:
    """A durable checkpoint, soon."""
    state = turn.state
    if not state.job.checkpoint.uri:
        turn.say(f"checkpoint for {event.who} refused: the job has no place for checkpoints")
        return
    turn.set(checkpoint_wish=state.committed_step)
    if state.phase is not JobPhase.RUNNING:
        turn.say(f"checkpoint for {event.who}: when an epoch runs")
        return
    turn.say(f"checkpoint for {event.who}: after the step under way")
    for w in turn.members():
        turn.do(TakeCheckpoint(w.worker_id, state.epoch))


def fault(turn: Turn, event: ev.FaultRequested) -> None:
    """Chaos."""
    if event.fault.at_step and event.fault.at_step <= turn.state.committed_step:
        turn.say(f"chaos by {event.who}: {event.fault.kind} refused, step {event.fault.at_step} is done already")
    elif turn.state.phase is JobPhase.RUNNING:
        turn.say(f"chaos by {event.who}")
        strike(turn, event.fault)
    else:
        turn.set(faults=(*turn.state.faults, event.fault))
        turn.say(f"chaos by {event.who}: {event.fault.kind} waits until an epoch runs")
