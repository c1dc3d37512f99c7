"""Tasks that make tracing hard, or its answers easy to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from orchestrator.engine.task import Task, stable_seed


class Tower(nn.Module):
    """[batch, width] -> the same; two linear layers and a ReLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Up and down."""
        out: Tensor = self.down(torch.relu(self.up(x)))
        return out


class Stack(Task):
    """Towers of two sizes, cut by tensor parallelism; `peeks` looks at values, `fails` is a mistake of the user's."""

    width: int = 16
    hidden: int = 24
    batch_size: int = 8
    peeks: bool = False
    fails: bool = False

    def build_model(self) -> nn.Module:
        """Three towers, the last one wider."""
        return nn.ModuleList([Tower(self.width, self.hidden * n) for n in (1, 1, 2)])

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        """tower0, tower1, wide."""
        assert isinstance(model, nn.ModuleList)
        return list(zip(("tower0", "tower1", "wide"), model, strict=True))

    def tensor_plan(self, layer: str) -> dict[str, ParallelStyle]:
        """Every tower."""
        return {"up": ColwiseParallel(), "down": RowwiseParallel()}

    def inputs(self, batch: Any) -> Tensor:
        """All of it."""
        x: Tensor = batch
        return x

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        """Mean square."""
        if self.fails:
            raise KeyError("the user's own mistake")
        if self.peeks and float(output.detach().sum()) > 1e9:
            return output.sum()
        return F.mse_loss(output, batch)

    def batch(self, *, seed: int, step: int, micro_batch: int) -> Tensor:
        """Numbers that depend on the arguments alone."""
        return torch.randn(
            self.batch_size, self.width, generator=torch.Generator().manual_seed(stable_seed(seed, step, micro_batch))
        )

    def eval_batch(self, *, seed: int, index: int) -> Tensor:
        """The same, held out."""
        return self.batch(seed=seed, step=-1, micro_batch=index)

    @property
    def tokens_per_micro_batch(self) -> int:
        """Rows."""
        return self.batch_size
