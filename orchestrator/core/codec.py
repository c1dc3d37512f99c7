"""Frozen dataclasses to JSON-able values and back, by their type hints.

The journal, the control API and the golden tests all need the same values as text. One codec, driven by the annotations, keeps
them from drifting; it refuses what it does not know instead of guessing.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any

Json = Any


def to_json(value: object) -> Json:
    """A JSON-able value. Dataclasses become objects with a `type` key; tuples become arrays; enums their value.

    A mapping keeps its order: a state that was read back must go through its workers as the one that was written does.
    """
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    if isinstance(value, Mapping):
        return {_key(k): to_json(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Json] = {"type": type(value).__name__}
        for f in dataclasses.fields(value):
            out[f.name] = to_json(getattr(value, f.name))
        return out
    raise TypeError(f"no JSON form for {type(value).__name__}")


def from_json(cls: Any, data: Json) -> Any:
    """The inverse of to_json for a declared type (dataclass, union of dataclasses, tuple, dict, enum or scalar).

    Raises TypeError or ValueError when the data does not fit the type.
    """
    origin = typing.get_origin(cls)
    if origin in (typing.Union, types.UnionType):
        return _from_union(typing.get_args(cls), data)
    if origin is tuple:
        args = typing.get_args(cls)
        if not isinstance(data, list):
            raise TypeError(f"expected an array for {cls}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(from_json(args[0], v) for v in data)
        if len(args) != len(data):
            raise ValueError(f"expected {len(args)} items for {cls}, got {len(data)}")
        return tuple(from_json(a, v) for a, v in zip(args, data, strict=True))
    if origin in (dict, Mapping):
        if not isinstance(data, dict):
            raise TypeError(f"expected an object for {cls}")
        key, val = typing.get_args(cls)
        return {key(k): from_json(val, v) for k, v in data.items()}
    if isinstance(cls, type) and issubclass(cls, Enum):
        return cls(data)
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        if not isinstance(data, dict) or data.get("type", cls.__name__) != cls.__name__:
            raise TypeError(f"expected a {cls.__name__}, got {data!r}")
        hints = _hints(cls)
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = set(data) - names - {"type"}
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {sorted(unknown)}")
        return cls(**{n: from_json(hints[n], data[n]) for n in names if n in data})
    if cls is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if cls in (int, float, str, bool) and type(data) is cls:
        return data
    if cls is type(None) and data is None:
        return None
    raise TypeError(f"expected {cls}, got {data!r}")


def _from_union(args: tuple[Any, ...], data: Json) -> Any:
    if data is None and type(None) in args:
        return None
    named = {a.__name__: a for a in args if isinstance(a, type) and dataclasses.is_dataclass(a)}
    if isinstance(data, dict) and data.get("type") in named:
        return from_json(named[data["type"]], data)
    for a in args:
        if a is not type(None) and not dataclasses.is_dataclass(a):
            return from_json(a, data)
    raise TypeError(f"none of {args} fits {data!r}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _key(k: object) -> str:
    if isinstance(k, Enum):
        return str(k.value)
    if isinstance(k, str | int):
        return str(k)
    raise TypeError(f"no JSON key for {type(k).__name__}")
