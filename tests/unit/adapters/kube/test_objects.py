"""What a job's objects say, where others rely on it: addresses, tokens, limits, places, and the same pods by way of KubeRay."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.gang import pod_group
from orchestrator.adapters.kube.kuberay import ray_cluster
from orchestrator.adapters.kube.objects import pods, support
from orchestrator.adapters.kube.objects.common import Target, pod_limits
from orchestrator.adapters.kube.resources import BUDGETS, BUDGETS_BETA
from orchestrator.spec.training_job import from_training_job, training_job
from tests.world.jobs import document

Object = dict[str, Any]


IN_FULL = {
    (made["kind"], made["metadata"]["name"]): made
    for made in yaml.safe_load_all(Path(__file__).with_name("objects.yaml").read_text(encoding="utf-8"))
}
EVERY_KEY = Path(__file__).resolve().parents[2] / "spec" / "good" / "kubernetes.yaml"


def every_key() -> Target:
    """The job of the file that has every key of the section."""
    job, spec, _ = from_training_job(training_job(EVERY_KEY.read_text(encoding="utf-8")))
    return Target(job=job, kubernetes=spec, namespace="n", uid="u")


def target(*, kubernetes: Object | None = None, **settings: Any) -> Target:
    """A job `j` of four nodes and a spare."""
    made = training_job(json.dumps({**document("j", **settings), "kubernetes": {"image": "x:1", **(kubernetes or {})}}))
    job, spec, _ = from_training_job(made)
    return Target(job=job, kubernetes=spec, namespace="n", uid="u")


def test_the_tokens_have_the_form_that_the_control_api_takes_and_differ() -> None:
    first, second = (support.token_secret(target())["stringData"] for _ in range(2))
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in (*first.values(), *second.values()))
    assert len({*first.values(), *second.values()}) == 4


def test_only_the_agent_can_speak_to_the_api_server() -> None:
    spec = pods.head_pod(target(), incarnation=1)["spec"]
    assert spec["automountServiceAccountToken"] is False
    seeing = [c["name"] for c in spec["containers"] if any(m["mountPath"] == pods.API_TOKEN_PATH for m in c["volumeMounts"])]
    assert seeing == [names.AGENT_CONTAINER]
    worker = pods.training_pod(target(), role=names.WORKER, ordinal=0, incarnation=1)["spec"]
    assert worker["automountServiceAccountToken"] is False
    assert not any("projected" in volume for volume in worker["volumes"])


def test_the_head_is_found_before_it_is_ready() -> None:
    service = support.head_service(target())["spec"]
    assert service["publishNotReadyAddresses"] is True
    assert {p["port"] for p in service["ports"]} == {names.GCS_PORT, names.CONTROL_PORT}
    assert pods.head_pod(target(), incarnation=1)["spec"]["enableServiceLinks"] is True


def test_a_pod_on_a_lost_node_is_evicted_after_twice_the_time_to_detect() -> None:
    job = target(detect_within="4s", kubernetes={"worker": {"tolerations": [{"key": "x", "operator": "Exists"}]}})
    tolerations = pods.training_pod_spec(job, role=names.WORKER)["tolerations"]
    found = {t["key"].rpartition("/")[2]: t.get("tolerationSeconds") for t in tolerations}
    assert found == {"not-ready": 8, "unreachable": 8, "x": None}


def test_a_pod_has_the_time_to_hand_its_shard_over() -> None:
    job = target(detect_within="4s")
    spec = pods.training_pod_spec(job, role=names.WORKER)
    assert spec["terminationGracePeriodSeconds"] == pod_limits(job.job).worker_grace_s == 140
    env = {e["name"]: e.get("value") for e in spec["containers"][0]["env"]}
    assert env[names.ENV_GRACE_S] == "140"


def test_every_key_of_the_section_arrives_in_the_objects() -> None:
    job = every_key()
    built = [
        support.head_claim(job),
        support.head_service(job, incarnation=3),
        support.pods_service(job),
        support.disruption_budget(job, BUDGETS),
        pod_group(job),
        pods.head_pod(job, incarnation=3, failures=2),
        pods.training_pod(job, role=names.WORKER, ordinal=1, incarnation=4, failures=1),
    ]
    for made in built:
        assert made == IN_FULL[made["kind"], made["metadata"]["name"]]
    assert len(built) == len(IN_FULL)


def test_a_spare_is_a_worker_with_its_own_priority_that_would_rather_be_elsewhere() -> None:
    want = copy.deepcopy(IN_FULL["Pod", "on-kubernetes-worker-1-4"])
    name = "on-kubernetes-spare-0-1"
    want["metadata"]["name"] = want["spec"]["hostname"] = name
    del want["metadata"]["annotations"]["orchestrator.dev/failures"]
    want["metadata"]["labels"] |= {
        "orchestrator.dev/role": "spare",
        "orchestrator.dev/ordinal": "0",
        "orchestrator.dev/incarnation": "1",
    }
    want["spec"]["priorityClassName"] = "spares"
    workers = {"matchLabels": {"orchestrator.dev/job": "on-kubernetes", "orchestrator.dev/role": "worker"}}
    term = {"labelSelector": workers, "topologyKey": "topology.kubernetes.io/zone"}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    want["spec"]["affinity"] = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    assert pods.training_pod(every_key(), role=names.SPARE, ordinal=0, incarnation=1) == want


def test_a_spare_without_a_priority_class_of_its_own_has_the_workers() -> None:
    job = target(kubernetes={"worker": {"priorityClass": "training"}})
    assert pods.training_pod_spec(job, role=names.SPARE)["priorityClassName"] == "training"


def test_pods_are_spread_over_hosts_also_where_they_are_spread_over_zones() -> None:
    for asked, keys in (
        ({}, ["kubernetes.io/hostname"]),
        ({"topologyKey": "kubernetes.io/hostname"}, ["kubernetes.io/hostname"]),
        ({"topologyKey": "zone"}, ["zone", "kubernetes.io/hostname"]),
    ):
        job = target(kubernetes=asked)
        for role in (names.WORKER, names.SPARE):
            spread = pods.training_pod_spec(job, role=role)["topologySpreadConstraints"]
            assert [one["topologyKey"] for one in spread] == keys
        assert "affinity" not in pods.training_pod_spec(job, role=names.WORKER)


def test_the_budget_lets_one_training_pod_go_in_the_version_that_is_served() -> None:
    for resource in (BUDGETS, BUDGETS_BETA):
        made = support.disruption_budget(target(), resource)
        assert (made["apiVersion"], made["spec"]["minAvailable"]) == (resource.group_version, 4)


def test_gpus_are_asked_for_where_the_job_trains_on_them() -> None:
    made = target()
    assert "limits" not in pods.training_pod_spec(made, role=names.WORKER)["containers"][0]["resources"]
    asked = training_job(json.dumps({**document("j"), "kubernetes": {"image": "x:1"}}))
    asked["spec"]["cluster"] |= {"device": "cuda", "slots_per_node": 8}
    job, spec, _ = from_training_job(asked)
    gpu = Target(job=job, kubernetes=spec, namespace="n", uid="u")
    assert pods.training_pod_spec(gpu, role=names.WORKER)["containers"][0]["resources"]["limits"] == {pods.GPU: "8"}


def test_kueue_and_volcano_are_told_of_the_group() -> None:
    kueue = pods.training_pod(target(kubernetes={"queue": "q"}), role=names.WORKER, ordinal=0, incarnation=1)["metadata"]
    assert kueue["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    assert kueue["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "6"
    volcano = target(kubernetes={"scheduler": "volcano"})
    pod = pods.training_pod(volcano, role=names.WORKER, ordinal=0, incarnation=1)
    assert pod["spec"]["schedulerName"] == "volcano"
    assert pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == pod_group(volcano)["metadata"]["name"]
    assert pod_group(volcano)["spec"]["minMember"] == 5


def unadapted(spec: dict[str, Any]) -> dict[str, Any]:
    """A pod of KubeRay's without what is there because of KubeRay."""
    ray, *others = spec["containers"]
    own = {key: value for key, value in ray.items() if key != "livenessProbe"}
    own["env"] = [entry for entry in ray["env"] if not entry["name"].startswith("RAY_")]
    return {**spec, "containers": [own, *others]}


