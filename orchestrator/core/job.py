"""A job as the rest of the system sees it: every default filled in, every value checked, nothing optional by accident.

`spec` is the only maker of a Job: it reads job.yaml, refuses what is wrong and fills what is absent. Inside the system there
is no dict, no None that means "default" and no environment variable; what can vary is a field here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Consistency(StrEnum):
    """How sums over micro-batches are ordered."""

    EXACT = "exact"  # one canonical order, whatever the number of ranks: equal bits through swaps, shrinks and growth
    FAST = "fast"  # the communication library orders the sums


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; master weights and moments are always fp32."""

    FP32 = "fp32"
    BF16 = "bf16"  # torch.autocast


class DeviceKind(StrEnum):
    """What a worker computes on."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class TaskRef:
    """What to train: `gpt`, `package.module:Class` or `path/to/file.py:Class`, with the options its constructor takes."""

    target: str
    options_json: str  # a JSON object, canonical (sorted keys); parsed once, by the engine
    base_dir: str  # absolute; relative paths in `target` and in the task's options start here


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW with linear warm-up and cosine decay (Loshchilov and Hutter, arXiv 1711.05101 and 1608.03983)."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    warmup_steps: int
    min_lr_ratio: float  # the cosine ends at lr * min_lr_ratio at the last step
    clip_grad_norm: float  # global L2 norm; 0 means that gradients are not clipped


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The training loop."""

    steps: int
    seed: int
    micro_batches: int  # M: per step over all ranks, fixed for the whole life of the job
    consistency: Consistency
    precision: Precision
    optimizer: OptimizerSettings
    digest_every: int  # steps between digests of the state; 0 means only at the end
    eval_every: int  # steps between held-out evaluations; 0 means only at the end
    eval_micro_batches: int


@dataclass(frozen=True, slots=True)
class ParallelSettings:
    """How the state is cut over ranks. More axes come with later issues."""

    data: int  # ranks along the data axis
    zero_stage: int  # 0: every rank holds everything; 1: optimizer state is sharded along the data axis
    copies: int  # holders of every sharded region beside its owner; 1 survives the loss of a node, 0 none


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What the job asks of the cluster (and what an embedded cluster is made of)."""

    nodes: int
    spares: int  # warm spare workers, each on a node of its own where there is room
    slots_per_node: int
    device: DeviceKind


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Durable checkpoints; `uri` empty means none."""

    uri: str  # absolute path or an fsspec URL
    every: int  # steps; 0 means only at the end
    keep: int


@dataclass(frozen=True, slots=True)
class ResilienceSettings:
    """Detection and failure policy. Every other time-out is derived from detect_within_ms (core/timeouts.py)."""

    detect_within_ms: int
    failure_budget: int  # failures tolerated without progress between them
    budget_refill_steps: int  # committed steps that give one unit of the budget back
    slow_factor: float  # a rank slower than its peers' median by this factor for long is reported slow


@dataclass(frozen=True, slots=True)
class Job:
    """One training job, complete."""

    name: str
    task: TaskRef
    train: TrainSettings
    parallel: ParallelSettings
    cluster: ClusterSettings
    checkpoint: CheckpointSettings
    resilience: ResilienceSettings
