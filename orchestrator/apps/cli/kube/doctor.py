"""What `doctor --on kubernetes` looks at: API server, kind, operator, namespace, rights, neighbours, storage.

Every check is one or a few short questions, changes nothing and ends as a Check; what may not be looked at is a warning that says
so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.access import Access, Options, connect
from orchestrator.adapters.kube.refusals import ACCOUNTS_FIX, ForbiddenError, crd_missing
from orchestrator.adapters.kube.resources import (
    BUDGETS,
    BUDGETS_BETA,
    CRDS,
    KUEUE_GROUP,
    OWN_RIGHTS,
    POD_GROUPS,
    RAY_CLUSTERS,
    STORAGE_CLASSES,
    TRAINING_JOBS,
)
from orchestrator.apps.cli.kube.found import Presence, check_namespace, missing_accounts, operator, serves
from orchestrator.apps.cli.measure import Check, Level
from orchestrator.runtime.control import ControlError, NotFoundError, UnreachableError

OLDEST = (1, 20)
CRD_FIX = "kubectl apply --server-side -k manifests/crd"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
CHANGING = frozenset({"create", "patch", "delete"})
RIGHTS = (  # what the commands do in the namespace: group, resource, verbs, and which commands fail without
    (names.GROUP, names.PLURAL, ("get", "list", "watch"), "status, logs, events"),
    (names.GROUP, names.PLURAL, ("create", "patch", "delete"), "launch, scale, suspend, down"),
    ("", "events", ("list", "watch"), "events"),
    ("", "pods", ("list", "watch"), "logs, down"),
    ("", "pods/log", ("get",), "logs"),
)


def everything(there: Options) -> list[Check]:
    """All checks of a cluster. Raises ControlError where there is no way to one."""
    access = connect(there)
    first = _version(access)
    if first.level is Level.FAIL:
        return [first]
    looks: tuple[tuple[str, Callable[[Access], Iterable[Check]]], ...] = (
        ("CRD", _kind),
        ("operator", _operator),
        ("namespace", _namespace),
        ("rights", _rights),
        ("neighbours", _neighbours),
        ("storage class", _storage),
    )
    return [first, *(check for name, look in looks for check in _asked(name, look, access))]


def _asked(name: str, look: Callable[[Access], Iterable[Check]], access: Access) -> list[Check]:
    """The checks, or one that says why they could not be made."""
    try:
        return list(look(access))
    except ForbiddenError as error:
        return [Check(name, Level.WARN, "cannot be looked at", str(error))]
    except ControlError as error:
        return [Check(name, Level.FAIL, "no answer", str(error))]


def _version(access: Access) -> Check:
    try:
        found = access.get("/version")
    except UnreachableError as error:
        return Check("API server", Level.FAIL, f"{access.server} does not answer", str(error))
    except ControlError as error:
        return Check("API server", Level.FAIL, f"{access.server} refuses", str(error))
    text = str(found.get("gitVersion", "?"))
    version = tuple(int(m[0]) if (m := re.match(r"\d+", str(found.get(key, "")))) else 0 for key in ("major", "minor"))
    value = f"{text} at {access.server}, by {access.source}"
    if version < OLDEST:
        return Check("API server", Level.FAIL, value, f"jobs need Kubernetes {'.'.join(map(str, OLDEST))} or newer")
    return Check("API server", Level.OK, value)


def _kind(access: Access) -> list[Check]:
    if not serves(access, TRAINING_JOBS):
        return [Check("CRD", Level.FAIL, f"the kind {names.KIND} is unknown", crd_missing())]
    from orchestrator.spec.crd import definition

    name = f"{names.PLURAL}.{names.GROUP}"
    try:
        found = access.get(CRDS.path(name=name))
    except ForbiddenError:
        fix = "ask who administers the cluster to run this check, if jobs are refused that this program takes"
        return [Check("CRD", Level.WARN, f"{TRAINING_JOBS.group_version} is served; you may not compare its schema", fix)]
    ours, theirs = _schema(definition()), _schema(found)
    if ours == theirs:
        return [Check("CRD", Level.OK, f"{TRAINING_JOBS.group_version} is served, schema as in this program")]
    where = _first_difference(ours, theirs)
    return [Check("CRD", Level.FAIL, f"{TRAINING_JOBS.group_version} is served, with another schema ({where})", CRD_FIX)]


def _schema(definition: Any) -> Any:
    versions = definition["spec"]["versions"]
    return next((v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == names.VERSION), {})


def _first_difference(ours: Any, theirs: Any, path: str = "") -> str:
    """Where two schemas part, such as `spec.train.steps.maximum`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                inside = path if key == "properties" else f"{path}.{key}".lstrip(".")
                return _first_difference(ours.get(key), theirs.get(key), inside)
    return path


