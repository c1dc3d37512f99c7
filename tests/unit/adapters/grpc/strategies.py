"""Hypothesis strategies for any frozen dataclass of the core, built from its type hints.

Values are those that may legally exist: integers that count are not negative, intervals are not empty. Text is anything that
UTF-8 can carry.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from enum import Enum
from typing import Any

from hypothesis import strategies as st

from orchestrator.adapters.grpc.mirror import MAY_BE_MINUS_ONE
from orchestrator.core.plan.layout import Interval
from orchestrator.core.supervisor.events import FAULT_KINDS, Fault

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
IDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=4)
COUNTS = st.integers(0, 2**62)


@functools.cache  # a strategy costs more to make than what it draws
def values(cls: Any, **fixed: Any) -> st.SearchStrategy[Any]:
    """Instances of a dataclass, with the fields in `fixed` as given."""
    if cls is Interval:
        return st.tuples(st.integers(0, 2**40), st.integers(1, 2**40)).map(lambda t: Interval(t[0], t[0] + t[1]))
    hints = typing.get_type_hints(cls)
    made: dict[str, st.SearchStrategy[Any]] = {}
    for f in dataclasses.fields(cls):
        if f.name in fixed:
            made[f.name] = st.just(fixed[f.name])
        elif cls is Fault and f.name == "kind":
            made[f.name] = st.sampled_from(FAULT_KINDS)
        elif f.name == "worker_id":
            made[f.name] = IDS
        elif (cls.__name__, f.name) in MAY_BE_MINUS_ONE:
            made[f.name] = st.integers(-1, 2**62)
        else:
            made[f.name] = of_hint(hints[f.name])
    return st.builds(cls, **made)


@functools.cache
def of_hint(hint: Any) -> st.SearchStrategy[Any]:
    """Values of one type hint."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(of_hint(args[0]), max_size=3).map(tuple)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(of_hint(a) for a in args))
    if hint is types.NoneType:
        return st.none()
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return values(hint)
    if issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    simple: dict[Any, st.SearchStrategy[Any]] = {
        int: COUNTS,
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        str: TEXT,
    }
    return simple[hint]
