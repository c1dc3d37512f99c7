"""What an API server refuses, in words: one error per kind, with what is missing and how to put it right.

The classes are kinds of the control API's own errors, so that the command line gives them the same exit codes whether a
supervisor or an API server said no. An API server that does not answer is one of them too, because those who follow a job try
again on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.adapters.kube.names import GROUP, KIND, PLURAL
from orchestrator.runtime.control import (
    BadRequestError,
    ControlError,
    NotFoundError,
    NotPossibleError,
    UnauthenticatedError,
    UnreachableError,
)

INSTALL = "kubectl apply --server-side -k examples/kubernetes/install, after putting in your image"  # CRD, operator, roles
ACCOUNTS_FIX = "kubectl apply --server-side -k manifests/namespace; for another namespace see examples/kubernetes/team-namespace"

_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]*)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)
_UNDECLARED = re.compile(r"(?:^|[:\n])\s*\.(?P<field>[A-Za-z][^:\s]*): (?P<why>[^\n]*not declared in schema[^\n]*)")


class ForbiddenError(ControlError):
    """The API server knows who asks, and does not allow it."""


class GoneError(ControlError):
    """The resourceVersion to go on from is too old: list again."""


class OverloadedError(UnreachableError):
    """The API server answers that it cannot serve at the moment (429, 5xx): trying again helps."""


class QuietError(UnreachableError):
    """A stream brought nothing for as long as one waits for it: it may be broken, or there is nothing to tell."""


class InvalidError(BadRequestError):
    """An object breaks the schema; `causes` are pairs of a field's path (such as `spec.train.steps`) and what is wrong there."""

    def __init__(self, message: str, causes: tuple[tuple[str, str], ...]) -> None:
        super().__init__(message)
        self.causes = causes


class Refused(Protocol):
    """What is needed of a KubeError."""

    status: int
    message: str
    details: Mapping[str, Any]


def refusal(error: Refused, *, what: str, server: str) -> ControlError:
    """The error that an answer means. `what` says what was asked for, `server` is the API server's address."""
    code, said, details = error.status, error.message.strip() or f"HTTP status {error.status}", error.details
    if code == 401:
        return UnauthenticatedError(
            f"the API server at {server} does not accept the credentials; "
            "fix: log in again, or name another context with --context"
        )
    if code == 403:
        return ForbiddenError(_forbidden(said))
    if code == 404:
        return NotFoundError(_not_found(details, said, what=what))
    if code == 409:
        return NotPossibleError(f"{said}; fix: look at what is there now, and try again")
    if code == 410:
        return GoneError(said)
    if undeclared := _UNDECLARED.findall(said):  # Kubernetes 1.20 says 500 to fields that its schema does not have
        return InvalidError(said, tuple(undeclared))
    if code in (400, 413, 415, 422):
        found = details.get("causes") or ()
        return InvalidError(said, tuple((str(c.get("field", "")), str(c.get("message", ""))) for c in found))
    if code == 429 or code >= 500:
        return OverloadedError(f"the API server at {server} cannot serve this at the moment ({code}): {said}")
    return ControlError(f"{what}: the API server at {server} answered {code}: {said}")


def unreachable(error: BaseException, *, server: str, source: str) -> ControlError:
    """The error that no answer means; `source` is where the address came from."""
    text = _deepest(error)
    if "certificate" in text.lower():
        return ControlError(
            f"the API server at {server} is not the one that {source} expects: {text}; fix: take a new kubeconfig of this cluster"
        )
    return UnreachableError(
        f"the API server at {server} ({source}) does not answer: {text};"
        " fix: see that the cluster runs and that this machine reaches it, or name another with --context"
    )


def _deepest(error: BaseException) -> str:
    """The last cause, without urllib3's nesting."""
    for _ in range(8):
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = str(error) or type(error).__name__
    return text.rpartition(">: ")[2].rpartition("): ")[2] or text


def _forbidden(said: str) -> str:
    match = _FORBIDDEN.search(said)
    if match is None:
        return f"{said}; fix: ask who administers the cluster for the right to do that"
    user, verb, resource, namespace = match["user"], match["verb"], match["resource"], match["namespace"]
    full = f"{resource}.{match['group']}" if match["group"] else resource
    account = user.removeprefix("system:serviceaccount:")
    subject = f"--serviceaccount={account}" if account != user else f"--user={user}"
    if not namespace:
        return f"{user} may not {verb} {full} in the whole cluster; fix: ask who administers it for that verb"
    role = "view" if verb in ("get", "list", "watch") else "edit"
    name = re.sub(r"[^a-z0-9-]+", "-", f"{role}-{account}".lower()).strip("-")
    return (
        f"{user} may not {verb} {full} in namespace {namespace}; fix: somebody who may grants it, such as by"
        f" kubectl -n {namespace} create rolebinding {name} --clusterrole={role} {subject}"
    )


def _not_found(details: Mapping[str, Any], said: str, *, what: str) -> str:
    kind, name = details.get("kind", ""), details.get("name", "")
    if kind == "namespaces":
        fix = "make it as examples/kubernetes/team-namespace does, or name another with --namespace"
        return f"there is no namespace {name}; fix: {fix}"
    if kind == PLURAL and name:
        return (
            f"there is no {KIND} {name} here; `orchestrator list --on kubernetes` shows those of the namespace,"
            " --namespace names another one"
        )
    if not name and GROUP in what:  # the path itself is unknown
        return crd_missing()
    return said


def crd_missing() -> str:
    """What to do in a cluster that does not know the kind."""
    return f"the cluster does not know the kind {KIND}; fix: {INSTALL}"
