"""The unified compute view: what a model's state consists of.

The engine describes a task's model once (without running it) and everybody else, the planner first, sees this value. Costs per
layer (FLOPs, activation bytes) join it with the planner's issue; a data-parallel or sharded plan needs the state only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of the model's flat fp32 state vector."""

    name: str
    shape: tuple[int, ...]
    start: int  # first element in the flat vector
    stop: int
    trainable: bool  # false: a buffer, carried at the vector's tail


@dataclass(frozen=True, slots=True)
class GraphView:
    """The model's state as one flat fp32 vector of `padded_numel` elements, in blocks of `block` elements."""

    tensors: tuple[TensorView, ...]
    numel: int  # elements that are used
    padded_numel: int  # a multiple of block
    block: int  # the grain of ownership, norms and digests; depends on the model alone
    fingerprint: str  # of names, shapes and the task: two workers with different ones run different code
