"""From what Kubernetes says about nodes and pods to what the supervisor is told: pure, so that every rule is a row in a test.

A notice drains a Ray node whose machine or pod is about to go, or tells that one is gone, on positive evidence only. Unreachable
is not failed: a node that is NotReady, whose workers still beat, is drained; one whose workers are silent is left to the
supervisor's own ladder. When most of a job's nodes are NotReady at once it is the control plane that was away, and nothing is
done at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.signs import LABELS, Action, condition_sign, taint_sign

_STRONGEST_FIRST: Final = (Action.GONE, Action.DRAIN, Action.NOTE)
_OVER: Final = ("Failed", "Succeeded")


@dataclass(frozen=True, slots=True)
class Place:
    """A living Ray node of the job, as the supervisor sees it."""

    node_id: str
    address: str  # the IP of its pod
    silent: bool  # there are workers on it, and none of them is heard of


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A pod of the job."""

    name: str
    uid: str
    address: str  # "" before it has one
    node: str  # name of the Node, "" before it is scheduled
    leaving: str  # when it has to go; "" while it may stay
    over: str  # how it ended; "" while it has not
    gone: bool = False  # the object was there, and is not any more


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A Node object."""

    name: str
    ready: str  # status of its Ready condition: True, False or Unknown
    leaving: bool  # it has a deletion timestamp
    signs: tuple[tuple[Action, str], ...]  # of its taints, conditions and labels


@dataclass(frozen=True, slots=True)
class Notice:
    """What the supervisor is to be told about one Ray node, and why."""

    node_id: str
    action: Action
    reason: str


def pod_seen(pod: Mapping[str, Any]) -> PodSeen:
    """Read a Pod object that is there."""
    meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    return PodSeen(
        name=meta["name"],
        uid=meta.get("uid", ""),
        address=status.get("podIP") or "",
        node=spec.get("nodeName") or "",
        leaving=meta.get("deletionTimestamp") or "",
        over=_how_it_ended(status),
    )


def node_seen(node: Mapping[str, Any]) -> NodeSeen:
    """Read a Node object."""
    meta, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    signs: list[tuple[Action, str]] = []
    for taint in spec.get("taints") or ():
        if found := taint_sign(taint["key"]):
            signs.append((found[0], f"{found[1]} (taint {taint['key']})"))
    for kind, condition in conditions.items():
        if found := condition_sign(kind, condition.get("status", "")):
            said = condition.get("message") or condition.get("reason") or ""
            signs.append((found[0], f"{found[1]} (condition {kind}{f': {said}' if said else ''})"))
    for key, value in (meta.get("labels") or {}).items():
        if sign := LABELS.get((key, value)):
            signs.append((sign[0], f"{sign[1]} (label {key}={value})"))
    ready = conditions.get("Ready", {}).get("status", "Unknown")
    return NodeSeen(meta["name"], ready, bool(meta.get("deletionTimestamp")), tuple(signs))


def trimmed_node(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A Node object without what `node_seen` does not read: its images and addresses are most of it."""
    meta, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    kept = {key: meta[key] for key in ("name", "labels", "deletionTimestamp") if key in meta}
    return {"metadata": kept, "spec": {"taints": spec.get("taints")}, "status": {"conditions": status.get("conditions")}}


def notices(
    places: Sequence[Place],
    pods: Sequence[PodSeen],
    nodes: Mapping[str, NodeSeen | None],
    *,
    unready_s: Mapping[str, float],
    settle_s: float,
) -> tuple[Notice, ...]:
    """The strongest notice about each Ray node, in the order of `places`; none where all is well.

    `pods`: those that there are, and those that were there. `nodes`: Nodes by name; None is one that is not there, of one that is
    missing nothing is known. `unready_s`: since when a Node that is not Ready has been so, as far as we saw; it counts from
    `settle_s` on, because a control plane that was away finds every node NotReady until the kubelets have spoken again.
    """
    absent = {name for name, node in nodes.items() if node is None}
    homes = {p.node for p in pods if p.node and not p.gone and not p.over} - absent
    unready = {name for name in homes if (node := nodes.get(name)) is None or node.ready != "True"}
    believed = len(unready) * 2 <= len(homes) or len(homes) == 1  # else it is the control plane that cannot see
    at = _by_address(pods)
    out = []
    for place in places:
        pod = at.get(place.address)
        if pod is None:
            continue  # no pod that we ever saw: a cluster of another kind, or one that begins
        node = nodes.get(pod.node)
        signs = list(_of_pod(pod))
        if node is not None:
            signs += _of_node(node)
        elif pod.node in absent:
            signs += _without_node(pod)
        if (
            node is not None
            and node.name in unready
            and believed
            and unready_s.get(node.name, 0.0) >= settle_s
            and not place.silent
        ):
            signs.append(
                (Action.DRAIN, f"node {node.name} is not Ready ({node.ready}), and the workers on it are still heard of")
            )
        found = min(signs, key=lambda s: _STRONGEST_FIRST.index(s[0]), default=None)
        if found is not None:
            out.append(Notice(place.node_id, found[0], f"{found[1]} [pod {pod.name}]"))
    return tuple(out)


def _of_pod(pod: PodSeen) -> Iterator[tuple[Action, str]]:
    if pod.gone:
        yield Action.GONE, f"its pod is gone{f', after it ended: {pod.over}' if pod.over else ''}"
    elif pod.over:
        yield Action.GONE, f"its pod has ended: {pod.over}"
    elif pod.leaving:
        yield Action.DRAIN, f"its pod is being deleted, and has to be gone at {pod.leaving}"


def _of_node(node: NodeSeen) -> Iterator[tuple[Action, str]]:
    yield from node.signs
    if node.leaving:
        yield Action.DRAIN, f"node {node.name} is being deleted"


def _without_node(pod: PodSeen) -> Iterator[tuple[Action, str]]:
    if not pod.gone:
        yield Action.GONE, f"node {pod.node} was deleted from the cluster"


def _by_address(pods: Sequence[PodSeen]) -> dict[str, PodSeen]:
    """Of all pods that have or had an IP, the one that has it now: an IP is given away again when its pod has ended."""
    found: dict[str, PodSeen] = {}
    for pod in sorted(pods, key=lambda p: (p.gone, bool(p.over))):
        found.setdefault(pod.address, pod)
    return found


def _how_it_ended(status: Mapping[str, Any]) -> str:
    """ "Evicted: ...", "OOMKilled", "exit code 137"; empty while the node's container runs or has not begun."""
    for container in status.get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if container.get("name") == names.WORKER_CONTAINER and ended:
            reason = ended.get("reason") or "ended"
            return f"{reason}, exit code {ended.get('exitCode', '?')}"
    if status.get("phase") in _OVER:
        return ": ".join(w for w in (status.get("reason") or status["phase"], status.get("message") or "") if w)
    return ""
