"""What Kubernetes says about nodes and pods, and what the supervisor is told of it: one row per rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.adapters.kube.names import WORKER_CONTAINER
from orchestrator.adapters.kube.notices import NodeSeen, Notice, Place, PodSeen, node_seen, notices, pod_seen, trimmed_node
from orchestrator.adapters.kube.signs import CONDITIONS, LABELS, TAINTS, Action

SETTLE_S = 4.0
PLACES = tuple(Place(f"ray{i}", f"10.0.0.{i}", False) for i in range(4))


def node(
    name: str = "n1", *, ready: str = "True", taints: tuple[str, ...] = (), conditions: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A Node object."""
    told = [{"type": k, "status": v} for k, v in {"Ready": ready, **(conditions or {})}.items()]
    spec = {"taints": [{"key": k, "effect": "NoSchedule"} for k in taints]}
    return {"metadata": {"name": name}, "spec": spec, "status": {"conditions": told}}


def pod(number: int = 1, *, node: str = "", **status: Any) -> dict[str, Any]:
    """A running pod with the address of PLACES[number], on node n{number}."""
    meta = {"name": f"p{number}", "uid": f"u{number}"}
    seen = {"phase": "Running", "podIP": f"10.0.0.{number}", **status}
    return {"metadata": meta, "spec": {"nodeName": node or f"n{number}"}, "status": seen}


def told(
    *nodes: dict[str, Any],
    absent: str = "",
    unknown: tuple[str, ...] = (),
    pods: tuple[PodSeen, ...] = (),
    places: tuple[Place, ...] = PLACES,
    unready_s: float = 60.0,
) -> tuple[Notice, ...]:
    """Notices about four nodes with a pod each; those given are as given, all others are well, or `absent`, or `unknown`."""
    given = {n["metadata"]["name"]: n for n in nodes}
    everything = [given.get(f"n{i}", node(f"n{i}")) for i in range(4)]
    seen: dict[str, NodeSeen | None] = {n["metadata"]["name"]: node_seen(n) for n in everything}
    seen = {name: node for name, node in seen.items() if name not in unknown} | ({absent: None} if absent else {})
    others = tuple(pod_seen(pod(i)) for i in range(4) if f"10.0.0.{i}" not in {p.address for p in pods})
    since = {n.name: unready_s for n in seen.values() if n is not None and n.ready != "True"}
    return notices(places, (*pods, *others), seen, unready_s=since, settle_s=SETTLE_S)


def one(*nodes: dict[str, Any], **more: Any) -> tuple[str, Action]:
    """The only notice: about which node, and what."""
    (notice,) = told(*nodes, **more)
    return notice.node_id, notice.action


def test_all_is_well() -> None:
    assert told() == ()


@pytest.mark.parametrize(("key", "sign"), TAINTS.items())
def test_taints(key: str, sign: tuple[Action, str]) -> None:
    (notice,) = told(node(taints=(key,)))
    assert (notice.node_id, notice.action) == ("ray1", sign[0])
    assert notice.reason == f"{sign[1]} (taint {key}) [pod p1]"


@pytest.mark.parametrize(("kind", "sign"), CONDITIONS.items())
def test_conditions(kind: str, sign: tuple[str, Action, str]) -> None:
    good = "False" if sign[0] == "True" else "True"
    assert told(node(conditions={kind: good})) == ()
    assert told(node(conditions={kind: "Unknown"})) == (), "what is not known is no evidence"
    assert one(node(conditions={kind: sign[0]})) == ("ray1", sign[1])


@pytest.mark.parametrize("kind", ["GpuMemWatch", "GpuNvlinkWatch", "GpuInforomWatch", "GpuDriverWatch"])
def test_nvsentinels_gpu_watches(kind: str) -> None:
    assert one(node(conditions={kind: "True"})) == ("ray1", Action.DRAIN)
    assert told(node(conditions={kind: "False"})) == ()


def test_labels() -> None:
    for (key, value), (action, _) in LABELS.items():
        labelled = node()
        labelled["metadata"]["labels"] = {key: value}
        assert one(labelled) == ("ray1", action)


@pytest.mark.parametrize(
    "key", ["node.kubernetes.io/unschedulable", "nvidia.com/gpu", "kubernetes.azure.com/scalesetpriority", "dedicated"]
)
def test_a_cordon_and_ordinary_taints_mean_nothing(key: str) -> None:
    assert told(node(taints=(key,))) == ()


def test_a_message_of_a_condition_is_told() -> None:
    bad = node()
    bad["status"]["conditions"].append({"type": "XIDErrors", "status": "True", "message": "Xid 79 on GPU 3"})
    assert "Xid 79 on GPU 3" in told(bad)[0].reason


