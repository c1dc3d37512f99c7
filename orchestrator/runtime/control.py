"""The control API as plain Python: what may be asked of a supervisor, and what can go wrong.

The driver implements ControlHandler, the gRPC adapter serves it, and the adapter's client raises the very same errors on the
other side of the wire, so that the CLI knows one vocabulary whether or not a network lies between.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.core.cluster.view import ClusterView
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import Fault
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, ExportedModel, ExportType
from orchestrator.runtime.ports import LogLine, Record
from orchestrator.runtime.status_types import JobStatus


class ControlError(Exception):
    """A request that could not be served; the message is for people and complete."""


class NotFoundError(ControlError):
    """There is no such job, record, node or worker."""


class BadRequestError(ControlError):
    """The request makes no sense; the message says every reason."""


class NotPossibleError(ControlError):
    """Understood, but impossible in the present state (the job is over, another one runs)."""


class UnreachableError(ControlError):
    """Client only: no supervisor answers at the address."""


class UnauthenticatedError(ControlError):
    """Client only: the supervisor refused the token."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision and its story for people: what led to it, what was decided, what came of it."""

    record: Record
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """What was decided on a request that is to be carried out. One that is not is a NotPossibleError with the reason."""

    seq: int  # of the record in the journal; what comes of it has later ones
    reason: str


class ControlHandler(Protocol):
    """What a supervisor can be asked. An empty job name means the only job there is.

    Every method may raise NotFoundError, BadRequestError or NotPossibleError. Generators end when the job is over (or, without
    `follow`, at the newest item), and are closed by the caller.
    """

    async def submit(self, *, job: Job, yaml_text: str) -> str:
        """Start a job; returns its name. Submitting the same job again is not an error."""
        ...

    async def get(self, name: str) -> JobStatus:
        """The status now."""
        ...

    async def list_jobs(self) -> Sequence[JobStatus]:
        """Status of every job."""
        ...

    def watch_events(self, name: str, *, after_seq: int, follow: bool) -> AsyncGenerator[Record, None]:
        """Journal records after `after_seq`, oldest first."""
        ...

    def watch_status(self, name: str) -> AsyncGenerator[JobStatus, None]:
        """The status now and after each change, until the job is over."""
        ...

    def tail_logs(self, name: str, *, rank: int | None, follow: bool) -> AsyncGenerator[LogLine, None]:
        """Lines that workers printed, those kept first; of one rank, or of all workers."""
        ...

    async def explain(self, name: str, *, seq: int) -> Explanation:
        """The story of one record."""
        ...

    async def inject(self, name: str, *, fault: Fault, who: str) -> None:
        """Journal a fault and hand it on."""
        ...

    async def cancel(self, name: str, *, who: str) -> None:
        """Ask the job to end; returns when the request is journaled."""
        ...

    async def drain(self, name: str, *, node_id: str, who: str, why: str) -> Decided:
        """Ask for a node to be emptied; `why` may be empty. Draining a drained node is not an error."""
        ...

    async def node_gone(self, name: str, *, node_id: str, who: str, evidence: str) -> Decided:
        """Say that a node will not come back: its workers are lost at once. `evidence` must not be empty; silence is none."""
        ...

    async def suspend(self, name: str, *, who: str, why: str) -> Decided:
        """Ask the job to give its machines back: after a checkpoint, if it has a place for them. The status says when it has."""
        ...

    async def go_on(self, name: str, *, who: str) -> Decided:
        """Ask a suspended job to go on, from its newest checkpoint, as soon as its workers are there again."""
        ...

    async def scale(self, name: str, *, nodes: int, layers_per_stage: tuple[int, ...], who: str) -> Decided:
        """Ask for another number of nodes that train (0: as now) or other pipeline stages (empty: as they are)."""
        ...

    async def replace_worker(self, name: str, *, worker_id: str, rank: int | None, who: str) -> Decided:
        """Ask that a worker, named by its id or its rank, gives its rank to a spare."""
        ...

    async def take_checkpoint(self, name: str, *, who: str) -> Decided:
        """Ask for a durable checkpoint after the step under way."""
        ...

    async def list_checkpoints(self, name: str, *, uri: str) -> Sequence[CheckpointInfo]:
        """What lies where the job's checkpoints are (or at `uri`), newest first."""
        ...

    async def verify_checkpoint(self, name: str, *, uri: str, step: int | None) -> CheckpointVerdict:
        """Read all of one checkpoint; without a step the newest. Damage is an answer, not an error."""
        ...

    async def export_checkpoint(self, name: str, *, uri: str, step: int | None, path: str, dtype: ExportType) -> ExportedModel:
        """Write a checkpoint's model to a safetensors file on the supervisor's machine; without a step the newest complete."""
        ...

    async def cluster(self) -> ClusterView:
        """The newest view of the cluster."""
        ...

    async def shutdown(self, *, who: str) -> None:
        """End the supervisor and its workers; returns when that has begun."""
        ...
