"""The shape of job.yaml: one frozen model per section, each field with its bounds, its default and its explanation.

The explanations are part of the product: they become the JSON Schema that editors show while a job file is written.
What one field alone cannot tell (that there are at least as many micro-batches as ranks) is in rules.py.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from orchestrator.core.job import Action, BadStep, Consistency, DeviceKind, FailureClass, Precision
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.spec.kubernetes import KubernetesSpec
from orchestrator.spec.policies import ALLOWED_ACTIONS, checked_actions
from orchestrator.spec.section import Section
from orchestrator.spec.values import DetectWithin, JobName, Target, Uri

NODES_MAX = 10_000
SLOTS_MAX = 64
STEPS_MAX = 1_000_000_000
MICRO_BATCHES_MAX = 65_536
LAYERS_MAX = 10_000
AUTO = "auto"
EVERY_AUTO = -1  # checkpoint.every: auto


def _or_auto(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return EVERY_AUTO if value == AUTO else handler(value)


class Planning(StrEnum):
    """Who cuts the job."""

    GIVEN = "given"
    AUTO = AUTO


class TaskSpec(Section):
    """What to train. In the file it may also be just the target."""

    target: Target = Field(
        default="gpt",
        description="A ready task (gpt), package.module:Class, or path/to/file.py:Class. Relative paths start at the job file's "
        "folder, on Kubernetes at the pods' working folder (/workspace).",
    )
    options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Arguments of the task's constructor; relative paths start where the target's do.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_target(cls, value: Any) -> Any:
        return {"target": value} if isinstance(value, str) else value


class OptimizerSpec(Section):
    """AdamW with linear warm-up and cosine decay."""

    lr: float = Field(default=3e-4, gt=0, le=1_000, description="Peak learning rate.")
    betas: tuple[
        Annotated[float, Field(ge=0, lt=1)],
        Annotated[float, Field(ge=0, lt=1)],
    ] = Field(default=(0.9, 0.95), description="Decay of the first and of the second moment.")
    eps: float = Field(default=1e-8, gt=0, le=1, description="Added to the denominator.")
    weight_decay: float = Field(default=0.1, ge=0, le=1_000, description="Decoupled weight decay.")
    warmup_steps: Annotated[int, Field(ge=0, le=STEPS_MAX)] | None = Field(
        default=None, description="Steps of linear warm-up. Absent: a tenth of train.steps, at most 100."
    )
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="The cosine ends at lr times this, at the last step.")
    clip_grad_norm: float = Field(default=1.0, ge=0, le=1e9, description="Clip to this global L2 norm; 0 does not clip.")


class TrainSpec(Section):
    """The training loop."""

    steps: int = Field(default=200, ge=1, le=STEPS_MAX, description="Optimizer steps of the whole run.")
    seed: int = Field(default=1, ge=0, le=2**63 - 1, description="Everything random is drawn from it.")
    micro_batches: int = Field(
        default=8,
        ge=1,
        le=MICRO_BATCHES_MAX,
        description="Micro-batches in a step, over all ranks together; fixed for the whole life of the job.",
    )
    consistency: Consistency = Field(
        default=Consistency.EXACT,
        description="exact: one canonical order of sums, equal bits whatever fails. fast: any order of sums.",
    )
    precision: Precision = Field(
        default=Precision.FP32, description="Arithmetic of forward and backward; weights and moments stay fp32."
    )
    digest_every: int = Field(
        default=10, ge=0, le=STEPS_MAX, description="Steps between digests of the state; 0: only at the end."
    )
    eval_every: int = Field(default=50, ge=0, le=STEPS_MAX, description="Steps between held-out evaluations; 0: only at the end.")
    eval_micro_batches: int = Field(
        default=4, ge=1, le=MICRO_BATCHES_MAX, description="Micro-batches in one held-out evaluation."
    )
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec, description="AdamW and its schedule.")


class ParallelSpec(Section):
    """How the model and its state are cut over pipeline x data x tensor ranks. In the file it may also be just auto."""

    plan: Planning = Field(
        default=Planning.GIVEN,
        description="given: as the keys below say. auto: the planner measures and chooses; keys that the file gives stay fixed.",
    )
    data: Annotated[int, Field(ge=1, le=NODES_MAX * SLOTS_MAX)] | None = Field(
        default=None,
        description="Ranks along the data axis. Absent: the slots of the cluster over pipeline times tensor.",
    )
    zero: int = Field(
        default=0,
        ge=0,
        le=3,
        description="What is sharded along the data axis. 0: nothing. 1: optimizer state. 2: gradients too. 3: parameters too.",
    )
    shard: Annotated[int, Field(ge=2, le=NODES_MAX * SLOTS_MAX)] | None = Field(
        default=None,
        description="Ranks that a sharded state is spread over, replicated beyond them; divides data. Absent: all data ranks.",
    )
    tensor: int = Field(
        default=1,
        ge=1,
        le=SLOTS_MAX,
        description="Ranks that each layer's matrices are cut over. It stays while the job runs: it changes the order of sums.",
    )
    pipeline: int = Field(default=1, ge=1, le=LAYERS_MAX, description="Ranks that the layers are cut over.")
    stages_per_rank: int = Field(
        default=1, ge=1, le=LAYERS_MAX, description="Pipeline stages on each rank; more than 1 is the interleaved schedule."
    )
    layers_per_stage: tuple[Annotated[int, Field(ge=1, le=LAYERS_MAX)], ...] = Field(
        default=(),
        max_length=LAYERS_MAX,
        description="Layers of each pipeline stage in forward order. Absent: balanced by parameters.",
    )
    schedule: PipelineSchedule | None = Field(
        default=None,
        description="Order of passes in a pipeline. Absent: interleaved with several stages per rank, else 1f1b.",
    )
    recompute: Annotated[
        tuple[bool, ...],
        Field(min_length=1, max_length=LAYERS_MAX, strict=False),
        BeforeValidator(lambda value: [value] if isinstance(value, bool) else value),
        WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "boolean"}, "minItems": 1}]}),
    ] = Field(
        default=(False,),
        description="Compute activations again in the backward pass, not keep them: less memory. One value, or one a stage.",
    )
    shares: tuple[Annotated[int, Field(ge=1, le=MICRO_BATCHES_MAX)], ...] = Field(
        default=(),
        max_length=NODES_MAX * SLOTS_MAX,
        description="Micro-batches of each data rank in a step, for ranks of unlike speed. Absent: as even as can be.",
    )
    copies: Annotated[int, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Further holders, on other nodes, of state that no replica has. Absent: 1 where it helps and fits, else 0.",
    )


class ClusterSpec(Section):
    """What the job asks of the cluster, and what an embedded cluster is made of."""

    nodes: int = Field(default=4, ge=1, le=NODES_MAX, description="Nodes that train.")
    spares: int = Field(
        default=1, ge=0, le=NODES_MAX, description="Warm spare workers, each on a node of its own where there is room."
    )
    slots_per_node: int = Field(default=1, ge=1, le=SLOTS_MAX, description="Workers on one node.")
    device: DeviceKind = Field(default=DeviceKind.CPU, description="What a worker computes on.")


_INT_OR_AUTO = WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0, "maximum": STEPS_MAX}, {"const": AUTO}]})


class CheckpointSpec(Section):
    """Durable checkpoints. Absent: none."""

    uri: Uri = Field(
        description="An fsspec URL, or a folder: relative to the job file's, on Kubernetes to /workspace and on a volume."
    )
    every: Annotated[int, Field(ge=0, le=STEPS_MAX), WrapValidator(_or_auto), _INT_OR_AUTO] = Field(
        default=50,
        description="Steps between checkpoints; 0: only at the end. auto: what the planner's goodput model says is best.",
    )
    keep: int = Field(default=3, ge=1, le=1_000, description="How many of the newest are kept.")


def _actions(failure: FailureClass) -> tuple[AfterValidator, WithJsonSchema]:
    item = {"type": "string", "enum": [action.value for action in ALLOWED_ACTIONS[failure]]}
    return AfterValidator(checked_actions(failure)), WithJsonSchema({"type": "array", "items": item, "minItems": 1})


LossActions: TypeAlias = Annotated[tuple[Action, ...], *_actions(FailureClass.NODE_LOST)]
SlowActions: TypeAlias = Annotated[tuple[Action, ...], *_actions(FailureClass.WORKER_SLOW)]
CorruptActions: TypeAlias = Annotated[tuple[Action, ...], *_actions(FailureClass.CORRUPT_STATE)]


class PolicySpec(Section):
    """Ordered actions per class of failure; the first that is possible is taken."""

    default: LossActions | None = Field(default=None, description="For the classes below but worker-slow, unless they say more.")
    worker_exited: LossActions | None = Field(
        default=None, alias="worker-exited", description="A worker's process ended. Absent: swap, shrink, wait."
    )
    node_lost: LossActions | None = Field(
        default=None, alias="node-lost", description="A node is gone, with its workers. Absent: swap, shrink, wait."
    )
    worker_hung: LossActions | None = Field(
        default=None, alias="worker-hung", description="A worker stands still. Absent: swap, shrink, wait."
    )
    worker_slow: SlowActions | None = Field(
        default=None, alias="worker-slow", description="A worker is slower than its peers for long. Absent: report."
    )
    corrupt_state: CorruptActions | None = Field(
        default=None, alias="corrupt-state", description="Replicas that must be equal differ. Absent: swap, shrink, fail."
    )


class ResilienceSpec(Section):
    """Detection of failures and the policy for them."""

    detect_within: DetectWithin = Field(
        default="4s", description="A hang is detected within this, 1s to 10m; every other time-out is derived from it."
    )
    failures: int = Field(default=5, ge=0, le=10_000, description="Failures tolerated without progress between them.")
    refill_after_steps: int = Field(
        default=50, ge=1, le=STEPS_MAX, description="Committed steps that give one failure back to the budget."
    )
    slow_factor: float = Field(
        default=2.0,
        gt=1,
        le=1_000,
        description="A rank this many times slower than its peers' median, for long, is slow.",
    )
    policy: PolicySpec = Field(default_factory=PolicySpec, description="What to do about each class of failure.")
    min_ranks: int = Field(
        default=1, ge=1, le=NODES_MAX * SLOTS_MAX, description="The job waits rather than trains with fewer ranks than this."
    )
    grow_after_steps: int = Field(
        default=10, ge=0, le=STEPS_MAX, description="Steps after a change of size before the job grows back."
    )
    on_bad_step: BadStep = Field(
        default=BadStep.FAIL,
        description="A loss or gradient that is not finite, or a spike: fail, skip the update, or rollback to a checkpoint.",
    )
    loss_spike_factor: float = Field(
        default=0.0, ge=0, le=1e9, description="A loss this many times the usual one is a bad step; 0: none is."
    )


class JobSpec(Section):
    """One training job of the orchestrator (job.yaml)."""

    name: JobName = Field(description="A DNS label: a-z, 0-9 and inner hyphens, at most 63 characters.")
    task: TaskSpec = Field(default_factory=TaskSpec, description="What to train: a target, or a target with options.")
    train: TrainSpec = Field(default_factory=TrainSpec, description="The training loop.")
    parallel: ParallelSpec = Field(default_factory=ParallelSpec, description="How the state is cut over ranks.")
    cluster: ClusterSpec = Field(default_factory=ClusterSpec, description="What the job asks of the cluster.")
    checkpoint: CheckpointSpec | None = Field(default=None, description="Durable checkpoints. Absent: none.")
    resilience: ResilienceSpec = Field(default_factory=ResilienceSpec, description="Detection and failure policy.")
    kubernetes: KubernetesSpec | None = Field(
        default=None, description="How the job runs on Kubernetes. Elsewhere it is checked and ignored."
    )
