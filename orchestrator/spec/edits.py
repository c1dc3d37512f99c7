"""What an edit of a TrainingJob's spec means while its job runs, against the spec that the job was submitted with.

The job itself (task, train, parallel, ...) stays as it was submitted, and so does who makes and places its pods, and what its
volume was made of. `cluster.nodes`, `suspend` and the limits of time act at once; the other settings of pods reach those that are
made from now on. Where an edit cannot be read, what was read before it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from orchestrator.core.job import Job
from orchestrator.spec.errors import SpecError, dotted
from orchestrator.spec.kubernetes import KubernetesSpec
from orchestrator.spec.training_job import from_training_job

Tree: TypeAlias = Mapping[str, Any]
Keys: TypeAlias = tuple[str, ...]

STAY: Final[tuple[Keys, ...]] = (
    ("backend",),
    ("queue",),  # a pod that came alone into the group of Kueue or of Volcano would wait there for ever
    ("scheduler",),
    ("head", "storage"),
    ("head", "storageClass"),
)  # of `kubernetes`, for the whole job
AT_ONCE: Final = frozenset({"activeDeadline", "ttlAfterFinished", "gangTimeout"})  # of `kubernetes`
UNSHOWN: Final = "spec.kubernetes.env"  # people put secrets there, though told not to, and Events are kept in many places
EMPTY: Final[tuple[Any, ...]] = (None, {})
VALUE_CHARS_MAX: Final = 80  # a longer one is not shown
CHANGES_SHOWN_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Change:
    """A key that had another value when the job was submitted. None: it was, or is, not there."""

    path: str
    before: Any
    now: Any

    def __str__(self) -> str:
        values = [] if self.path.startswith(UNSHOWN) else [_short(value) for value in (self.before, self.now)]
        return f"{self.path} ({values[0]} before, {values[1]} now)" if all(values) and values else f"{self.path} (another value)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """The spec of a job that runs, as it acts."""

    job: Job  # as it was submitted
    kubernetes: KubernetesSpec  # for pods that are made from now on
    section: Tree  # what `kubernetes` was read from
    ignored: tuple[Change, ...]  # since the job was submitted
    for_new_pods: tuple[Change, ...]  # since the job was submitted
    invalid: str  # why the spec as it is now cannot be run; empty where it can


def edited(obj: Tree, *, submitted: Tree, section: Tree | None) -> Edited:
    """Read an object of the API server; `section` is `kubernetes` as it could be read last, None: as it was submitted.

    Raises SpecError where what was submitted cannot be read, which another version of this program may have written.
    """
    now: Tree = obj.get("spec") or {}
    first: Tree = submitted.get("kubernetes") or {}
    job, before = _read(obj, submitted)
    invalid, job_same = "", False
    try:
        # read on as many nodes as before: their number acts by itself, and others are derived from it
        job_same = _read(obj, {**now, "cluster": {**(now.get("cluster") or {}), "nodes": job.cluster.nodes}})[0] == job
    except SpecError as error:
        invalid = str(error)
    acting: Tree = _with_what_stays(now.get("kubernetes") or {}, first)
    try:
        kubernetes = _read(obj, {**submitted, "kubernetes": acting})[1]
    except SpecError as error:
        invalid = invalid or f"spec.kubernetes does not fit the job as it was submitted: {error}"
        acting = first if section is None else section
        kubernetes = _read(obj, {**submitted, "kubernetes": acting})[1]
    ignored = () if job_same else tuple(_changes(_of_job(submitted), _of_job(now), ("spec",)))
    stays = [("spec", "kubernetes", *keys) for keys in STAY]
    kept = [Change(dotted(path), _at(submitted, path[1:]), _at(now, path[1:])) for path in stays]
    settings = () if kubernetes == before else _changes(_of_pods(first), _of_pods(acting), ("spec", "kubernetes"))
    return Edited(
        job=job,
        kubernetes=kubernetes,
        section=acting,
        ignored=(*ignored, *(change for change in kept if change.before != change.now)),
        for_new_pods=tuple(settings),
        invalid=invalid,
    )


def listed(changes: Sequence[Change]) -> str:
    """Changes in words."""
    more = len(changes) - CHANGES_SHOWN_MAX
    return ", ".join(str(change) for change in changes[:CHANGES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _read(obj: Tree, spec: Tree) -> tuple[Job, KubernetesSpec]:
    job, kubernetes, _ = from_training_job({**obj, "spec": spec}, begun=True)
    return job, kubernetes


def _of_job(spec: Tree) -> Tree:
    """What describes the job itself."""
    cluster = {key: value for key, value in (spec.get("cluster") or {}).items() if key != "nodes"}
    return {**{key: value for key, value in spec.items() if key not in ("kubernetes", "suspend")}, "cluster": cluster}


def _of_pods(section: Tree) -> Tree:
    return {key: value for key, value in section.items() if key not in AT_ONCE}


def _with_what_stays(section: Tree, first: Tree) -> Tree:
    """The section, with that of `first` in it which no edit changes."""
    made = dict(section)
    for *above, key in STAY:
        value, inside = _at(first, (*above, key)), made
        if _at(section, (*above, key)) == value:
            continue
        for part in above:
            inside[part] = dict(inside.get(part) or {})
            inside = inside[part]
        if value is None:
            inside.pop(key, None)
        else:
            inside[key] = value
    return made


def _changes(before: Any, now: Any, path: Keys) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _changes(before.get(key), now.get(key), (*path, key))
    elif before != now and not (before in EMPTY and now in EMPTY):
        yield Change(dotted(path), before, now)


def _at(tree: Tree, path: Keys) -> Any:
    value: Any = tree
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _short(value: Any) -> str:
    """A value in few characters; empty where it has too many."""
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_CHARS_MAX and text.isprintable() else ""
