"""Hypothesis strategies for the values of the core: any frozen dataclass from its type hints, and plans that the planner made.

Built from the hints alone, a value need not make sense; it is what codecs must carry. Plans come from the planner, over ranks
on random nodes, so that the tests of layouts and of recovery see what really runs.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from hypothesis import strategies as st

from orchestrator.core.graph.space import space_of
from orchestrator.core.plan.layout import Interval
from orchestrator.core.plan.plan import DATA, PIPELINE, TENSOR, MeshAxis, PipelineSchedule, Plan, Seat
from orchestrator.core.planner.layouts import make_layouts
from orchestrator.core.planner.stages import make_stages
from orchestrator.testkit.jobs import make_graph

TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**62), 2**62),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: TEXT,
    types.NoneType: st.none(),
}


def intervals(stop_max: int = 40) -> st.SearchStrategy[Interval]:
    """Any interval within [0, stop_max)."""
    return st.tuples(st.integers(0, stop_max - 1), st.integers(1, stop_max)).map(
        lambda t: Interval(t[0], min(stop_max, t[0] + t[1]))
    )


@functools.cache  # a strategy costs more to make than what it draws
def of_hint(hint: Any) -> st.SearchStrategy[Any]:
    """Values of one type hint, legal by type alone."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(of_hint(args[0]), max_size=2).map(tuple)
    if origin is Mapping:
        return st.dictionaries(of_hint(args[0]), of_hint(args[1]), max_size=2)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(of_hint(a) for a in args))
    if hint is Interval:
        return intervals(2**40)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{f.name: of_hint(hints[f.name]) for f in dataclasses.fields(hint)})
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    return SIMPLE[hint]


def make_plan(
    nodes: Sequence[str],
    *,
    layers: Sequence[int] = (10,),
    block: int = 4,
    zero_stage: int = 1,
    copies: int = 0,
    shard: int = 0,
    pipeline: int = 1,
    tensor: int = 1,
    epoch: int = 1,
) -> Plan:
    """A plan with worker w0, w1, ... on the given nodes, rank by rank; PlanError where the planner has none."""
    graph = make_graph(*layers, block=block)
    data = len(nodes) // (pipeline * tensor)
    draft = Plan(
        job="j",
        epoch=epoch,
        parent=epoch - 1,
        mesh=(MeshAxis(PIPELINE, pipeline), MeshAxis(DATA, data), MeshAxis(TENSOR, tensor)),
        zero_stage=zero_stage,
        shard=(shard or data) if zero_stage else 1,
        copies=copies,
        micro_batches=data,
        shares=(),
        block=block,
        section=space_of(graph, tensor).section,
        stages=make_stages(graph, tensor=tensor, pipeline=pipeline),
        schedule=PipelineSchedule.ONE_F_ONE_B,
        recompute=(False,) * pipeline,
        checkpoint_every=0,
        seats=tuple(Seat(r, f"w{r}", node) for r, node in enumerate(nodes)),
        layouts=(),
        reason="test",
    )
    return dataclasses.replace(draft, layouts=make_layouts(draft))


@st.composite
def plans(draw: st.DrawFn, *, with_copies: bool = False) -> Plan:
    """Plans of 1 to 8 ranks on random nodes: every axis, every ZeRO stage, grouped or not, copies where there are two nodes."""
    pipeline, tensor = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]))
    data = draw(st.integers(1, 8 // (pipeline * tensor)))
    size = pipeline * data * tensor
    nodes = draw(st.lists(st.sampled_from("abcd"), min_size=size, max_size=size))
    if with_copies and size == 1:
        pipeline, data, nodes = 2, 1, ["a", "b"]
    if with_copies and len(set(nodes)) == 1:
        nodes[-1] = "e"
    zero_stage = draw(st.integers(0, 3))
    return make_plan(
        nodes,
        layers=draw(st.lists(st.integers(1, 40), min_size=pipeline, max_size=5)),
        block=draw(st.sampled_from([1, 4, 16])),
        zero_stage=zero_stage,
        copies=draw(st.integers(int(with_copies), int(len(set(nodes)) > 1))),
        shard=draw(st.sampled_from([s for s in range(1, data + 1) if data % s == 0])),
        pipeline=pipeline,
        tensor=tensor,
    )
