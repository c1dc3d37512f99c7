"""Protos to core values and back: the one place that knows both, total and validated.

The worker stream carries core events up and core commands down; the control API carries jobs, records and status. What a
message must not decide (which worker speaks, when it was heard) is given by the caller. A message that makes no sense raises
ConvertError, which servers answer with INVALID_ARGUMENT.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, assert_never

from orchestrator.adapters.grpc.mirror import ConvertError, clean, fill, read
from orchestrator.adapters.grpc.pb.v1 import control_pb2, types_pb2, worker_pb2
from orchestrator.core import codec
from orchestrator.core.cluster.view import ClusterView
from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import (
    Command,
    DumpStacks,
    ExitWorker,
    FenceEpoch,
    InjectFault,
    LeaveEpoch,
    MeasureWorker,
    RunEpoch,
    TakeCheckpoint,
)
from orchestrator.core.supervisor.events import (
    FAULT_KINDS,
    BadStepFound,
    CheckpointReported,
    CorruptionFound,
    DigestReported,
    EpochReady,
    EvalReported,
    Event,
    Fault,
    LeftEpoch,
    RankFinished,
    StepCommitted,
    TaskFailed,
    WorkerHello,
    WorkerMeasured,
)
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, ExportedModel, ExportType
from orchestrator.runtime.control import Decided, Explanation
from orchestrator.runtime.ports import Beat, LogLine, Record, Welcome, WorkerCommand
from orchestrator.runtime.status_types import JobStatus
from orchestrator.runtime.worker import WorkerReport

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stacks:
    """Stacks of all threads of a worker, as text."""

    text: str


@dataclass(frozen=True, slots=True)
class LogLines:
    """Lines that a worker printed, in order."""

    lines: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The worker is about to end itself."""

    why: str


FromWorker = WorkerHello | Beat | WorkerReport | Stacks | LogLines | Goodbye
FromSupervisor = Welcome | WorkerCommand

_UP: dict[type, str] = {
    Beat: "beat",
    LeftEpoch: "left_epoch",
    EpochReady: "epoch_ready",
    StepCommitted: "step_committed",
    EvalReported: "eval_reported",
    DigestReported: "digest_reported",
    CheckpointReported: "checkpoint_reported",
    TaskFailed: "task_failed",
    RankFinished: "rank_finished",
    CorruptionFound: "corruption_found",
    BadStepFound: "bad_step_found",
    WorkerMeasured: "worker_measured",
}
_UP_BY_NAME = {name: cls for cls, name in _UP.items()}
_DOWN: dict[type, str] = {
    Welcome: "welcome",
    FenceEpoch: "fence_epoch",
    RunEpoch: "run_epoch",
    ExitWorker: "exit_worker",
    DumpStacks: "dump_stacks",
    InjectFault: "inject_fault",
    LeaveEpoch: "leave_epoch",
    TakeCheckpoint: "take_checkpoint",
    MeasureWorker: "measure_worker",
}
_DOWN_BY_NAME = {name: cls for cls, name in _DOWN.items()}
_UNTOLD = frozenset({"worker_id", "at_ms"})  # known to the receiver: the stream belongs to one worker


# ---- worker stream, up


def from_worker_to_proto(value: FromWorker) -> worker_pb2.WorkerMessage:
    """The message for something that a worker says. Raises TypeError for any other event."""
    out = worker_pb2.WorkerMessage()
    match value:
        case WorkerHello():
            fill(value, out.hello, leave_out=frozenset({"at_ms"}))
        case Stacks(text):
            out.stacks.text = clean(text)
        case LogLines(lines):
            out.log_lines.rank = lines[0].rank if lines else -1
            out.log_lines.text.extend(clean(line.text) for line in lines)
        case Goodbye(why):
            out.goodbye.why = clean(why)
        case _ if type(value) in _UP:
            name = _UP[type(value)]
            getattr(out, name).SetInParent()
            fill(value, getattr(out, name), leave_out=_UNTOLD)
        case _:
            raise TypeError(f"a worker does not say {type(value).__name__}")
    return out


