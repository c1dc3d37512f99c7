"""What the operator makes of the API server's lists: which objects are a job's, and what a missing right means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeError
from orchestrator.adapters.kube.resources import POD_GROUPS, PODS, RAY_CLUSTERS, TRAINING_JOBS, Resource
from orchestrator.apps.operator.actions import DropTokens, SetFinalizers
from orchestrator.apps.operator.observation import Observed, Refusal, observe
from orchestrator.apps.operator.reconcile import decide
from tests.unit.apps.operator.toy import BEGIN, SERVED, manifest

Object = dict[str, Any]


class Server:
    """Has one TrainingJob `j` with the uid `u`, and what a test puts beside it."""

    def __init__(self, **kubernetes: Any) -> None:
        self.job = manifest(kubernetes=kubernetes)
        self.job["metadata"] |= {"uid": "u", "generation": 1, "resourceVersion": "1"}
        self.lists: dict[str, list[Object]] = {}
        self.forbidden: set[str] = set()

    def get(self, resource: Resource, name: str, *, namespace: str = "") -> Object | None:
        return self.job if (resource, name, namespace) == (TRAINING_JOBS, "j", "n") else None

    def list(self, resource: Resource, *, namespace: str = "", labels: str = "", fields: str = "") -> list[Object]:
        assert (namespace, labels, fields) == ("n", f"{names.LABEL_JOB}=j", "")
        if resource.plural in self.forbidden:
            raise KubeError(status=403, reason="Forbidden", message=f"{resource.plural} are not for you")
        return self.lists.get(resource.plural, [])

    def pod(self, name: str, *, owner: str, uid: str, incarnation: int = 0) -> None:
        """A pod of the job's label that somebody made."""
        labels = {names.LABEL_JOB: "j", names.LABEL_ROLE: names.WORKER}
        if incarnation:
            labels |= {names.LABEL_ORDINAL: "0", names.LABEL_INCARNATION: str(incarnation)}
        owners = [{"kind": owner, "name": "j", "uid": uid, "controller": True}]
        meta = {"name": name, "uid": f"of-{name}", "creationTimestamp": "2026-11-29T09:00:00Z", "labels": labels}
        self.lists.setdefault(PODS.plural, []).append({"metadata": {**meta, "ownerReferences": owners}})

    def observed(self, *, kuberay: bool = True) -> Observed:
        served = replace(SERVED, kuberay=kuberay, volcano=True)
        seen = observe(self, namespace="n", name="j", served=served, highest={})  # type: ignore[arg-type]
        assert seen is not None
        return seen


def test_pods_of_another_job_of_the_same_name_are_not_this_ones() -> None:
    server = Server()
    server.pod("j-worker-0-1", owner=names.KIND, uid="before")
    server.pod("j-worker-0-2", owner=names.KIND, uid="u", incarnation=2)
    seen = server.observed(kuberay=False)
    assert [pod.name for pod in seen.pods] == ["j-worker-0-2"]
    assert {place: newest.incarnation for place, newest in seen.highest.items()} == {(names.WORKER, 0): 2}


def test_kuberays_pods_are_seen_also_when_their_raycluster_is_gone() -> None:
    server = Server()
    server.pod("j-worker-x7", owner=RAY_CLUSTERS.kind, uid="of a RayCluster that was deleted")
    seen = server.observed()
    assert [pod.name for pod in seen.pods] == ["j-worker-x7"]
    assert seen.by_kuberay


def test_without_rights_on_rayclusters_a_job_that_would_have_one_is_told_so() -> None:
    server = Server()
    server.forbidden.add(RAY_CLUSTERS.plural)
    target = server.observed().target
    assert isinstance(target, Refusal)
    assert target.reason == "KubeRayForbidden"
    assert "rayclusters are not for you; fix: add ../../../manifests/components/kuberay to the components of" in target.message


def test_without_rights_on_podgroups_a_job_for_volcano_is_told_so() -> None:
    server = Server(scheduler="volcano", backend="pods")
    server.forbidden.add(POD_GROUPS.plural)
    target = server.observed().target
    assert isinstance(target, Refusal)
    assert (target.reason, "manifests/components/volcano" in target.message) == ("VolcanoForbidden", True)


def test_without_rights_on_rayclusters_jobs_that_need_none_go_on() -> None:
    chosen = Server(backend="pods")
    before = Server()
    before.pod("j-worker-0-1", owner=names.KIND, uid="u", incarnation=1)
    for server in (chosen, before):
        server.forbidden.add(RAY_CLUSTERS.plural)
        seen = server.observed()
        assert not isinstance(seen.target, Refusal)
        assert not seen.by_kuberay


def test_another_right_that_is_missing_ends_the_turn() -> None:
    server = Server()
    server.forbidden.add(PODS.plural)
    with pytest.raises(KubeError, match="pods are not for you"):
        server.observed()


def test_a_job_is_let_go_though_kuberays_kind_is_not_for_us() -> None:
    server = Server()
    server.forbidden.add(RAY_CLUSTERS.plural)
    server.job["metadata"] |= {"deletionTimestamp": "2026-11-29T09:00:00Z", "finalizers": [names.FINALIZER]}
    assert decide(server.observed(), BEGIN).actions == [DropTokens(), SetFinalizers(())]