def test_kuberay_is_left_nothing_to_add_that_would_end_our_pods() -> None:
    spec = ray_cluster(target(kubernetes={"env": {"RAY_AUTH_MODE": "mine"}}))["spec"]
    groups = {names.HEAD: spec["headGroupSpec"], **{g["groupName"]: g for g in spec["workerGroupSpecs"]}}
    ports = {names.HEAD: names.GCS_PORT, names.WORKER: names.NODE_MANAGER_PORT, names.SPARE: names.NODE_MANAGER_PORT}
    for role, group in groups.items():
        ray = group["template"]["spec"]["containers"][0]
        assert ray["livenessProbe"]["tcpSocket"] == {"port": ports[role]}  # else one that asks Ray's dashboard, which is off
        assert "readinessProbe" in ray
        told = {entry["name"]: entry.get("value") for entry in ray["env"]}
        assert len(told) == len(ray["env"])  # server-side apply takes no name twice
        assert told["RAY_AUTH_MODE"] == "token"  # of the container that waits for the head, which has this one's environment
        assert told["RAY_AUTH_TOKEN_PATH"] == f"{names.TOKEN_PATH}/{names.RAY_TOKEN}"


def test_kuberay_makes_the_same_pods() -> None:
    job = target()
    spec = ray_cluster(job)["spec"]
    assert unadapted(spec["headGroupSpec"]["template"]["spec"]) == pods.head_pod(job, incarnation=1)["spec"]
    assert [(g["groupName"], g["replicas"]) for g in spec["workerGroupSpecs"]] == [(names.WORKER, 4), (names.SPARE, 1)]
    for group in spec["workerGroupSpecs"]:
        assert unadapted(group["template"]["spec"]) == pods.training_pod_spec(job, role=group["groupName"])
        assert group["template"]["metadata"]["labels"][names.LABEL_ROLE] == group["groupName"]


