"""The edge where a job file becomes a Job, or an error that lists everything wrong with it at once.

Three readers look at the text one after the other (YAML, the models, the rules between fields), and none stops the
next: what the first refuses is taken out, and the rest is still judged. Only text that is no YAML mapping at all ends
it early.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path as FilePath

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.core.job import Job
from orchestrator.spec import rules
from orchestrator.spec.document import TEXT_BYTES_MAX, Document, Path, Position, Tree, read, refusal
from orchestrator.spec.errors import PROBLEMS_MAX, Problem, SpecError, dotted
from orchestrator.spec.explain import model_at, problem_of
from orchestrator.spec.model import JobSpec
from orchestrator.spec.resolve import resolve

_PLACEHOLDER_NAME = "unnamed"


def load(path: str | os.PathLike[str]) -> Job:
    """Read a job file. Relative paths in it start at its folder. Raises SpecError with all problems, nothing else."""
    file = os.fspath(path)
    return load_text(_text_of(file), file=file, base_dir=os.path.dirname(os.path.abspath(file)))


def load_text(text: str, *, file: str = "<text>", base_dir: str | os.PathLike[str] = ".") -> Job:
    """Read a job from text. `file` only names it in messages. Raises SpecError with all problems; nothing else."""
    return resolve(parse(text, file=file), base_dir=os.fspath(base_dir))


def parse(text: str, *, file: str = "<text>") -> JobSpec:
    """Read and check a job, without filling in what depends on other fields. Raises SpecError with all problems."""
    document = read(text, file=file)
    spec, errors = _validated(document.root)
    broken = set(document.broken)
    problems = list(document.problems)
    fresh = [error for error in errors if error["loc"] not in document.broken]
    worded = _first(fresh, document)
    problems += [problem_of(error, document) for error in worded]
    if spec is None:
        broken |= {error["loc"] for error in errors}
        spec = _without(broken, document.root)
    if spec is not None:
        problems += _contradictions(spec, document, broken)
    if problems:
        raise SpecError(problems, unworded=len(fresh) - len(worded))
    assert spec is not None, "a document without problems is a valid spec"
    return spec


def _text_of(file: str) -> str:
    try:
        mode = os.stat(file).st_mode
        if stat.S_ISDIR(mode):
            raise refusal(
                file,
                "is a folder, not a job file",
                fix=f"name the file in it, such as {os.path.join(file, 'job.yaml')}",
            )
        if not stat.S_ISREG(mode):
            raise refusal(file, "is no regular file", fix="name a text file")
        with FilePath(file).open("rb") as stream:
            data = stream.read(TEXT_BYTES_MAX + 1)
    except FileNotFoundError:
        raise refusal(file, "there is no such file", fix='write one with "orchestrator init"') from None
    except OSError as error:
        raise refusal(file, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise refusal(file.replace("\0", "\\0"), f"cannot be read: {error}") from None
    if len(data) > TEXT_BYTES_MAX:
        raise refusal(file, "the file is too large", fix=f"keep a job file under {TEXT_BYTES_MAX} bytes")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line_start = before.rfind(b"\n") + 1
        at = Position(before.count(b"\n") + 1, len(before[line_start:].decode("utf-8", "replace")) + 1)
        raise refusal(file, f"not UTF-8: byte 0x{data[error.start]:02x}", at=at, fix="save the file as UTF-8") from None


def _validated(root: dict[str, Tree]) -> tuple[JobSpec | None, list[ErrorDetails]]:
    try:
        return JobSpec.model_validate_json(json.dumps(root)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _first(errors: list[ErrorDetails], document: Document) -> list[ErrorDetails]:
    """The first errors of the file: wording one costs a search for the nearest key, so their number is bounded."""

    def place(error: ErrorDetails) -> tuple[int, int]:
        at = document.position(error["loc"], of_key=True)
        return at.line, at.column

    return sorted(errors, key=place)[:PROBLEMS_MAX]


def _contradictions(spec: JobSpec, document: Document, broken: set[Path]) -> list[Problem]:
    def is_broken(path: Path) -> bool:
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in broken)

    problems = []
    for violation in rules.violations(spec, broken=is_broken):
        path = next((path for path in violation.blame if document.written(path)), violation.blame[0])
        at = document.position(path, of_key=False)
        problems.append(
            Problem(
                file=document.file,
                line=at.line,
                column=at.column,
                path=dotted(path),
                message=violation.message,
                fix=violation.fix,
            )
        )
    return problems


def _without(broken: set[Path], root: dict[str, Tree]) -> JobSpec | None:
    """The spec that is left when broken fields fall back to their defaults, or None where too little is left."""
    for bad in broken:
        section, depth = root, 0
        while depth < len(bad) - 1 and model_at(bad[: depth + 1]) is not None:
            inner = section.get(str(bad[depth]))
            if not isinstance(inner, dict):
                break
            section, depth = inner, depth + 1
        if depth < len(bad):
            section.pop(str(bad[depth]), None)
    for name in ("task", "checkpoint"):  # a broken one may lack a key of its own
        if any(bad[:1] == (name,) for bad in broken):
            root.pop(name, None)
    root.setdefault("name", _PLACEHOLDER_NAME)
    return _validated(root)[0]
