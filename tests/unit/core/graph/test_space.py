"""The layout of the flat vector against torch: chunks of real tensors, put where the space says, are where `runs` says."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.graph.space import (
    ALIGN,
    BLOCK_MIN,
    BLOCKS_MAX,
    Shape,
    block_size,
    counted,
    cut,
    graph_view,
    lay_out,
    local_shape,
    runs,
    space_of,
    twins,
)
from orchestrator.core.graph.view import GraphView, LayerView, TensorView
from orchestrator.core.plan.layout import Interval, total

degrees = st.integers(1, 5)


@st.composite
def graphs(draw: st.DrawFn) -> GraphView:
    """Up to 4 layers of up to 3 tensors of odd sizes, cut along any dimension or none, some tied to an earlier one."""
    layers = draw(st.integers(1, 4))
    shapes: list[Shape] = []
    for layer in range(layers):
        for n, trainable in enumerate(sorted(draw(st.lists(st.booleans(), max_size=3)), reverse=True)):
            name = f"{layer}.{n}"
            candidates = [s for s in shapes if s.trainable and s.layer < layer and not s.twin]
            if trainable and candidates and draw(st.booleans()):
                first = draw(st.sampled_from(candidates))
                shapes.append(replace(first, name=name, layer=layer, twin=first.name))
                continue
            shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
            cut_dim = draw(st.integers(-1, len(shape) - 1))
            shapes.append(Shape(name, shape, trainable, layer, cut_dim, ""))
    block = draw(st.sampled_from([1, 8, 16, 64]))
    space = lay_out(shapes, layers=layers, block=block, degree=1)
    return GraphView(
        tensors=tuple(
            TensorView(s.name, s.shape, p.start, p.stop, s.trainable, s.layer, s.cut_dim, s.twin)
            for s, p in zip(shapes, space.places, strict=True)
        ),
        layers=tuple(LayerView(str(n), i.start, i.stop) for n, i in enumerate(space.layers)),
        numel=sum(math.prod(s.shape) for s in shapes),
        padded_numel=space.section,
        block=block,
        fingerprint="f",
    )


def uncut(graph: GraphView) -> torch.Tensor:
    """The vector of degree 1: every element its own number, counted from 1, 0 in the padding."""
    out = torch.zeros(graph.padded_numel, dtype=torch.int64)
    for t in graph.tensors:
        out[t.start : t.stop] = torch.arange(t.start, t.stop) + 1
    return out


def chunked(graph: GraphView, degree: int) -> torch.Tensor:
    """The vector of a degree, as torch cuts tensors."""
    space, whole = space_of(graph, degree), uncut(graph)
    out = torch.zeros(space.numel, dtype=torch.int64)
    for t, place in zip(graph.tensors, space.places, strict=True):
        tensor = whole[t.start : t.stop].reshape(t.shape)
        for coordinate in range(degree):
            chunks = tensor.chunk(degree, t.cut_dim) if t.cut_dim >= 0 else (tensor,) * degree
            if coordinate < len(chunks):
                mine = chunks[coordinate].reshape(-1)
                start = coordinate * space.section + place.start
                assert start + len(mine) <= coordinate * space.section + place.stop
                out[start : start + len(mine)] = mine
    return out


@given(graphs(), degrees)
def test_runs_make_the_vector_of_a_degree_from_the_uncut_one_and_back(graph: GraphView, degree: int) -> None:
    whole, mine = uncut(graph), chunked(graph, degree)
    made, back = torch.zeros_like(mine), torch.zeros_like(whole)
    found = runs(graph, degree)
    for at, start, numel in found:
        assert made[at : at + numel].count_nonzero() == 0, "no place is written twice"
        made[at : at + numel] = whole[start : start + numel]
        back[start : start + numel] = mine[at : at + numel]
    assert torch.equal(made, mine)
    assert torch.equal(back, whole)
    assert [r[0] for r in found] == sorted(r[0] for r in found)
    assert all(numel > 0 for _, _, numel in found)


@given(graphs(), degrees)
def test_sections_are_whole_blocks_layer_after_layer(graph: GraphView, degree: int) -> None:
    space = space_of(graph, degree)
    assert space.layers[0].start == 0
    assert space.layers[-1].stop == space.section
    assert all(a.stop == b.start for a, b in pairwise(space.layers))
    assert all(i.stop % graph.block == 0 and i.numel >= graph.block for i in space.layers)
    assert all(a.stop <= b.start for a, b in pairwise(space.places)), "in order and apart"
    for t, place in zip(graph.tensors, space.places, strict=True):
        assert place.name == t.name
        assert space.layers[t.layer].start <= place.start
        assert place.stop <= space.layers[t.layer].stop
        assert not t.trainable or place.start % ALIGN == 0
    assert space.layer_run(0, len(graph.layers), coordinate=degree - 1) == (
        Interval((degree - 1) * space.section, degree * space.section),
    )


@given(graphs(), degrees)
def test_the_norm_counts_every_parameter_once(graph: GraphView, degree: int) -> None:
    mine = chunked(graph, degree)
    once = torch.cat([mine[i.start : i.stop] for i in counted(graph, degree)] or [mine[:0]])
    expected = [x for t in graph.tensors if t.trainable and not t.twin for x in range(t.start + 1, t.stop + 1)]
    assert sorted(once[once > 0].tolist()) == expected


@given(graphs(), degrees)
def test_twins_lie_where_their_tensors_do(graph: GraphView, degree: int) -> None:
    mine = chunked(graph, degree)
    by_name = {t.name: t for t in graph.tensors}
    seen = []
    for first, second in twins(graph, degree):
        assert first.numel == second.numel
        a, b = mine[first.start : first.stop], mine[second.start : second.stop]
        offset = (b - a)[a > 0].unique().tolist()
        assert torch.equal(a > 0, b > 0)
        assert len(offset) <= 1, "element by element"
        seen += b[b > 0].tolist()
    tied = [t for t in graph.tensors if t.twin and t.start < t.stop]
    assert set(seen) == {x for t in tied for x in range(t.start + 1, t.stop + 1)}
    assert all(by_name[t.twin].shape == t.shape for t in tied)


@given(st.integers(0, 20), st.integers(1, 7))
def test_cuts_are_those_of_torch(size: int, degree: int) -> None:
    chunks = list(torch.arange(size).chunk(degree))
    chunks += [torch.arange(0)] * (degree - len(chunks))
    for coordinate in range(degree):
        lo, hi = cut(size, degree=degree, coordinate=coordinate)
        assert list(range(lo, hi)) == chunks[coordinate].tolist()
        assert local_shape((2, size), cut_dim=1, degree=degree, coordinate=coordinate) == (2, hi - lo)
    assert local_shape((2, size), cut_dim=-1, degree=degree, coordinate=0) == (2, size)


@pytest.mark.parametrize("numel", [0, 1, 1 << 20, (1 << 20) + 1, 12_000_000, 260_000_000_000])
def test_a_block_is_a_power_of_two_and_there_are_not_too_many(numel: int) -> None:
    block = block_size(numel)
    assert block & (block - 1) == 0
    assert block >= BLOCK_MIN
    assert numel <= block * BLOCKS_MAX
    assert block == BLOCK_MIN or numel > block * BLOCKS_MAX // 2, "and not too few"


def shape(name: str, layer: int, *, trainable: bool = True, twin: str = "", size: int = 3) -> Shape:
    """A small tensor."""
    return Shape(name, (size, 2), trainable, layer, 0, twin)


def test_the_view_is_the_space_of_degree_one() -> None:
    view = graph_view([shape("a", 0), shape("b", 0, trainable=False), shape("c", 1, twin="a")], layer_names="xy", fingerprint="p")
    assert (view.numel, view.padded_numel, view.block, view.fingerprint) == (18, 2 * BLOCK_MIN, BLOCK_MIN, "p")
    assert [(t.start, t.stop) for t in view.tensors] == [(0, 6), (6, 12), (BLOCK_MIN, BLOCK_MIN + 6)]
    assert [(n.name, n.start, n.stop) for n in view.layers] == [("x", 0, BLOCK_MIN), ("y", BLOCK_MIN, 2 * BLOCK_MIN)]
    assert total(counted(view, 1)) == view.padded_numel - 12


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([shape("a", 1), shape("b", 0)], "layer by layer"),
        ([shape("a", 0, trainable=False), shape("b", 0)], "buffers must come after"),
        ([shape("a", 0), shape("a", 1)], "two tensors are called a"),
        ([shape("a", 0), shape("b", 1, twin="x")], "b is tied to x"),
        ([shape("a", 0), shape("b", 1, twin="a", size=4)], "b is tied to a"),
        ([shape("a", 0), shape("b", 1, twin="a"), shape("c", 1, twin="b")], "c is tied to b"),
        ([shape("a", 0, twin="b"), shape("b", 1)], "a is tied to b"),
    ],
)
def test_a_wrong_list_of_tensors_is_refused(shapes: list[Shape], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        graph_view(shapes, layer_names="xy", fingerprint="p")