def from_worker(message: worker_pb2.WorkerMessage, *, worker_id: str, at_ms: int) -> FromWorker:
    """What a worker said; `worker_id` is the stream's (unused for a hello). Raises ConvertError."""
    name = message.WhichOneof("kind")
    match name:
        case None:
            raise ConvertError("WorkerMessage has no kind that is known here")
        case "hello":
            return _as(WorkerHello, read(WorkerHello, message.hello, at_ms=at_ms))
        case "beat":
            return _as(Beat, read(Beat, message.beat, worker_id=worker_id))
        case "stacks":
            return Stacks(message.stacks.text)
        case "log_lines":
            rank = message.log_lines.rank
            if rank < -1:
                raise ConvertError(f"LogLines.rank is {rank}, less than -1")
            return LogLines(tuple(LogLine(worker_id, rank, text) for text in message.log_lines.text))
        case "goodbye":
            return Goodbye(message.goodbye.why)
        case _:
            report: WorkerReport = read(_UP_BY_NAME[name], getattr(message, name), worker_id=worker_id, at_ms=at_ms)
            return report


# ---- worker stream, down


def from_supervisor_to_proto(value: FromSupervisor) -> worker_pb2.SupervisorMessage:
    """The message for a welcome or a command to a worker."""
    out = worker_pb2.SupervisorMessage()
    target = getattr(out, _DOWN[type(value)])
    target.SetInParent()
    fill(value, target, leave_out=_UNTOLD)
    return out


def from_supervisor(message: worker_pb2.SupervisorMessage, *, worker_id: str) -> FromSupervisor:
    """What the supervisor said to this worker. Raises ConvertError."""
    name = message.WhichOneof("kind")
    if name is None:
        raise ConvertError("SupervisorMessage has no kind that is known here")
    given = {} if name == "welcome" else {"worker_id": worker_id}
    value: FromSupervisor = read(_DOWN_BY_NAME[name], getattr(message, name), **given)
    match value:
        case InjectFault(fault=fault):
            _check_fault_kind(fault)
        case (
            RunEpoch()
            | FenceEpoch()
            | LeaveEpoch()
            | TakeCheckpoint()
            | ExitWorker()
            | DumpStacks()
            | MeasureWorker()
            | Welcome()
        ):
            pass
        case _:
            assert_never(value)
    return value


# ---- control API


def job_to_json(job: Job) -> str:
    """A job as the control API carries it."""
    return json.dumps(codec.to_json(job))


def job_from_json(text: str) -> Job:
    """The inverse. Raises ConvertError."""
    return _as(Job, _parse(Job, text, "job_json"))


def fault_to_proto(fault: Fault) -> types_pb2.Fault:
    """A fault."""
    out = types_pb2.Fault()
    fill(fault, out)
    return out


def fault_from_proto(message: types_pb2.Fault) -> Fault:
    """The inverse. Raises ConvertError, also for a kind that does not exist or a fault that hits nobody."""
    fault = _as(Fault, read(Fault, message))
    _check_fault_kind(fault)
    if (fault.rank < 0) == (fault.node_id == ""):
        raise ConvertError("Fault needs a rank or a node_id, and not both")
    return fault


def cluster_to_proto(view: ClusterView) -> types_pb2.ClusterView:
    """A view of the cluster."""
    out = types_pb2.ClusterView()
    fill(view, out)
    return out


def cluster_from_proto(message: types_pb2.ClusterView) -> ClusterView:
    """The inverse. Raises ConvertError."""
    return _as(ClusterView, read(ClusterView, message))


def status_to_proto(status: JobStatus) -> control_pb2.JobStatus:
    """The status of a job."""
    out = control_pb2.JobStatus()
    fill(status, out)
    return out


def status_from_proto(message: control_pb2.JobStatus) -> JobStatus:
    """The inverse. Raises ConvertError."""
    return _as(JobStatus, read(JobStatus, message))


def log_line_to_proto(line: LogLine) -> control_pb2.LogLine:
    """One line of a worker's log."""
    out = control_pb2.LogLine()
    fill(line, out)
    return out


def log_line_from_proto(message: control_pb2.LogLine) -> LogLine:
    """The inverse. Raises ConvertError."""
    return _as(LogLine, read(LogLine, message))


