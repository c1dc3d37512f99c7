"""Where every tensor of a model lies in the flat state vector, for any degree of tensor parallelism.

With degree t the vector has t sections of equal length, one per tensor coordinate; each has the same tensors in the same places,
those with a `cut_dim` cut along it as torch.chunk does (the last pieces may be smaller: the rest of their place is padding), the
others whole. A section is layer after layer: parameters, each from a multiple of ALIGN on, then buffers, then zeros up to a whole
block. The vector of degree 1 is the uncut model's. Everything else in the system (ownership, copies, reshards, digests) speaks of
intervals of this vector; only moving a state from one degree to another looks inside (`runs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from orchestrator.core.graph.view import GraphView, LayerView, TensorView
from orchestrator.core.plan.layout import Interval, Intervals, merge, subtract

ALIGN = 16  # elements; block boundaries then cut a parameter at whole cache lines, where vectorised kernels do not care
BLOCKS_MAX = 1024
BLOCK_MIN = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """What laying out needs to know of a tensor; fields as in TensorView."""

    name: str
    shape: tuple[int, ...]
    trainable: bool
    layer: int
    cut_dim: int
    twin: str


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's slot [start, stop) inside a section; on the last tensor coordinates part of it may be padding."""

    name: str
    start: int
    stop: int


