"""The kinds of text that a job file may hold, each with its parser: names, durations, task targets, checkpoint
places.

Each is checked where it is read and kept as the user wrote it, so that the schema and the defaults read like the file
does. A refusal carries the fix and, where there is one, the value that was probably meant.
"""

from __future__ import annotations

import keyword
import re
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from orchestrator.spec.errors import closest, described, quoted

READY_TASKS = ("gpt",)

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$"
DETECT_WITHIN_MIN_MS = 1_000
DETECT_WITHIN_MAX_MS = 600_000
TEXT_CHARS_MAX = 1024

_MS_PER_UNIT = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h)")
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(::[a-zA-Z][a-zA-Z0-9+.-]*)*://.+")


def refused(message: str, *, fix: str = "", nearest: str = "", allowed: tuple[str, ...] = ()) -> PydanticCustomError:
    """The error a field validator raises; the loader turns it into a Problem. `message` follows the path."""
    context = {"message": message, "fix": fix, "nearest": nearest, "allowed": allowed}
    return PydanticCustomError("job_file", "{message}", context)


def checked_name(name: str) -> str:
    """A DNS label (RFC 1123), because the name becomes part of host names, actor names and paths."""
    if re.fullmatch(NAME_PATTERN, name, re.ASCII) and not name.endswith("\n"):
        return name
    label = re.sub(r"[^a-z0-9]+", "-", name[:TEXT_CHARS_MAX].lower())[:63].strip("-")
    raise refused(
        f"{quoted(name)} is no DNS label",
        fix=f"use a-z, 0-9 and inner hyphens, at most 63 characters{f', such as {label}' if label else ''}",
    )


def duration_ms(text: str) -> int:
    """`500ms`, `4s`, `1.5s`, `1m`, `2h` -> whole milliseconds. Raises ValueError for any other text."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{quoted(text)} is no duration")
    amount = Decimal(match[1]) * _MS_PER_UNIT[match[2]]
    if amount != int(amount):
        raise ValueError(f"{quoted(text)} is no whole number of milliseconds")
    return int(amount)


def with_unit(value: object) -> object:
    """Refuses a bare number where a duration is meant; anything else is left to the next validator."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise refused(
            f"must be a duration with its unit, not {described(value)}",
            fix=f"write {value if value > 0 else 4}s, if seconds are meant",
        )
    return value


def checked_detect_within(text: str) -> str:
    """A duration from 1 s to 10 min."""
    try:
        amount_ms = duration_ms(text)
    except ValueError as error:
        number = re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text)
        raise refused(str(error), fix=f"write {text}s" if number else "write a duration such as 1.5s, 4s or 1m") from None
    if not DETECT_WITHIN_MIN_MS <= amount_ms <= DETECT_WITHIN_MAX_MS:
        raise refused(f"must be from 1s to 10m, not {text}", fix="write a duration in that range; 4s suits most clusters")
    return text


def checked_target(target: str) -> str:
    """A ready task, `package.module:Class` or `path/to/file.py:Class`; whether it imports is found out later."""
    if target in READY_TASKS:
        return target
    place, colon, name = target.rpartition(":")
    if not colon:
        nearest = closest(target, READY_TASKS)
        raise refused(
            f"{quoted(target)} is no ready task",
            nearest=nearest,
            fix=f"write {nearest}" if nearest else "",
            allowed=(*READY_TASKS, "package.module:Class", "path/to/file.py:Class"),
        )
    if len(target) > TEXT_CHARS_MAX or not target.isprintable():
        raise refused(f"{quoted(target)} is no task target", fix="write package.module:Class or path/to/file.py:Class")
    if not _is_identifier(name):
        raise refused(f"{quoted(name)} is no class name", fix="write the name of the task class after the colon")
    if place.endswith(".py"):
        if place.rpartition("/")[2] == ".py":
            raise refused(f"{quoted(place)} is no Python file", fix="write the file's name, such as task.py, before the colon")
    elif "/" in place:
        raise refused(f"{quoted(place)} is no Python file", fix="the path must end in .py")
    elif not all(_is_identifier(part) for part in place.split(".")):
        raise refused(f"{quoted(place)} is no module", fix="write package.module before the colon, or a path that ends in .py")
    return target


def checked_uri(uri: str) -> str:
    """A path, or a URL that fsspec opens."""
    if not uri or len(uri) > TEXT_CHARS_MAX or not uri.isprintable() or uri != uri.strip():
        raise refused(
            f"{quoted(uri)} is no path or URL",
            fix="write a folder such as ./checkpoints, or a URL such as s3://bucket/run",
        )
    if not is_url(uri) and ":" in uri.split("/")[0]:
        raise refused(f"{quoted(uri)} is neither a path nor a URL", fix="a URL has :// after its scheme; write ./ before a path")
    return uri


def is_url(uri: str) -> bool:
    """True for `scheme://...` and for fsspec's chains such as `simplecache::s3://...`."""
    return _URL.fullmatch(uri) is not None


def _is_identifier(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _text(pattern: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": list(examples)})


JobName = Annotated[str, AfterValidator(checked_name), _text(NAME_PATTERN, "gpt-docs")]
DetectWithin = Annotated[
    str,
    BeforeValidator(with_unit),
    AfterValidator(checked_detect_within),
    _text(DURATION_PATTERN, "4s", "1500ms", "1m"),
]
Target = Annotated[
    str,
    AfterValidator(checked_target),
    _text(rf"^({'|'.join(READY_TASKS)}|.+:[^:]+)$", "gpt", "package.module:Class", "path/to/file.py:Class"),
]
Uri = Annotated[str, AfterValidator(checked_uri), _text(r"^\S(.*\S)?$", "./checkpoints", "s3://bucket/run")]