def test_kuberay_and_kueue_are_told_of_the_raycluster_and_not_of_its_pods() -> None:
    cluster = ray_cluster(every_key())
    common = {
        "app.kubernetes.io/name": "orchestrator",
        "app.kubernetes.io/managed-by": "orchestrator-operator",
        "orchestrator.dev/job": "on-kubernetes",
    }
    owner = {
        "apiVersion": "orchestrator.dev/v1alpha1",
        "kind": "TrainingJob",
        "name": "on-kubernetes",
        "uid": "u",
        "controller": True,
    }
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["metadata"] == {
        "name": "on-kubernetes",
        "namespace": "n",
        "labels": {**common, "kueue.x-k8s.io/queue-name": "team-a"},
        "annotations": {"ray.io/overwrite-container-cmd": "true"},
        "ownerReferences": [owner],
    }
    groups = {"head": cluster["spec"]["headGroupSpec"]} | {g["groupName"]: g for g in cluster["spec"]["workerGroupSpecs"]}
    for role in ("head", "worker", "spare"):
        assert groups[role]["template"]["metadata"] == {
            "labels": {**common, "orchestrator.dev/role": role},
            "annotations": {"ray.io/overwrite-container-cmd": "true", "scheduling.k8s.io/group-name": "on-kubernetes"},
        }


def test_a_raycluster_without_queue_or_volcano_says_nothing_of_them() -> None:
    cluster = ray_cluster(target())
    assert "kueue.x-k8s.io/queue-name" not in cluster["metadata"]["labels"]
    only = {"ray.io/overwrite-container-cmd": "true"}
    assert cluster["spec"]["headGroupSpec"]["template"]["metadata"]["annotations"] == only


def test_a_head_is_never_failed_by_kueue_for_it_may_still_write_to_its_volume() -> None:
    job = target(kubernetes={"queue": "q"})
    safe = "kueue.x-k8s.io/safe-to-forcefully-terminate"
    assert safe not in pods.head_pod(job, incarnation=1)["metadata"]["annotations"]
    for role in (names.WORKER, names.SPARE):
        assert pods.training_pod(job, role=role, ordinal=0, incarnation=1)["metadata"]["annotations"][safe] == "true"
    worker = pods.training_pod(target(), role=names.WORKER, ordinal=0, incarnation=1)
    assert "annotations" not in worker["metadata"]