def record_to_proto(record: Record) -> control_pb2.Record:
    """A journal record; event and commands travel as JSON, because they are for people and tools."""
    return control_pb2.Record(
        seq=record.seq,
        at_ms=record.at_ms,
        wall_s=record.wall_s,
        event_type=type(record.event).__name__,
        event_json=json.dumps(codec.to_json(record.event)),
        commands_json=[json.dumps(codec.to_json(c)) for c in record.commands],
        reason=clean(record.reason),
        phase=record.phase,
        epoch=record.epoch,
        committed_step=record.committed_step,
    )


def record_from_proto(message: control_pb2.Record) -> Record:
    """The inverse. Raises ConvertError."""
    return Record(
        seq=message.seq,
        at_ms=message.at_ms,
        wall_s=message.wall_s,
        event=_parse(Event, message.event_json, "Record.event_json"),
        commands=tuple(_parse(Command, text, f"Record.commands_json[{i}]") for i, text in enumerate(message.commands_json)),
        reason=message.reason,
        phase=message.phase,
        epoch=message.epoch,
        committed_step=message.committed_step,
    )


def explanation_to_proto(explanation: Explanation) -> control_pb2.Explanation:
    """A decision's story."""
    return control_pb2.Explanation(record=record_to_proto(explanation.record), lines=_texts(explanation.lines))


def explanation_from_proto(message: control_pb2.Explanation) -> Explanation:
    """The inverse. Raises ConvertError."""
    return Explanation(record_from_proto(message.record), tuple(message.lines))


def decided_to_proto(decided: Decided) -> control_pb2.Decided:
    """What was decided on a request."""
    out = control_pb2.Decided()
    fill(decided, out)
    return out


def decided_from_proto(message: control_pb2.Decided) -> Decided:
    """The inverse. Raises ConvertError."""
    return _as(Decided, read(Decided, message))


def export_type_of(text: str) -> ExportType:
    """The type that an export is asked for in; empty means fp32. Raises ConvertError."""
    try:
        return ExportType(text or ExportType.FP32)
    except ValueError:
        raise ConvertError(f"dtype is {text!r}, not one of {', '.join(ExportType)}") from None


def checkpoint_to_proto(info: CheckpointInfo) -> control_pb2.CheckpointInfo:
    """One checkpoint, as it is listed."""
    out = control_pb2.CheckpointInfo()
    fill(info, out)
    return out


def checkpoint_from_proto(message: control_pb2.CheckpointInfo) -> CheckpointInfo:
    """The inverse. Raises ConvertError."""
    return _as(CheckpointInfo, read(CheckpointInfo, message))


def verdict_to_proto(verdict: CheckpointVerdict) -> control_pb2.CheckpointVerdict:
    """What came of verifying one."""
    out = control_pb2.CheckpointVerdict()
    fill(verdict, out)
    return out


def verdict_from_proto(message: control_pb2.CheckpointVerdict) -> CheckpointVerdict:
    """The inverse. Raises ConvertError."""
    return _as(CheckpointVerdict, read(CheckpointVerdict, message))


def exported_to_proto(exported: ExportedModel) -> control_pb2.ExportedModel:
    """A model file that was written."""
    out = control_pb2.ExportedModel()
    fill(exported, out)
    return out


def exported_from_proto(message: control_pb2.ExportedModel) -> ExportedModel:
    """The inverse. Raises ConvertError."""
    return _as(ExportedModel, read(ExportedModel, message))


def _check_fault_kind(fault: Fault) -> None:
    if fault.kind not in FAULT_KINDS:
        raise ConvertError(f"Fault.kind is {fault.kind!r}, not one of {', '.join(FAULT_KINDS)}")


def _parse(cls: Any, text: str, where: str) -> Any:
    try:
        return codec.from_json(cls, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise ConvertError(f"{where}: {type(e).__name__}: {e}") from e


def _texts(lines: Iterable[str]) -> list[str]:
    return [clean(line) for line in lines]


def _as(cls: type[T], value: object) -> T:
    assert isinstance(value, cls)
    return value
