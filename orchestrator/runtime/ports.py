"""The ports: everything the synchronous core needs from the world, as a few methods each.

On the supervisor's side a Fleet starts and ends worker processes, Workers is the hub of their streams, a Journal remembers, and
Telemetry shows. On the worker's side a Link leads to the supervisor and an Engine trains. Adapters implement them on Ray, gRPC,
SQLite and torch; the testkit implements them in virtual time. Facts come back as core events, pushed into a sink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.reshard.recovery import Held
from orchestrator.core.supervisor.commands import (
    Command,
    DumpStacks,
    ExitWorker,
    FenceEpoch,
    InjectFault,
    KillWorker,
    LeaveEpoch,
    MeasureWorker,
    RunEpoch,
    SpawnWorker,
    TakeCheckpoint,
)
from orchestrator.core.supervisor.events import Event, Fault, WorkerMeasured
from orchestrator.core.supervisor.state import State
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, ExportedModel, ExportType

Sink = Callable[[Event], None]
WorkerCommand = FenceEpoch | LeaveEpoch | TakeCheckpoint | RunEpoch | ExitWorker | DumpStacks | InjectFault | MeasureWorker


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat of a worker."""

    worker_id: str
    epoch: int
    step: int  # being computed
    phase: str  # idle, warming, forming, restoring, batch, forward, reduce, commit, update, gather, digest, eval, checkpoint
    phase_ms: int  # time in this phase so far
    progress: int  # moves whenever the training thread gets somewhere
    in_comm: bool
    orphaned: bool
    micro_batch_ms: int  # moving average
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that a worker printed."""

    worker_id: str
    rank: int  # -1 without one
    text: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """The supervisor's answer to a hello."""

    accepted: bool
    why: str  # of a refusal: the worker must end itself
    committed_step: int  # the worker reports again what it committed after this step


class NotReady(RuntimeError):
    """Ask again later."""


class Clock(Protocol):
    """Monotonic and wall time. Virtual in simulation."""

    def now_ms(self) -> int:
        """Monotonic milliseconds; comparable between processes of one machine."""
        ...

    def wall_s(self) -> float:
        """Seconds since the Unix epoch, for people."""
        ...


class Fleet(Protocol):
    """Worker processes and the nodes they run on."""

    async def start(self, sink: Sink) -> None:
        """Begin to watch; ClusterChanged comes at once and at every change, WorkerGone and SpawnFailed as they happen."""
        ...

    async def spawn(self, command: SpawnWorker) -> None:
        """Start a worker; returns before it is up. Idempotent for one worker id."""
        ...

    async def adopt(self, worker_ids: Sequence[str]) -> None:
        """After a supervisor restart: watch these workers again; WorkerGone for those that are known to be dead."""
        ...

    async def kill(self, command: KillWorker) -> None:
        """End it by force, best effort, idempotent."""
        ...

    async def close(self) -> None:
        """Stop watching and release every worker that is left."""
        ...


class Prober(Protocol):
    """Active liveness probe."""

    async def refused(self, endpoint: str, timeout_ms: int) -> bool:
        """True only if host:port actively refuses the connection: nobody listens there any more."""
        ...


class Workers(Protocol):
    """The hub of worker streams."""

    async def send(self, command: WorkerCommand) -> bool:
        """False when the worker is not connected; the core copes (it repeats on the next hello)."""
        ...

    def refuse(self, worker_id: str, why: str) -> None:
        """Fence a worker for ever: cut its stream, refuse later ones."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One journaled decision. `commands` and `reason` are what the core made of `event`."""

    seq: int
    at_ms: int
    wall_s: float
    event: Event
    commands: tuple[Command, ...]
    reason: str
    phase: str  # of the job, after it
    epoch: int
    committed_step: int


