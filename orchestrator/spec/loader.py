"""The edge where a job file becomes a Job, or an error that lists everything wrong with it at once.

Three readers look at the text one after the other (YAML, the models, the rules between fields), and none stops the
next: what the first refuses is taken out, and the rest is still judged. Only text that is no YAML mapping at all ends
it early.
"""

from __future__ import annotations

import os

from pydantic_core import ErrorDetails

from orchestrator.core.job import Job
from orchestrator.spec import rules
from orchestrator.spec.document import Document, Path, Tree, read
from orchestrator.spec.errors import Problem, SpecError
from orchestrator.spec.explain import model_at, problem_at, problem_of
from orchestrator.spec.model import JobSpec
from orchestrator.spec.reading import first, text_of, validated
from orchestrator.spec.resolve import resolve

_PLACEHOLDER_NAME = "unnamed"


def load(path: str | os.PathLike[str]) -> Job:
    """Read a job file. Relative paths in it start at its folder. Raises SpecError with all problems, nothing else."""
    file = os.fspath(path)
    text = text_of(file, kind="job", absent='write one with "orchestrator init"')
    return load_text(text, file=file, base_dir=os.path.dirname(os.path.abspath(file)))


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
    worded = first(fresh, document)
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


def _validated(root: dict[str, Tree]) -> tuple[JobSpec | None, list[ErrorDetails]]:
    parallel = root.get("parallel")
    if isinstance(parallel, str):  # the short form; done here, because a model that looks at it first would lose JSON's types
        root = {**root, "parallel": {"plan": parallel}}
    return validated(JobSpec, root)


def _contradictions(spec: JobSpec, document: Document, broken: set[Path]) -> list[Problem]:
    def is_broken(path: Path) -> bool:
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in broken)

    problems = []
    for violation in rules.violations(spec, broken=is_broken):
        path = next((path for path in violation.blame if document.written(path)), violation.blame[0])
        problems.append(problem_at(path, document, message=violation.message, fix=violation.fix))
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
