"""The kinds of text that Kubernetes knows: names, label keys and values, quantities of CPU and memory, images, mount paths.

Kubernetes would refuse a wrong one too, but only when the operator makes a pod, and in its own words. Each kind has a pattern,
which the CRD holds the API server to, and a check that says what was probably meant.
"""

from __future__ import annotations

import posixpath
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from orchestrator.spec.errors import closest, described, quoted
from orchestrator.spec.values import DURATION_PATTERN, TEXT_CHARS_MAX, checked_name, duration_ms, refused, with_unit

JOB_NAME_CHARS_MAX = 44
"""Longest name of a job on Kubernetes: its longest pod name, `{job}-worker-9999-999999`, must be a DNS label (63 characters)."""
JOB_NAME_PATTERN = rf"^[a-z]([-a-z0-9]{{0,{JOB_NAME_CHARS_MAX - 2}}}[a-z0-9])?$"
OWN_PATHS = ("/tmp", "/dev/shm", "/var/lib/orchestrator", "/var/run/orchestrator")
"""Folders that the pods of a job mount themselves."""
OWN_ENV = ("HOME", "POD_NAME", "POD_IP", "NODE_NAME")
OWN_ENV_PREFIX = "ORCHESTRATOR_"
ENV_WORKDIR = "ORCHESTRATOR_WORKDIR"  # the one of ours that a job may set: where relative paths start in a pod
WORKDIR = "/workspace"
"""Where relative paths start in a pod that has no ENV_WORKDIR."""

_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_QUALIFIED = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_IMAGE = r"^[A-Za-z0-9][-A-Za-z0-9._:/@+]{0,999}$"
_ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,255}$"
_CPU = r"^([0-9]{1,6}(\.[0-9]{1,3})?|[0-9]{1,9}m)$"
_MEMORY = r"^[0-9]{1,12}(\.[0-9]{1,3})?(Ki|Mi|Gi|Ti|k|M|G|T)$"
_COUNT = r"^[0-9]{1,12}(\.[0-9]{1,3})?(m|Ki|Mi|Gi|Ti|k|M|G|T)?$"
_PATH = r"^/[^:]*[^:/]$"


def matches(pattern: str, text: str) -> bool:
    """Whether the whole of `text` is of the pattern."""
    return re.fullmatch(pattern, text, re.ASCII) is not None and not text.endswith("\n")


def checked_job_name(name: str) -> str:
    """A name that a job may have on Kubernetes, where pods and services are named after it."""
    if matches(JOB_NAME_PATTERN, name):
        return name
    checked_name(name)
    if len(name) > JOB_NAME_CHARS_MAX:
        raise refused(
            f"{quoted(name)} has {len(name)} characters, and the pods of a job are named after it",
            fix=f"keep it within {JOB_NAME_CHARS_MAX} characters on Kubernetes",
        )
    raise refused(f"{quoted(name)} begins with a digit, and services are named after it", fix="begin it with a letter")


def checked_qualified(key: str) -> str:
    """A label key, a taint key or the name of a resource: `name` or `domain/name`."""
    if matches(_QUALIFIED, key):
        return key
    raise refused(f"{quoted(key)} is no label key", fix="write name or domain/name, such as kubernetes.io/hostname")


def checked_label_value(value: str) -> str:
    """A label value, or the empty text."""
    if matches(_LABEL_VALUE, value):
        return value
    raise refused(f"{quoted(value)} is no label value", fix="use letters, digits and inner . _ -, at most 63 characters")


def checked_selector(selector: dict[str, str]) -> dict[str, str]:
    """Labels that a node must have."""
    for key, value in selector.items():
        checked_qualified(key)
        checked_label_value(value)
    return selector


def checked_cpu(text: str) -> str:
    """CPUs: `4`, `0.5` or `500m`."""
    if not matches(_CPU, text):
        number = re.match(r"[0-9]+(\.[0-9]+)?", text)
        fix = f"write {number[0]}, or thousandths such as 500m" if number else "write CPUs such as 4, or thousandths such as 500m"
        raise refused(f"{quoted(text)} is no quantity of CPU", fix=fix)
    return _positive(text, text.rstrip("m"), example="500m")