def _operator(access: Access) -> list[Check]:
    found = operator(access)
    level = {Presence.WORKS: Level.OK, Presence.AWAY: Level.FAIL, Presence.HIDDEN: Level.WARN}[found.presence]
    return [Check("operator", level, found.words, found.fix)]


def _namespace(access: Access) -> list[Check]:
    name = access.namespace
    try:
        visible = check_namespace(access, name)
    except NotFoundError as error:
        return [Check("namespace", Level.FAIL, f"{name} does not exist", str(error))]
    first = Check("namespace", Level.OK, name if visible else f"{name} (you may not look whether it exists)")
    missing = missing_accounts(access, name)
    if missing is None:
        hidden = "ask who administers the namespace, if pods are not made"
        return [first, Check("service accounts", Level.WARN, f"you may not look at those of {name}", hidden)]
    if missing:
        return [first, Check("service accounts", Level.FAIL, f"{name} lacks {' and '.join(missing)}", ACCOUNTS_FIX)]
    return [first, Check("service accounts", Level.OK, f"{names.AGENT}, {names.WORKER_ACCOUNT}")]


def _rights(access: Access) -> list[Check]:
    """By a SelfSubjectAccessReview for each verb that the commands use."""
    lacking, hurt, level = [], [], Level.WARN  # who only looks on is well with the rights to look
    for group, resource, verbs, commands in RIGHTS:
        plural, _, sub = resource.partition("/")
        missing = []
        for verb in verbs:
            asked = {"namespace": access.namespace, "group": group, "resource": plural, "subresource": sub, "verb": verb}
            body = {"apiVersion": OWN_RIGHTS.group_version, "kind": OWN_RIGHTS.kind, "spec": {"resourceAttributes": asked}}
            if not access.call("POST", OWN_RIGHTS.path(), body=body)["status"].get("allowed"):
                missing.append(verb)
        if missing:
            lacking.append(f"{'/'.join(missing)} {resource}")
            hurt.append(commands)
            level = level if CHANGING.issuperset(missing) else Level.FAIL
    if not lacking:
        return [Check("rights", Level.OK, f"all that the commands need in namespace {access.namespace}")]
    fix = (
        f"without it these do not work: {', '.join(dict.fromkeys(', '.join(hurt).split(', ')))}; somebody who may gives you a"
        f" RoleBinding to the ClusterRole `edit` (to look only: `view`) in namespace {access.namespace}"
    )
    return [Check("rights", level, f"you may not {', '.join(lacking)}", fix)]


def _neighbours(access: Access) -> list[Check]:
    groups = {g["name"]: [v["version"] for v in g["versions"]] for g in access.get("/apis")["groups"]}
    checks = []
    for name, group, use in (
        ("KubeRay", RAY_CLUSTERS.group_version.partition("/")[0], "backend kuberay"),
        ("Kueue", KUEUE_GROUP, "queue"),
        ("Volcano", POD_GROUPS.group_version.partition("/")[0], "scheduler volcano"),
    ):
        versions = groups.get(group)
        value = f"{group} {', '.join(versions)}" if versions else f"not installed, so no `{use}`"
        checks.append(Check(name, Level.OK, value))
    served = next((b.group_version for b in (BUDGETS, BUDGETS_BETA) if serves(access, b)), "")
    if served:
        return [*checks, Check("disruption budgets", Level.OK, served)]
    fix = "upgrade the cluster, or serve policy/v1: without it a drain may evict several pods of a job at once"
    return [*checks, Check("disruption budgets", Level.FAIL, "not served", fix)]


def _storage(access: Access) -> list[Check]:
    found = access.get(STORAGE_CLASSES.path())["items"]
    default = [str(c["metadata"]["name"]) for c in found if (c["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true"]
    if default:
        return [Check("storage class", Level.OK, f"default {', '.join(default)}")]
    known = ", ".join(sorted(str(c["metadata"]["name"]) for c in found)) or "none at all"
    fix = "name one in each job at kubernetes.head.storageClass, or make one the default: the head keeps its journal on a volume"
    return [Check("storage class", Level.WARN, f"no default among {known}", fix)]
