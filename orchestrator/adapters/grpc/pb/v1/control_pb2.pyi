from orchestrator.adapters.grpc.pb.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitJobRequest(_message.Message):
    __slots__ = ("job_json", "yaml_text")
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    YAML_TEXT_FIELD_NUMBER: _ClassVar[int]
    job_json: str
    yaml_text: str
    def __init__(self, job_json: _Optional[str] = ..., yaml_text: _Optional[str] = ...) -> None: ...

class SubmitJobResponse(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobStatus]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobStatus, _Mapping]]] = ...) -> None: ...

class WatchEventsRequest(_message.Message):
    __slots__ = ("name", "after_seq", "follow")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    after_seq: int
    follow: bool
    def __init__(self, name: _Optional[str] = ..., after_seq: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class ExplainEventRequest(_message.Message):
    __slots__ = ("name", "seq")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    name: str
    seq: int
    def __init__(self, name: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class InjectFaultRequest(_message.Message):
    __slots__ = ("name", "fault", "who")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    name: str
    fault: _types_pb2.Fault
    who: str
    def __init__(self, name: _Optional[str] = ..., fault: _Optional[_Union[_types_pb2.Fault, _Mapping]] = ..., who: _Optional[str] = ...) -> None: ...

class InjectFaultResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("name", "who")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    name: str
    who: str
    def __init__(self, name: _Optional[str] = ..., who: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainNodeRequest(_message.Message):
    __slots__ = ("name", "node_id", "who", "why")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    name: str
    node_id: str
    who: str
    why: str
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class DeclareNodeGoneRequest(_message.Message):
    __slots__ = ("name", "node_id", "who", "evidence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    node_id: str
    who: str
    evidence: str
    def __init__(self, name: _Optional[str] = ..., node_id: _Optional[str] = ..., who: _Optional[str] = ..., evidence: _Optional[str] = ...) -> None: ...

class SuspendJobRequest(_message.Message):
    __slots__ = ("name", "who", "why")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    name: str
    who: str
    why: str
    def __init__(self, name: _Optional[str] = ..., who: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class ContinueJobRequest(_message.Message):
    __slots__ = ("name", "who")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    name: str
    who: str
    def __init__(self, name: _Optional[str] = ..., who: _Optional[str] = ...) -> None: ...

class ScaleJobRequest(_message.Message):
    __slots__ = ("name", "nodes", "layers_per_stage", "who")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_PER_STAGE_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    name: str
    nodes: int
    layers_per_stage: _containers.RepeatedScalarFieldContainer[int]
    who: str
    def __init__(self, name: _Optional[str] = ..., nodes: _Optional[int] = ..., layers_per_stage: _Optional[_Iterable[int]] = ..., who: _Optional[str] = ...) -> None: ...

class ReplaceWorkerRequest(_message.Message):
    __slots__ = ("name", "worker_id", "rank", "who")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    name: str
    worker_id: str
    rank: int
    who: str
    def __init__(self, name: _Optional[str] = ..., worker_id: _Optional[str] = ..., rank: _Optional[int] = ..., who: _Optional[str] = ...) -> None: ...

class TakeCheckpointRequest(_message.Message):
    __slots__ = ("name", "who")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    name: str
    who: str
    def __init__(self, name: _Optional[str] = ..., who: _Optional[str] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("name", "uri")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    name: str
    uri: str
    def __init__(self, name: _Optional[str] = ..., uri: _Optional[str] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[CheckpointInfo]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[CheckpointInfo, _Mapping]]] = ...) -> None: ...

class VerifyCheckpointRequest(_message.Message):
    __slots__ = ("name", "uri", "step")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    name: str
    uri: str
    step: int
    def __init__(self, name: _Optional[str] = ..., uri: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class ExportCheckpointRequest(_message.Message):
    __slots__ = ("name", "uri", "step", "path", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    uri: str
    step: int
    path: str
    dtype: str
    def __init__(self, name: _Optional[str] = ..., uri: _Optional[str] = ..., step: _Optional[int] = ..., path: _Optional[str] = ..., dtype: _Optional[str] = ...) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class TailLogsRequest(_message.Message):
    __slots__ = ("name", "rank", "follow")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    rank: int
    follow: bool
    def __init__(self, name: _Optional[str] = ..., rank: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ("who",)
    WHO_FIELD_NUMBER: _ClassVar[int]
    who: str
    def __init__(self, who: _Optional[str] = ...) -> None: ...

class ShutdownResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Decided(_message.Message):
    __slots__ = ("seq", "reason")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    seq: int
    reason: str
    def __init__(self, seq: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class CheckpointInfo(_message.Message):
    __slots__ = ("step", "uri", "complete", "trouble", "job", "digest", "size_bytes", "files", "epoch", "ranks", "plan")
    STEP_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    step: int
    uri: str
    complete: bool
    trouble: str
    job: str
    digest: str
    size_bytes: int
    files: int
    epoch: int
    ranks: int
    plan: str
    def __init__(self, step: _Optional[int] = ..., uri: _Optional[str] = ..., complete: _Optional[bool] = ..., trouble: _Optional[str] = ..., job: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., files: _Optional[int] = ..., epoch: _Optional[int] = ..., ranks: _Optional[int] = ..., plan: _Optional[str] = ...) -> None: ...

class DamagedFile(_message.Message):
    __slots__ = ("name", "why")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    name: str
    why: str
    def __init__(self, name: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class CheckpointVerdict(_message.Message):
    __slots__ = ("info", "damaged", "digest", "trouble")
    INFO_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    info: CheckpointInfo
    damaged: _containers.RepeatedCompositeFieldContainer[DamagedFile]
    digest: str
    trouble: str
    def __init__(self, info: _Optional[_Union[CheckpointInfo, _Mapping]] = ..., damaged: _Optional[_Iterable[_Union[DamagedFile, _Mapping]]] = ..., digest: _Optional[str] = ..., trouble: _Optional[str] = ...) -> None: ...

class ExportedModel(_message.Message):
    __slots__ = ("path", "job", "step", "digest", "tensors", "size_bytes", "dtype")
    PATH_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    path: str
    job: str
    step: int
    digest: str
    tensors: int
    size_bytes: int
    dtype: str
    def __init__(self, path: _Optional[str] = ..., job: _Optional[str] = ..., step: _Optional[int] = ..., digest: _Optional[str] = ..., tensors: _Optional[int] = ..., size_bytes: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("seq", "at_ms", "wall_s", "event_type", "event_json", "commands_json", "reason", "phase", "epoch", "committed_step")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    EVENT_JSON_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_JSON_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_STEP_FIELD_NUMBER: _ClassVar[int]
    seq: int
    at_ms: int
    wall_s: float
    event_type: str
    event_json: str
    commands_json: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    phase: str
    epoch: int
    committed_step: int
    def __init__(self, seq: _Optional[int] = ..., at_ms: _Optional[int] = ..., wall_s: _Optional[float] = ..., event_type: _Optional[str] = ..., event_json: _Optional[str] = ..., commands_json: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., phase: _Optional[str] = ..., epoch: _Optional[int] = ..., committed_step: _Optional[int] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("record", "lines")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    record: Record
    lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, record: _Optional[_Union[Record, _Mapping]] = ..., lines: _Optional[_Iterable[str]] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("worker_id", "rank", "text")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    rank: int
    text: str
    def __init__(self, worker_id: _Optional[str] = ..., rank: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class JobStatus(_message.Message):
    __slots__ = ("name", "phase", "outcome", "last_word", "step", "steps", "loss", "eval_loss", "epoch", "tokens_per_s", "eta_s", "goodput", "recoveries", "steps_lost", "survivors_restarted", "budget", "budget_max", "workers", "nodes", "decision", "checkpoint", "plan", "target", "shrunk", "change", "skipped", "prediction", "suspended")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    LAST_WORD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    GOODPUT_FIELD_NUMBER: _ClassVar[int]
    RECOVERIES_FIELD_NUMBER: _ClassVar[int]
    STEPS_LOST_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_RESTARTED_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MAX_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SHRUNK_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    name: str
    phase: str
    outcome: str
    last_word: str
    step: int
    steps: int
    loss: float
    eval_loss: float
    epoch: int
    tokens_per_s: float
    eta_s: float
    goodput: float
    recoveries: int
    steps_lost: int
    survivors_restarted: int
    budget: int
    budget_max: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    decision: DecisionStatus
    checkpoint: CheckpointStatus
    plan: PlanStatus
    target: _containers.RepeatedCompositeFieldContainer[_types_pb2.MeshAxis]
    shrunk: bool
    change: ChangeStatus
    skipped: int
    prediction: PredictionStatus
    suspended: str
    def __init__(self, name: _Optional[str] = ..., phase: _Optional[str] = ..., outcome: _Optional[str] = ..., last_word: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., eval_loss: _Optional[float] = ..., epoch: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., eta_s: _Optional[float] = ..., goodput: _Optional[float] = ..., recoveries: _Optional[int] = ..., steps_lost: _Optional[int] = ..., survivors_restarted: _Optional[int] = ..., budget: _Optional[int] = ..., budget_max: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., decision: _Optional[_Union[DecisionStatus, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointStatus, _Mapping]] = ..., plan: _Optional[_Union[PlanStatus, _Mapping]] = ..., target: _Optional[_Iterable[_Union[_types_pb2.MeshAxis, _Mapping]]] = ..., shrunk: _Optional[bool] = ..., change: _Optional[_Union[ChangeStatus, _Mapping]] = ..., skipped: _Optional[int] = ..., prediction: _Optional[_Union[PredictionStatus, _Mapping]] = ..., suspended: _Optional[str] = ...) -> None: ...

class PredictionStatus(_message.Message):
    __slots__ = ("epoch", "step_ms", "measured_step_ms", "steps", "step_error", "memory_bytes", "measured_memory_bytes", "memory_error")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_STEP_MS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_ERROR_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ERROR_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step_ms: float
    measured_step_ms: float
    steps: int
    step_error: float
    memory_bytes: int
    measured_memory_bytes: int
    memory_error: float
    def __init__(self, epoch: _Optional[int] = ..., step_ms: _Optional[float] = ..., measured_step_ms: _Optional[float] = ..., steps: _Optional[int] = ..., step_error: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., measured_memory_bytes: _Optional[int] = ..., memory_error: _Optional[float] = ...) -> None: ...

class ChangeStatus(_message.Message):
    __slots__ = ("kind", "why")
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    kind: str
    why: str
    def __init__(self, kind: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker_id", "node_id", "rank", "phase", "step", "doing", "doing_ms", "silence_ms", "connected", "suspect", "cause", "pid", "micro_batch_ms", "rss_bytes")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DOING_FIELD_NUMBER: _ClassVar[int]
    DOING_MS_FIELD_NUMBER: _ClassVar[int]
    SILENCE_MS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_MS_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    node_id: str
    rank: int
    phase: str
    step: int
    doing: str
    doing_ms: int
    silence_ms: int
    connected: bool
    suspect: str
    cause: str
    pid: int
    micro_batch_ms: int
    rss_bytes: int
    def __init__(self, worker_id: _Optional[str] = ..., node_id: _Optional[str] = ..., rank: _Optional[int] = ..., phase: _Optional[str] = ..., step: _Optional[int] = ..., doing: _Optional[str] = ..., doing_ms: _Optional[int] = ..., silence_ms: _Optional[int] = ..., connected: _Optional[bool] = ..., suspect: _Optional[str] = ..., cause: _Optional[str] = ..., pid: _Optional[int] = ..., micro_batch_ms: _Optional[int] = ..., rss_bytes: _Optional[int] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("node_id", "address", "healthy", "schedulable", "slots", "workers")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    SCHEDULABLE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    address: str
    healthy: bool
    schedulable: bool
    slots: int
    workers: int
    def __init__(self, node_id: _Optional[str] = ..., address: _Optional[str] = ..., healthy: _Optional[bool] = ..., schedulable: _Optional[bool] = ..., slots: _Optional[int] = ..., workers: _Optional[int] = ...) -> None: ...

class DecisionStatus(_message.Message):
    __slots__ = ("seq", "wall_s", "event", "reason")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    seq: int
    wall_s: float
    event: str
    reason: str
    def __init__(self, seq: _Optional[int] = ..., wall_s: _Optional[float] = ..., event: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CheckpointStatus(_message.Message):
    __slots__ = ("step", "uri", "digest")
    STEP_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    step: int
    uri: str
    digest: str
    def __init__(self, step: _Optional[int] = ..., uri: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class PlanStatus(_message.Message):
    __slots__ = ("epoch", "mesh", "ranks", "zero_stage", "copies", "micro_batches", "reason", "layers_per_stage")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ZERO_STAGE_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCHES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LAYERS_PER_STAGE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    mesh: _containers.RepeatedCompositeFieldContainer[_types_pb2.MeshAxis]
    ranks: int
    zero_stage: int
    copies: int
    micro_batches: int
    reason: str
    layers_per_stage: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: _Optional[int] = ..., mesh: _Optional[_Iterable[_Union[_types_pb2.MeshAxis, _Mapping]]] = ..., ranks: _Optional[int] = ..., zero_stage: _Optional[int] = ..., copies: _Optional[int] = ..., micro_batches: _Optional[int] = ..., reason: _Optional[str] = ..., layers_per_stage: _Optional[_Iterable[int]] = ...) -> None: ...