def block_size(numel: int) -> int:
    """Elements per block: a power of two, never under BLOCK_MIN, for at most BLOCKS_MAX blocks (before layers are padded)."""
    per_block = -(-numel // BLOCKS_MAX)
    return max(BLOCK_MIN, 1 << max(0, per_block - 1).bit_length())


def cut(size: int, *, degree: int, coordinate: int) -> tuple[int, int]:
    """[lo, hi) of a dimension that a tensor coordinate has, as torch.chunk cuts; empty when there is nothing left for it."""
    per = -(-size // degree)
    return min(size, coordinate * per), min(size, (coordinate + 1) * per)


def local_shape(shape: Sequence[int], *, cut_dim: int, degree: int, coordinate: int) -> tuple[int, ...]:
    """A tensor's shape on one tensor coordinate."""
    if cut_dim < 0 or degree == 1:
        return tuple(shape)
    lo, hi = cut(shape[cut_dim], degree=degree, coordinate=coordinate)
    return (*shape[:cut_dim], hi - lo, *shape[cut_dim + 1 :])


@dataclass(frozen=True, slots=True)
class Space:
    """The flat vector of one tensor degree."""

    degree: int
    section: int  # elements of one tensor coordinate's section, whole blocks
    block: int
    places: tuple[Place, ...]  # in the order of the graph's tensors, within a section
    layers: tuple[Interval, ...]  # within a section

    @property
    def numel(self) -> int:
        """Length of the vector."""
        return self.degree * self.section

    def layer_run(self, first: int, last: int, *, coordinate: int) -> Intervals:
        """Where layers [first, last) lie in the vector for a tensor coordinate."""
        base = coordinate * self.section
        return merge(Interval(base + i.start, base + i.stop) for i in self.layers[first:last])


def lay_out(shapes: Sequence[Shape], *, layers: int, block: int, degree: int) -> Space:
    """The space of a model whose tensors come grouped by layer in forward order, parameters before buffers."""
    places: list[Place] = []
    bounds: list[Interval] = []
    at = 0
    by_layer: list[list[Shape]] = [[] for _ in range(layers)]
    for s in shapes:
        by_layer[s.layer].append(s)
    for mine in by_layer:
        begin = at
        for s in mine:
            if s.trainable:
                at = -(-at // ALIGN) * ALIGN
            numel = math.prod(local_shape(s.shape, cut_dim=s.cut_dim, degree=degree, coordinate=0))
            places.append(Place(s.name, at, at + numel))
            at += numel
        at = max(begin + block, -(-at // block) * block)
        bounds.append(Interval(begin, at))
    return Space(degree=degree, section=at, block=block, places=tuple(places), layers=tuple(bounds))


def graph_view(shapes: Sequence[Shape], *, layer_names: Sequence[str], fingerprint: str) -> GraphView:
    """The view of an uncut model. `shapes` grouped by layer in forward order, parameters before buffers.

    Raises ValueError where they are not, and where a twin is not tied to an equal tensor before it that is no twin itself.
    """
    ordered = [s for layer in range(len(layer_names)) for s in shapes if s.layer == layer]
    if [s.name for s in ordered] != [s.name for s in shapes]:
        raise ValueError("tensors must come layer by layer")
    if any(a.layer == b.layer and b.trainable and not a.trainable for a, b in pairwise(shapes)):
        raise ValueError("a layer's buffers must come after its parameters")
    seen: dict[str, Shape] = {}
    for s in shapes:
        if s.name in seen:
            raise ValueError(f"two tensors are called {s.name}")
        first = seen.get(s.twin)
        if s.twin and (first is None or replace(s, name=first.name, layer=first.layer, twin="") != first):
            raise ValueError(f"{s.name} is tied to {s.twin}, which is no equal tensor before it")
        seen[s.name] = s
    numel = sum(math.prod(s.shape) for s in shapes)
    block = block_size(numel)
    space = lay_out(shapes, layers=len(layer_names), block=block, degree=1)
    return GraphView(
        tensors=tuple(
            TensorView(s.name, s.shape, p.start, p.stop, s.trainable, s.layer, s.cut_dim, s.twin)
            for s, p in zip(shapes, space.places, strict=True)
        ),
        layers=tuple(LayerView(n, i.start, i.stop) for n, i in zip(layer_names, space.layers, strict=True)),
        numel=numel,
        padded_numel=space.section,
        block=block,
        fingerprint=fingerprint,
    )


@lru_cache(maxsize=16)
def space_of(graph: GraphView, degree: int) -> Space:
    """The vector that a job of this tensor degree has."""
    shapes = [Shape(t.name, t.shape, t.trainable, t.layer, t.cut_dim, t.twin) for t in graph.tensors]
    return lay_out(shapes, layers=len(graph.layers), block=graph.block, degree=degree)


def counted(graph: GraphView, degree: int) -> Intervals:
    """What the gradient's norm is taken over: every parameter of the vector once, and padding, whose gradient is zero."""
    space = space_of(graph, degree)
    out: list[Interval] = []
    for t, place in zip(graph.tensors, space.places, strict=True):
        for coordinate in range(degree):
            again = not t.trainable or t.twin or (coordinate > 0 and t.cut_dim < 0)
            if again and place.start < place.stop:
                base = coordinate * space.section
                out.append(Interval(base + place.start, base + place.stop))
    return subtract((Interval(0, space.numel),), merge(out))


def twins(graph: GraphView, degree: int) -> tuple[tuple[Interval, Interval], ...]:
    """(first, second) places in the vector of tied tensors; their gradients are added up and both take the sum."""
    space = space_of(graph, degree)
    by_name = {t.name: p for t, p in zip(graph.tensors, space.places, strict=True)}
    out = []
    for t in graph.tensors:
        a, b = by_name.get(t.twin), by_name[t.name]
        if a is not None and a.start < a.stop:
            for base in range(0, space.numel, space.section):
                out.append((Interval(base + a.start, base + a.stop), Interval(base + b.start, base + b.stop)))
    return tuple(out)


def runs(graph: GraphView, degree: int) -> tuple[tuple[int, int, int], ...]:
    """(start in the vector of `degree`, start in the uncut model's vector, elements): contiguous in both, sorted by the first.

    Padding is in no run. With it a state moves from one tensor degree to another.
    """
    space = space_of(graph, degree)
    out: list[tuple[int, int, int]] = []
    for coordinate in range(degree):
        base = coordinate * space.section
        for t, place in zip(graph.tensors, space.places, strict=True):
            if t.cut_dim < 0 or degree == 1:
                if place.stop > place.start:
                    out.append((base + place.start, t.start, place.stop - place.start))
                continue
            lo, hi = cut(t.shape[t.cut_dim], degree=degree, coordinate=coordinate)
            inner = math.prod(t.shape[t.cut_dim + 1 :])
            run = (hi - lo) * inner
            if run == 0:
                continue
            for outer in range(math.prod(t.shape[: t.cut_dim])):
                out.append((base + place.start + outer * run, t.start + (outer * t.shape[t.cut_dim] + lo) * inner, run))
    return tuple(sorted(out))
