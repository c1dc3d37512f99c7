"""What all objects of a job share: the job they belong to, their labels and owner, the limits that the job's ladder gives pods.

Everything here is a function of the TrainingJob alone, so an operator that starts again after a crash makes the same objects
again and finds that they are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from orchestrator.adapters.kube import names
from orchestrator.core.job import Job
from orchestrator.core.timeouts import derive
from orchestrator.spec.kubernetes import KubernetesSpec

Object: TypeAlias = dict[str, Any]

APP_LABELS = {"app.kubernetes.io/name": "orchestrator", "app.kubernetes.io/managed-by": names.OPERATOR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A TrainingJob that passed its checks."""

    job: Job
    kubernetes: KubernetesSpec
    namespace: str
    uid: str

    @property
    def name(self) -> str:
        """The job's name, which all of its objects begin with."""
        return self.job.name

    @property
    def pods_training(self) -> int:
        """Worker and spare pods together."""
        return self.job.cluster.nodes + self.job.cluster.spares

    @property
    def pods_total(self) -> int:
        """All pods: the head, workers, spares."""
        return 1 + self.pods_training


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLimits:
    """Seconds that pods are given, all from `detect_within`."""

    worker_grace_s: int  # a pod that is asked to go hands its shard over: leave the epoch, prove the next one
    head_grace_s: int
    unreachable_s: int  # stay of a pod on a node that Kubernetes cannot reach, before it is evicted
    probe_period_s: int

    @property
    def suspend_s(self) -> int:
        """From asking the agent for a checkpoint until the pods go without one."""
        return self.worker_grace_s


def pod_limits(job: Job) -> PodLimits:
    """The limits of a job's pods."""
    limits = derive(job.resilience.detect_within_ms)
    return PodLimits(
        worker_grace_s=math.ceil((limits.leave_ms + limits.prove_ms) / 1000),
        head_grace_s=math.ceil(limits.prove_ms / 1000),
        unreachable_s=math.ceil(2 * job.resilience.detect_within_ms / 1000),
        probe_period_s=max(1, round(limits.suspect_ms / 1000)),
    )


def selector(job: str, *roles: str) -> dict[str, str]:
    """The labels that all pods of a job, or those of one role, have."""
    return {names.LABEL_JOB: job} | ({names.LABEL_ROLE: roles[0]} if roles else {})


def training_selector(job: str) -> Object:
    """A LabelSelector of the worker and spare pods."""
    return {
        "matchLabels": {names.LABEL_JOB: job},
        "matchExpressions": [{"key": names.LABEL_ROLE, "operator": "In", "values": [names.WORKER, names.SPARE]}],
    }


def worker_selector(job: str) -> str:
    """The worker pods, as text: the scale subresource shows it."""
    return f"{names.LABEL_JOB}={job},{names.LABEL_ROLE}={names.WORKER}"


def metadata(
    target: Target,
    name: str,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    controller: bool = False,
) -> Object:
    """Metadata of an object of the job, owned by its TrainingJob, so that it goes when that goes."""
    owner: Object = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": target.name, "uid": target.uid}
    if controller:
        owner["controller"] = True
    made: Object = {
        "name": name,
        "namespace": target.namespace,
        "labels": {**APP_LABELS, names.LABEL_JOB: target.name, **(labels or {})},
        "ownerReferences": [owner],
    }
    if annotations:
        made["annotations"] = dict(annotations)
    return made
