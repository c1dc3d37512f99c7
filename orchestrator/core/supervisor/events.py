"""Events are facts: what the supervisor's core is told, frozen, each with the time it was learned.

`at_ms` is a monotonic clock in milliseconds given by the driver. Everything a decision needs is inside its event, so that the
journal alone replays every decision.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.cluster.measured import WorkerMeasure
from orchestrator.core.cluster.view import ClusterView
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.reshard.recovery import Held


@dataclass(frozen=True, slots=True)
class ClusterChanged:
    """The cluster looks different now (also the first look)."""

    at_ms: int
    view: ClusterView


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """A worker's stream is up: for the first time, or again after a break or a supervisor restart."""

    at_ms: int
    worker_id: str
    node_id: str
    pid: int
    endpoint: str  # host:port of its store and liveness socket
    graph: GraphView
    epoch: int  # the epoch it trains in (or trained in last); 0 when it never had a rank
    running: bool  # whether it is inside that epoch now
    held: Held | None  # what it holds, when it is not running and had a rank
    costs: ModelCosts | None  # what the model costs, where the planner wants to know


@dataclass(frozen=True, slots=True)
class WorkerMeasured:
    """A worker without a rank measured itself, as it was asked to."""

    at_ms: int
    worker_id: str
    measure: WorkerMeasure
    costs: ModelCosts  # with what its device takes for each kind of layer


@dataclass(frozen=True, slots=True)
class WorkerDisconnected:
    """Its stream broke. That is no proof of anything: unreachable is not failed."""

    at_ms: int
    worker_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """Positive evidence that the process has ended."""

    at_ms: int
    worker_id: str
    evidence: str


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The fleet could not start it."""

    at_ms: int
    worker_id: str
    why: str


@dataclass(frozen=True, slots=True)
class LeftEpoch:
    """A worker left an epoch's groups: fenced, or because a collective broke. It keeps its state and waits."""

    at_ms: int
    worker_id: str
    epoch: int
    fenced: bool  # true: it was told to; false: its groups broke first
    held: Held | None  # None when it held no state yet
    detail: str


@dataclass(frozen=True, slots=True)
class EpochReady:
    """Groups formed and state in place; the worker trains from here on."""

    at_ms: int
    worker_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StepCommitted:
    """A worker passed the commit of a step; the first to say so counts."""

    at_ms: int
    worker_id: str
    epoch: int
    step: int
    loss: float  # nats, mean over the step's micro-batches
    grad_norm: float  # global L2 norm before clipping
    scale: float  # factor that clipping put on the gradient; with it survivors can roll forward to this step
    lr: float
    step_ms: float
    tokens: int
    skipped: bool  # its update was not applied
    usual_loss: float  # as in Commit


@dataclass(frozen=True, slots=True)
class EvalReported:
    """Held-out loss of the state after `step`."""

    at_ms: int
    worker_id: str
    epoch: int
    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class DigestReported:
    """Digest of params and optimizer state after `step`; equal on all ranks or something is corrupt."""

    at_ms: int
    worker_id: str
    epoch: int
    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class CheckpointReported:
    """A durable checkpoint was committed, or failed."""

    at_ms: int
    worker_id: str
    epoch: int
    step: int
    uri: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """An exception in the user's code, or a check of ours that says the run must not go on (`fatal_check`)."""

    at_ms: int
    worker_id: str
    epoch: int
    step: int
    fatal_check: bool
    traceback: str


@dataclass(frozen=True, slots=True)
class RankFinished:
    """A rank completed the last step, its final digest and its part of the last checkpoint."""

    at_ms: int
    worker_id: str
    epoch: int
    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class CorruptionFound:
    """Digests of what must be equal differ, and a vote of its holders says who is wrong; the reporter has left the epoch."""

    at_ms: int
    worker_id: str
    epoch: int
    step: int
    accused: tuple[int, ...]  # ranks that the majority contradicts; empty: no majority
    detail: str


