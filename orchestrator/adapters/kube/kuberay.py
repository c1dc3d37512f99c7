"""A job's pods by way of KubeRay: one RayCluster with a head group, a worker group and a spare group.

The pods are those that the operator would make itself; KubeRay only counts and replaces them. Its own start commands are switched
off, because ours set Ray up as the supervisor needs it, and so are its liveness probes, which ask a dashboard that is not there.
A group's pod that fails is replaced by KubeRay; one that stays Terminating on a dead node would block its replacement (KubeRay
4078), so the operator removes it by force.
"""

from __future__ import annotations

from typing import Final

from orchestrator.adapters.kube import gang, names
from orchestrator.adapters.kube.objects.common import APP_LABELS, Object, Target, metadata
from orchestrator.adapters.kube.objects.pods import head_pod, pod_labels, training_pod_spec
from orchestrator.adapters.kube.observed import KUEUE_GROUP
from orchestrator.adapters.kube.resources import RAY_CLUSTERS

OWN_COMMANDS: Final = {"ray.io/overwrite-container-cmd": "true"}
PATIENCE: Final = {"periodSeconds": 5, "failureThreshold": 120}  # KubeRay's own
# KubeRay puts a container with this one's environment and mounts before it, which asks Ray whether the head is up
RAY_TOKEN: Final = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{names.TOKEN_PATH}/{names.RAY_TOKEN}"}


def ray_cluster(target: Target) -> Object:
    """The RayCluster of a job; applied again whenever the job's size changes."""
    cluster = target.job.cluster
    queue = target.kubernetes.queue
    labels = {} if queue is None else {gang.QUEUE_LABEL: queue}
    groups = ((names.WORKER, cluster.nodes), (names.SPARE, cluster.spares))
    return {
        "apiVersion": RAY_CLUSTERS.group_version,
        "kind": RAY_CLUSTERS.kind,
        "metadata": metadata(target, target.name, labels=labels, annotations=OWN_COMMANDS, controller=True),
        "spec": {
            "headGroupSpec": {
                "rayStartParams": {},
                "template": _template(target, head_pod(target, incarnation=1)["spec"], role=names.HEAD),
            },
            "workerGroupSpecs": [
                {
                    "groupName": role,
                    "replicas": count,
                    "minReplicas": count,
                    "maxReplicas": max(1, count),
                    "rayStartParams": {},
                    "template": _template(target, training_pod_spec(target, role=role), role=role),
                }
                for role, count in groups
            ],
        },
    }


def sizes(cluster: Object) -> dict[str, int]:
    """Group -> replicas, as a RayCluster has them."""
    groups = cluster.get("spec", {}).get("workerGroupSpecs") or []
    return {group["groupName"]: int(group.get("replicas") or 0) for group in groups}


def _template(target: Target, spec: Object, *, role: str) -> Object:
    labels = {**APP_LABELS, names.LABEL_JOB: target.name, **pod_labels(target, role=role)}
    for label in (gang.QUEUE_LABEL, KUEUE_GROUP):  # the RayCluster is what Kueue admits, not its pods
        labels.pop(label, None)
    ray = spec["containers"][0]
    port = names.GCS_PORT if role == names.HEAD else names.NODE_MANAGER_PORT
    ray["livenessProbe"] = {"tcpSocket": {"port": port}, **PATIENCE}
    others = [entry for entry in ray["env"] if entry["name"] not in RAY_TOKEN]  # server-side apply takes no name twice
    ray["env"] = [*others, *({"name": key, "value": value} for key, value in RAY_TOKEN.items())]
    annotations = dict(OWN_COMMANDS)
    if gang.is_volcano(target):
        annotations[gang.VOLCANO_GROUP] = target.name
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}
