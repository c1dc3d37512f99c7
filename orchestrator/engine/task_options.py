"""The options of a task: declared as annotated class attributes, given in job.yaml, checked once when the task is
made.

A misspelt option that is silently ignored costs a training run, so every unknown name is refused with the nearest
known one, and a value of the wrong type is refused with what was expected.
"""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Union, get_args, get_origin


class TaskError(Exception):
    """Something in the task or in its options that the user can fix; the message says what is wrong and how to fix
    it.
    """


@dataclass(frozen=True, slots=True)
class Option:
    """One declared option."""

    name: str
    annotation: Any
    required: bool


def declared_options(cls: type, base: type) -> dict[str, Option]:
    """Options of a task class, base classes first; `base` itself and what lies above it declare none."""
    found: dict[str, Option] = {}
    for klass in reversed(cls.__mro__):
        if not issubclass(klass, base) or klass is base:
            continue
        try:
            annotations = inspect.get_annotations(klass, eval_str=True)
        except NameError as error:
            raise TaskError(
                f"{klass.__name__}: an annotation in the class body cannot be read at run time ({error}); "
                "import the name outside `if TYPE_CHECKING`, or move the annotation into a method"
            ) from error
        for name, annotation in annotations.items():
            if name.startswith("_") or _is_class_var(annotation):
                continue
            found[name] = Option(name, annotation, required=not hasattr(cls, name))
    return found


def check_options(task: str, declared: Mapping[str, Option], given: Mapping[str, object]) -> dict[str, object]:
    """The given options, checked against the declared ones; all errors are reported at once in one TaskError."""
    errors: list[str] = []
    values: dict[str, object] = {}
    for name, value in given.items():
        option = declared.get(name)
        if option is None:
            errors.append(f"unknown option {name!r}{_nearest(name, declared)}")
        elif not _accepts(option.annotation, value):
            errors.append(f"option {name!r} must be {_spell(option.annotation)}, not {value!r}")
        else:
            values[name] = float(value) if option.annotation is float and isinstance(value, int) else value
    for option in declared.values():
        if option.required and option.name not in given:
            errors.append(f"option {option.name!r} is missing; it must be {_spell(option.annotation)}")
    if errors:
        raise TaskError(f"task {task}: " + "; ".join(errors))
    return values


def _is_class_var(annotation: object) -> bool:
    return annotation is ClassVar or get_origin(annotation) is ClassVar


def _nearest(name: str, declared: Mapping[str, Option]) -> str:
    if not declared:
        return "; this task has no options"
    close = difflib.get_close_matches(name, declared, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} known: {', '.join(sorted(declared))}"


def _accepts(annotation: Any, value: object) -> bool:
    """Whether a value from JSON fits the annotation; containers are checked from outside only."""
    if annotation is Any or annotation is object:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return any(_accepts(a, value) for a in get_args(annotation))
    if origin is Literal:
        return any(type(a) is type(value) and a == value for a in get_args(annotation))
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    expected = origin or annotation
    return isinstance(value, expected) if isinstance(expected, type) else True


def _spell(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
