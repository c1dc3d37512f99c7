"""A job as the rest of the system sees it: every default filled in, every value checked, nothing optional by accident.

`spec` is the only maker of a Job: it reads job.yaml, refuses what is wrong and fills what is absent. Inside the system there
is no dict, no None that means "default" and no environment variable; what can vary is a field here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.strategy import Space


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
    """How the job is cut over ranks at full strength: pipeline x data x tensor of them."""

    data: int  # ranks along the data axis
    zero_stage: int  # 0 replicated; 1 optimizer state, 2 gradients too, 3 parameters too are sharded along the data axis
    shard: int  # ranks that a sharded state is spread over, a divisor of data; 0: all of the data axis
    copies: int  # holders of every region beside its owner where replicas give none; 1 survives the loss of a node, 0 none
    tensor: int  # ranks that a layer's matrices are cut over; never changed while the job runs under consistency: exact
    pipeline: int  # ranks that the layers are cut over
    stages_per_rank: int  # more than 1: interleaved
    layers_per_stage: tuple[int, ...]  # uneven stages, in forward order; empty: balanced by parameters
    schedule: PipelineSchedule
    recompute: tuple[bool, ...]  # compute activations inside a layer again in the backward pass; of each stage, or one for all
    shares: tuple[int, ...]  # micro-batches of each replica in a step; empty: as even as can be

    @property
    def ranks(self) -> int:
        """Ranks at full strength."""
        return self.pipeline * self.data * self.tensor


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """Whether the planner chooses how the job is cut, once the workers have measured themselves."""

    auto: bool  # else the job is cut as ParallelSettings say, which are only a beginning where the planner chooses
    space: Space  # what it may choose from; axes that the file gives are fixed in it
    checkpoint: bool  # it chooses the interval of durable checkpoints too


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


class FailureClass(StrEnum):
    """What went wrong, in the words of the status and of the policy."""

    WORKER_EXITED = "worker-exited"
    NODE_LOST = "node-lost"
    WORKER_HUNG = "worker-hung"
    WORKER_SLOW = "worker-slow"
    USER_ERROR = "user-error"
    UNREACHABLE = "unreachable"
    SUPERVISOR_LOST = "supervisor-lost"
    COLLECTIVE_BROKEN = "collective-broken"
    CORRUPT_STATE = "corrupt-state"
    BAD_STEP = "bad-step"  # a loss or gradient that is not finite, or a spike, and the job asks for a rollback
    PLANNED = "planned"  # nothing went wrong: a drain, a change of scale, a replacement that somebody asked for


class Action(StrEnum):
    """What may be done about a failure; the first of a policy's actions that is possible is taken."""

    REPORT = "report"  # show it, change nothing (slow workers)
    SWAP = "swap"  # give the rank to a spare
    SHRINK = "shrink"  # go on with fewer ranks, and grow back when workers return
    RECUT = "recut"  # move layers of the pipeline away from a slow rank
    WAIT = "wait"  # until a spare is there
    ROLLBACK = "rollback"  # to the newest durable checkpoint
    FAIL = "fail"  # end the job


class BadStep(StrEnum):
    """What to do with a step whose loss or gradient is not finite, or whose loss is a spike."""

    FAIL = "fail"
    SKIP = "skip"  # the step counts, its update is not applied
    ROLLBACK = "rollback"  # back to the newest durable checkpoint, and skip this step when it comes again


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """Ordered actions for one class of failure."""

    failure: FailureClass
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class ResilienceSettings:
    """Detection and failure policy. Every other time-out is derived from detect_within_ms (core/timeouts.py)."""

    detect_within_ms: int
    failure_budget: int  # failures tolerated without progress between them
    budget_refill_steps: int  # committed steps that give one unit of the budget back
    slow_factor: float  # a rank slower than its peers' median by this factor for long is slow
    policies: tuple[FailurePolicy, ...]  # one for each class that has a choice
    ranks_min: int  # fewer than these are never trained with
    grow_after_steps: int  # committed steps since the last change of size before the job grows again
    on_bad_step: BadStep
    loss_spike_factor: float  # a loss this many times the usual one is a bad step; 0: never

    def actions(self, failure: FailureClass) -> tuple[Action, ...]:
        """The policy for a class; (FAIL,) where there is none."""
        return next((p.actions for p in self.policies if p.failure is failure), (Action.FAIL,))


@dataclass(frozen=True, slots=True)
class Job:
    """One training job, complete."""

    name: str
    task: TaskRef
    train: TrainSettings
    parallel: ParallelSettings
    planner: PlannerSettings
    cluster: ClusterSettings
    checkpoint: CheckpointSettings
    resilience: ResilienceSettings
