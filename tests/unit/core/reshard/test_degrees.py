"""A state that moves from one degree of tensor parallelism to another, against tensors that are cut and put together by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.graph.space import Shape, graph_view, lay_out, space_of
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.layout import Interval, merge
from orchestrator.core.plan.plan import PARAMS, TENSOR, MeshAxis, PipelineSchedule, Plan, Seat, Stage
from orchestrator.core.reshard.recovery import Unrecoverable, resolve
from tests.unit.core.reshard.random_plans import with_layouts
from tests.unit.core.reshard.vectors import assert_state, carried_out, held, least, own, same_degree, vector_of


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
        shares=(),
        block=space.block,
        section=space.section,
        stages=(Stage(0, len(graph.layers), 0, space.section),),
        schedule=PipelineSchedule.ONE_F_ONE_B,
        recompute=(False,),
        checkpoint_every=0,
        seats=tuple(Seat(r, f"w{r}", f"n{r % 2}") for r in range(n)),
        layouts=(),
        reason="test",
    )
    owned: list[list[Interval]] = [[] for _ in range(n)]
    for coordinate in range(degree):
        for k, start in enumerate(range(coordinate * space.section, (coordinate + 1) * space.section, space.block)):
            owned[shell.rank_at(0, k % data, coordinate)].append(Interval(start, start + space.block))
    return with_layouts(shell, [merge(o) for o in owned], [() for _ in range(n)])


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
        if same_degree(new, old):  # then every place counts by itself: padding, and each coordinate's copy of an uncut tensor
            assert merge(i for h in alive for i in h.optimizer) != (Interval(0, space_of(graph, new.axis(TENSOR)).numel),)
        else:
            has = {x for h in alive for x in own(vector_of(graph, h.tensor, padding=False), h.optimizer).values()}
            assert len(has) < sum(math.prod(t.shape) for t in graph.tensors), "somebody has everything"
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
