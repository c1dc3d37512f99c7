from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorView(_message.Message):
    __slots__ = ("name", "shape", "start", "stop", "trainable", "layer", "cut_dim", "twin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    CUT_DIM_FIELD_NUMBER: _ClassVar[int]
    TWIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    start: int
    stop: int
    trainable: bool
    layer: int
    cut_dim: int
    twin: str
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., trainable: _Optional[bool] = ..., layer: _Optional[int] = ..., cut_dim: _Optional[int] = ..., twin: _Optional[str] = ...) -> None: ...

class LayerView(_message.Message):
    __slots__ = ("name", "start", "stop")
    NAME_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    name: str
    start: int
    stop: int
    def __init__(self, name: _Optional[str] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class GraphView(_message.Message):
    __slots__ = ("tensors", "layers", "numel", "padded_numel", "block", "fingerprint")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUMEL_FIELD_NUMBER: _ClassVar[int]
    PADDED_NUMEL_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorView]
    layers: _containers.RepeatedCompositeFieldContainer[LayerView]
    numel: int
    padded_numel: int
    block: int
    fingerprint: str
    def __init__(self, tensors: _Optional[_Iterable[_Union[TensorView, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[LayerView, _Mapping]]] = ..., numel: _Optional[int] = ..., padded_numel: _Optional[int] = ..., block: _Optional[int] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("device", "forward_s", "backward_s")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FORWARD_S_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_S_FIELD_NUMBER: _ClassVar[int]
    device: str
    forward_s: float
    backward_s: float
    def __init__(self, device: _Optional[str] = ..., forward_s: _Optional[float] = ..., backward_s: _Optional[float] = ...) -> None: ...

class LayerCost(_message.Message):
    __slots__ = ("name", "params", "cut_params", "buffers", "forward_flops", "cut_forward_flops", "backward_flops", "cut_backward_flops", "moved_bytes", "kept_bytes", "cut_kept_bytes", "work_bytes", "boundary_bytes", "reduced_bytes", "timings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    CUT_PARAMS_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FLOPS_FIELD_NUMBER: _ClassVar[int]
    CUT_FORWARD_FLOPS_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FLOPS_FIELD_NUMBER: _ClassVar[int]
    CUT_BACKWARD_FLOPS_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CUT_KEPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BOUNDARY_BYTES_FIELD_NUMBER: _ClassVar[int]
    REDUCED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    params: int
    cut_params: int
    buffers: int
    forward_flops: float
    cut_forward_flops: float
    backward_flops: float
    cut_backward_flops: float
    moved_bytes: float
    kept_bytes: float
    cut_kept_bytes: float
    work_bytes: float
    boundary_bytes: float
    reduced_bytes: float
    timings: _containers.RepeatedCompositeFieldContainer[Timing]
    def __init__(self, name: _Optional[str] = ..., params: _Optional[int] = ..., cut_params: _Optional[int] = ..., buffers: _Optional[int] = ..., forward_flops: _Optional[float] = ..., cut_forward_flops: _Optional[float] = ..., backward_flops: _Optional[float] = ..., cut_backward_flops: _Optional[float] = ..., moved_bytes: _Optional[float] = ..., kept_bytes: _Optional[float] = ..., cut_kept_bytes: _Optional[float] = ..., work_bytes: _Optional[float] = ..., boundary_bytes: _Optional[float] = ..., reduced_bytes: _Optional[float] = ..., timings: _Optional[_Iterable[_Union[Timing, _Mapping]]] = ...) -> None: ...

class ModelCosts(_message.Message):
    __slots__ = ("name", "kinds", "order", "samples_per_unit", "tensor_max", "splits")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_UNIT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_MAX_FIELD_NUMBER: _ClassVar[int]
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kinds: _containers.RepeatedCompositeFieldContainer[LayerCost]
    order: _containers.RepeatedScalarFieldContainer[int]
    samples_per_unit: float
    tensor_max: int
    splits: bool
    def __init__(self, name: _Optional[str] = ..., kinds: _Optional[_Iterable[_Union[LayerCost, _Mapping]]] = ..., order: _Optional[_Iterable[int]] = ..., samples_per_unit: _Optional[float] = ..., tensor_max: _Optional[int] = ..., splits: _Optional[bool] = ...) -> None: ...

class DeviceMeasure(_message.Message):
    __slots__ = ("kind", "model", "flops", "half_flops", "bandwidth", "memory_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    HALF_FLOPS_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    model: str
    flops: float
    half_flops: float
    bandwidth: float
    memory_bytes: int
    def __init__(self, kind: _Optional[str] = ..., model: _Optional[str] = ..., flops: _Optional[float] = ..., half_flops: _Optional[float] = ..., bandwidth: _Optional[float] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class LinkMeasure(_message.Message):
    __slots__ = ("senders", "receivers", "bandwidth", "latency_s", "problem")
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    RECEIVERS_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    senders: _containers.RepeatedScalarFieldContainer[str]
    receivers: _containers.RepeatedScalarFieldContainer[str]
    bandwidth: float
    latency_s: float
    problem: str
    def __init__(self, senders: _Optional[_Iterable[str]] = ..., receivers: _Optional[_Iterable[str]] = ..., bandwidth: _Optional[float] = ..., latency_s: _Optional[float] = ..., problem: _Optional[str] = ...) -> None: ...

class WorkerMeasure(_message.Message):
    __slots__ = ("device", "links")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    device: DeviceMeasure
    links: _containers.RepeatedCompositeFieldContainer[LinkMeasure]
    def __init__(self, device: _Optional[_Union[DeviceMeasure, _Mapping]] = ..., links: _Optional[_Iterable[_Union[LinkMeasure, _Mapping]]] = ...) -> None: ...

class Colleague(_message.Message):
    __slots__ = ("worker_id", "node_id", "endpoint")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    node_id: str
    endpoint: str
    def __init__(self, worker_id: _Optional[str] = ..., node_id: _Optional[str] = ..., endpoint: _Optional[str] = ...) -> None: ...

class Interval(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("primary", "extra")
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    primary: _containers.RepeatedCompositeFieldContainer[Interval]
    extra: _containers.RepeatedCompositeFieldContainer[Interval]
    def __init__(self, primary: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ..., extra: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ...) -> None: ...

class StateLayout(_message.Message):
    __slots__ = ("name", "numel", "holdings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMEL_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    numel: int
    holdings: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, name: _Optional[str] = ..., numel: _Optional[int] = ..., holdings: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class MeshAxis(_message.Message):
    __slots__ = ("name", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("first", "last", "start", "stop")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    start: int
    stop: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class Seat(_message.Message):
    __slots__ = ("rank", "worker_id", "node_id")
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    rank: int
    worker_id: str
    node_id: str
    def __init__(self, rank: _Optional[int] = ..., worker_id: _Optional[str] = ..., node_id: _Optional[str] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("job", "epoch", "parent", "mesh", "zero_stage", "shard", "copies", "micro_batches", "block", "section", "stages", "schedule", "recompute", "seats", "layouts", "reason", "shares", "checkpoint_every")
    JOB_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    ZERO_STAGE_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCHES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    SECTION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_FIELD_NUMBER: _ClassVar[int]
    SEATS_FIELD_NUMBER: _ClassVar[int]
    LAYOUTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_FIELD_NUMBER: _ClassVar[int]
    job: str
    epoch: int
    parent: int
    mesh: _containers.RepeatedCompositeFieldContainer[MeshAxis]
    zero_stage: int
    shard: int
    copies: int
    micro_batches: int
    block: int
    section: int
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    schedule: str
    recompute: _containers.RepeatedScalarFieldContainer[bool]
    seats: _containers.RepeatedCompositeFieldContainer[Seat]
    layouts: _containers.RepeatedCompositeFieldContainer[StateLayout]
    reason: str
    shares: _containers.RepeatedScalarFieldContainer[int]
    checkpoint_every: int
    def __init__(self, job: _Optional[str] = ..., epoch: _Optional[int] = ..., parent: _Optional[int] = ..., mesh: _Optional[_Iterable[_Union[MeshAxis, _Mapping]]] = ..., zero_stage: _Optional[int] = ..., shard: _Optional[int] = ..., copies: _Optional[int] = ..., micro_batches: _Optional[int] = ..., block: _Optional[int] = ..., section: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., schedule: _Optional[str] = ..., recompute: _Optional[_Iterable[bool]] = ..., seats: _Optional[_Iterable[_Union[Seat, _Mapping]]] = ..., layouts: _Optional[_Iterable[_Union[StateLayout, _Mapping]]] = ..., reason: _Optional[str] = ..., shares: _Optional[_Iterable[int]] = ..., checkpoint_every: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("step", "loss", "grad_norm", "scale", "skipped", "usual_loss")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    USUAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    step: int
    loss: float
    grad_norm: float
    scale: float
    skipped: bool
    usual_loss: float
    def __init__(self, step: _Optional[int] = ..., loss: _Optional[float] = ..., grad_norm: _Optional[float] = ..., scale: _Optional[float] = ..., skipped: _Optional[bool] = ..., usual_loss: _Optional[float] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("plan_epoch", "rank", "tensor", "applied_step", "params_step", "prepared_step", "optimizer", "params", "commit")
    PLAN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    APPLIED_STEP_FIELD_NUMBER: _ClassVar[int]
    PARAMS_STEP_FIELD_NUMBER: _ClassVar[int]
    PREPARED_STEP_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    plan_epoch: int
    rank: int
    tensor: int
    applied_step: int
    params_step: int
    prepared_step: int
    optimizer: _containers.RepeatedCompositeFieldContainer[Interval]
    params: _containers.RepeatedCompositeFieldContainer[Interval]
    commit: Commit
    def __init__(self, plan_epoch: _Optional[int] = ..., rank: _Optional[int] = ..., tensor: _Optional[int] = ..., applied_step: _Optional[int] = ..., params_step: _Optional[int] = ..., prepared_step: _Optional[int] = ..., optimizer: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ..., params: _Optional[_Iterable[_Union[Interval, _Mapping]]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ...) -> None: ...

class Transfer(_message.Message):
    __slots__ = ("tensor", "src", "dst", "start", "stop", "src_start", "round", "others")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    SRC_FIELD_NUMBER: _ClassVar[int]
    DST_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SRC_START_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    tensor: str
    src: int
    dst: int
    start: int
    stop: int
    src_start: int
    round: int
    others: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tensor: _Optional[str] = ..., src: _Optional[int] = ..., dst: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., src_start: _Optional[int] = ..., round: _Optional[int] = ..., others: _Optional[_Iterable[int]] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("source", "step", "commit", "transfers", "fresh", "checkpoint_uri", "predicted_ms", "skip_steps")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_URI_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_MS_FIELD_NUMBER: _ClassVar[int]
    SKIP_STEPS_FIELD_NUMBER: _ClassVar[int]
    source: str
    step: int
    commit: Commit
    transfers: _containers.RepeatedCompositeFieldContainer[Transfer]
    fresh: _containers.RepeatedScalarFieldContainer[int]
    checkpoint_uri: str
    predicted_ms: int
    skip_steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, source: _Optional[str] = ..., step: _Optional[int] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., transfers: _Optional[_Iterable[_Union[Transfer, _Mapping]]] = ..., fresh: _Optional[_Iterable[int]] = ..., checkpoint_uri: _Optional[str] = ..., predicted_ms: _Optional[int] = ..., skip_steps: _Optional[_Iterable[int]] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("kind", "rank", "node_id", "at_step", "micro_batch", "amount_ms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    AT_STEP_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_MS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    rank: int
    node_id: str
    at_step: int
    micro_batch: int
    amount_ms: int
    def __init__(self, kind: _Optional[str] = ..., rank: _Optional[int] = ..., node_id: _Optional[str] = ..., at_step: _Optional[int] = ..., micro_batch: _Optional[int] = ..., amount_ms: _Optional[int] = ...) -> None: ...

class NodeView(_message.Message):
    __slots__ = ("node_id", "address", "device", "slots", "memory_bytes", "healthy", "schedulable")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    SCHEDULABLE_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    address: str
    device: str
    slots: int
    memory_bytes: int
    healthy: bool
    schedulable: bool
    def __init__(self, node_id: _Optional[str] = ..., address: _Optional[str] = ..., device: _Optional[str] = ..., slots: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., healthy: _Optional[bool] = ..., schedulable: _Optional[bool] = ...) -> None: ...

class ClusterView(_message.Message):
    __slots__ = ("generation", "nodes")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    generation: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeView]
    def __init__(self, generation: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeView, _Mapping]]] = ...) -> None: ...
