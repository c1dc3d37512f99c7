"""What pydantic found, said in the words of a job file: where it stands, what was probably meant, what is allowed,
how to fix it.

The sentences are made here from the models themselves (their fields, bounds and enums), so a new field is explained
without a line of code. A key that belongs to another section is recognised by its name.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from orchestrator.spec.document import Document, Path
from orchestrator.spec.errors import Problem, closest, described
from orchestrator.spec.model import JobSpec

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "bool_type": "true or false",
}
_MEANT = {"gpu": "cuda", "float32": "fp32", "bfloat16": "bf16", "fp16": "bf16", "float16": "bf16"}  # others' words
_BOUND_SAID = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_BOUND_OF = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
_NUMBER = re.compile(r"[-+]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][-+]?[0-9]{1,3})?")


def problem_of(error: ErrorDetails, document: Document, *, root: type[BaseModel] = JobSpec) -> Problem:
    """One pydantic error of `root` as a Problem. A path that the file does not spell out is cut back to the part that it does."""
    kind, path, context = error["type"], error["loc"], error.get("ctx", {})
    if kind == "missing":
        return _missing(path, document)
    while path and not document.written(path):
        path = path[:-1]
    if kind == "extra_forbidden":
        return _unknown_key(path, document, root)
    value = error["input"]
    nearest, allowed, fix = "", _allowed(path, root), ""
    if kind == "job_file":
        message, nearest, allowed, fix = context["message"], context["nearest"], context["allowed"], context["fix"]
    elif kind == "enum":
        allowed = tuple(re.findall(r"'([^']*)'", context["expected"]))
        message = f"{described(value)} is no choice"
        nearest = _MEANT.get(value.lower()) or closest(value, allowed) if isinstance(value, str) else ""
        fix = f"write {nearest}" if nearest else ""
    elif kind in _BOUND_OF:
        bound = _BOUND_OF[kind]
        message = f"must be {_BOUND_SAID[bound]} {_number(context[bound])}, not {described(value)}"
    elif kind in ("too_long", "too_short"):
        length = context["max_length" if kind == "too_long" else "min_length"]
        allowed = ()
        message = f"must hold {length} values, not {context['actual_length']}"
    elif kind in _EXPECTED:
        message = f"must be {_EXPECTED[kind]}, not {described(value)}"
        fix = _conversion(kind, value)
    else:
        message = error["msg"]
    return problem_at(path, document, message=message, nearest=nearest, allowed=allowed, fix=fix)


def model_at(path: Path, root: type[BaseModel] = JobSpec) -> type[BaseModel] | None:
    """The model of the section at `path`, None where there is a plain field or nothing."""
    model = root
    for part in path:
        if isinstance(part, int):  # an item of a list of sections
            continue
        field = fields_of(model).get(part)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return None
        model = inner
    return model


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A section's fields by their keys in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def problem_at(
    path: Path,
    document: Document,
    *,
    message: str,
    of_key: bool = False,
    nearest: str = "",
    allowed: tuple[str, ...] = (),
    fix: str = "",
) -> Problem:
    """A problem at the place of `path` in the file; `of_key`: where its key stands, not its value."""
    place = document.position(path, of_key=of_key)
    return Problem(
        file=document.file,
        line=place.line,
        column=place.column,
        path=document.shown(path),
        message=message,
        nearest=nearest,
        allowed=allowed,
        fix=fix,
    )


def _missing(path: Path, document: Document) -> Problem:
    section, last = path[:-1], path[-1]
    if isinstance(last, int):
        return problem_at(
            section,
            document,
            message=f"value {last + 1} of the list is missing",
            fix="write both values, such as [0.9, 0.95]",
        )
    place = document.position(section, of_key=True)
    return Problem(
        file=document.file,
        line=place.line,
        column=place.column,
        path=document.shown(path),
        message="required key is missing",
        fix=f'add "{last}: ..." here' if section or document.above else f'add "{last}: ..." at the top of the file',
    )


def _unknown_key(path: Path, document: Document, root: type[BaseModel]) -> Problem:
    key, model = str(path[-1]), model_at(path[:-1], root)
    siblings = tuple(key for key in fields_of(model) if (*path[:-1], key) not in document.hidden) if model else ()
    elsewhere = [known for known in _all_paths(root, ()) if known[-1] == key]
    if len(elsewhere) == 1:
        target = document.shown(elsewhere[0])
        return problem_at(
            path,
            document,
            of_key=True,
            message="unknown key here",
            nearest=target,
            allowed=siblings,
            fix=f"move it to {target}",
        )
    nearest = closest(key, siblings)
    return problem_at(
        path,
        document,
        of_key=True,
        message="unknown key",
        nearest=nearest,
        allowed=siblings,
        fix=f'rename it to "{nearest}"' if nearest else "remove it",
    )


def _all_paths(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, field in fields_of(model).items():
        yield (*above, name)
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from _all_paths(inner, (*above, name))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for option in (annotation, *typing.get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _allowed(path: Path, root: type[BaseModel]) -> tuple[str, ...]:
    """The bounds of the number at `path` as one phrase, e.g. `1 to 64` or `more than 0, at most 1`."""
    index = path[-1] if path and isinstance(path[-1], int) else None
    place = path if index is None else path[:-1]
    model = model_at(place[:-1], root) if place else None
    field = fields_of(model).get(str(place[-1])) if model else None
    if field is None:
        return ()
    found: dict[str, float] = {}
    for limit in _limits(field, index):
        for bound in _BOUND_SAID:
            if getattr(limit, bound, None) is not None:
                found[bound] = getattr(limit, bound)
    if found.keys() == {"ge", "le"}:
        return (f"{_number(found['ge'])} to {_number(found['le'])}",)
    said = ", ".join(f"{word} {_number(found[bound])}" for bound, word in _BOUND_SAID.items() if bound in found)
    return (said,) if said else ()


def _limits(field: FieldInfo, index: int | None) -> Iterator[Any]:
    """The constraints of a field, of the number in `int | None`, or of item `index` of a tuple."""
    options = typing.get_args(field.annotation)
    if index is not None:
        options = options[:1] if options[-1:] == (...,) else options[index : index + 1]
    elif typing.get_origin(field.annotation) is tuple:
        options = ()
    yield from field.metadata
    for option in options:
        for extra in getattr(option, "__metadata__", ()):
            yield from getattr(extra, "metadata", ())


def _conversion(kind: str, value: object) -> str:
    """How to write the value that was probably meant."""
    if kind == "string_type" and value is not None and not isinstance(value, (dict, list)):
        return "put it in quotes"
    if kind == "model_type" or kind == "dict_type":
        return 'write its keys below it, indented, as "key: value"'
    if kind not in ("int_type", "float_type"):
        return ""
    if isinstance(value, bool):
        return f"write {int(value)}"
    if isinstance(value, str) and _NUMBER.fullmatch(plain := value.strip().replace("_", "").replace(",", "")):
        number = float(plain)
        if kind == "int_type" and abs(number) < 1e15 and number == int(number):
            return f"write {int(number)}, without quotes"
        return f"write {plain}, without quotes" if kind == "float_type" else ""
    if kind == "int_type" and isinstance(value, float) and value == int(value):
        return f"write {int(value)}"
    return ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