def checked_memory(text: str) -> str:
    """Bytes with a unit: `16Gi`, `512Mi`, `1.5G`."""
    if matches(_MEMORY, text):
        return _positive(text, re.sub("[A-Za-z]+", "", text), example="16Gi")
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", text)
    fix = "write a number and its unit, such as 16Gi or 512Mi"
    if match is not None:
        unit = match[2].removesuffix("B").removesuffix("b")
        known = {one.lower(): one for one in ("Ki", "Mi", "Gi", "Ti", "k", "M", "G", "T")}
        near = known.get(unit.lower())
        fix = f"write {match[1]}{near}" if near else f"write {match[1]}Gi, if gibibytes are meant" if not unit else fix
    raise refused(f"{quoted(text)} is no quantity of memory", fix=fix)


def checked_resources(resources: dict[str, str]) -> dict[str, str]:
    """Further resources of a pod by name: `nvidia.com/gpu: 8`, `ephemeral-storage: 50Gi`."""
    for name, quantity in resources.items():
        if name in ("cpu", "memory"):
            raise refused(f"{name} has a key of its own", fix=f'write "{name}: {quantity}" beside resources')
        if not matches(_QUALIFIED, name) or not ("/" in name or name == "ephemeral-storage" or name.startswith("hugepages-")):
            nearest = closest(name, ("nvidia.com/gpu", "amd.com/gpu", "ephemeral-storage"))
            raise refused(
                f"{quoted(name)} is no resource", nearest=nearest, fix="write its whole name, such as nvidia.com/gpu: 8"
            )
        if not matches(_COUNT, quantity):
            raise refused(f"{quoted(quantity)} of {name} is no quantity", fix=f"write a number, such as {name}: 1")
        whole = quantity.isdecimal() or "/" not in name
        if not whole:
            raise refused(f"{quantity} of {name} is no whole number", fix=f"write {name}: 1, for instance")
    return resources


def checked_image(image: str) -> str:
    """A container image: `registry/name:tag` or `registry/name@sha256:...`."""
    if matches(_IMAGE, image):
        return image
    raise refused(f"{quoted(image)} is no container image", fix="write registry/name:tag, or registry/name@sha256:... to pin it")


def checked_mount(path: str) -> str:
    """An absolute folder in a pod, in its shortest form, that no folder of ours overlaps."""
    if not path.startswith("/") or ":" in path or not path.isprintable() or len(path) > TEXT_CHARS_MAX:
        raise refused(f"{quoted(path)} is no absolute path", fix="write a folder in the pod, such as /data")
    shortest = posixpath.normpath(path)
    if shortest == "/":
        raise refused("/ is the image's own", fix="write a folder, such as /data")
    if shortest != path:
        raise refused(f"{quoted(path)} is not in its shortest form", fix=f"write {shortest}")
    for own in OWN_PATHS:
        if f"{own}/".startswith(f"{path}/") or f"{path}/".startswith(f"{own}/"):
            raise refused(f"{quoted(path)} overlaps {own}, which every pod mounts itself", fix="write another one, such as /data")
    return path


def checked_env(env: dict[str, str]) -> dict[str, str]:
    """Environment variables by name; those that the orchestrator sets itself are refused."""
    for name in env:
        if not matches(_ENV_NAME, name):
            raise refused(f"{quoted(name)} is no name of an environment variable", fix="use letters, digits and _")
        if name in OWN_ENV or (name.startswith(OWN_ENV_PREFIX) and name != ENV_WORKDIR):
            raise refused(f"the orchestrator sets {name} itself", fix="use another name")
    return env


def _positive(text: str, number: str, *, example: str) -> str:
    if Decimal(number) == 0:
        raise refused("must be more than 0", fix=f"write an amount such as {example}, or remove the key")
    return text


