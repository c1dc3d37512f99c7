"""Objects of the API server read into the few facts that decisions are made of.

Parsed once, here: a pod is gone, going, finished or alive; a node answers or does not. Times are datetimes in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import Object

FINISHED = ("Succeeded", "Failed")
WORDS_CHARS_MAX = 300
KUEUE_MANAGED = "kueue.x-k8s.io/managed"  # label and finalizer of pods that Kueue manages; its webhook sets both
KUEUE_GROUP = "kueue.x-k8s.io/pod-group-name"  # label of pods that it admits together


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """One pod of a job."""

    name: str
    uid: str
    role: str
    ordinal: int
    incarnation: int
    failures: int  # pods before it in its place, in a row, that ended soon after their start
    phase: str
    node: str  # empty until it is scheduled
    created: datetime
    deleting_since: datetime | None  # when it was asked to go; None: it was not
    gone_by: datetime | None  # when its kubelet kills it, of a pod that was asked to go
    finished_at: datetime | None  # last end of a container, of a pod that is finished
    ready: bool
    serving: bool  # ready, or only its agent is not
    by_kueue: bool  # Kueue manages it, as one of a group
    trouble: str  # why it is not scheduled, or does not start; empty where nothing is wrong
    end: str  # how it ended, where it did

    @property
    def finished(self) -> bool:
        """Its containers have ended and are not started again."""
        return self.phase in FINISHED

    @property
    def terminating(self) -> bool:
        """It was asked to go."""
        return self.deleting_since is not None

    @property
    def live(self) -> bool:
        """It works or is about to."""
        return not self.finished and not self.terminating

    @property
    def scheduled(self) -> bool:
        """It has a node."""
        return bool(self.node)

    @property
    def by_kuberay(self) -> bool:
        """KubeRay made it, which does not count incarnations; ours begin with 1."""
        return self.incarnation == 0


def moment(text: str | None) -> datetime | None:
    """A time as Kubernetes writes it, None for none."""
    return None if not text else datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def pod_facts(pod: Object) -> PodFacts:
    """The facts of a pod that carries the labels of a job."""
    meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    labels = meta.get("labels") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    created = moment(meta["creationTimestamp"])
    assert created is not None, "an object of the API server was created"
    ends = [
        moment(s["state"]["terminated"].get("finishedAt")) for s in _containers(status) if "terminated" in (s.get("state") or {})
    ]
    placed = conditions.get("PodScheduled", {})
    grace_s = int(meta.get("deletionGracePeriodSeconds") or 0)
    going = moment(meta.get("deletionTimestamp"))  # the API server writes when the grace ends
    return PodFacts(
        name=meta["name"],
        uid=meta["uid"],
        role=labels.get(names.LABEL_ROLE, ""),
        ordinal=_number(labels.get(names.LABEL_ORDINAL)),
        incarnation=_number(labels.get(names.LABEL_INCARNATION)),
        failures=_number((meta.get("annotations") or {}).get(names.NOTE_FAILURES)),
        phase=status.get("phase") or "Pending",
        node=spec.get("nodeName") or "",
        created=created,
        deleting_since=None if going is None else going - timedelta(seconds=grace_s),
        gone_by=going,
        finished_at=max((end for end in ends if end), default=None),
        ready=_is(conditions, "Ready", "True"),
        serving=_is(conditions, "Ready", "True") or (_is(conditions, "ContainersReady", "False") and _head_ready(status)),
        by_kueue=labels.get(KUEUE_MANAGED) == "true" and KUEUE_GROUP in labels,
        trouble=_trouble(status, placed),
        end=_end(status),
    )


def node_ready(node: Object | None) -> bool:
    """Whether a node answers: it exists and its kubelet says that it is ready."""
    conditions = ((node or {}).get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def conditions_of(obj: Object) -> Mapping[str, Object]:
    """type -> condition."""
    return {c["type"]: c for c in (obj.get("status") or {}).get("conditions") or []}


def owned_by(obj: Object, uid: str) -> bool:
    """Whether the object with this uid owns it."""
    return any(owner.get("uid") == uid for owner in obj["metadata"].get("ownerReferences") or [])


def made_by(obj: Object, kind: str, name: str) -> bool:
    """Whether an object of this kind and name owns it, or did until it was deleted."""
    owners = obj["metadata"].get("ownerReferences") or []
    return any((owner.get("kind"), owner.get("name")) == (kind, name) for owner in owners)


def phase_managers(obj: Object) -> frozenset[str]:
    """The field managers that say what `.status.phase` is; several where they say the same."""
    return frozenset(
        str(entry.get("manager", ""))
        for entry in obj["metadata"].get("managedFields") or []
        if "f:phase" in ((entry.get("fieldsV1") or {}).get("f:status") or {})
    )


def _is(conditions: Mapping[str, Object], kind: str, value: str) -> bool:
    return bool(conditions.get(kind, {}).get("status") == value)


def _head_ready(status: Object) -> bool:
    """Whether Ray's head and the supervisor are well, as the kubelet says; of a lost node's pod `Ready` alone changes."""
    return any(c.get("name") == names.HEAD_CONTAINER and c.get("ready") for c in status.get("containerStatuses") or [])


def _containers(status: Object) -> list[Object]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _trouble(status: Object, placed: Object) -> str:
    if placed.get("status") == "False":
        return f"{placed.get('reason') or 'Unschedulable'}: {placed.get('message') or 'no place yet'}"
    for container in _containers(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            crashes = reason == "CrashLoopBackOff"  # which by itself says nothing about why
            last = (container.get("lastState") or {}).get("terminated") if crashes else None
            why = _ended(container["name"], last) if last else waiting.get("message") or ""
            return f"{container['name']}: {reason}" + (f": {why}" if why else "")
    return ""


def _end(status: Object) -> str:
    if status.get("reason"):  # Evicted, NodeLost, ...
        return f"{status['reason']}" + (f": {status['message']}" if status.get("message") else "")
    for container in _containers(status):
        ended = (container.get("state") or {}).get("terminated")
        if ended:
            return _ended(container["name"], ended)
    return ""


def _ended(name: str, ended: Object) -> str:
    """With the last line that it said: its log goes with the pod."""
    code, reason = ended.get("exitCode"), ended.get("reason")
    words = next((line.strip() for line in reversed((ended.get("message") or "").splitlines()) if line.strip()), "")
    return f"{name} ended with {code}" + (f" ({reason})" if reason else "") + (f": {words[:WORDS_CHARS_MAX]}" if words else "")


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
