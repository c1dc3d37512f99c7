"""All of a job's pods or none, by those who can promise it: Kueue's pod groups and Volcano's PodGroup.

Both hold pods back until the whole group has its place. Without either the operator does what it can from outside: it gives pods
back that did not all find a place in time. How Kueue counts was read in its pod_controller.go, which is the same from v0.7 to
v0.18.
"""

from __future__ import annotations

from typing import Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.objects.common import Object, Target, metadata
from orchestrator.adapters.kube.observed import KUEUE_GROUP, PodFacts
from orchestrator.adapters.kube.resources import POD_GROUPS

VOLCANO: Final = "volcano"
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
KUEUE_TOTAL: Final = "kueue.x-k8s.io/pod-group-total-count"
# Kueue with its feature gate FailureRecoveryPolicy (from v0.15) marks such a pod Failed when its node is unreachable: ours are
# safe, for a rank of an attempt that was given up is fenced
KUEUE_MAY_FAIL: Final = "kueue.x-k8s.io/safe-to-forcefully-terminate"
# Kueue gives a group's quota back, and lets its pods go, when all of them have ended: else it would wait for pods in their places
KUEUE_MAY_END: Final = "kueue.x-k8s.io/retriable-in-group"
VOLCANO_GROUP: Final = "scheduling.k8s.io/group-name"


def is_volcano(target: Target) -> bool:
    """Whether Volcano schedules the job."""
    return target.kubernetes.scheduler == VOLCANO


def gang_elsewhere(target: Target) -> bool:
    """Whether somebody else sees to it that all pods are placed or none."""
    return is_volcano(target) or target.kubernetes.queue is not None


def pod_labels(target: Target) -> dict[str, str]:
    """Labels that a pod needs for Kueue."""
    queue = target.kubernetes.queue
    return {} if queue is None else {QUEUE_LABEL: queue, KUEUE_GROUP: target.name}


def counted_by_kueue(pod: PodFacts) -> bool:
    """Whether Kueue counts it to its group, and so deletes a pod that is made in its place: also one that is Terminating on its
    node, and one that has succeeded."""
    return pod.by_kueue and pod.phase != "Failed" and not (pod.terminating and not pod.node)


def pod_annotations(target: Target, *, role: str) -> dict[str, str]:
    """Annotations that a pod needs for Kueue and for Volcano."""
    made: dict[str, str] = {}
    if target.kubernetes.queue is not None:
        made |= {KUEUE_TOTAL: str(target.pods_total), KUEUE_MAY_END: "false"}
        if role != names.HEAD:  # which may still write to the volume
            made[KUEUE_MAY_FAIL] = "true"
    if is_volcano(target):
        made[VOLCANO_GROUP] = target.name
    return made


def pod_group(target: Target) -> Object:
    """Volcano's PodGroup. Spares are not waited for: a job trains without them."""
    return {
        "apiVersion": POD_GROUPS.group_version,
        "kind": POD_GROUPS.kind,
        "metadata": metadata(target, target.name),
        "spec": {"minMember": 1 + target.job.cluster.nodes},
    }
