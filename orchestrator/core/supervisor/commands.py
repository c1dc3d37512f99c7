"""Commands are requests: what the supervisor's core wants done, carried out by the driver after they are in the journal.

Each is safe to carry out twice: after a restart the driver repeats what may not have happened. Commands to workers carry the
epoch; a worker refuses an older one.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.strategy import Choice, Option
from orchestrator.core.reshard.recovery import Resume
from orchestrator.core.supervisor.events import Fault


@dataclass(frozen=True, slots=True)
class SpawnWorker:
    """Start a worker process on a node."""

    worker_id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class KillWorker:
    """End a worker process by force, best effort; its id is fenced for ever and its stream refused."""

    worker_id: str
    why: str


@dataclass(frozen=True, slots=True)
class ExitWorker:
    """Ask a worker to end itself, politely."""

    worker_id: str
    why: str


@dataclass(frozen=True, slots=True)
class ProbeWorker:
    """Try its liveness port: refused means that the process is gone (WorkerGone); anything else means nothing."""

    worker_id: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Colleague:
    """One of several workers that measure together."""

    worker_id: str
    node_id: str
    endpoint: str  # host:port of its store


@dataclass(frozen=True, slots=True)
class MeasureWorker:
    """Ask a worker without a rank to measure its device, what the model takes on it, and the links between these workers."""

    worker_id: str
    epoch: int  # that nobody of them is in: the newest that was started
    number: int  # of this measuring, higher than those before
    workers: tuple[Colleague, ...]  # that measure at the same time, itself included


@dataclass(frozen=True, slots=True)
class ExpectEpoch:
    """Hold this epoch's steps against this prediction. There is nothing to carry out: it is for the books."""

    epoch: int
    option: Option
    choice: Choice | None  # that the plan came from, where the planner made it for this epoch


@dataclass(frozen=True, slots=True)
class FenceEpoch:
    """Tell a worker to abort its groups of this epoch (and older), keep its state, and report what it holds."""

    worker_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class LeaveEpoch:
    """Ask a worker that all ranks leave this epoch at the end of the step under way, nothing lost: for planned changes.

    The ranks agree in the commit exchange, so one that hears of it is enough. A wish: FenceEpoch follows when it takes long.
    """

    worker_id: str
    epoch: int
    save: bool = False  # train no further step, but leave only when that one is in a durable checkpoint, or could not be written


@dataclass(frozen=True, slots=True)
class TakeCheckpoint:
    """Ask for a durable checkpoint after the step under way; the ranks agree on it in the commit exchange."""

    worker_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class RunEpoch:
    """Tell a worker to take its seat in the plan, form groups at the store, get its state as `resume` says, and train."""

    worker_id: str
    plan: Plan
    resume: Resume
    store_endpoint: str


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Ask for the stacks of all threads of a worker that stands still, before it is killed."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class InjectFault:
    """Hand a fault to a worker."""

    worker_id: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class EndJob:
    """The job has reached a terminal state; release what it holds."""

    why: str


Command = (
    SpawnWorker
    | KillWorker
    | ExitWorker
    | ProbeWorker
    | MeasureWorker
    | ExpectEpoch
    | FenceEpoch
    | LeaveEpoch
    | TakeCheckpoint
    | RunEpoch
    | DumpStacks
    | InjectFault
    | EndJob
)
