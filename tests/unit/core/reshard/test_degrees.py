"""A state that moves from one degree of tensor parallelism to another, against tensors that are cut and put together by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.graph.space import Shape, cut, graph_view, lay_out, local_shape, space_of
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.layout import Interval, Intervals, merge
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, MeshAxis, PipelineSchedule, Plan, Seat, Stage
from orchestrator.core.reshard.recovery import Held, Resume, Unrecoverable, resolve
from tests.unit.core.reshard.random_plans import with_layouts

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


def plan(graph: GraphView, degree: int, *, data: int, zero_stage: int, epoch: int) -> Plan:
    """Tensor ranks x replicas, the state of each coordinate dealt out to its replicas block by block."""
    space, n = space_of(graph, degree), degree * data
    shell = Plan(
        job="j",
        epoch=epoch,
        parent=epoch - 1,
        mesh=(MeshAxis("pipeline", 1), MeshAxis("data", data), MeshAxis(TENSOR, degree)),
        zero_stage=zero_stage,
        shard=data if zero_stage else 1,
        copies=0,
        micro_batches=data,
        block=space.block,
        section=space.section,
        stages=(Stage(0, len(graph.layers), 0, space.section),),
        schedule=PipelineSchedule.ONE_F_ONE_B,
        recompute=False,
        seats=tuple(Seat(r, f"w{r}", f"n{r}") for r in range(n)),
        layouts=(),
        reason="test",
    )
    owned: list[list[Interval]] = [[] for _ in range(n)]
    for coordinate in range(degree):
        for k, start in enumerate(range(coordinate * space.section, (coordinate + 1) * space.section, space.block)):
            owned[shell.rank_at(0, k % data, coordinate)].append(Interval(start, start + space.block))
    return with_layouts(shell, [merge(o) for o in owned], [() for _ in range(n)])


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
    """Elements that each rank of the new plan needs and has nowhere in its vector."""
    padding, out = same_degree(new, old), 0
    right = vector_of(graph, new.axis(TENSOR), padding=padding)
    for rank in range(new.size):
        for name in (PARAMS, OPTIMIZER):
            has: set[int] = set()
            if rank in old:
                vector = vector_of(graph, old[rank].tensor, padding=padding)
                has = set(own(vector, old[rank].params if name == PARAMS else old[rank].optimizer).values())
            need = own(right, new.layout(name).holdings[rank].everything)
            out += sum(1 for value in need.values() if value not in has)
    return out


def small(shapes: Sequence[Shape], *, layers: int) -> GraphView:
    """A graph with blocks of 16 elements, far smaller than a real one's."""
    view = graph_view(shapes, layer_names=[f"layer{k}" for k in range(layers)], fingerprint="f")
    space = lay_out(shapes, layers=layers, block=16, degree=1)
    return replace(
        view,
        tensors=tuple(replace(t, start=p.start, stop=p.stop) for t, p in zip(view.tensors, space.places, strict=True)),
        layers=tuple(replace(v, start=i.start, stop=i.stop) for v, i in zip(view.layers, space.layers, strict=True)),
        padded_numel=space.section,
        block=16,
    )


tensors = st.lists(st.integers(1, 5), min_size=1, max_size=3).flatmap(
    lambda shape: st.tuples(st.just(tuple(shape)), st.integers(-1, len(shape) - 1))
)


