"""The ready task: a small GPT on any text, by bytes unless a tokenizer is named.

Architecture: GPT-2's pre-norm decoder (Radford et al. 2019) with learned positions, tied input and output embeddings
and the residual projections scaled by 1/sqrt(2 layers) at the start. The defaults make 0.84 M parameters, small
enough for a CPU. Its layers, in order: the embeddings, every block, and the last norm with the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel

from orchestrator.engine.task import Task, TaskError, stable_seed
from orchestrator.engine.tasks.corpus import load_corpus
from orchestrator.engine.tasks.tokenizer import load_tokenizer


class Embeddings(nn.Module):
    """Token ids int64 [batch, length <= context] -> [batch, length, width]."""

    def __init__(self, *, vocab: int, context: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(context, width)

    def forward(self, ids: Tensor) -> Tensor:
        """What a token is, and where."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and around a residual; [batch, length, width] -> the same.

    The rows of `qkv` are head by head, [head, q k v, head_dim]: whoever has a part of the rows has whole heads.
    """

    def __init__(self, *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(batch, length, -1, 3, self.head_dim).permute(3, 0, 2, 1, 4)
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        mixed = self.attention_out(mixed.transpose(1, 2).flatten(2))
        x = x + F.dropout(mixed, self.dropout, self.training)
        hidden = self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x))))
        return x + F.dropout(hidden, self.dropout, self.training)


class Head(nn.Module):
    """[batch, length, width] -> logits [batch, length, vocab]."""

    def __init__(self, *, vocab: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        logits: Tensor = self.head(self.norm(x))
        return logits


class GPTModel(nn.Module):
    """Token ids int64 [batch, length <= context] -> logits [batch, length, vocab]."""

    def __init__(self, *, vocab: int, context: int, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embed = Embeddings(vocab=vocab, context=context, width=width, dropout=dropout)
        self.blocks = nn.ModuleList(Block(width=width, heads=heads, dropout=dropout) for _ in range(layers))
        self.last = Head(vocab=vocab, width=width)
        self.apply(self._init)
        for name, param in self.named_parameters():
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                nn.init.normal_(param, std=0.02 / math.sqrt(2 * layers))
        self.last.head.weight = self.embed.tokens.weight

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def layers(self) -> list[tuple[str, nn.Module]]:
        """Name and module, in forward order."""
        blocks = [(f"block{i}", block) for i, block in enumerate(self.blocks)]
        return [("embed", self.embed), *blocks, ("head", self.last)]

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token at every position."""
        x = ids
        for _, layer in self.layers():
            x = layer(x)
        return x


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

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        """embed, block0, block1, ..., head."""
        assert isinstance(model, GPTModel)
        return model.layers()

    def inputs(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Token ids."""
        return batch[0]

    def criterion(self, output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy in nats per token."""
        return F.cross_entropy(output.flatten(0, 1).float(), batch[1].flatten())

    def tensor_plan(self, layer: str) -> dict[str, ParallelStyle]:
        """Whole heads, and columns of the MLP (Shoeybi et al., arXiv 1909.08053 section 3); embeddings and head stay whole."""
        if not layer.startswith("block"):
            return {}
        return {
            "qkv": ColwiseParallel(),
            "attention_out": RowwiseParallel(),
            "mlp_in": ColwiseParallel(),
            "mlp_out": RowwiseParallel(),
        }

    def check_tensor(self, degree: int) -> None:
        """Heads are dealt out whole, the same number to each. Raises TaskError."""
        if self.heads % degree:
            raise TaskError(
                f"gpt: {self.heads} attention heads cannot be dealt out to {degree} tensor ranks; heads must be a multiple"
            )

    def metrics(self, mean_loss: float) -> dict[str, float]:
        """`loss` in nats per token, and `bits_per_byte` of the text that the tokens stand for."""
        return {"loss": mean_loss, "bits_per_byte": mean_loss / math.log(2) * self._corpus.tokens_per_byte}

    @property
    def tokens_per_micro_batch(self) -> int:
        """Targets in a micro-batch."""
        return self.batch_size * self.context
