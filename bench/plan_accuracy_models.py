"""The models and plans of `make bench-plan-accuracy`: small enough for two cores, unlike enough to be wrong about.

A GPT of equal blocks between small ends; a stack of residual MLPs, each of its own width; a convolution net whose first layers
have the activations and whose last ones have the parameters. Steps take a few tenths of a second and are bound by computing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from orchestrator.core.job import Job, TaskRef
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.engine.task import Task, stable_seed
from orchestrator.testkit.jobs import make_job

ROOT = str(Path(__file__).resolve().parent.parent)


class Residual(nn.Module):
    """[batch, width] -> the same, through `hidden` features."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Around a residual."""
        out: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class Unlike(Task):
    """Regression by residual MLPs of unlike width between two linear layers."""

    inputs_width: int = 768
    width: int = 640
    batch_size: int = 192
    scale: int = 1  # divides the hidden widths

    HIDDEN: ClassVar = (2560, 640, 1920, 320, 1280, 3200, 640)

    def build_model(self) -> nn.Module:
        """In, the residuals, out."""
        ends = nn.Linear(self.inputs_width, self.width), nn.Linear(self.width, self.inputs_width)
        return nn.ModuleList([ends[0], *(Residual(self.width, h // self.scale) for h in self.HIDDEN), ends[1]])

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        """in, mlp0, mlp1, ..., out."""
        assert isinstance(model, nn.ModuleList)
        return list(zip(["in", *(f"mlp{n}" for n in range(len(self.HIDDEN))), "out"], model, strict=True))

    def tensor_plan(self, layer: str) -> dict[str, ParallelStyle]:
        """The residuals."""
        return {"up": ColwiseParallel(), "down": RowwiseParallel()} if layer.startswith("mlp") else {}

    def inputs(self, batch: Any) -> Tensor:
        """All of it."""
        x: Tensor = batch
        return x

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        """Mean square error against the shifted input."""
        return F.mse_loss(output, batch.roll(1, dims=1))

    def batch(self, *, seed: int, step: int, micro_batch: int) -> Tensor:
        """Drawn numbers."""
        generator = torch.Generator().manual_seed(stable_seed(seed, step, micro_batch))
        return torch.randn(self.batch_size, self.inputs_width, generator=generator)

    def eval_batch(self, *, seed: int, index: int) -> Tensor:
        """The same, held out."""
        return self.batch(seed=seed, step=-1, micro_batch=index)

    @property
    def tokens_per_micro_batch(self) -> int:
        """Rows."""
        return self.batch_size


class Conv(nn.Module):
    """[batch, channels, side, side] -> [batch, out, side / stride, side / stride]."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(8, out)

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, norm, ReLU."""
        return F.relu(self.norm(self.conv(x)))


class Classes(nn.Module):
    """[batch, channels, side, side] -> logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, 4 * channels)
        self.out = nn.Linear(4 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled."""
        out: Tensor = self.out(F.relu(self.hidden(x.mean((2, 3)))))
        return out


class ConvNet(Task):
    """Classification of drawn images."""

    side: int = 32
    classes: int = 1000
    batch_size: int = 8
    scale: int = 1  # divides the channels

    CHANNELS: ClassVar = (
        (3, 48, 1),
        (48, 48, 1),
        (48, 96, 2),
        (96, 96, 1),
        (96, 192, 2),
        (192, 192, 1),
        (192, 384, 2),
        (384, 384, 1),
    )

    def build_model(self) -> nn.Module:
        """Convolutions and a head."""
        wide = [(max(3, a // self.scale), b // self.scale, stride) for a, b, stride in self.CHANNELS]
        return nn.ModuleList([*(Conv(*c) for c in wide), Classes(wide[-1][1], self.classes)])

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        """conv0, conv1, ..., head."""
        assert isinstance(model, nn.ModuleList)
        return list(zip([*(f"conv{n}" for n in range(len(self.CHANNELS))), "head"], model, strict=True))

    def inputs(self, batch: Any) -> Tensor:
        """Images."""
        x: Tensor = batch[0]
        return x

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(output, batch[1])

    def batch(self, *, seed: int, step: int, micro_batch: int) -> tuple[Tensor, Tensor]:
        """Drawn numbers."""
        generator = torch.Generator().manual_seed(stable_seed(seed, step, micro_batch))
        images = torch.randn(self.batch_size, 3, self.side, self.side, generator=generator)
        return images, torch.randint(self.classes, (self.batch_size,), generator=generator)

    def eval_batch(self, *, seed: int, index: int) -> tuple[Tensor, Tensor]:
        """The same, held out."""
        return self.batch(seed=seed, step=-1, micro_batch=index)

    @property
    def tokens_per_micro_batch(self) -> int:
        """Images."""
        return self.batch_size


@dataclass(frozen=True)
class Model:
    """A task with its options."""

    name: str
    target: str
    options: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)  # options that leave next to nothing of it

    @property
    def nothing(self) -> Model:
        """A model of next to nothing that needs the same libraries."""
        return Model(f"no-{self.name}", self.target, {**self.options, **self.small})

    def job(self, **fields: Any) -> Job:
        """A job of it; nothing but steps until the last one."""
        task = TaskRef(self.target, json.dumps(self.options, sort_keys=True), ROOT)
        return make_job(
            name=self.name,
            task=task,
            digest_every=0,
            eval_every=0,
            eval_micro_batches=1,
            detect_within_ms=60_000,
            **fields,
        )


@dataclass(frozen=True)
class Case:
    """A plan of a model: the fields of a job that make it."""

    model: Model
    words: str
    fields: dict[str, Any]

    @property
    def job(self) -> Job:
        """Without a number of steps."""
        return self.model.job(**{"data": 1, "micro_batches": 4, **self.fields})

    @property
    def ranks(self) -> int:
        """Processes."""
        return self.job.parallel.ranks


GPT = Model(
    "gpt",
    "gpt",
    {"layers": 8, "width": 256, "heads": 4, "context": 128, "batch_size": 2},
    {"layers": 1, "width": 16, "heads": 2, "context": 16, "batch_size": 1},
)
UNLIKE = Model("mlp", "bench.plan_accuracy_models:Unlike", {}, {"inputs_width": 16, "width": 16, "scale": 64, "batch_size": 2})
CONVNET = Model("conv", "bench.plan_accuracy_models:ConvNet", {}, {"scale": 6, "side": 8, "classes": 10, "batch_size": 1})

_PLANS: dict[str, dict[str, Any]] = {
    "1 rank": {},
    "1 rank, recompute": {"recompute": (True,)},
    "data 2": {"data": 2},
    "data 2, 8 micro-batches": {"data": 2, "micro_batches": 8},
    "data 2, ZeRO-1": {"data": 2, "zero_stage": 1},
    "data 2, ZeRO-2": {"data": 2, "zero_stage": 2},
    "data 2, ZeRO-3": {"data": 2, "zero_stage": 3},
    "data 2, ZeRO-3, recompute": {"data": 2, "zero_stage": 3, "recompute": (True,)},
    "pipeline 2": {"pipeline": 2},
    "pipeline 2, 8 micro-batches": {"pipeline": 2, "micro_batches": 8},
    "pipeline 2, zero bubble": {"pipeline": 2, "schedule": PipelineSchedule.ZERO_BUBBLE},
    "pipeline 2, recompute": {"pipeline": 2, "recompute": (True,)},
    "pipeline 2 x 2 stages": {"pipeline": 2, "stages_per_rank": 2, "schedule": PipelineSchedule.INTERLEAVED},
    "pipeline 2, cut 2 + 7": {"pipeline": 2, "layers_per_stage": (2, 7)},
    "pipeline 2, cut 3 + 6": {"pipeline": 2, "layers_per_stage": (3, 6)},
    "pipeline 2, cut 3 + 7": {"pipeline": 2, "layers_per_stage": (3, 7)},
    "tensor 2": {"tensor": 2},
}
_RUN: tuple[tuple[Model, tuple[str, ...]], ...] = (
    (
        GPT,
        (
            *("1 rank", "1 rank, recompute", "data 2", "data 2, 8 micro-batches", "data 2, ZeRO-1", "data 2, ZeRO-3"),
            *("pipeline 2", "pipeline 2, zero bubble", "pipeline 2 x 2 stages", "pipeline 2, cut 3 + 7", "tensor 2"),
        ),
    ),
    (
        UNLIKE,
        (
            *("1 rank", "data 2", "data 2, ZeRO-2", "data 2, ZeRO-3, recompute", "pipeline 2", "pipeline 2, recompute"),
            *("pipeline 2 x 2 stages", "pipeline 2, cut 2 + 7", "tensor 2"),
        ),
    ),
    (
        CONVNET,
        (
            *("1 rank", "1 rank, recompute", "data 2", "data 2, 8 micro-batches", "data 2, ZeRO-1", "data 2, ZeRO-3"),
            *("pipeline 2, zero bubble", "pipeline 2, 8 micro-batches", "pipeline 2, cut 3 + 6"),
        ),
    ),
)


def cases(*, quick: bool) -> tuple[Case, ...]:
    """All plans, of 1 and 2 ranks, model by model; `quick`: every second one of the GPT's."""
    out = tuple(Case(model, words, _PLANS[words]) for model, plans in _RUN for words in plans)
    return tuple(c for c in out if c.model is GPT)[::2] if quick else out
