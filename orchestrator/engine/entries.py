"""The tensors of a model in its flat vector, one entry per tensor and tensor coordinate: what checkpoints and tools go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from orchestrator.core.graph.space import Shape, Space, cut, local_shape


class Kind(StrEnum):
    """What an entry of the flat vector is."""

    PARAM = "param"
    BUFFER = "buffer"  # a float buffer's value
    COUNTER = "counter"  # how far an integer scalar buffer (`num_batches_tracked`) has moved from its initial value


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the model (or a tensor coordinate's part of it) and its place [start, stop) in the flat vector."""

    name: str
    start: int
    stop: int
    shape: torch.Size  # of this part
    kind: Kind
    layer: int
    coordinate: int  # tensor coordinate
    whole: torch.Size  # of the uncut tensor
    cut_dim: int  # -1: every coordinate has all of it
    offset: int  # first index along cut_dim
    twin: str


def entries_of(shapes: Sequence[Shape], kinds: Mapping[str, Kind], space: Space) -> tuple[Entry, ...]:
    """The tensors of every coordinate, in the order of the vector; a name that `kinds` leaves out is a parameter's."""
    out = []
    for c in range(space.degree):
        base = c * space.section
        for s, p in zip(shapes, space.places, strict=True):
            shape = torch.Size(local_shape(s.shape, cut_dim=s.cut_dim, degree=space.degree, coordinate=c))
            offset = cut(s.shape[s.cut_dim], degree=space.degree, coordinate=c)[0] if s.cut_dim >= 0 else 0
            start, kind = base + p.start, kinds.get(s.name, Kind.PARAM)
            whole = torch.Size(s.shape)
            out.append(Entry(s.name, start, start + shape.numel(), shape, kind, s.layer, c, whole, s.cut_dim, offset, s.twin))
    return tuple(out)
