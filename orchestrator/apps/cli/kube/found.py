"""Which job is meant, and what a cluster must have before a job can run there: kind, namespace, service accounts, operator.

Whatever a person may not look at is left open and never taken for missing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.access import Access
from orchestrator.adapters.kube.refusals import ACCOUNTS_FIX, INSTALL, ForbiddenError, crd_missing
from orchestrator.adapters.kube.resources import ACCOUNTS, LEASES, NAMESPACES, TRAINING_JOBS, Resource
from orchestrator.adapters.kube.seen import JobSeen, job_path, job_seen, seconds
from orchestrator.apps.cli.base import CliError, Code
from orchestrator.apps.units import duration
from orchestrator.runtime.control import NotFoundError

STALE_LEASES = 3  # lease durations without a renewal; clocks differ, and an operator may be changing places


def job_at(access: Access, name: str) -> JobSeen:
    """The job of this name, or the only one when there is no name. Raises ControlError, CliError."""
    if name:
        try:
            return job_seen(access.get(job_path(access.namespace, name)))
        except NotFoundError:
            check_namespace(access, access.namespace)
            raise
    found = jobs_in(access)
    if len(found) == 1:
        return found[0]
    if not found:
        raise CliError(f"there is no job in namespace {access.namespace}; start one with `orchestrator launch`", Code.INPUT)
    known = ", ".join(j.name for j in found)
    raise CliError(f"name the job: namespace {access.namespace} has {known}", Code.INPUT)


def jobs_in(access: Access) -> list[JobSeen]:
    """All jobs of the namespace, by name. Raises ControlError."""
    found = access.get(job_path(access.namespace))["items"]
    if not found:
        check_namespace(access, access.namespace)
    return sorted((job_seen(o) for o in found), key=lambda j: j.name)


def check_kind(access: Access) -> None:
    """Raise NotFoundError where the cluster does not know TrainingJobs."""
    if not serves(access, TRAINING_JOBS):
        raise NotFoundError(crd_missing())


def serves(access: Access, resource: Resource) -> bool:
    """Whether the API server knows a kind of a group."""
    try:
        served = access.get(f"/apis/{resource.group_version}")
    except NotFoundError:
        return False
    return any(entry.get("name") == resource.plural for entry in served.get("resources") or [])


def check_namespace(access: Access, namespace: str) -> bool:
    """Raise NotFoundError where there is no such namespace; False where nobody may say."""
    try:
        access.get(NAMESPACES.path(name=namespace))
    except ForbiddenError:
        return False
    return True


def missing_accounts(access: Access, namespace: str) -> list[str] | None:
    """Service accounts of jobs that a namespace lacks; None where nobody may say."""
    missing = []
    for account in (names.AGENT, names.WORKER_ACCOUNT):
        try:
            access.get(ACCOUNTS.path(namespace=namespace, name=account))
        except NotFoundError:
            missing.append(account)
        except ForbiddenError:
            return None
    return missing


def accounts_words(namespace: str, missing: list[str]) -> str:
    """What to do about them."""
    return f"namespace {namespace} lacks the service account(s) {' and '.join(missing)}; fix: {ACCOUNTS_FIX}"


class Presence(StrEnum):
    """Whether an operator is there."""

    WORKS = "works"
    AWAY = "away"
    HIDDEN = "hidden"  # its lease may not be looked at


@dataclass(frozen=True, slots=True)
class Operator:
    """What its lease says, in words, and what to do."""

    presence: Presence
    words: str
    fix: str = ""


def operator(access: Access) -> Operator:
    """Whether an operator has renewed its lease lately. Raises ControlError where the API server does not answer."""
    place = f"lease {names.OPERATOR} in namespace {names.SYSTEM_NAMESPACE}"
    try:
        found: Any = access.get(LEASES.path(namespace=names.SYSTEM_NAMESPACE, name=names.OPERATOR))
    except NotFoundError:
        return Operator(Presence.AWAY, f"no operator is installed ({place} does not exist)", INSTALL)
    except ForbiddenError:
        return Operator(Presence.HIDDEN, f"you may not read the {place}", "ask who administers the cluster whether it runs")
    spec = found.get("spec") or {}
    look = f"kubectl -n {names.SYSTEM_NAMESPACE} get pods; kubectl -n {names.SYSTEM_NAMESPACE} logs deploy/{names.OPERATOR}"
    if not spec.get("holderIdentity"):
        return Operator(Presence.AWAY, "the operator has stopped and given its lease back", look)
    age_s = time.time() - seconds(spec.get("renewTime"))
    if age_s > STALE_LEASES * float(spec.get("leaseDurationSeconds") or 0):
        return Operator(Presence.AWAY, f"the operator renewed its lease {duration(age_s)} ago and not since", look)
    return Operator(Presence.WORKS, f"{spec['holderIdentity']}, lease renewed {duration(max(0.0, age_s))} ago")
