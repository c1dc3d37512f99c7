"""The other way to write a job file: as the object TrainingJob of Kubernetes, with apiVersion, kind, metadata and spec around it.

Whatever `kubectl apply` takes is read here, and nothing more: short forms that the API server's schema cannot hold (task: gpt)
are refused with their long form. The job inside is then judged as any other; only its places and paths count from the file's top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from orchestrator.spec.document import Document, Path, Tree
from orchestrator.spec.errors import Problem, SpecError, described, quoted
from orchestrator.spec.explain import fields_of, problem_at, problem_of
from orchestrator.spec.kube_values import LabelValue, NamespaceName, checked_job_name
from orchestrator.spec.model import JobSpec
from orchestrator.spec.reading import first, validated
from orchestrator.spec.section import Section
from orchestrator.spec.values import checked_name, refused

GROUP = "orchestrator.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "TrainingJob"
ENVELOPE_KEYS = ("apiVersion", "kind", "metadata", "spec")
_CONSTANTS = {"apiVersion": API_VERSION, "kind": KIND}

WRITTEN_BY_SERVER = (  # what the API server and its controllers write into metadata; in a file it is as good as absent
    *("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generation", "managedFields"),
    *("ownerReferences", "resourceVersion", "selfLink", "uid"),
)


def _checked_version(text: str) -> str:
    if text != API_VERSION:
        raise refused(f"{quoted(text)} is no version of a job", fix=f"write {API_VERSION}", allowed=(API_VERSION,))
    return text


def _checked_kind(text: str) -> str:
    if text != KIND:
        raise refused(f"{quoted(text)} is no job", fix=f"write {KIND}", allowed=(KIND,))
    return text


class Metadata(Section):
    """What a person writes about an object of Kubernetes."""

    name: Annotated[str, AfterValidator(checked_job_name)] = Field(description="Name of the job.")
    namespace: NamespaceName | None = Field(default=None, description="Absent: that of kubectl's context.")
    labels: dict[str, LabelValue] = Field(default_factory=dict, description="Labels of the object.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations of the object.")


class TrainingJobSpec(JobSpec):
    """The spec of a TrainingJob: a job whose name is that of the object."""

    suspend: bool = Field(
        default=False, description="true: the job takes a checkpoint, gives its pods back and waits until this is false again."
    )


class _Manifest(Section):
    api_version: Annotated[str, AfterValidator(_checked_version)] = Field(alias="apiVersion")
    kind: Annotated[str, AfterValidator(_checked_kind)]
    metadata: Metadata
    spec: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Opened:
    """The job of an envelope, to be judged as a TrainingJobSpec, and what is wrong around it."""

    job: Document
    problems: list[Problem]


def is_envelope(root: Mapping[str, Tree]) -> bool:
    """Whether a file is (meant as) a TrainingJob rather than a bare job."""
    return not root.keys().isdisjoint(ENVELOPE_KEYS)


def opened(document: Document) -> Opened:
    """Take the envelope off. Raises SpecError where there is no job in it to go on with."""
    problems, wrong = _around(document)
    of_another_kind = any(key in document.root and key in wrong for key in ("apiVersion", "kind"))
    if of_another_kind or not isinstance(document.root.get("spec"), dict):
        raise SpecError([*document.problems, *problems])
    job = document.below("spec")
    job.hidden = frozenset({("name",)})
    if "name" in job.root:
        message, fix = "unknown key: the name of a TrainingJob is metadata.name", "remove it"
        problems.append(problem_at(("name",), job, of_key=True, message=message, fix=fix))
    problems += [*_short_forms(job), *image_missing(job)]
    metadata = document.root.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    job.root = {**job.root, "name": name if isinstance(name, str) and "metadata" not in wrong else "unnamed"}
    return Opened(job, problems)


def image_missing(job: Document) -> list[Problem]:
    """The problem of a job without an image; elsewhere than on Kubernetes it needs none."""
    section = job.root.get("kubernetes", {})
    if not isinstance(section, dict) or "image" in section or ("kubernetes",) in job.broken:
        return []
    fix = 'add "kubernetes: {image: registry/name@sha256:...}"; the image holds the orchestrator and your code'
    return [problem_at(("kubernetes", "image"), job, of_key=True, message="required key is missing", fix=fix)]


def name_unfit(job: Document) -> list[Problem]:
    """The problem of a bare job's name that is good elsewhere but not on Kubernetes."""
    name = job.root.get("name")
    if not isinstance(name, str):
        return []
    try:
        checked_name(name)
    except PydanticCustomError:  # good nowhere: said where every job is judged
        return []
    try:
        checked_job_name(name)
    except PydanticCustomError as error:
        context = error.context or {}
        return [problem_at(("name",), job, message=context["message"], fix=context["fix"])]
    return []


def long_form(spec: Mapping[str, Tree]) -> dict[str, Tree]:
    """A job's sections with its short forms written out, as the API server's schema demands."""
    made = dict(spec)
    if isinstance(task := made.get("task"), str):
        made["task"] = {"target": task}
    if isinstance(parallel := made.get("parallel"), str):
        made["parallel"] = parallel = {"plan": parallel}
    if isinstance(parallel, dict) and isinstance(parallel.get("recompute"), bool):
        made["parallel"] = {**parallel, "recompute": [parallel["recompute"]]}
    return made


def _around(document: Document) -> tuple[list[Problem], set[str]]:
    """The problems outside of spec, and the top-level keys that they are about."""
    root = {key: value for key, value in document.root.items() if key != "status"}
    if isinstance(metadata := root.get("metadata"), dict):
        root["metadata"] = {key: value for key, value in metadata.items() if key not in WRITTEN_BY_SERVER}
    _, errors = validated(_Manifest, root)
    outside = [error for error in errors if error["loc"][0] != "spec" or len(error["loc"]) == 1]
    fresh = [error for error in outside if error["loc"] not in document.broken]
    problems = []
    for error in first(fresh, document):
        key = str(error["loc"][0])
        if error["type"] == "extra_forbidden" and len(error["loc"]) == 1 and key in fields_of(TrainingJobSpec):
            where = "metadata.name" if key == "name" else f"spec.{key}"
            fix = f"move it to {where}"
            problems.append(problem_at((key,), document, of_key=True, message="unknown key here", nearest=where, fix=fix))
        elif error["type"] == "missing" and key in _CONSTANTS:
            fix = f'add "{key}: {_CONSTANTS[key]}" at the top of the file'
            problems.append(problem_at((key,), document, message="required key is missing", fix=fix))
        else:
            problems.append(problem_of(error, document, root=_Manifest))
    return problems, {str(error["loc"][0]) for error in errors}


def _short_forms(job: Document) -> list[Problem]:
    def problem(path: Path, kind: str, value: Tree, long: str) -> Problem:
        message = f"must be {kind} in a TrainingJob, not {described(value)}"
        return problem_at(path, job, message=message, fix=f"write {long}; short forms are for bare job files")

    found = []
    for key, field in (("task", "target"), ("parallel", "plan")):
        value = job.root.get(key)
        if isinstance(value, str):
            found.append(problem((key,), "a mapping", value, f"{{{field}: {value}}}"))
    parallel = job.root.get("parallel")
    if isinstance(parallel, dict) and isinstance(recompute := parallel.get("recompute"), bool):
        found.append(problem(("parallel", "recompute"), "a list", recompute, f"[{str(recompute).lower()}]"))
    return found