def _whole_as_text(value: object) -> object:
    """A bare whole number where Kubernetes takes one for a quantity; a fraction must be text, because floats round."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**12:
        return str(value)
    if isinstance(value, float):
        raise refused(f"must be a whole number or text, not {described(value)}", fix=f'write "{value:g}" in quotes')
    return value


def _memory_has_unit(value: object) -> object:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise refused(f"must have its unit, not {described(value)}", fix=f"write {value:g}Gi, if gibibytes are meant")
    return value


def _resources_as_text(value: object) -> object:
    return {name: _whole_as_text(one) for name, one in value.items()} if isinstance(value, dict) else value


def _text(pattern: str, *examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, **({"examples": list(examples)} if examples else {})})


def _named(kind: str, pattern: str) -> tuple[AfterValidator, WithJsonSchema]:
    def check(name: str) -> str:
        if matches(pattern, name):
            return name
        chars = 63 if pattern == _LABEL else 253
        raise refused(f"{quoted(name)} is no name of {kind}", fix=f"use a-z, 0-9 and inner hyphens, at most {chars} characters")

    return AfterValidator(check), _text(pattern)


def _duration(*, low: str, high: str, example: str) -> tuple[BeforeValidator, AfterValidator, WithJsonSchema]:
    """A duration from `low` to `high` in whole seconds, which is what Kubernetes counts in."""

    def check(text: str) -> str:
        try:
            amount_ms = duration_ms(text)
        except ValueError as error:
            raise refused(str(error), fix=f"write a duration such as {example}; the units are s, m and h") from None
        if not duration_ms(low) <= amount_ms <= duration_ms(high):
            raise refused(f"must be from {low} to {high}, not {text}", fix=f"write a duration in that range, such as {example}")
        if amount_ms % 1000:
            raise refused(f"{text} is no whole number of seconds", fix=f"write {max(1, round(amount_ms / 1000))}s")
        return text

    return BeforeValidator(with_unit), AfterValidator(check), _text(DURATION_PATTERN, example)


def _mapping(value: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"type": "object", "additionalProperties": value})


_COUNT_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _COUNT}]}
_CPU_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _CPU}], "examples": ["4", "500m"]}

SecretName = Annotated[str, *_named("a Secret", _SUBDOMAIN)]
ClaimName = Annotated[str, *_named("a PersistentVolumeClaim", _SUBDOMAIN)]
StorageClassName = Annotated[str, *_named("a storage class", _SUBDOMAIN)]
PriorityClassName = Annotated[str, *_named("a priority class", _SUBDOMAIN)]
SchedulerName = Annotated[str, *_named("a scheduler", _SUBDOMAIN)]
QueueName = Annotated[str, *_named("a queue", _LABEL)]
NamespaceName = Annotated[str, *_named("a namespace", _LABEL)]
LabelKey = Annotated[str, AfterValidator(checked_qualified), _text(_QUALIFIED, "kubernetes.io/hostname")]
LabelValue = Annotated[str, AfterValidator(checked_label_value), _text(_LABEL_VALUE)]
Selector = Annotated[dict[str, str], AfterValidator(checked_selector), _mapping({"type": "string", "pattern": _LABEL_VALUE})]
Cpu = Annotated[str, BeforeValidator(_whole_as_text), AfterValidator(checked_cpu), WithJsonSchema(_CPU_SCHEMA)]
Memory = Annotated[str, BeforeValidator(_memory_has_unit), AfterValidator(checked_memory), _text(_MEMORY, "16Gi", "512Mi")]
Resources = Annotated[
    dict[str, str], BeforeValidator(_resources_as_text), AfterValidator(checked_resources), _mapping(_COUNT_SCHEMA)
]
Image = Annotated[str, AfterValidator(checked_image), _text(_IMAGE, "registry.example/team/train@sha256:0123...")]
MountPath = Annotated[str, AfterValidator(checked_mount), _text(_PATH, "/data")]
Env = Annotated[dict[str, str], AfterValidator(checked_env), _mapping({"type": "string"})]
Deadline = Annotated[str, *_duration(low="1s", high="87600h", example="12h")]
Retention = Annotated[str, *_duration(low="0s", high="87600h", example="24h")]
GangTimeout = Annotated[str, *_duration(low="10s", high="168h", example="10m")]
