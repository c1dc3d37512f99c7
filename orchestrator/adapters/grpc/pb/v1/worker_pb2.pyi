from orchestrator.adapters.grpc.pb.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerMessage(_message.Message):
    __slots__ = ("hello", "beat", "left_epoch", "epoch_ready", "step_committed", "eval_reported", "digest_reported", "checkpoint_reported", "task_failed", "rank_finished", "stacks", "log_lines", "goodbye", "corruption_found", "bad_step_found", "worker_measured")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    LEFT_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_READY_FIELD_NUMBER: _ClassVar[int]
    STEP_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    EVAL_REPORTED_FIELD_NUMBER: _ClassVar[int]
    DIGEST_REPORTED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_REPORTED_FIELD_NUMBER: _ClassVar[int]
    TASK_FAILED_FIELD_NUMBER: _ClassVar[int]
    RANK_FINISHED_FIELD_NUMBER: _ClassVar[int]
    STACKS_FIELD_NUMBER: _ClassVar[int]
    LOG_LINES_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    CORRUPTION_FOUND_FIELD_NUMBER: _ClassVar[int]
    BAD_STEP_FOUND_FIELD_NUMBER: _ClassVar[int]
    WORKER_MEASURED_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    beat: Beat
    left_epoch: LeftEpoch
    epoch_ready: EpochReady
    step_committed: StepCommitted
    eval_reported: EvalReported
    digest_reported: DigestReported
    checkpoint_reported: CheckpointReported
    task_failed: TaskFailed
    rank_finished: RankFinished
    stacks: Stacks
    log_lines: LogLines
    goodbye: Goodbye
    corruption_found: CorruptionFound
    bad_step_found: BadStepFound
    worker_measured: WorkerMeasured
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., left_epoch: _Optional[_Union[LeftEpoch, _Mapping]] = ..., epoch_ready: _Optional[_Union[EpochReady, _Mapping]] = ..., step_committed: _Optional[_Union[StepCommitted, _Mapping]] = ..., eval_reported: _Optional[_Union[EvalReported, _Mapping]] = ..., digest_reported: _Optional[_Union[DigestReported, _Mapping]] = ..., checkpoint_reported: _Optional[_Union[CheckpointReported, _Mapping]] = ..., task_failed: _Optional[_Union[TaskFailed, _Mapping]] = ..., rank_finished: _Optional[_Union[RankFinished, _Mapping]] = ..., stacks: _Optional[_Union[Stacks, _Mapping]] = ..., log_lines: _Optional[_Union[LogLines, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., corruption_found: _Optional[_Union[CorruptionFound, _Mapping]] = ..., bad_step_found: _Optional[_Union[BadStepFound, _Mapping]] = ..., worker_measured: _Optional[_Union[WorkerMeasured, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("worker_id", "node_id", "pid", "endpoint", "graph", "epoch", "running", "held", "costs")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    node_id: str
    pid: int
    endpoint: str
    graph: _types_pb2.GraphView
    epoch: int
    running: bool
    held: _types_pb2.Held
    costs: _types_pb2.ModelCosts
    def __init__(self, worker_id: _Optional[str] = ..., node_id: _Optional[str] = ..., pid: _Optional[int] = ..., endpoint: _Optional[str] = ..., graph: _Optional[_Union[_types_pb2.GraphView, _Mapping]] = ..., epoch: _Optional[int] = ..., running: _Optional[bool] = ..., held: _Optional[_Union[_types_pb2.Held, _Mapping]] = ..., costs: _Optional[_Union[_types_pb2.ModelCosts, _Mapping]] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("epoch", "step", "phase", "phase_ms", "progress", "in_comm", "orphaned", "micro_batch_ms", "rss_bytes")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASE_MS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    IN_COMM_FIELD_NUMBER: _ClassVar[int]
    ORPHANED_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_MS_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    phase: str
    phase_ms: int
    progress: int
    in_comm: bool
    orphaned: bool
    micro_batch_ms: int
    rss_bytes: int
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., phase: _Optional[str] = ..., phase_ms: _Optional[int] = ..., progress: _Optional[int] = ..., in_comm: _Optional[bool] = ..., orphaned: _Optional[bool] = ..., micro_batch_ms: _Optional[int] = ..., rss_bytes: _Optional[int] = ...) -> None: ...

class LeftEpoch(_message.Message):
    __slots__ = ("epoch", "fenced", "held", "detail")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FENCED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    fenced: bool
    held: _types_pb2.Held
    detail: str
    def __init__(self, epoch: _Optional[int] = ..., fenced: _Optional[bool] = ..., held: _Optional[_Union[_types_pb2.Held, _Mapping]] = ..., detail: _Optional[str] = ...) -> None: ...

class EpochReady(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class StepCommitted(_message.Message):
    __slots__ = ("epoch", "step", "loss", "grad_norm", "scale", "lr", "step_ms", "tokens", "skipped", "usual_loss")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    USUAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    loss: float
    grad_norm: float
    scale: float
    lr: float
    step_ms: float
    tokens: int
    skipped: bool
    usual_loss: float
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., loss: _Optional[float] = ..., grad_norm: _Optional[float] = ..., scale: _Optional[float] = ..., lr: _Optional[float] = ..., step_ms: _Optional[float] = ..., tokens: _Optional[int] = ..., skipped: _Optional[bool] = ..., usual_loss: _Optional[float] = ...) -> None: ...

class EvalReported(_message.Message):
    __slots__ = ("epoch", "step", "loss")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    loss: float
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class DigestReported(_message.Message):
    __slots__ = ("epoch", "step", "digest")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    digest: str
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class CheckpointReported(_message.Message):
    __slots__ = ("epoch", "step", "uri", "ok", "detail")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    uri: str
    ok: bool
    detail: str
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., uri: _Optional[str] = ..., ok: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...

class TaskFailed(_message.Message):
    __slots__ = ("epoch", "step", "fatal_check", "traceback")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FATAL_CHECK_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    fatal_check: bool
    traceback: str
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., fatal_check: _Optional[bool] = ..., traceback: _Optional[str] = ...) -> None: ...

class RankFinished(_message.Message):
    __slots__ = ("epoch", "step", "digest")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    digest: str
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class CorruptionFound(_message.Message):
    __slots__ = ("epoch", "step", "accused", "detail")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ACCUSED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    accused: _containers.RepeatedScalarFieldContainer[int]
    detail: str
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., accused: _Optional[_Iterable[int]] = ..., detail: _Optional[str] = ...) -> None: ...

class BadStepFound(_message.Message):
    __slots__ = ("epoch", "step", "detail")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    detail: str
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class WorkerMeasured(_message.Message):
    __slots__ = ("measure", "costs")
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    measure: _types_pb2.WorkerMeasure
    costs: _types_pb2.ModelCosts
    def __init__(self, measure: _Optional[_Union[_types_pb2.WorkerMeasure, _Mapping]] = ..., costs: _Optional[_Union[_types_pb2.ModelCosts, _Mapping]] = ...) -> None: ...

class Stacks(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class LogLines(_message.Message):
    __slots__ = ("rank", "text")
    RANK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    text: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rank: _Optional[int] = ..., text: _Optional[_Iterable[str]] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("why",)
    WHY_FIELD_NUMBER: _ClassVar[int]
    why: str
    def __init__(self, why: _Optional[str] = ...) -> None: ...

class SupervisorMessage(_message.Message):
    __slots__ = ("welcome", "fence_epoch", "run_epoch", "exit_worker", "dump_stacks", "inject_fault", "leave_epoch", "take_checkpoint", "measure_worker")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    FENCE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    RUN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EXIT_WORKER_FIELD_NUMBER: _ClassVar[int]
    DUMP_STACKS_FIELD_NUMBER: _ClassVar[int]
    INJECT_FAULT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TAKE_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    MEASURE_WORKER_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    fence_epoch: FenceEpoch
    run_epoch: RunEpoch
    exit_worker: ExitWorker
    dump_stacks: DumpStacks
    inject_fault: InjectFault
    leave_epoch: LeaveEpoch
    take_checkpoint: TakeCheckpoint
    measure_worker: MeasureWorker
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., fence_epoch: _Optional[_Union[FenceEpoch, _Mapping]] = ..., run_epoch: _Optional[_Union[RunEpoch, _Mapping]] = ..., exit_worker: _Optional[_Union[ExitWorker, _Mapping]] = ..., dump_stacks: _Optional[_Union[DumpStacks, _Mapping]] = ..., inject_fault: _Optional[_Union[InjectFault, _Mapping]] = ..., leave_epoch: _Optional[_Union[LeaveEpoch, _Mapping]] = ..., take_checkpoint: _Optional[_Union[TakeCheckpoint, _Mapping]] = ..., measure_worker: _Optional[_Union[MeasureWorker, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("accepted", "why", "committed_step")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_STEP_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    why: str
    committed_step: int
    def __init__(self, accepted: _Optional[bool] = ..., why: _Optional[str] = ..., committed_step: _Optional[int] = ...) -> None: ...

class FenceEpoch(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class LeaveEpoch(_message.Message):
    __slots__ = ("epoch", "save")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    save: bool
    def __init__(self, epoch: _Optional[int] = ..., save: _Optional[bool] = ...) -> None: ...

class TakeCheckpoint(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class MeasureWorker(_message.Message):
    __slots__ = ("epoch", "number", "workers")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    number: int
    workers: _containers.RepeatedCompositeFieldContainer[_types_pb2.Colleague]
    def __init__(self, epoch: _Optional[int] = ..., number: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[_types_pb2.Colleague, _Mapping]]] = ...) -> None: ...

class RunEpoch(_message.Message):
    __slots__ = ("plan", "resume", "store_endpoint")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    STORE_ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    plan: _types_pb2.Plan
    resume: _types_pb2.Resume
    store_endpoint: str
    def __init__(self, plan: _Optional[_Union[_types_pb2.Plan, _Mapping]] = ..., resume: _Optional[_Union[_types_pb2.Resume, _Mapping]] = ..., store_endpoint: _Optional[str] = ...) -> None: ...

class ExitWorker(_message.Message):
    __slots__ = ("why",)
    WHY_FIELD_NUMBER: _ClassVar[int]
    why: str
    def __init__(self, why: _Optional[str] = ...) -> None: ...

class DumpStacks(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InjectFault(_message.Message):
    __slots__ = ("fault",)
    FAULT_FIELD_NUMBER: _ClassVar[int]
    fault: _types_pb2.Fault
    def __init__(self, fault: _Optional[_Union[_types_pb2.Fault, _Mapping]] = ...) -> None: ...
