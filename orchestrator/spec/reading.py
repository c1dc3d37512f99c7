"""What every kind of file has in common on its way in: a path becomes text, a tree becomes a model or the list of what is wrong.

Job files, model files and cluster files are read by the same rules, so that their errors look alike. What is particular to one of
them (the rules between its fields) stays with its own module.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path as FilePath
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.spec.document import TEXT_BYTES_MAX, Document, Position, Tree, read, refusal
from orchestrator.spec.errors import PROBLEMS_MAX, SpecError
from orchestrator.spec.explain import problem_of

M = TypeVar("M", bound=BaseModel)


def parse_as(model: type[M], text: str, *, file: str) -> tuple[M, Document]:
    """Read and check a text by a model alone. Raises SpecError with all problems; `file` only names it in messages."""
    document = read(text, file=file)
    made, errors = validated(model, document.root)
    fresh = [error for error in errors if error["loc"] not in document.broken]
    worded = first(fresh, document)
    problems = [*document.problems, *(problem_of(error, document, root=model) for error in worded)]
    if problems:
        raise SpecError(problems, unworded=len(fresh) - len(worded))
    assert made is not None, "a document without problems is a valid model"
    return made, document


def validated(model: type[M], root: dict[str, Tree]) -> tuple[M | None, list[ErrorDetails]]:
    """The model, or what pydantic found."""
    try:
        return model.model_validate_json(json.dumps(root)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def first(errors: list[ErrorDetails], document: Document) -> list[ErrorDetails]:
    """The first errors of the file: wording one costs a search for the nearest key, so their number is bounded."""

    def place(error: ErrorDetails) -> tuple[int, int]:
        at = document.position(error["loc"], of_key=True)
        return at.line, at.column

    return sorted(errors, key=place)[:PROBLEMS_MAX]


def text_of(file: str, *, kind: str, absent: str) -> str:
    """The text of a file of a kind ("job", "model", ...). Raises SpecError; `absent` says what to do where there is none."""
    try:
        mode = os.stat(file).st_mode
        if stat.S_ISDIR(mode):
            raise refusal(
                file,
                f"is a folder, not a {kind} file",
                fix=f"name the file in it, such as {os.path.join(file, f'{kind}.yaml')}",
            )
        if not stat.S_ISREG(mode):
            raise refusal(file, "is no regular file", fix="name a text file")
        with FilePath(file).open("rb") as stream:
            data = stream.read(TEXT_BYTES_MAX + 1)
    except FileNotFoundError:
        raise refusal(file, "there is no such file", fix=absent) from None
    except OSError as error:
        raise refusal(file, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise refusal(file.replace("\0", "\\0"), f"cannot be read: {error}") from None
    if len(data) > TEXT_BYTES_MAX:
        raise refusal(file, "the file is too large", fix=f"keep a {kind} file under {TEXT_BYTES_MAX} bytes")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line_start = before.rfind(b"\n") + 1
        at = Position(before.count(b"\n") + 1, len(before[line_start:].decode("utf-8", "replace")) + 1)
        raise refusal(file, f"not UTF-8: byte 0x{data[error.start]:02x}", at=at, fix="save the file as UTF-8") from None
