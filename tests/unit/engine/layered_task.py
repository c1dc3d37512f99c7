"""A small layered task with everything that makes exactness across plans hard: dropout in several layers, tied weights at both
ends, layers of unlike size, a batch norm, and linear layers that tensor parallelism can cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from orchestrator.engine.task import Task, stable_seed


class Embed(nn.Module):
    """int64 [batch, length] -> [batch, length, width]."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table, some dropped."""
        return F.dropout(self.tokens(ids), 0.1, self.training)


class Mix(nn.Module):
    """A residual MLP of its own width; optionally a batch norm over the features."""

    def __init__(self, width: int, hidden: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.batch_norm = nn.BatchNorm1d(width) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        y = F.dropout(self.outer(F.gelu(self.inner(self.norm(x)))), 0.1, self.training)
        if self.batch_norm is not None:
            y = self.batch_norm(y.flatten(0, 1)).view_as(y)
        return x + y


class Head(nn.Module):
    """[batch, length, width] -> logits, with the embedding's weights."""

    def __init__(self, tokens: nn.Embedding, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, tokens.num_embeddings, bias=False)
        self.out.weight = tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.out(self.norm(x))
        return out


class Net(nn.Module):
    """embed, mixes, head."""

    def __init__(self, *, vocab: int, width: int, hidden: int, depth: int, batch_norm: bool) -> None:
        super().__init__()
        self.embed = Embed(vocab, width)
        self.mixes = nn.ModuleList(Mix(width, hidden * (1 + n % 2), batch_norm=batch_norm and n == 1) for n in range(depth))
        self.head = Head(self.embed.tokens, width)


class Layered(Task):
    """Predict the next of drawn numbers."""

    vocab: int = 64
    width: int = 32
    hidden: int = 840  # divisible by 1 to 8
    depth: int = 4
    length: int = 6
    batch_size: int = 2
    batch_norm: bool = False

    def build_model(self) -> nn.Module:
        """The net."""
        return Net(vocab=self.vocab, width=self.width, hidden=self.hidden, depth=self.depth, batch_norm=self.batch_norm)

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        """embed, mix0.., head."""
        assert isinstance(model, Net)
        return [("embed", model.embed), *((f"mix{n}", m) for n, m in enumerate(model.mixes)), ("head", model.head)]

    def tensor_plan(self, layer: str) -> dict[str, ParallelStyle]:
        """The MLP in the usual way."""
        return {"inner": ColwiseParallel(), "outer": RowwiseParallel()} if layer.startswith("mix") else {}

    def inputs(self, batch: Any) -> Tensor:
        """Ids."""
        ids: Tensor = batch
        return ids[:, :-1]

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(output.flatten(0, 1), batch[:, 1:].flatten())

    def batch(self, *, seed: int, step: int, micro_batch: int) -> Tensor:
        """Numbers that depend on the arguments alone."""
        generator = torch.Generator().manual_seed(stable_seed(seed, step, micro_batch))
        return torch.randint(0, self.vocab, (self.batch_size, self.length + 1), generator=generator)

    def eval_batch(self, *, seed: int, index: int) -> Tensor:
        """The same, held out."""
        return self.batch(seed=seed, step=-1, micro_batch=index)

    @property
    def tokens_per_micro_batch(self) -> int:
        """Targets."""
        return self.batch_size * self.length
