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
_SCALARS = frozenset({type(None), bool, int, float, str})


def to_json(value: object) -> Json:
    """A JSON-able value. Dataclasses become objects with a `type` key; tuples become arrays; enums their value.

    A mapping keeps its order: a state that was read back must go through its workers as the one that was written does.
    """
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    if isinstance(value, Mapping):
        return {_key(k): to_json(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {name: to_json(getattr(value, name)) for name in _hints(type(value))}
    raise TypeError(f"no JSON form for {type(value).__name__}")


def from_json(cls: Any, data: Json) -> Any:
    """The inverse of to_json for a declared type (dataclass, union of dataclasses, tuple, dict, enum or scalar).

    Raises TypeError or ValueError when the data does not fit the type.
    """
    if cls in _SCALARS and type(data) is cls:
        return data
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
        unknown = data.keys() - hints.keys() - {"type"}
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {sorted(unknown)}")
        return cls(**{name: from_json(hint, data[name]) for name, hint in hints.items() if name in data})
    if cls is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
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
    """Of the fields, in their order."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _key(k: object) -> str:
    if isinstance(k, Enum):
        return str(k.value)
    if isinstance(k, str | int):
        return str(k)
    raise TypeError(f"no JSON key for {type(k).__name__}")
