"""Frozen dataclasses to protobuf messages and back, field by field and name by name, driven by the type hints.

Each message mirrors one dataclass, so one small loop converts them all, and nothing can be forgotten when a field is added: a
test compares descriptors with dataclasses. Reading validates (enums, signs, presence, what constructors refuse) and names the
path of what is wrong, because what arrives over a network is not to be trusted.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Hashable
from enum import Enum
from functools import cache
from typing import Any

from google.protobuf.message import Message

TEXT_MAX = 256 * 1024  # characters of one free text (traceback, stacks, detail); longer ones keep their head and their tail

# Everything else that is an integer counts or numbers something and cannot be negative.
MAY_BE_MINUS_ONE = frozenset(
    {("Held", "params_step"), ("TensorView", "cut_dim"), ("Fault", "rank"), ("LogLine", "rank"), ("WorkerStatus", "rank")}
)


class ConvertError(ValueError):
    """A message that does not make sense; the text names the field."""


@dataclasses.dataclass(frozen=True, slots=True)
class FieldShape:
    """How one field of a dataclass travels."""

    name: str
    kind: Any  # int, float, str, bool, an Enum or a dataclass
    repeated: bool
    optional: bool


@cache
def shape_of(cls: Hashable) -> tuple[FieldShape, ...]:
    """The fields of a dataclass. Raises TypeError for a type hint that has no place in a message."""
    assert isinstance(cls, type)
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    return tuple(_field(cls, f.name, hints[f.name]) for f in dataclasses.fields(cls))


def fill(value: Any, message: Message, *, leave_out: frozenset[str] = frozenset()) -> None:
    """Copy a dataclass into its message, except for the fields named."""
    cls: Any = type(value)
    for field in shape_of(cls):
        if field.name in leave_out:
            continue
        item = getattr(value, field.name)
        if field.repeated:
            target = getattr(message, field.name)
            if dataclasses.is_dataclass(field.kind):
                for element in item:
                    fill(element, target.add())
            else:
                target.extend([clean(e) if isinstance(e, str) else e for e in item])
        elif field.optional and item is None:
            continue
        elif dataclasses.is_dataclass(field.kind):
            nested = getattr(message, field.name)
            nested.SetInParent()
            fill(item, nested)
        elif isinstance(item, Enum):
            setattr(message, field.name, item.value)
        else:
            setattr(message, field.name, clean(item) if isinstance(item, str) else item)


def read(cls: type, message: Message, *, path: str = "", **given: object) -> Any:
    """The dataclass that a message describes; `given` are the fields that do not travel. Raises ConvertError."""
    path = path or cls.__name__
    values: dict[str, object] = dict(given)
    for field in shape_of(cls):
        if field.name in given:
            continue
        where = f"{path}.{field.name}"
        item = getattr(message, field.name)
        if field.repeated:
            values[field.name] = tuple(_one(cls, field, e, f"{where}[{i}]") for i, e in enumerate(item))
        elif field.optional and not message.HasField(field.name):
            values[field.name] = None
        elif dataclasses.is_dataclass(field.kind) and not message.HasField(field.name):
            raise ConvertError(f"{where} is missing")
        else:
            values[field.name] = _one(cls, field, item, where)
    try:
        return cls(**values)
    except ValueError as e:
        raise ConvertError(f"{path}: {e}") from e


def clean(text: str) -> str:
    """Text that UTF-8 can carry, and not without end."""
    if len(text) > TEXT_MAX:
        half = TEXT_MAX // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    return text.encode("utf-8", "replace").decode("utf-8")


def _one(cls: type, field: FieldShape, item: Any, where: str) -> Any:
    if dataclasses.is_dataclass(field.kind):
        return read(typing.cast(type, field.kind), item, path=where)
    if issubclass(field.kind, Enum):
        try:
            return field.kind(item)
        except ValueError:
            known = ", ".join(repr(e.value) for e in field.kind)
            raise ConvertError(f"{where} is {item!r}, not one of {known}") from None
    if field.kind is int:
        least = -1 if (cls.__name__, field.name) in MAY_BE_MINUS_ONE else 0
        if item < least:
            raise ConvertError(f"{where} is {item}, less than {least}")
    if field.name == "worker_id" and not item:
        raise ConvertError(f"{where} is empty")
    return item


def _field(cls: type, name: str, hint: Any) -> FieldShape:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    repeated = optional = False
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        hint, repeated = args[0], True
    elif origin in (typing.Union, types.UnionType):
        rest = [a for a in args if a is not types.NoneType]
        if len(rest) == 1 and len(rest) < len(args):
            hint, optional = rest[0], True
    if isinstance(hint, type) and (hint in (int, float, str, bool) or dataclasses.is_dataclass(hint) or issubclass(hint, Enum)):
        return FieldShape(name, hint, repeated, optional)
    raise TypeError(f"{cls.__name__}.{name}: {hint} has no place in a message")
