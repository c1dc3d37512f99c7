"""The unified compute view: what a model's state consists of, layer by layer.

The engine describes a task's model once (without running it) and everybody else, the planner first, sees this value. The state is
one flat fp32 vector; a layer's parameters and buffers are one stretch of it that begins at a block, so that a pipeline stage is a
run of blocks. How tensor parallelism cuts the tensors is in `space.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of the model's flat fp32 state vector, whole (before tensor parallelism cuts it)."""

    name: str
    shape: tuple[int, ...]
    start: int  # first element in the flat vector of the uncut model
    stop: int
    trainable: bool  # false: a buffer, at the end of its layer
    layer: int  # index into GraphView.layers
    cut_dim: int  # dimension that tensor parallelism cuts; -1: every tensor rank has all of it
    twin: str  # name of the tensor in an earlier layer that this one is tied to: same values, a gradient of its own; "" for most


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer: the smallest piece that a pipeline stage consists of; [start, stop) of the flat vector, whole blocks."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class GraphView:
    """The model's state as one flat fp32 vector of `padded_numel` elements, in blocks of `block` elements."""

    tensors: tuple[TensorView, ...]
    layers: tuple[LayerView, ...]  # in forward order; one for a task that does not name its layers
    numel: int  # elements that are used
    padded_numel: int  # a multiple of block
    block: int  # the grain of ownership, norms and digests; depends on the model alone
    fingerprint: str  # of names, shapes and the task: two workers with different ones run different code
