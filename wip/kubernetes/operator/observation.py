"""What one turn of the operator sees of a job: the TrainingJob and everything that is its, listed afresh.

The lists come from etcd and not from a watch's cache, so that a decision is never made on what was true a moment ago; watches only
say when to look. No Secret is ever read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeApi, Object
from orchestrator.adapters.kube.objects.common import Target
from orchestrator.adapters.kube.observed import PodFacts, node_ready, owned_by, pod_facts
from orchestrator.adapters.kube.resources import (
    BUDGETS,
    BUDGETS_BETA,
    CLAIMS,
    KUEUE_GROUP,
    NODES,
    POD_GROUPS,
    PODS,
    RAY_CLUSTERS,
    SERVICES,
    TRAINING_JOBS,
    Resource,
)
from orchestrator.spec.errors import SpecError
from orchestrator.spec.training_job import from_training_job


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the API server of this cluster knows."""

    budgets: Resource
    kuberay: bool
    kueue: bool
    volcano: bool

    @classmethod
    def of(cls, groups: dict[str, tuple[str, ...]]) -> Served:
        """From its API groups and their versions."""
        return cls(
            budgets=BUDGETS if "v1" in groups.get("policy", ()) else BUDGETS_BETA,
            kuberay="v1" in groups.get("ray.io", ()),
            kueue=KUEUE_GROUP in groups,
            volcano="v1beta1" in groups.get("scheduling.volcano.sh", ()),
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a TrainingJob cannot be run."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A job as it is at one moment."""

    obj: Object
    target: Target | Refusal
    suspend: bool
    pods: tuple[PodFacts, ...]
    answering: frozenset[str]  # of the nodes with pods that were asked to go, those whose kubelet will end them
    claims: tuple[str, ...]
    services: tuple[str, ...]
    budgets: dict[str, int | None]  # name -> minAvailable
    pod_groups: tuple[str, ...]
    ray_cluster: Object | None
    served: Served

    def stuck(self, pod: PodFacts) -> bool:
        """A pod that was asked to go, on a node that will not end it."""
        return pod.terminating and bool(pod.node) and pod.node not in self.answering


def read_target(obj: Object) -> tuple[Target | Refusal, bool]:
    """The job that a TrainingJob describes, or what is wrong with it; and whether it is to be suspended."""
    suspend = bool((obj.get("spec") or {}).get("suspend", False))
    try:
        job, kubernetes, suspend = from_training_job(obj)
    except SpecError as error:
        return Refusal("InvalidSpec", str(error)), suspend
    meta = obj["metadata"]
    return Target(job=job, kubernetes=kubernetes, namespace=meta["namespace"], uid=meta["uid"]), suspend


def observe(api: KubeApi, *, namespace: str, name: str, served: Served) -> Observed | None:
    """Look at a job. None: there is no such TrainingJob. Raises KubeError."""
    obj = api.get(TRAINING_JOBS, name, namespace=namespace)
    if obj is None:
        return None
    uid = obj["metadata"]["uid"]
    target, suspend = read_target(obj)
    labels = f"{names.LABEL_JOB}={name}"

    def mine(resource: Resource) -> list[Object]:
        return _owned(api.list(resource, namespace=namespace, labels=labels), [uid])

    clusters = mine(RAY_CLUSTERS) if served.kuberay else []
    owners = [uid, *(cluster["metadata"]["uid"] for cluster in clusters)]
    pods = tuple(pod_facts(pod) for pod in _owned(api.list(PODS, namespace=namespace, labels=labels), owners))
    going_on = {pod.node for pod in pods if pod.terminating and pod.node}
    return Observed(
        obj=obj,
        target=target,
        suspend=suspend,
        pods=pods,
        answering=frozenset(node for node in going_on if node_ready(api.get(NODES, node))),
        claims=_names(mine(CLAIMS)),
        services=_names(mine(SERVICES)),
        budgets={b["metadata"]["name"]: (b.get("spec") or {}).get("minAvailable") for b in mine(served.budgets)},
        pod_groups=_names(mine(POD_GROUPS)) if served.volcano else (),
        ray_cluster=next(iter(clusters), None),
        served=served,
    )


def _owned(objects: list[Object], owners: Iterable[str]) -> list[Object]:
    owners = list(owners)
    return [obj for obj in objects if owned_by(obj, owners)]


def _names(objects: list[Object]) -> tuple[str, ...]:
    return tuple(obj["metadata"]["name"] for obj in objects)
