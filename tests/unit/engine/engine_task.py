"""A small task with everything that makes exactness hard: dropout, a batch norm with a counter, a weight that is used twice."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.engine.task import Task, stable_seed


class Net(nn.Module):
    """[batch, width] -> [batch, width]; about ten blocks of 1,024 elements."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(rows, width, sparse=True) if rows else None
        self.inner = nn.Linear(width, 2 * width)
        self.norm = nn.BatchNorm1d(2 * width)
        self.outer = nn.Linear(2 * width, width, bias=False)
        self.frozen = nn.Parameter(torch.full((3,), 0.5), requires_grad=False)
        self.tied = self.outer

    def forward(self, x: Tensor) -> Tensor:
        """Twice through the outer layer."""
        if self.rows is not None:  # the same row many times in one micro-batch
            x = x + self.rows((x.abs() * 2).long().clamp(max=self.rows.num_embeddings - 1)).mean(1)
        hidden = F.dropout(self.norm(torch.tanh(self.inner(x))), 0.1, self.training)
        out: Tensor = self.outer(hidden) + self.tied(hidden.square()) * self.frozen.sum()
        return out


class Tiny(Task):
    """Regression on drawn numbers."""

    width: int = 48
    batch_size: int = 4
    explode_at: int = 0  # the step whose loss is not a number
    raise_at: int = 0  # the step whose loss raises
    exit_at: int = 0  # the step whose loss ends the program
    rows: int = 0  # of an embedding with sparse gradients
    careless: bool = False  # draws its batches from the global RNG

    def build_model(self) -> nn.Module:
        """The net."""
        return Net(self.width, self.rows)

    def batch(self, *, seed: int, step: int, micro_batch: int) -> tuple[int, Tensor]:
        """Numbers that depend on the arguments alone."""
        if self.careless:
            return step, torch.randn(self.batch_size, self.width)
        generator = torch.Generator().manual_seed(stable_seed(seed, step, micro_batch))
        return step, torch.randn(self.batch_size, self.width, generator=generator)

    def eval_batch(self, *, seed: int, index: int) -> tuple[int, Tensor]:
        """The same, held out."""
        return self.batch(seed=seed, step=-1, micro_batch=index)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean squared error against the shifted input."""
        step, x = batch
        if step and step == self.raise_at:
            raise ZeroDivisionError("the user's own mistake")
        if step and step == self.exit_at:
            sys.exit("the user's own way out")
        out = F.mse_loss(model(x), x.roll(1, dims=1))
        return out * float("nan") if step and step == self.explode_at else out

    @property
    def tokens_per_micro_batch(self) -> int:
        """Rows."""
        return self.batch_size
