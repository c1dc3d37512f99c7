"""The control API for programs that are not the supervisor: the CLI first of all.

Synchronous, one method per call, core values in and out. What goes wrong is raised as the errors of runtime/control.py, with
words that say what to do; no gRPC type leaves this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import grpc

from orchestrator.adapters.grpc import convert
from orchestrator.adapters.grpc.auth import bearer
from orchestrator.adapters.grpc.options import client_options
from orchestrator.adapters.grpc.pb.v1 import control_pb2 as pb
from orchestrator.adapters.grpc.pb.v1 import control_pb2_grpc
from orchestrator.core.cluster.view import ClusterView
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import Fault
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, ExportedModel, ExportType
from orchestrator.runtime.control import (
    BadRequestError,
    ControlError,
    Decided,
    Explanation,
    NotFoundError,
    NotPossibleError,
    UnauthenticatedError,
    UnreachableError,
)
from orchestrator.runtime.ports import LogLine, Record
from orchestrator.runtime.status_types import JobStatus

CALL_MS = 10_000
STORAGE_MS = 3_600_000  # of calls that may read or write whole checkpoints; keep-alive notices a dead supervisor long before

T = TypeVar("T")


class ControlClient:
    """Calls the supervisor at `address` (host:port). Use as a context manager, or close it.

    Every method raises UnreachableError, UnauthenticatedError, NotFoundError, BadRequestError, NotPossibleError, or plain
    ControlError for a bug in the supervisor. An empty job name means the only job there is. Iterators raise when they are
    first advanced, and end the call on the supervisor's side when they are closed or dropped.
    """

    def __init__(self, *, address: str, token: str, timeout_ms: int = CALL_MS) -> None:
        self._address = address
        self._metadata = bearer(token)
        self._timeout_s = timeout_ms / 1000
        self._channel = grpc.insecure_channel(address, options=client_options())
        self._stub: Any = control_pb2_grpc.ControlServiceStub(self._channel)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the channel."""
        self._channel.close()

    def submit(self, job: Job, *, yaml_text: str) -> str:
        """Start a job; returns its name."""
        request = pb.SubmitJobRequest(job_json=convert.job_to_json(job), yaml_text=yaml_text)
        return str(self._call(self._stub.SubmitJob, request).name)

    def get(self, name: str = "") -> JobStatus:
        """The status now."""
        return convert.status_from_proto(self._call(self._stub.GetJob, pb.GetJobRequest(name=name)))

    def list_jobs(self) -> tuple[JobStatus, ...]:
        """Status of every job."""
        answer = self._call(self._stub.ListJobs, pb.ListJobsRequest())
        return tuple(convert.status_from_proto(s) for s in answer.jobs)

    def watch_events(self, name: str = "", *, after_seq: int = 0, follow: bool = False) -> Iterator[Record]:
        """Journal records after `after_seq`, oldest first."""
        request = pb.WatchEventsRequest(name=name, after_seq=after_seq, follow=follow)
        return self._stream(self._stub.WatchEvents, request, convert.record_from_proto)

    def watch_status(self, name: str = "") -> Iterator[JobStatus]:
        """The status now and after each change, until the job is over."""
        return self._stream(self._stub.WatchStatus, pb.WatchStatusRequest(name=name), convert.status_from_proto)

    def tail_logs(self, name: str = "", *, rank: int | None = None, follow: bool = False) -> Iterator[LogLine]:
        """Lines that workers printed."""
        request = pb.TailLogsRequest(name=name, rank=rank, follow=follow)
        return self._stream(self._stub.TailLogs, request, convert.log_line_from_proto)

    def explain(self, name: str = "", *, seq: int) -> Explanation:
        """The story of one record."""
        answer = self._call(self._stub.ExplainEvent, pb.ExplainEventRequest(name=name, seq=seq))
        return convert.explanation_from_proto(answer)

    def inject(self, name: str = "", *, fault: Fault, who: str) -> None:
        """Ask for a fault."""
        request = pb.InjectFaultRequest(name=name, fault=convert.fault_to_proto(fault), who=who)
        self._call(self._stub.InjectFault, request)

    def cancel(self, name: str = "", *, who: str) -> None:
        """Ask the job to end."""
        self._call(self._stub.CancelJob, pb.CancelJobRequest(name=name, who=who))

    def drain(self, name: str = "", *, node_id: str, who: str, why: str = "") -> Decided:
        """Ask for a node to be emptied."""
        request = pb.DrainNodeRequest(name=name, node_id=node_id, who=who, why=why)
        return convert.decided_from_proto(self._call(self._stub.DrainNode, request))

    def node_gone(self, name: str = "", *, node_id: str, who: str, evidence: str) -> Decided:
        """Say that a node will not come back, and how that is known."""
        request = pb.DeclareNodeGoneRequest(name=name, node_id=node_id, who=who, evidence=evidence)
        return convert.decided_from_proto(self._call(self._stub.DeclareNodeGone, request))

    def suspend(self, name: str = "", *, who: str, why: str = "") -> Decided:
        """Ask the job to give its machines back for a while."""
        request = pb.SuspendJobRequest(name=name, who=who, why=why)
        return convert.decided_from_proto(self._call(self._stub.SuspendJob, request))

    def go_on(self, name: str = "", *, who: str) -> Decided:
        """Ask a suspended job to go on."""
        return convert.decided_from_proto(self._call(self._stub.ContinueJob, pb.ContinueJobRequest(name=name, who=who)))

    def scale(self, name: str = "", *, nodes: int = 0, layers_per_stage: tuple[int, ...] = (), who: str) -> Decided:
        """Ask for another number of nodes that train (0: as now) or other pipeline stages (empty: as they are)."""
        request = pb.ScaleJobRequest(name=name, nodes=nodes, layers_per_stage=layers_per_stage, who=who)
        return convert.decided_from_proto(self._call(self._stub.ScaleJob, request))

    def replace_worker(self, name: str = "", *, worker_id: str = "", rank: int | None = None, who: str) -> Decided:
        """Ask that a worker, named by id or rank, gives its rank to a spare."""
        request = pb.ReplaceWorkerRequest(name=name, worker_id=worker_id, rank=rank, who=who)
        return convert.decided_from_proto(self._call(self._stub.ReplaceWorker, request))

    def take_checkpoint(self, name: str = "", *, who: str) -> Decided:
        """Ask for a durable checkpoint after the step under way."""
        return convert.decided_from_proto(self._call(self._stub.TakeCheckpoint, pb.TakeCheckpointRequest(name=name, who=who)))

    def list_checkpoints(self, name: str = "", *, uri: str = "") -> tuple[CheckpointInfo, ...]:
        """What lies where the job's checkpoints are (or at `uri`), newest first."""
        request = pb.ListCheckpointsRequest(name=name, uri=uri)
        answer = self._call(self._stub.ListCheckpoints, request, timeout_s=STORAGE_MS / 1000)
        return tuple(convert.checkpoint_from_proto(c) for c in answer.checkpoints)

    def verify_checkpoint(self, name: str = "", *, uri: str = "", step: int | None = None) -> CheckpointVerdict:
        """Read all of one checkpoint, on the supervisor's machine; without a step the newest."""
        request = pb.VerifyCheckpointRequest(name=name, uri=uri, step=step)
        return convert.verdict_from_proto(self._call(self._stub.VerifyCheckpoint, request, timeout_s=STORAGE_MS / 1000))

    def export_checkpoint(
        self, name: str = "", *, uri: str = "", step: int | None = None, path: str, dtype: ExportType = ExportType.FP32
    ) -> ExportedModel:
        """Write a checkpoint's model to a file on the supervisor's machine; without a step the newest complete one's."""
        request = pb.ExportCheckpointRequest(name=name, uri=uri, step=step, path=path, dtype=dtype)
        return convert.exported_from_proto(self._call(self._stub.ExportCheckpoint, request, timeout_s=STORAGE_MS / 1000))

    def cluster(self) -> ClusterView:
        """The newest view of the cluster."""
        return convert.cluster_from_proto(self._call(self._stub.GetCluster, pb.GetClusterRequest()))

    def shutdown(self, *, who: str) -> None:
        """End the supervisor and its workers."""
        self._call(self._stub.Shutdown, pb.ShutdownRequest(who=who))

    def _call(self, method: Any, request: object, *, timeout_s: float | None = None) -> Any:
        limit_s = timeout_s or self._timeout_s
        try:
            return method(request, metadata=self._metadata, timeout=limit_s)
        except grpc.RpcError as e:
            self._translate(e, limit_s=limit_s)

    def _stream(self, method: Any, request: object, convert_one: Callable[[Any], T]) -> Iterator[T]:
        call = method(request, metadata=self._metadata)
        try:
            for message in call:
                yield convert_one(message)
        except grpc.RpcError as e:
            self._translate(e, limit_s=self._timeout_s)
        finally:
            call.cancel()

    def _translate(self, error: grpc.RpcError, *, limit_s: float) -> NoReturn:
        code, details = error.code(), error.details()
        if code is grpc.StatusCode.UNAVAILABLE:
            raise UnreachableError(
                f"no supervisor answers at {self._address} ({details}); "
                "is it running, and is this its present address? It may also be restarting: try again in some seconds"
            ) from error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise UnreachableError(
                f"the supervisor at {self._address} did not answer within {limit_s:g} s; "
                "it may be stopped, overloaded or cut off from here"
            ) from error
        if code is grpc.StatusCode.UNAUTHENTICATED:
            raise UnauthenticatedError(
                f"the supervisor at {self._address} refused the token; each cluster has its own: "
                "check that the token file belongs to this one"
            ) from error
        kinds = {
            grpc.StatusCode.NOT_FOUND: NotFoundError,
            grpc.StatusCode.INVALID_ARGUMENT: BadRequestError,
            grpc.StatusCode.FAILED_PRECONDITION: NotPossibleError,
        }
        if code in kinds:
            raise kinds[code](details) from error
        raise ControlError(f"the supervisor at {self._address} failed: {code.name}: {details}") from error