@dataclass(frozen=True, slots=True)
class BadStepFound:
    """A step's loss or gradient is not finite, or its loss is a spike, and the job asks for a rollback."""

    at_ms: int
    worker_id: str
    epoch: int
    step: int
    detail: str


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody wants the job to end."""

    at_ms: int
    who: str


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Somebody wants a node to be emptied: a person, or a notice of maintenance, of a spot reclaim, of rising error counts."""

    at_ms: int
    node_id: str
    who: str
    why: str  # "" when a person just wants it


@dataclass(frozen=True, slots=True)
class NodeGone:
    """Positive evidence, from whoever runs the machines, that a node will not come back: nobody waits for its silence."""

    at_ms: int
    node_id: str
    who: str
    evidence: str


@dataclass(frozen=True, slots=True)
class SuspendRequested:
    """Somebody wants the job to give all its machines back for a while."""

    at_ms: int
    who: str
    why: str  # "" when a person just wants it


@dataclass(frozen=True, slots=True)
class ContinueRequested:
    """Somebody wants a suspended job to go on."""

    at_ms: int
    who: str


@dataclass(frozen=True, slots=True)
class ScaleRequested:
    """Somebody wants another number of nodes to train, or other pipeline stages."""

    at_ms: int
    nodes: int  # 0: as many as now
    layers_per_stage: tuple[int, ...]  # empty: as they are (or balanced, when the number of stages changes)
    who: str


@dataclass(frozen=True, slots=True)
class ReplaceRequested:
    """Somebody wants a worker to give its rank to a spare."""

    at_ms: int
    worker_id: str
    who: str


@dataclass(frozen=True, slots=True)
class CheckpointRequested:
    """Somebody wants a durable checkpoint now, that is after the step under way."""

    at_ms: int
    who: str


FAULT_KINDS = ("kill-worker", "kill-node", "kill-raylet", "hang", "slow", "raise", "flip", "nan")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to inject, addressed by rank and step, never by a sleep."""

    kind: str  # one of FAULT_KINDS
    rank: int  # -1: whoever sits on node_id
    node_id: str  # "" when rank is given
    at_step: int  # 0: now; else while computing this step
    micro_batch: int  # index within the rank's own micro-batches, before which it strikes
    amount_ms: int  # slow: added to each micro-batch; hang: how long it stays stopped (0: for ever)


@dataclass(frozen=True, slots=True)
class FaultRequested:
    """Chaos, asked for by a person or a test; it is in the journal like everything else."""

    at_ms: int
    fault: Fault
    who: str


@dataclass(frozen=True, slots=True)
class SupervisorRestarted:
    """A new supervisor process has replayed the journal and takes over."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What the driver sees of one worker at a tick.

    Silence and standstill grow by at most twice the tick per tick, so that a supervisor that was itself stopped blames nobody.
    """

    worker_id: str
    silence_ms: int  # since its last heartbeat (or since it was asked for, before its hello)
    stalled_ms: int  # since its progress counter last moved
    usual_ms: int  # longest time its present phase has taken on any worker; 0 when never completed
    in_comm: bool  # waits inside a collective: not its own fault
    orphaned: bool  # its Ray parent process is gone
    micro_batch_ms: int  # moving average of its compute per micro-batch; 0 unknown


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    at_ms: int
    observations: tuple[Observation, ...]


Event = (
    ClusterChanged
    | WorkerHello
    | WorkerMeasured
    | WorkerDisconnected
    | WorkerGone
    | SpawnFailed
    | LeftEpoch
    | EpochReady
    | StepCommitted
    | EvalReported
    | DigestReported
    | CheckpointReported
    | TaskFailed
    | RankFinished
    | CorruptionFound
    | BadStepFound
    | CancelRequested
    | DrainRequested
    | NodeGone
    | SuspendRequested
    | ContinueRequested
    | ScaleRequested
    | ReplaceRequested
    | CheckpointRequested
    | FaultRequested
    | SupervisorRestarted
    | Tick
)
