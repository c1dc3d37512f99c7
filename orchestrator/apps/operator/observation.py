"""What one turn of the operator sees of a job: the TrainingJob and everything that is its, listed afresh.

The lists are asked for and not kept by a watch, so that a decision is never made on what was true a moment ago; watches only say
when to look. No Secret is ever read.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeApi, KubeError, Object
from orchestrator.adapters.kube.desired import Highest, Newest
from orchestrator.adapters.kube.gang import is_volcano
from orchestrator.adapters.kube.objects.common import Target
from orchestrator.adapters.kube.observed import PodFacts, made_by, moment, node_ready, owned_by, pod_facts
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
from orchestrator.apps.operator.status import INVALID, Past
from orchestrator.spec.edits import Edited, edited
from orchestrator.spec.errors import SpecError
from orchestrator.spec.kubernetes import Backend
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
    edited: Edited | None  # None: the job was not submitted yet
    suspend: bool
    pods: tuple[PodFacts, ...]
    highest: Highest
    answering: frozenset[str]  # of the nodes with pods that were asked to go, those whose kubelet will end them
    claims: dict[str, bool]  # name -> whether it was asked to go
    services: dict[str, int]  # name -> incarnation that it leads to; 0: to all
    budgets: dict[str, int | None]  # name -> minAvailable
    pod_groups: dict[str, int | None]  # name -> minMember
    ray_cluster: Object | None
    served: Served

    @property
    def leaving(self) -> datetime | None:
        """Since when the TrainingJob is being deleted; None: it is not."""
        return moment(self.obj["metadata"].get("deletionTimestamp"))

    @property
    def by_kuberay(self) -> bool:
        """Whether KubeRay makes the pods. A job that has pods keeps to the way that they were made."""
        if self.ray_cluster is not None:
            return True
        if self.pods or isinstance(self.target, Refusal):
            return bool(self.pods) and all(pod.by_kuberay for pod in self.pods)
        backend = self.target.kubernetes.backend
        return backend is Backend.KUBERAY or (backend is Backend.AUTO and self.served.kuberay)

    def stuck(self, pod: PodFacts) -> bool:
        """A pod that was asked to go, on a node that will not end it."""
        return pod.terminating and bool(pod.node) and pod.node not in self.answering

    def inert(self, pod: PodFacts) -> bool:
        """A pod that was asked to go and is not waited for: stuck, or nothing runs in it and a finalizer (Kueue's) holds it."""
        return self.stuck(pod) or (pod.terminating and (pod.finished or not pod.node))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a TrainingJob asks for."""

    target: Target | Refusal
    edited: Edited | None
    suspend: bool


def read_spec(obj: Object) -> Reading:
    """The job that a TrainingJob describes, or what is wrong with it. One that was submitted is that job, whatever was edited."""
    past = Past.of(obj)
    found: Edited | None = None
    try:
        if past.submitted is not None:
            with suppress(SpecError):  # another version of this program wrote it: the spec as it is now has to do
                found = edited(obj, submitted=past.submitted, section=past.pod_settings)
        job, kubernetes = (found.job, found.kubernetes) if found else from_training_job(obj, begun=past.begun)[:2]
    except SpecError as error:
        return Reading(target=Refusal(INVALID, str(error)), edited=None, suspend=_suspend(obj))
    nodes = (obj["spec"].get("cluster") or {}).get("nodes", job.cluster.nodes)  # as it was scaled since it began
    if past.nodes is not None and nodes == past.nodes_refused:
        nodes = past.nodes
    job = replace(job, cluster=replace(job.cluster, nodes=int(nodes)))
    meta = obj["metadata"]
    target = Target(job=job, kubernetes=kubernetes, namespace=meta["namespace"], uid=meta["uid"])
    return Reading(target=target, edited=found, suspend=_suspend(obj))


def _suspend(obj: Object) -> bool:
    return bool((obj.get("spec") or {}).get("suspend", False))


def observe(
    api: KubeApi, *, namespace: str, name: str, served: Served, highest: dict[tuple[str, int], Newest]
) -> Observed | None:
    """Look at a job. None: there is no such TrainingJob. Raises KubeError.

    `highest` is brought up to date: it remembers pods that are gone, so that no name is used again while this operator lives.
    """
    obj = api.get(TRAINING_JOBS, name, namespace=namespace)
    if obj is None:
        return None
    uid = obj["metadata"]["uid"]
    reading = read_spec(obj)
    target = reading.target
    labels = f"{names.LABEL_JOB}={name}"

    def mine(resource: Resource) -> list[Object]:
        return [obj for obj in api.list(resource, namespace=namespace, labels=labels) if owned_by(obj, uid)]

    def others(resource: Resource) -> tuple[list[Object], str]:
        """Mine of a kind for which the rights are in an overlay, or why they are not for us."""
        try:
            return mine(resource), ""
        except KubeError as error:
            if error.status != 403:
                raise
            return [], error.message

    clusters, no_kuberay = others(RAY_CLUSTERS) if served.kuberay else ([], "")
    groups, no_volcano = others(POD_GROUPS) if served.volcano and isinstance(target, Target) and is_volcano(target) else ([], "")
    listed = api.list(PODS, namespace=namespace, labels=labels)
    # KubeRay's pods outlive their RayCluster for a while, and its uid is not known any more
    pods = tuple(pod_facts(pod) for pod in listed if owned_by(pod, uid) or made_by(pod, RAY_CLUSTERS.kind, name))
    for pod in pods:
        remember(highest, pod)
    has_own = any(not pod.by_kuberay for pod in pods)  # and keeps to them
    if no_volcano:
        target = Refusal("VolcanoForbidden", f"{no_volcano}; {_component('volcano')}")
    elif no_kuberay and not has_own and isinstance(target, Target) and target.kubernetes.backend is not Backend.PODS:
        target = Refusal("KubeRayForbidden", f"{no_kuberay}; {_component('kuberay')}, or write pods")
    going_on = {pod.node for pod in pods if pod.terminating and pod.node}
    return Observed(
        obj=obj,
        target=target,
        edited=reading.edited,
        suspend=reading.suspend,
        pods=pods,
        highest=dict(highest),
        answering=frozenset(node for node in going_on if node_ready(api.get(NODES, node))),
        claims={claim["metadata"]["name"]: "deletionTimestamp" in claim["metadata"] for claim in mine(CLAIMS)},
        services={service["metadata"]["name"]: leads_to(service) for service in mine(SERVICES)},
        budgets=_numbers(mine(served.budgets), "minAvailable"),
        pod_groups=_numbers(groups, "minMember"),
        ray_cluster=next(iter(clusters), None),
        served=served,
    )


def _component(name: str) -> str:
    """How the operator gets the rights of a component."""
    where = "the kustomization that installed the operator (such as examples/kubernetes/install)"
    return f"fix: add ../../../manifests/components/{name} to the components of {where}, and apply that again"


def remember(highest: dict[tuple[str, int], Newest], pod: PodFacts, *, excused: bool = False) -> None:
    """Note a pod that there is. `excused`: we ask it to go."""
    newest = Newest(incarnation=pod.incarnation, failures=pod.failures, made=pod.created, excused=excused or pod.scheduled)
    _note(highest, (pod.role, pod.ordinal), newest)


def remember_made(highest: dict[tuple[str, int], Newest], pod: Object, *, now: datetime) -> None:
    """Note a pod that we made just now: it may be gone before anybody sees it."""
    labels, notes = pod["metadata"]["labels"], pod["metadata"].get("annotations") or {}
    incarnation, failures = int(labels[names.LABEL_INCARNATION]), int(notes.get(names.NOTE_FAILURES, 0))
    newest = Newest(incarnation=incarnation, failures=failures, made=now, excused=False)
    _note(highest, (labels[names.LABEL_ROLE], int(labels[names.LABEL_ORDINAL])), newest)


def _note(highest: dict[tuple[str, int], Newest], place: tuple[str, int], newest: Newest) -> None:
    known = highest.get(place)
    if known is None or newest.incarnation > known.incarnation:
        highest[place] = newest
    elif newest.incarnation == known.incarnation:
        highest[place] = replace(newest, excused=newest.excused or known.excused)


def leads_to(service: Object) -> int:
    """The incarnation that a Service selects; 0 for all."""
    return int((service["spec"].get("selector") or {}).get(names.LABEL_INCARNATION) or 0)


def _numbers(objects: list[Object], key: str) -> dict[str, int | None]:
    return {obj["metadata"]["name"]: (obj.get("spec") or {}).get(key) for obj in objects}
