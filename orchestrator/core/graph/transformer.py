"""What a transformer costs, from its dimensions alone: the published formulas, layer by layer.

A cluster that we do not have cannot profile a model, but its FLOPs, parameters and kept bytes follow from layers, hidden size,
heads and sequence. Sources: Narayanan et al., arXiv 2104.04473 (parameters eq. 2, FLOPs eq. 3 and the appendix, tensor-parallel
all-reduces section 3.2) and Korthikanti et al., arXiv 2205.05198 (kept activations section 4, selective recomputation section
5). The unit is one sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.graph.costs import LayerCost, ModelCosts

MASK_BYTES = 1  # of one element of a dropout mask
FLOAT_BYTES = 4  # of logits as the loss sees them, and of the sums that flash attention keeps


class Attention(StrEnum):
    """What becomes of the heads x sequence x sequence scores between forward and backward pass."""

    MATERIALISED = "materialised"  # kept: softmax, its dropout mask, what comes out of the dropout
    RECOMPUTED = "recomputed"  # computed again in the backward pass: the "selective" recomputation of arXiv 2205.05198
    FLASH = "flash"  # never in memory (Dao et al., arXiv 2205.14135): the backward pass computes one of two products again


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Equal transformer blocks, one after the other. Raises ValueError when the sizes do not fit each other."""

    name: str
    layers: int
    hidden: int
    heads: int
    ffn: int = 0  # inner width of the feed-forward part; 0: four times hidden
    kv_heads: int = 0  # heads of keys and values; 0: as many as heads
    gated: bool = False  # three matrices in the feed-forward part (SwiGLU), not two
    bias: bool = True  # biases in matrices and norms
    cut: bool = True  # false: too small to cut; every tensor rank computes all of it

    def __post_init__(self) -> None:
        if min(self.layers, self.hidden, self.heads) < 1 or min(self.ffn, self.kv_heads) < 0:
            raise ValueError(f"{self.name}: layers, hidden and heads are at least 1, ffn and kv_heads at least 0")
        if self.hidden % self.heads or self.heads % (self.kv_heads or 1):
            raise ValueError(f"{self.name}: heads divide hidden, and kv_heads divide heads")

    @property
    def inner(self) -> int:
        """Width of the feed-forward part."""
        return self.ffn or 4 * self.hidden

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values."""
        return self.hidden // self.heads * (self.kv_heads or self.heads)

    @property
    def degree(self) -> int:
        """The highest tensor degree that divides heads and widths."""
        return math.gcd(self.heads, self.kv_heads or self.heads, self.inner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer:
    """An embedding, blocks, and a head; or, with `further` modules, each of those with a head of its own instead.

    Further modules (the task modules of ERNIE 3.0 Titan, arXiv 2112.12731) all read the output of the main blocks through a
    projection to their width. They stand one after the other in the pipeline; carrying the main output past the first is not
    counted. Raises ValueError when the sizes do not fit each other.
    """

    name: str
    blocks: Blocks
    vocabulary: int
    sequence: int
    further: tuple[Blocks, ...] = ()
    positions: bool = True  # a learned vector for each position
    tied: bool = True  # the head multiplies by the embedding's matrix. A pipeline's second copy of it is not counted
    dropout: bool = True
    attention: Attention = Attention.MATERIALISED
    sequence_parallel: bool = False  # tensor ranks split norms and dropout along the sequence: all kept bytes are cut
    activation_bytes: int = 2  # of one element

    def __post_init__(self) -> None:
        if min(self.vocabulary, self.sequence, self.activation_bytes) < 1:
            raise ValueError(f"{self.name}: vocabulary, sequence and activation_bytes are at least 1")
        if self.tied and self.further:
            raise ValueError(f"{self.name}: heads of further modules cannot be tied to the embedding")


def transformer_costs(model: Transformer) -> ModelCosts:
    """The costs of a transformer; unit: one sequence."""
    kinds = [_embedding(model), _block(model, model.blocks)]
    order = [0] + [1] * model.blocks.layers
    for module in model.further:
        at = len(kinds)
        kinds += [_projection(model, module), _block(model, module), _head(model, module, f"{module.name}.head")]
        order += [at] + [at + 1] * module.layers + [at + 2]
    if not model.further:
        order.append(len(kinds))
        kinds.append(_head(model, model.blocks, "head"))
    degrees = [b.degree for b in (model.blocks, *model.further) if b.cut]
    return ModelCosts(
        name=model.name,
        kinds=tuple(kinds),
        order=tuple(order),
        samples_per_unit=float(model.sequence),
        tensor_max=math.gcd(*degrees) if degrees else 1,
        splits=True,
    )


def _embedding(model: Transformer) -> LayerCost:
    """A table of vectors, looked up; cut along the vocabulary, so that its output is summed over the tensor axis."""
    b = model.blocks
    words = model.vocabulary * b.hidden
    output = float(model.sequence * b.hidden * model.activation_bytes)
    mask = float(model.sequence * b.hidden * MASK_BYTES) if model.dropout else 0.0
    return LayerCost(
        name="embedding",
        params=words + (model.sequence * b.hidden if model.positions else 0),
        cut_params=words if b.cut else 0,
        buffers=0,
        forward_flops=0.0,
        cut_forward_flops=0.0,
        backward_flops=0.0,
        cut_backward_flops=0.0,
        moved_bytes=2 * output + mask,
        kept_bytes=mask,
        cut_kept_bytes=mask if model.sequence_parallel else 0.0,
        work_bytes=output,
        boundary_bytes=output,
        reduced_bytes=output / 2 if b.cut else 0.0,  # forward only, as the head's is backward only: half and half
    )


def _block(model: Transformer, b: Blocks) -> LayerCost:
    """Attention and feed-forward part, with a norm before and a residual around each."""
    s, h, a = model.sequence, b.hidden, model.activation_bytes
    scores = b.heads * s * s
    matrices = 3 if b.gated else 2
    weights = h * (h + 2 * b.keys) + h * h + matrices * h * b.inner
    cut_biases = (h + 2 * b.keys) + (matrices - 1) * b.inner if b.bias else 0  # of matrices that are cut by columns
    whole = 2 * h + 2 * 2 * h if b.bias else 2 * h  # biases of matrices cut by rows, and the two norms
    core = 4.0 * s * s * h  # scores, and their product with the values
    forward = 2.0 * s * weights + core
    again = {Attention.MATERIALISED: 0.0, Attention.RECOMPUTED: core, Attention.FLASH: core / 2}[model.attention]
    # arXiv 2205.05198 eq. 1 to 4, for any width of the parts: s h (10 + 24 / t) + 5 heads s^2 / t where ffn is 4 h
    masks = 2.0 * s * h * MASK_BYTES if model.dropout else 0.0
    kept_whole = 4.0 * s * h * a + masks
    kept_cut = float(a) * s * (2 * h + 2 * b.keys + (3 if b.gated else 2) * b.inner)
    kept_scores = float(scores * (2 * a + MASK_BYTES if model.dropout else a))
    # Softmax and dropout each read and write the scores; so do the two products, which for heads of about a hundred elements take
    # as long to move them as to compute: 2 s^2 d FLOPs for s^2 scores.
    moved_scores = float(scores * (6 * a + MASK_BYTES if model.dropout else 4 * a))
    if model.attention is Attention.FLASH:
        moved_scores = kept_scores = float(s * b.heads * FLOAT_BYTES)  # one sum for each row of scores
    # two norms read and write, two residual sums read twice and write, the activation function reads and writes
    moved = 10.0 * s * h * a + masks + float(a) * s * b.inner * matrices + moved_scores
    kept = kept_whole + kept_cut + (0.0 if model.attention is Attention.RECOMPUTED else kept_scores)
    # gradients on their way back: of the block's output and of the widest thing inside it, before and after its function
    inside = [2.0 * a * s * b.inner]
    if model.attention is not Attention.FLASH:
        inside.append(2.0 * a * scores + (kept_scores if model.attention is Attention.RECOMPUTED else 0.0))
    cut = 1.0 if b.cut else 0.0
    return LayerCost(
        name=b.name,
        params=weights + cut_biases + whole,
        cut_params=weights + cut_biases if b.cut else 0,
        buffers=0,
        forward_flops=forward,
        cut_forward_flops=forward * cut,
        backward_flops=2 * forward + again,
        cut_backward_flops=(2 * forward + again) * cut,
        moved_bytes=moved,
        kept_bytes=kept,
        cut_kept_bytes=(kept if model.sequence_parallel else kept - kept_whole) * cut,
        work_bytes=2.0 * a * s * h + max(inside),
        boundary_bytes=float(s * h * a),
        reduced_bytes=2.0 * s * h * a * cut,  # after attention and after the feed-forward part: arXiv 2104.04473 section 3.2
    )


def _projection(model: Transformer, module: Blocks) -> LayerCost:
    """From the width of the main blocks to that of a further module."""
    s, a = model.sequence, model.activation_bytes
    wide, narrow = model.blocks.hidden, module.hidden
    flops = 2.0 * s * wide * narrow
    return LayerCost(
        name=f"{module.name}.projection",
        params=wide * narrow + (narrow if module.bias else 0),
        cut_params=0,
        buffers=0,
        forward_flops=flops,
        cut_forward_flops=0.0,
        backward_flops=2 * flops,
        cut_backward_flops=0.0,
        moved_bytes=float(a * s * (wide + narrow)),
        kept_bytes=float(a * s * wide),
        cut_kept_bytes=0.0,
        work_bytes=float(a * s * (wide + narrow)),
        boundary_bytes=float(a * s * narrow),
        reduced_bytes=0.0,
    )


def _head(model: Transformer, b: Blocks, name: str) -> LayerCost:
    """The last norm, logits over the vocabulary and the loss: arXiv 2205.05198 section 4.3, FLOPs as in 2104.04473 eq. 3."""
    s, h, v, a = model.sequence, b.hidden, model.vocabulary, model.activation_bytes
    flops = 2.0 * s * h * v
    logits = float(FLOAT_BYTES * s * v)
    inputs = 2.0 * s * h * a  # of the norm and of the product
    cut = 1.0 if b.cut else 0.0
    return LayerCost(
        name=name,
        params=(0 if model.tied else h * v) + (2 * h if b.bias else h),
        cut_params=0 if model.tied or not b.cut else h * v,
        buffers=0,
        forward_flops=flops,
        cut_forward_flops=flops * cut,
        backward_flops=2 * flops,
        cut_backward_flops=2 * flops * cut,
        moved_bytes=inputs + 2 * logits,
        kept_bytes=inputs + logits,
        cut_kept_bytes=(logits + (inputs if model.sequence_parallel else 0.0)) * cut,
        work_bytes=float(a * s * v),
        boundary_bytes=float(FLOAT_BYTES),  # the loss
        reduced_bytes=s * h * a / 2 * cut,  # backward only; see the embedding
    )
