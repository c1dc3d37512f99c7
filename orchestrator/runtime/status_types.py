"""What people are told about a job: one frozen value, made by runtime/status.py, shown by the CLI, carried by the control API.

The supervisor's State is for deciding; this is for reading. It joins the durable state with what the driver sees ten times a
second (heartbeats), so that the answer to "what is it doing and why" is one value and every surface shows the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.plan.plan import MeshAxis
from orchestrator.core.supervisor.state import ChangeKind, CheckpointRef, JobPhase, Outcome, WorkerPhase
from orchestrator.runtime.prediction import PredictionStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker process. Times in milliseconds; zero or empty where nothing is known yet."""

    worker_id: str
    node_id: str
    rank: int  # -1: has none
    phase: WorkerPhase
    step: int  # being computed
    doing: str  # the phase of its newest heartbeat, "" before the first
    doing_ms: int  # how long it has been doing that
    silence_ms: int  # since its newest heartbeat
    connected: bool
    suspect: str  # why it is shown as unreachable or slow; empty: it is fine
    cause: str  # why it was lost or ended
    pid: int
    micro_batch_ms: int  # moving average
    rss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One machine."""

    node_id: str
    address: str
    healthy: bool
    schedulable: bool  # false while it is drained
    slots: int
    workers: int  # alive on it


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionStatus:
    """The newest decision that has a reason."""

    seq: int  # in the journal; `explain` takes it
    wall_s: float  # seconds since the Unix epoch
    event: str  # type name of the event that caused it
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStatus:
    """The current plan, without its layouts."""

    epoch: int
    mesh: tuple[MeshAxis, ...]
    ranks: int
    zero_stage: int
    copies: int
    micro_batches: int
    layers_per_stage: tuple[int, ...]  # in forward order
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeStatus:
    """A planned change that is under way: the ranks leave the epoch at the end of a step."""

    kind: ChangeKind
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """Everything about one job. Losses are in nats; a None means that there is no such number yet."""

    name: str
    phase: JobPhase
    outcome: Outcome
    last_word: str  # the reason for the terminal state, or the traceback
    step: int  # newest committed step
    steps: int  # of the whole job
    loss: float | None
    eval_loss: float | None
    epoch: int
    tokens_per_s: float | None
    eta_s: float | None
    goodput: float | None  # share of the time since the first step that went into steps that count, 0 to 1
    recoveries: int
    steps_lost: int
    survivors_restarted: int
    budget: int  # failures that are still tolerated
    budget_max: int
    workers: tuple[WorkerStatus, ...]  # by rank, then spares, then the lost
    nodes: tuple[NodeStatus, ...]
    decision: DecisionStatus | None
    checkpoint: CheckpointRef | None
    plan: PlanStatus | None
    prediction: PredictionStatus | None  # what the planner expects of the plan, against what was measured of it
    target: tuple[MeshAxis, ...]  # the mesh at full strength: as the job says, or as somebody scaled it
    shrunk: bool  # the plan has fewer ranks than that
    change: ChangeStatus | None
    skipped: int  # committed steps whose update was not applied
    suspended: str = ""  # who suspended the job, and why; it has given its machines back when no worker is alive
