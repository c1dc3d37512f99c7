"""Carries a turn's decision out: its actions one after another, then the status.

A refusal of the API server ends the turn, but not before the status says it, so that `kubectl describe` shows what is in the way.
Each action is asked for only while this operator is still the one that may act.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeApi, KubeError, Object
from orchestrator.adapters.kube.events import event
from orchestrator.adapters.kube.objects.support import token_secret
from orchestrator.adapters.kube.resources import EVENTS, PODS, RAY_CLUSTERS, SECRETS, TRAINING_JOBS
from orchestrator.apps.operator.actions import (
    Action,
    Apply,
    Create,
    Decision,
    Delete,
    DeleteJob,
    DropTokens,
    MakeTokens,
    Say,
    SetFinalizers,
)

log = logging.getLogger(__name__)


class NotLeaderError(Exception):
    """Another operator may act by now."""


def carry_out(
    api: KubeApi,
    obj: Object,
    decision: Decision,
    *,
    now: datetime,
    may: Callable[[], bool],
    made: Callable[[Object], None],
) -> None:
    """Do it, and tell `made` each new pod. Raises KubeError (some of it may be done), NotLeaderError."""
    meta, draft = obj["metadata"], decision.draft
    refusal: KubeError | None = None
    for action in decision.actions:
        if not may():
            raise NotLeaderError
        try:
            _do(api, obj, action, now)
            if isinstance(action, Create) and action.resource is PODS:
                made(action.obj)
        except KubeError as error:
            if isinstance(action, Say) and _for_good(error):
                log.warning("%s/%s: the Event %s cannot be made: %s", meta["namespace"], meta["name"], action.reason, error)
                continue  # the job does not depend on it
            if draft is None or not isinstance(action, MakeTokens | Create | Apply) or not _for_good(error):
                raise
            if action.resource is RAY_CLUSTERS:
                draft.keep_settings()  # KubeRay has not got the new ones, and is asked again
            draft.refused(what=f"{action.resource.kind} {action.name}", reason=error.reason, message=error.message)
            refusal = error
            break
    if draft is not None and draft.differs(obj):
        if not may():
            raise NotLeaderError
        content = draft.content()
        # Of the phase the agent may know better since we looked, and a last word of its own it says only once.
        unchanged = ("resourceVersion",) if "phase" in content else ()
        told = {key: meta[key] for key in ("name", "namespace", "uid", *unchanged)}
        api.apply(TRAINING_JOBS, {"metadata": told, "status": content}, manager=names.OPERATOR, subresource="status")
    if refusal is not None:
        raise refusal


def _do(api: KubeApi, obj: Object, action: Action, now: datetime) -> None:
    meta = obj["metadata"]
    name, namespace = meta["name"], meta["namespace"]
    match action:
        case SetFinalizers(finalizers):
            patch = {"metadata": {"finalizers": list(finalizers), "resourceVersion": meta["resourceVersion"]}}
            changed = api.merge(TRAINING_JOBS, name, patch, namespace=namespace)
            meta["resourceVersion"] = changed["metadata"]["resourceVersion"]
        case MakeTokens(target):
            api.create(action.resource, token_secret(target))  # where it is there already it stays: running pods hold its tokens
        case DropTokens():
            api.delete(SECRETS, names.token_secret(name), namespace=namespace)
        case Create(resource, made):
            if not api.create(resource, made):
                words = "an object of this name is there already; it is waited for if it is on its way out, else remove it"
                raise KubeError(status=409, reason="AlreadyExists", message=words)
            log.info("%s/%s: %s %s is made", namespace, name, resource.kind, action.name)
        case Apply(resource, made):
            api.apply(resource, made, manager=names.OPERATOR)
            log.info("%s/%s: %s %s is applied", namespace, name, resource.kind, action.name)
        case Delete():
            grace_s = 0 if action.force else None
            if api.delete(action.resource, action.name, namespace=namespace, uid=action.uid, grace_s=grace_s):
                log.info("%s/%s: %s %s is asked to go", namespace, name, action.resource.kind, action.name)
        case DeleteJob():
            log.info("%s/%s: kept as long as it asked for after its end", namespace, name)
            api.delete(TRAINING_JOBS, name, namespace=namespace, uid=meta["uid"])
        case Say():
            about = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta}
            said = event(
                about, reason=action.reason, message=action.message, warning=action.warning, component=names.OPERATOR, now=now
            )
            if api.create(EVENTS, said):  # else it was said before
                level = logging.WARNING if action.warning else logging.INFO
                log.log(level, "%s/%s: %s: %s", namespace, name, action.reason, action.message)


def _for_good(error: KubeError) -> bool:
    """Whether the API server has refused, rather than not answered or been busy."""
    return 400 <= error.status < 500 and error.status != 429
