"""Hypothesis strategies for the values of the core: any frozen dataclass from its type hints, and plans that the planner made.

Built from the hints alone, a value need not make sense; it is what codecs must carry. Plans come from the planner, over ranks
on random nodes, so that the tests of layouts and of recovery see what really runs.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from hypothesis import strategies as st

from orchestrator.core.plan.layout import Interval
from orchestrator.core.plan.plan import MeshAxis, Plan, Seat
from orchestrator.core.planner.planner import make_layouts

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


def make_plan(nodes: Sequence[str], *, numel: int, block: int, zero_stage: int, copies: int, epoch: int = 1) -> Plan:
    """A plan with worker w0, w1, ... on the given nodes; PlanError where the planner has none."""
    return Plan(
        job="j",
        epoch=epoch,
        parent=epoch - 1,
        mesh=(MeshAxis("data", len(nodes)),),
        zero_stage=zero_stage,
        copies=copies,
        micro_batches=len(nodes),
        block=block,
        seats=tuple(Seat(r, f"w{r}", node) for r, node in enumerate(nodes)),
        layouts=make_layouts(numel=numel, block=block, nodes=nodes, zero_stage=zero_stage, copies=copies),
        reason="test",
    )


@st.composite
def plans(draw: st.DrawFn, *, with_copies: bool = False) -> Plan:
    """First plans of 1 to 6 ranks: replicated, sharded, or sharded with copies where there are two nodes (or only the last)."""
    nodes = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6))
    if with_copies and len(set(nodes)) == 1:
        nodes.append("e")
    kinds = [(0, 0), (1, 0)] * (not with_copies) + [(1, 1)] * (len(set(nodes)) > 1)
    zero_stage, copies = draw(st.sampled_from(kinds))
    block = draw(st.integers(1, 4))
    numel = block * draw(st.integers(1, 14))
    return make_plan(nodes, numel=numel, block=block, zero_stage=zero_stage, copies=copies)