class Journal(Protocol):
    """Durable memory of one job."""

    def create(self, job: Job) -> None:
        """Start it; raises FileExistsError when this job already has one."""
        ...

    def append(self, record: Record, *, durable: bool) -> None:
        """Write one record; with durable it is on the disk when this returns. Raises OSError when that is impossible."""
        ...

    def snapshot(self, seq: int, state: State) -> None:
        """Remember the state after record `seq`, so that a replay starts there."""
        ...

    def load(self) -> tuple[State | None, int, Sequence[Record]]:
        """Newest snapshot (None: only the job is known), its seq, and the records after it."""
        ...

    def job(self) -> Job:
        """The job that it belongs to."""
        ...

    def records(self, *, after: int = 0, limit: int = 1000) -> Sequence[Record]:
        """Records in order, for people and for watching."""
        ...


class Telemetry(Protocol):
    """Sees every decision and every tick; never influences anything."""

    def decided(self, record: Record, state: State) -> None:
        """One decision was journaled."""
        ...

    def ticked(self, state: State, beats: Iterable[Beat]) -> None:
        """Soft state, at every tick."""
        ...


class CheckpointTools(Protocol):
    """Looks at durable checkpoints. Every method blocks as long as storage does: call it in a thread.

    `uri` is the place where a job's checkpoints are, or one of them. Raises runtime.control.NotFoundError when there is no such
    checkpoint, NotPossibleError when what is there does not allow it, OSError when the place cannot be read or written.
    """

    def list(self, uri: str) -> Sequence[CheckpointInfo]:
        """Every checkpoint there, complete or not, newest first."""
        ...

    def verify(self, uri: str, *, step: int | None) -> CheckpointVerdict:
        """Read every byte of one (the newest without `step`) and compute its digest anew; damage is the answer, no error."""
        ...

    def export(self, uri: str, *, step: int | None, path: str, dtype: ExportType) -> ExportedModel:
        """Write the model of one (the newest complete without `step`) to a safetensors file, in one instant."""
        ...


# ---- the worker's side -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Left:
    """The engine left an epoch and keeps its state."""

    fenced: bool
    held: Held | None
    detail: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last step is done."""

    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The user's code raised, or (fatal_check) one of our own checks refuses to go on."""

    step: int
    fatal_check: bool
    traceback: str


@dataclass(frozen=True, slots=True)
class Pulse:
    """Where the training thread is; cheap to take, from any thread."""

    step: int
    phase: str
    phase_ms: int
    progress: int
    in_comm: bool
    micro_batch_ms: int


# EpochReady, StepCommitted, EvalReported, DigestReported, CheckpointReported, CorruptionFound, BadStepFound; at_ms is 0
Report = Callable[[Event], None]


class Engine(Protocol):
    """One rank's training. `run_epoch` blocks its thread; the other methods may be called from any thread."""

    def warm(self) -> GraphView:
        """Import, build the model, touch the memory, run one throw-away micro-batch; returns what the model consists of."""
        ...

    def costs(self) -> ModelCosts | None:
        """What the model costs, where the planner is to choose; after `warm`."""
        ...

    def measure(self, order: MeasureWorker, stop: Callable[[], bool]) -> WorkerMeasured | None:
        """Measure device, links and model while it is in no epoch; None when `stop` said yes first. Blocks its thread."""
        ...

    def run_epoch(self, order: RunEpoch, report: Report) -> Left | Finished | Failed:
        """Form groups, get the state, train until the end, a break or a fence. Refuses an epoch that is not newer."""
        ...

    def fence(self, epoch: int) -> None:
        """Abort the groups of this and older epochs, even if they are yet to be formed; returns at once."""
        ...

    def leave_after_step(self, epoch: int, *, save: bool) -> None:
        """Wish that all ranks leave this epoch at the end of the step under way (run_epoch then returns Left, not fenced).

        `save`: first they write a durable checkpoint of that step, and say what became of it.
        """
        ...

    def take_checkpoint(self, epoch: int) -> None:
        """Wish for a durable checkpoint after the step under way."""
        ...

    def held(self) -> Held | None:
        """What it holds, while it is in no epoch."""
        ...

    def pulse(self) -> Pulse:
        """Where it is."""
        ...

    def inject(self, fault: Fault) -> None:
        """Take a fault; it strikes at its step and micro-batch."""
        ...

    def store_endpoint(self) -> str:
        """host:port of this worker's store, whose listening socket is its liveness port too."""
        ...

    def close(self) -> None:
        """Release groups and store."""
        ...
