"""The model, batch and optimizer that every measured system trains: a plain GPT-like decoder, torch only.

The systems must differ in nothing but how they survive a failure, so all that they share stands here: the same initial
parameters from one seed, the batch of a given (seed, step, rank, micro-batch), fused AdamW, clipping by global norm.
`StepLog` is all that the driver sees of a worker: one JSON line at its start and one at the end of each step.
"""

from __future__ import annotations

import json
import os
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.baselines.dims import Dims

CLIP_NORM = 1.0


class Block(nn.Module):
    """Pre-norm attention and MLP; maps [batch, seq, width] to the same shape."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.heads = dims.heads
        self.norm1 = nn.LayerNorm(dims.width)
        self.qkv = nn.Linear(dims.width, 3 * dims.width)
        self.proj = nn.Linear(dims.width, dims.width)
        self.norm2 = nn.LayerNorm(dims.width)
        self.up = nn.Linear(dims.width, 4 * dims.width)
        self.down = nn.Linear(4 * dims.width, dims.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, seq, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, seq, width))
        down: Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + down


class TinyGPT(nn.Module):
    """Tokens [batch, seq] int64 to logits [batch, seq, vocab] float32."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.token = nn.Embedding(dims.vocab, dims.width)
        self.position = nn.Embedding(dims.seq, dims.width)
        self.blocks = nn.ModuleList(Block(dims) for _ in range(dims.layers))
        self.norm = nn.LayerNorm(dims.width)
        self.head = nn.Linear(dims.width, dims.vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def build_model(dims: Dims) -> TinyGPT:
    """The model with parameters that depend on `dims` alone, so that all ranks start equal without a broadcast."""
    torch.manual_seed(dims.data_seed)
    return TinyGPT(dims)


def build_optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def batch_of(dims: Dims, *, step: int, rank: int, micro_batch: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each [batch, seq] int64, a function of the arguments alone."""
    generator = torch.Generator().manual_seed(hash((dims.data_seed, step, rank, micro_batch)) & (2**63 - 1))
    tokens = torch.randint(dims.vocab, (dims.batch, dims.seq + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy in nats per token, a scalar."""
    return functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


class StepLog:
    """Appends whole JSON lines to a file that all workers share; one write() each, so lines never mix.

    `t` is CLOCK_MONOTONIC in seconds, which all processes of a machine share.
    """

    def __init__(self, path: str, *, worker: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._worker = worker
        self._write({"event": "start"})

    def step_done(self, *, rank: int, step: int) -> None:
        """Rank -1 is a spare: it holds the state but no share of the batch."""
        self._write({"event": "step", "rank": rank, "step": step})

    def checkpoint_done(self, *, step: int) -> None:
        self._write({"event": "checkpoint", "step": step})

    def _write(self, record: dict[str, object]) -> None:
        line = {"t": time.monotonic(), "worker": self._worker, "pid": os.getpid(), **record}
        os.write(self._fd, (json.dumps(line) + "\n").encode())
