"""Vectors element by element, for any degree of tensor parallelism, and a resume that is carried out on them.

Every element of every tensor has a value of its own, and tensors are cut and laid out by hand: nothing here knows of regions.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

from orchestrator.core.graph.space import cut, local_shape, space_of
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.layout import Intervals
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan
from orchestrator.core.reshard.recovery import Held, Resume

Vector = dict[int, int]  # place in a rank's own vector -> the value there


def whole_values(graph: GraphView) -> dict[str, dict[tuple[int, ...], int]]:
    """Tensor -> index -> a value that no other element has."""
    number = itertools.count(1)
    return {t.name: {index: next(number) for index in itertools.product(*map(range, t.shape))} for t in graph.tensors}


@lru_cache(maxsize=32)
def vector_of(graph: GraphView, degree: int, *, padding: bool) -> Vector:
    """The whole vector of a degree, element by element: each coordinate's piece of each tensor, in row-major order.

    `padding` is state like any other as long as nobody has another degree; then it has values of its own, too.
    """
    values, space = whole_values(graph), space_of(graph, degree)
    out: Vector = {x: -1 - x for x in range(space.numel)} if padding else {}
    for coordinate in range(degree):
        for t, place in zip(graph.tensors, space.places, strict=True):
            shape = local_shape(t.shape, cut_dim=t.cut_dim, degree=degree, coordinate=coordinate)
            first = [0] * len(t.shape)
            if t.cut_dim >= 0:
                first[t.cut_dim] = cut(t.shape[t.cut_dim], degree=degree, coordinate=coordinate)[0]
            for k, index in enumerate(itertools.product(*map(range, shape))):
                at = tuple(i + f for i, f in zip(index, first, strict=True))
                out[coordinate * space.section + place.start + k] = values[t.name][at]
    return out


def own(vector: Vector, intervals: Intervals) -> Vector:
    """The part of a vector that a rank has."""
    return {x: vector[x] for i in intervals for x in range(i.start, i.stop) if x in vector}


def held(of: Plan, rank: int) -> Held:
    """All that a rank of the plan has, after step 4."""
    optimizer, params = (of.layout(name).holdings[rank].everything for name in (OPTIMIZER, PARAMS))
    return Held(of.epoch, rank, of.axis(TENSOR), 4, 4, 4, optimizer, params, None)


def carried_out(graph: GraphView, new: Plan, old: dict[int, Held], resume: Resume) -> tuple[dict[int, dict[str, Vector]], int]:
    """What ranks of the new plan have in the end, and how many elements went from one rank to another."""
    have: dict[int, dict[str, Vector]] = {}
    for rank, h in old.items():
        vector = vector_of(graph, h.tensor, padding=same_degree(new, old))
        have[rank] = {PARAMS: own(vector, h.params), OPTIMIZER: own(vector, h.optimizer)}
    out: dict[int, dict[str, Vector]] = {}
    for rank in range(new.size):
        stays = rank in old and old[rank].tensor == new.axis(TENSOR)
        out[rank] = {name: dict(have[rank][name]) if stays else {} for name in (PARAMS, OPTIMIZER)}
    moved = 0
    for t in resume.transfers:
        target = out[t.dst][t.tensor]
        for sender in (t.src, *t.others):
            assert all(t.src_start + k in have[sender][t.tensor] for k in range(t.numel)), f"{t}: rank {sender}"
        for k in range(t.numel):
            assert t.start + k not in target, f"{t} writes {t.start + k} once more"
            target[t.start + k] = have[t.src][t.tensor][t.src_start + k]
        moved += t.numel if t.src != t.dst else 0
    return out, moved


def same_degree(new: Plan, old: dict[int, Held]) -> bool:
    """Whether all cut the model the same way."""
    return {h.tensor for h in old.values()} == {new.axis(TENSOR)}


def assert_state(graph: GraphView, new: Plan, old: dict[int, Held], memories: dict[int, dict[str, Vector]]) -> None:
    """Each rank has at every place the value that belongs there (at padding only if the degree is the same)."""
    right = vector_of(graph, new.axis(TENSOR), padding=same_degree(new, old))
    for rank, memory in memories.items():
        for name in (PARAMS, OPTIMIZER):
            need = own(right, new.layout(name).holdings[rank].everything)
            assert {x: memory[name].get(x) for x in need} == need, f"{name} of rank {rank}"


def least(graph: GraphView, new: Plan, old: dict[int, Held]) -> int:
    """Elements that each rank of the new plan needs and has nowhere in its vector.

    Where all have the same degree, only at the same place: what another coordinate's section says of an uncut tensor is not used.
    """
    same, out = same_degree(new, old), 0
    right = vector_of(graph, new.axis(TENSOR), padding=same)
    for rank in range(new.size):
        for name in (PARAMS, OPTIMIZER):
            has: Vector = {}
            if rank in old:
                intervals = old[rank].params if name == PARAMS else old[rank].optimizer
                has = own(vector_of(graph, old[rank].tensor, padding=same), intervals)
            need = own(right, new.layout(name).holdings[rank].everything)
            values = set(has.values())
            out += sum(1 for x, value in need.items() if (x not in has if same else value not in values))
    return out