@st.composite
def graphs(draw: st.DrawFn) -> GraphView:
    """One or two layers of a few small tensors: whole ones, ones cut along any dimension, often unevenly; some buffers."""
    shapes: list[Shape] = []
    layers = draw(st.integers(1, 2))
    for layer in range(layers):
        for k, (shape, cut_dim) in enumerate(draw(st.lists(tensors, min_size=1, max_size=3))):
            shapes.append(Shape(f"{layer}.{k}", shape, True, layer, cut_dim, ""))
        if draw(st.booleans()):
            shapes.append(Shape(f"{layer}.buffer", (3,), False, layer, -1, ""))
    return small(shapes, layers=layers)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_from_one_degree_to_another_and_back(graph: GraphView, data: st.DataObject) -> None:
    ranks, now = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    before = plan(graph, now, data=ranks, zero_stage=data.draw(st.sampled_from([0, 1, 3])), epoch=1)
    old = {r: held(before, r) for r in range(before.size)}
    for epoch in (2, 3):
        now = data.draw(st.integers(1, 3)) if epoch == 2 else before.axis(TENSOR)
        new = plan(graph, now, data=data.draw(st.integers(1, 2)), zero_stage=data.draw(st.sampled_from([0, 1, 3])), epoch=epoch)
        leaving = tuple(Seat(r, f"w{r}", f"n{r}") for r in range(new.size, max(new.size, len(old))))
        resume = resolve(new=new, held=old, known=None, graph=graph, leaving=leaving)
        memories, moved = carried_out(graph, new, old, resume)
        assert_state(graph, new, old, memories)
        assert moved == least(graph, new, old)
        assert resume == resolve(new=new, held=dict(reversed(old.items())), known=None, graph=graph, leaving=leaving)
        old = {r: held(new, r) for r in range(new.size)}


@settings(max_examples=40, deadline=None)
@given(graphs(), st.data())
def test_survivors_of_two_degrees_together(graph: GraphView, data: st.DataObject) -> None:
    """A change of degree broke when some had let go of the old vector and others had not."""
    olds = {degree: plan(graph, degree, data=2, zero_stage=1, epoch=degree) for degree in (1, 2)}
    new = plan(graph, data.draw(st.sampled_from([1, 2])), data=2, zero_stage=data.draw(st.sampled_from([0, 1, 3])), epoch=3)
    everybody = [held(p, r) for p in olds.values() for r in range(p.size)]
    alive = data.draw(st.lists(st.sampled_from(everybody), unique_by=lambda h: (h.tensor, h.rank), min_size=1))
    old = dict(enumerate(alive))
    leaving = tuple(Seat(r, f"w{r}", "n") for r in range(new.size, max(new.size, len(old))))
    try:
        resume = resolve(new=new, held=old, known=None, graph=graph, leaving=leaving)
    except Unrecoverable:
        has = {x for h in alive for x in own(vector_of(graph, h.tensor, padding=False), h.optimizer).values()}
        params = {x for h in alive for x in own(vector_of(graph, h.tensor, padding=False), h.params).values()}
        assert min(len(has), len(params)) < sum(math.prod(t.shape) for t in graph.tensors), "somebody has everything"
        return
    memories, moved = carried_out(graph, new, old, resume)
    assert_state(graph, new, old, memories)
    assert moved == least(graph, new, old)


def matrix(cut_dim: int, shape: Sequence[int] = (2, 3)) -> GraphView:
    """One tensor."""
    return small([Shape("w", tuple(shape), True, 0, cut_dim, "")], layers=1)


@pytest.mark.parametrize(
    ("cut_dim", "moves"),
    [
        (-1, [(0, 0, 0, 6, 0), (0, 1, 16, 22, 0)]),  # every coordinate has all of it
        (0, [(0, 0, 0, 3, 0), (0, 1, 16, 19, 3)]),  # a row each
        (1, [(0, 0, 0, 2, 0), (0, 0, 2, 4, 3), (0, 1, 16, 17, 2), (0, 1, 17, 18, 5)]),  # 2 + 1 columns
    ],
)
def test_one_rank_becomes_two_tensor_coordinates(cut_dim: int, moves: list[tuple[int, int, int, int, int]]) -> None:
    graph = matrix(cut_dim)
    one, two = plan(graph, 1, data=1, zero_stage=0, epoch=1), plan(graph, 2, data=1, zero_stage=0, epoch=2)
    resume = resolve(new=two, held={0: held(one, 0)}, known=None, graph=graph)
    assert [(t.src, t.dst, t.start, t.stop, t.src_start) for t in resume.transfers if t.tensor == PARAMS] == moves
    assert resume.fresh == (1,)
