"""The ready task: a small GPT on any text, by bytes unless a tokenizer is named.

Architecture: GPT-2's pre-norm decoder (Radford et al. 2019) with learned positions, tied input and output embeddings
and the residual projections scaled by 1/sqrt(2 layers) at the start. The defaults make 0.84 M parameters, small
enough for a CPU.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.engine.task import Task, TaskError, stable_seed
from orchestrator.engine.tasks.corpus import load_corpus
from orchestrator.engine.tasks.tokenizer import load_tokenizer


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and around a residual; [batch, context, width] -> the same."""

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        mixed = self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + F.dropout(mixed, self.dropout, self.training)
        hidden = self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))
        return x + F.dropout(hidden, self.dropout, self.training)


class GPTModel(nn.Module):
    """Token ids int64 [batch, length <= context] -> logits [batch, length, vocab]."""

    def __init__(self, *, vocab: int, context: int, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width=width, heads=heads, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        self.apply(self._init)
        for name, param in self.named_parameters():
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                nn.init.normal_(param, std=0.02 / math.sqrt(2 * layers))
        self.head.weight = self.tokens.weight

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.head(self.norm(x)))


class GPT(Task):
    """Language modelling on a text; `task: gpt` in job.yaml. A batch is (inputs, targets), both int64 [batch_size,
    context].
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 128  # tokens in a window
    batch_size: int = 4  # windows in a micro-batch
    dropout: float = 0.0
    text: str = ""  # a UTF-8 file or a folder of them, relative to job.yaml; empty: Python's documentation topics
    val_fraction: float = 0.1  # of the text is held out
    tokenizer: str = ""  # `path/to/file.py:name` or `module:name`; empty: bytes

    def setup(self) -> None:
        """Reads and encodes the text. Raises TaskError."""
        for name in ("layers", "width", "heads", "context", "batch_size"):
            if getattr(self, name) < 1:
                raise TaskError(f"gpt: {name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise TaskError(f"gpt: width {self.width} must be a multiple of heads {self.heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise TaskError(f"gpt: dropout must be at least 0 and below 1, not {self.dropout}")
        tokenizer = load_tokenizer(self.tokenizer, base_dir=self.base_dir)
        self._corpus = load_corpus(self.text, base_dir=self.base_dir, val_fraction=self.val_fraction, tokenizer=tokenizer)
        for part, tokens in (("training", self._corpus.train), ("held-out", self._corpus.held_out)):
            if tokens.numel() <= self.context:
                raise TaskError(
                    f"gpt: the {part} text has {tokens.numel()} tokens, a window needs {self.context + 1}; "
                    "use more text, a shorter context or another val_fraction"
                )

    def build_model(self) -> nn.Module:
        """A GPTModel, initialised from the global RNG."""
        return GPTModel(
            vocab=self._corpus.vocab_size,
            context=self.context,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            dropout=self.dropout,
        )

    def batch(self, *, seed: int, step: int, micro_batch: int) -> tuple[Tensor, Tensor]:
        """Windows of the training text."""
        drawn_from = stable_seed("train", seed, step, micro_batch)
        return self._corpus.windows(held_out=False, count=self.batch_size, context=self.context, seed=drawn_from)

    def eval_batch(self, *, seed: int, index: int) -> tuple[Tensor, Tensor]:
        """Windows of the held-out text, the same at every evaluation."""
        drawn_from = stable_seed("held-out", seed, index)
        return self._corpus.windows(held_out=True, count=self.batch_size, context=self.context, seed=drawn_from)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy in nats per token."""
        inputs, targets = batch
        logits = cast(Tensor, model(inputs))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """`loss` in nats per token, and `bits_per_byte` of the text that the tokens stand for."""
        return {"loss": mean_loss, "bits_per_byte": mean_loss / math.log(2) * self._corpus.tokens_per_byte}

    @property
    def tokens_per_micro_batch(self) -> int:
        """Targets in a micro-batch."""
        return self.batch_size * self.context
