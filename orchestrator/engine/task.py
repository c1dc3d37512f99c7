"""What a user writes to train a model here: one class that builds the model and draws the batch of a given
micro-batch.

The engine owns the loop, the ranks and the recovery; a task owns the mathematics. Exact recovery rests on one promise
of the task: whatever it returns depends on its arguments (and, in the forward pass, on the RNG that `seed_everything`
has set), never on the rank, on what was drawn before or on the clock. So there is no data-loader state to save and
any rank can redo any micro-batch of a lost one.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ParallelStyle

from orchestrator.core.job import OptimizerSettings
from orchestrator.engine.task_options import TaskError, check_options, declared_options

__all__ = ["NamedShard", "Task", "TaskError", "build_adamw", "seed_drawing", "seed_everything", "stable_seed"]


@dataclass(frozen=True, slots=True)
class NamedShard:
    """The part of one model parameter that this rank updates.

    `param` is 1-D fp32, a view of elements [start, stop) of the job's flat state vector: updating it in place updates
    the model. An optimizer must therefore be elementwise (AdamW, SGD, Lion, ...); one that needs a whole matrix would
    see only a piece.
    """

    name: str  # the parameter's name in `model.named_parameters()`, without commas
    param: nn.Parameter
    ndim: int  # dimensions of the whole parameter: 1 for biases and norms, 2 for matrices
    start: int
    stop: int


class Task(ABC):
    """Base class of everything that can be trained. Subclass it and name the class in job.yaml.

    Options are annotated class attributes; job.yaml may set them, and one without a default must be set there:

        class Digits(Task):
            width: int = 32
            batch_size: int = 64

    Names that begin with `_` and ClassVars are no options. Override `setup` for work that needs the options.
    """

    def __init__(self, *, base_dir: str | Path = ".", **options: object) -> None:
        """Checks and stores the options, then calls `setup`.

        `base_dir` is the folder of job.yaml: relative paths in options start there (`self.base_dir / self.text`).
        Raises TaskError for an unknown option (naming the nearest known one), a missing one or one of the wrong type.
        """
        self.base_dir = Path(base_dir).resolve()
        for name, value in check_options(type(self).__name__, declared_options(type(self), Task), options).items():
            setattr(self, name, value)
        self.setup()

    def setup(self) -> None:  # noqa: B027  (optional hook)
        """Called once, after the options are set: check them further, read files. Raise TaskError for what the user
        can fix.
        """

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new model on the CPU, all trainable parameters fp32. The RNG is seeded before the call, equally on every
        rank.
        """

    def build_optimizer(self, params: Sequence[NamedShard], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """An elementwise optimizer over the shards; `params` may be empty. Before each step the engine sets the groups' `lr`.

        The first step of a run is made by one optimizer for each shard, so what is counted beside the parameters' state is lost.
        The default is AdamW; parameters with fewer than two dimensions (biases, norms) are exempt from weight decay.
        """
        return build_adamw(params, settings)

    @abstractmethod
    def batch(self, *, seed: int, step: int, micro_batch: int) -> Any:
        """The training micro-batch of these numbers: a pytree of CPU tensors, a pure function of them."""

    @abstractmethod
    def eval_batch(self, *, seed: int, index: int) -> Any:
        """The held-out micro-batch number `index`: a pytree like `batch`'s, a pure function of the arguments."""

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        """The model as (name, module) pairs in forward order, each called with the output of the one before; empty: one piece.

        Pipeline stages, ZeRO-3, recomputation and tensor parallelism need them. The first is called with `inputs(batch)`; what
        goes from layer to layer is one tensor (made contiguous, and so is its gradient); `criterion` makes the loss of the last
        one's output. Every trainable parameter and persistent buffer must belong to one layer. A parameter that two layers use
        (tied weights) is kept equal in both. The RNG is seeded before each layer, so that its dropout is the same on any rank.
        """
        return ()

    def inputs(self, batch: Any) -> Tensor:
        """What the first layer is called with."""
        raise TaskError(f"{type(self).__name__} names its layers but has no inputs()")

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        """Mean loss of the micro-batch, a scalar tensor, from the last layer's output."""
        raise TaskError(f"{type(self).__name__} names its layers but has no criterion()")

    def tensor_plan(self, layer: str) -> dict[str, ParallelStyle]:
        """What tensor parallelism cuts in a layer, as for torch's `parallelize_module`: ColwiseParallel or RowwiseParallel.

        Keys are names of nn.Linear modules inside the layer, such as `attention.qkv`. The layer's input and output stay whole
        on every tensor rank; between a ColwiseParallel module and a RowwiseParallel one a rank has its part of the features only.
        """
        return {}

    def check_tensor(self, degree: int) -> None:  # noqa: B027  (optional hook)
        """Raise TaskError where the layers cannot be cut over so many tensor ranks (attention heads, for one)."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of the micro-batch, a scalar tensor; every micro-batch of a step has the same weight.

        A task that names its layers need not override it (and the engine then uses them, not this).
        """
        x = self.inputs(batch)
        for _, layer in self.stack(model):
            x = layer(x)
        return self.criterion(x, batch)

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """Figures to show for a mean loss (of training or held-out batches), by name."""
        return {"loss": mean_loss}

    @property
    @abstractmethod
    def tokens_per_micro_batch(self) -> int:
        """Tokens (or images, ...) in one micro-batch: the unit of the throughput. A class attribute will do."""


def build_adamw(params: Sequence[NamedShard], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), bit for bit the same on a shard as on the whole.

    The fused kernel rounds the last elements of a tensor, those beyond whole vectors, differently from those inside it.
    Shards end inside a parameter only at multiples of `model_state.ALIGN` elements, where that makes no difference
    (measured with torch 2.13 on CPU). It takes a sixth of the time of the plain loop (7 ms against 44 ms for 12.6 M
    elements on a busy core), which makes temporaries of each parameter's size.
    """
    decayed: list[nn.Parameter] = [p.param for p in params if p.ndim >= 2]
    exempt: list[nn.Parameter] = [p.param for p in params if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts: the same in every process, on every machine and whatever PYTHONHASHSEED says."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(*, seed: int, step: int, micro_batch: int, layer: int = 0) -> None:
    """Seeds torch (CPU and CUDA), `random` and numpy for one layer's forward pass, so that there is no RNG state to save or to
    move, whichever rank runs the layer.

    The engine calls it before each layer; for building the model it uses step -1.
    """
    value = stable_seed("forward", seed, step, micro_batch, layer)
    torch.default_generator.manual_seed(value)  # torch.manual_seed makes a stack trace for each absent device
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(value)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)


def seed_drawing(*, seed: int, step: int, micro_batch: int) -> None:
    """The same before a task's own drawing (`batch`, `eval_batch`, `setup`), from other seeds.

    A task that draws from the global RNG, against its promise, then still gets the same batch on every rank.
    """
    seed_everything(seed=stable_seed("drawing", seed), step=step, micro_batch=micro_batch)
