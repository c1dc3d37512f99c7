"""The edge where a job file becomes a Job, or an error that lists everything wrong with it at once.

Three readers look at the text one after the other (YAML, the models, the rules between fields), and none stops the
next: what the first refuses is taken out, and the rest is still judged. Only text that is no YAML mapping at all ends
it early.
"""

from __future__ import annotations

import os

from pydantic_core import ErrorDetails

from orchestrator.core.job import Job
from orchestrator.spec import kube_rules, rules
from orchestrator.spec.document import Document, Path, Tree, read
from orchestrator.spec.envelope import TrainingJobSpec, image_missing, is_envelope, name_unfit, opened
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
    return judged(read(text, file=file))


def judged(document: Document, *, on_kubernetes: bool = False) -> JobSpec:
    """The job of a document, bare or in its envelope (then a TrainingJobSpec). Raises SpecError with all problems.

    `on_kubernetes`: a bare job is also held to what Kubernetes needs of it.
    """
    problems, model = list(document.problems), JobSpec
    if is_envelope(document.root):
        inside = opened(document)
        problems += inside.problems
        document, model, on_kubernetes = inside.job, TrainingJobSpec, True
    elif on_kubernetes:
        problems += [*name_unfit(document), *image_missing(document)]
    spec, errors = _validated(model, document.root)
    broken = set(document.broken)
    fresh = [error for error in errors if error["loc"] not in document.broken]
    worded = first(fresh, document)
    problems += [problem_of(error, document, root=model) for error in worded]
    if spec is None:
        broken |= {error["loc"] for error in errors}
        spec = _without(broken, document.root, model)
    if spec is not None:
        problems += _contradictions(spec, document, broken, on_kubernetes=on_kubernetes)
    if problems:
        raise SpecError(problems, unworded=len(fresh) - len(worded))
    assert spec is not None, "a document without problems is a valid spec"
    return spec


def _validated(model: type[JobSpec], root: dict[str, Tree]) -> tuple[JobSpec | None, list[ErrorDetails]]:
    parallel = root.get("parallel")
    if isinstance(parallel, str):  # the short form; done here, because a model that looks at it first would lose JSON's types
        root = {**root, "parallel": {"plan": parallel}}
    return validated(model, root)


def _contradictions(spec: JobSpec, document: Document, broken: set[Path], *, on_kubernetes: bool) -> list[Problem]:
    def is_broken(path: Path) -> bool:
        return any(path[: len(bad)] == bad or bad[: len(path)] == path for bad in broken)

    found = rules.violations(spec, broken=is_broken)
    if on_kubernetes and not any(is_broken(path) for path in kube_rules.READS):
        found += kube_rules.violations(spec)
    problems = []
    for violation in found:
        path = next((path for path in violation.blame if document.written(path)), violation.blame[0])
        problems.append(problem_at(path, document, message=violation.message, fix=violation.fix))
    return problems


def _without(broken: set[Path], root: dict[str, Tree], model: type[JobSpec]) -> JobSpec | None:
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
    return _validated(model, root)[0]