@pytest.mark.parametrize("ready", ["False", "Unknown"])
@pytest.mark.parametrize(
    ("silent", "unready_s", "want"),
    [(False, 60.0, Action.DRAIN), (True, 60.0, None), (False, SETTLE_S - 0.1, None), (False, SETTLE_S, Action.DRAIN)],
)
def test_unreachable_is_not_failed(ready: str, silent: bool, unready_s: float, want: Action | None) -> None:
    places = tuple(Place(p.node_id, p.address, silent) for p in PLACES)
    taints = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
    found = told(node(ready=ready, taints=taints), places=places, unready_s=unready_s)
    assert [n.action for n in found] == ([want] if want else [])


def test_when_most_nodes_are_not_ready_it_is_the_control_plane_that_cannot_see() -> None:
    away = [node(f"n{i}", ready="Unknown") for i in range(4)]
    assert told(*away) == ()
    assert told(*away[:3]) == ()
    assert len(told(*away[:2])) == 2


def test_a_pod_that_is_being_deleted_is_drained() -> None:
    leaving = pod()
    leaving["metadata"]["deletionTimestamp"] = "2026-11-29T04:00:00Z"
    (notice,) = told(pods=(pod_seen(leaving),))
    assert notice.action is Action.DRAIN
    assert "2026-11-29T04:00:00Z" in notice.reason


ENDED = {"name": WORKER_CONTAINER, "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
            "Evicted: The node was low",
        ),
        ({"phase": "Failed"}, "Failed"),
        ({"phase": "Succeeded"}, "Succeeded"),
        ({"containerStatuses": [ENDED]}, "OOMKilled, exit code 137"),
    ],
)
def test_a_pod_that_has_ended_is_gone(status: dict[str, Any], words: str) -> None:
    (notice,) = told(pods=(pod_seen(pod(**status)),))
    assert notice.action is Action.GONE
    assert words in notice.reason


def test_another_container_that_ended_says_nothing_about_ray() -> None:
    assert told(pods=(pod_seen(pod(containerStatuses=[{**ENDED, "name": "sidecar"}])),)) == ()


def test_a_pod_object_that_was_there_and_is_not_is_gone() -> None:
    assert one(pods=(replace(pod_seen(pod()), gone=True),)) == ("ray1", Action.GONE)


def test_a_pod_that_was_never_seen_is_no_evidence() -> None:
    assert notices(PLACES, (), {}, unready_s={}, settle_s=SETTLE_S) == ()


def test_an_address_that_was_given_to_a_new_pod_is_the_new_pods() -> None:
    old, new = replace(pod_seen(pod()), gone=True), pod_seen(pod())
    assert told(pods=(old, new)) == ()


def test_a_node_that_was_deleted_is_gone() -> None:
    (notice,) = told(absent="n1")
    assert (notice.node_id, notice.action) == ("ray1", Action.GONE)
    assert notice.reason == "node n1 was deleted from the cluster [pod p1]"


def test_of_a_node_that_is_unknown_only_its_pod_tells() -> None:
    assert told(unknown=("n1",)) == ()
    assert told(pods=(pod_seen(pod(node="n9")),)) == ()
    leaving = pod()
    leaving["metadata"]["deletionTimestamp"] = "2026-11-29T04:00:00Z"
    assert one(pods=(pod_seen(leaving),), unknown=("n1",)) == ("ray1", Action.DRAIN)


def test_a_node_that_is_unknown_may_be_one_more_that_is_not_ready() -> None:
    away = [node(f"n{i}", ready="Unknown") for i in range(2)]
    assert len(told(*away)) == 2
    assert told(*away, unknown=("n2",)) == ()


def test_a_node_that_is_being_deleted_is_drained() -> None:
    leaving = node()
    leaving["metadata"]["deletionTimestamp"] = "2026-11-29T04:00:00Z"
    assert one(leaving) == ("ray1", Action.DRAIN)


def test_what_is_trimmed_from_a_node_means_nothing() -> None:
    whole = node(ready="Unknown", taints=("karpenter.sh/disrupted",), conditions={"XIDErrors": "True"})
    whole["metadata"] |= {
        "labels": {"cloud.google.com/active-node-maintenance": "ONGOING"},
        "deletionTimestamp": "2026-11-29T04:00:00Z",
    }
    whole["metadata"] |= {"annotations": {"a": "x"}, "managedFields": [{"manager": "kubelet"}]}
    whole["status"] |= {"images": [{"names": ["i"], "sizeBytes": 1}], "addresses": [{"type": "Hostname", "address": "n1"}]}
    assert node_seen(trimmed_node(whole)) == node_seen(whole)
    assert not {"images", "addresses", "annotations", "managedFields"} & {
        k for part in trimmed_node(whole).values() for k in part
    }
    assert node_seen(trimmed_node({"metadata": {"name": "new"}})) == node_seen({"metadata": {"name": "new"}})


def test_the_strongest_sign_counts() -> None:
    both = node(taints=("DeletionCandidateOfClusterAutoscaler", "karpenter.sh/disrupted", "node.kubernetes.io/out-of-service"))
    assert one(both) == ("ray1", Action.GONE)
    assert one(node(taints=("DeletionCandidateOfClusterAutoscaler", "karpenter.sh/disrupted"))) == ("ray1", Action.DRAIN)
