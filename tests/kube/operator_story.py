"""The life of one TrainingJob under one operator, step by step, where nothing but the control plane and that operator exists.

There are no nodes: what kubelets, the agent and people would do is done by hand, as administrator. The operator is a process of
its own that speaks as its own service account, so several stories with different rights can be told at the same time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube import resources as kinds
from orchestrator.adapters.kube.api import KubeApi
from orchestrator.adapters.kube.resources import Resource
from tests.kube.agents import LIMIT_S
from tests.kube.control_plane import ControlPlane
from tests.kube.rights import ACCOUNTS, Grants, Record, Right, anonymous, make_account
from tests.world.jobs import ROOT

Object = dict[str, Any]

JOB: Final = "j"
POLL_S: Final = 0.2
NAMESPACES: Final = Resource("v1", "namespaces", "Namespace", namespaced=False)


@dataclass(frozen=True, slots=True)
class Step:
    """Something that the operator sees to. `then` is what the world does next."""

    name: str
    is_done: Callable[[Story], bool]
    then: Callable[[Story], object] = lambda _: None


@dataclass(slots=True)
class Story:
    """One job in a namespace of its own; `tell` is its life. `kubernetes`: more of that section of the spec."""

    plane: ControlPlane
    api: KubeApi
    namespace: str
    kubernetes: Object
    log: Path
    record: Record
    kubeconfig: Path
    done: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, plane: ControlPlane, namespace: str, *, grants: Grants, kubernetes: Object) -> Self:
        """Make the namespace with its accounts; the operator's gets these grants."""
        api = KubeApi(plane.api(), timeout_s=LIMIT_S)
        api.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for name in (names.AGENT, names.WORKER_ACCOUNT):
            api.create(
                ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
            )
        account = make_account(plane, namespace=namespace, name=names.OPERATOR, grants=grants)
        record = Record(log=plane.audit_log, user=account.user)
        return cls(plane, api, namespace, kubernetes, plane.root / f"{namespace}.log", record, account.kubeconfig)

    def tell(self, steps: Sequence[Step], *, lacking: Right | None, broken: str) -> None:
        """All steps; or, where the operator lacks a right, those up to `broken`, at which it must be refused that right.

        `broken` may be HEARD, which is no step: watching. AssertionError with the operator's words.
        """
        self._make_job()
        with self.log.open("wb") as output, self._operator(output) as operator:
            try:
                for step in steps:
                    if step.name == broken or broken == HEARD:
                        self._until(partial(self._is_refused, lacking, step), f"{lacking} is refused")
                        if broken == HEARD:
                            self._until(lambda: not self.hears, "the operator says that it does not hear of changes")
                        else:
                            assert not step.is_done(self), f"without {lacking}, {step.name!r} all the same: {self.said}"
                        return
                    self._until(partial(step.is_done, self), step.name)
                    self.done.append(step.name)
                    step.then(self)
            finally:
                operator.terminate()
                operator.wait(LIMIT_S)
                self.record.read()

    @property
    def said(self) -> str:
        """The operator's log."""
        return self.log.read_text()

    @property
    def hears(self) -> bool:
        """Whether its watches go on."""
        return "watching ended" not in self.said

    # ---- what there is

    def job(self) -> Object:
        """The TrainingJob; empty when it is gone."""
        return self.api.get(kinds.TRAINING_JOBS, JOB, namespace=self.namespace) or {}

    def has(self, resource: Resource) -> list[str]:
        """Names of the objects of a kind that are there and will stay."""
        found = self.api.list(resource, namespace=self.namespace)
        return [o["metadata"]["name"] for o in found if "deletionTimestamp" not in o["metadata"]]

    def told(self) -> set[str]:
        """Reasons of the events about the job; there are others about its pods."""
        found = self.api.list(kinds.EVENTS, namespace=self.namespace)
        return {event["reason"] for event in found if event["involvedObject"]["kind"] == names.KIND}

    def one(self, resource: Resource, name: str) -> Object:
        """An object; empty when it is not there."""
        return self.api.get(resource, name, namespace=self.namespace) or {}

    # ---- what happens

    def lose_pod(self, name: str) -> None:
        """It was placed on a node that is no more, and is deleted: it stays Terminating."""
        target = {"apiVersion": "v1", "kind": "Node", "name": f"{self.namespace}-gone"}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        self.api.request("POST", kinds.PODS.path(namespace=self.namespace, name=name, subresource="binding"), body=binding)
        self.api.delete(kinds.PODS, name, namespace=self.namespace)

    def scale(self, nodes: int) -> None:
        """As `kubectl scale` does."""
        self.api.merge(kinds.TRAINING_JOBS, JOB, {"spec": {"cluster": {"nodes": nodes}}}, namespace=self.namespace)

    def is_over(self) -> bool:
        """The agent's last report stands; where the operator has overruled it, the agent says it again."""
        job = self.job()
        over = not job or (job.get("status") or {}).get("phase") == "Succeeded"
        if not over:
            self.succeed()
        return over

    def succeed(self) -> None:
        """The agent's last report."""
        status = {"phase": "Succeeded", "reason": "Completed"}
        body = {"metadata": {"name": JOB, "namespace": self.namespace}, "status": status}
        self.api.apply(kinds.TRAINING_JOBS, body, manager=names.AGENT, subresource="status")

    # ---- ours

    def _make_job(self) -> None:
        spec = {
            "task": {"target": "gpt"},
            "parallel": {"data": 1},
            "cluster": {"nodes": 2, "spares": 1},
            "kubernetes": {"image": "example.org/x:1", "ttlAfterFinished": "0s", **self.kubernetes},
        }
        job = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": JOB, "namespace": self.namespace}}
        self.api.create(kinds.TRAINING_JOBS, {**job, "spec": spec})

    def _operator(self, output: Any) -> subprocess.Popen[bytes]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KUBE", "ORCHESTRATOR_"))}
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.apps.operator", f"--namespace={self.namespace}"],
            cwd=ROOT,
            env={**kept, "KUBECONFIG": str(self.kubeconfig), names.ENV_NAMESPACE: self.namespace},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def _is_refused(self, right: Right | None, step: Step) -> bool:
        step.is_done(self)  # the world goes on meanwhile
        self.record.read()
        return right is not None and anonymous(right) in self.record.denied

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        due_s = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < due_s, f"{what}: not within {LIMIT_S} s, after {self.done}\n{self.job()}\n{self.said}"
            time.sleep(POLL_S)


HEARD: Final = "changes are heard of"


def _lease_is_kept(story: Story) -> bool:
    spec = story.one(kinds.LEASES, names.OPERATOR).get("spec") or {}
    return bool(spec) and spec["renewTime"] > spec["acquireTime"]


def _budget(story: Story) -> int:
    spec = story.one(kinds.BUDGETS_BETA, JOB).get("spec") or {}
    return int(spec.get("minAvailable", -1))


def _conditions(story: Story) -> list[str]:
    return [c["type"] for c in (story.job().get("status") or {}).get("conditions") or ()]


def pod(role: str, ordinal: int, incarnation: int = 1) -> str:
    """Name of a pod of the job."""
    return names.pod_name(JOB, role=role, ordinal=ordinal, incarnation=incarnation)


BEGIN: Final = (
    Step("the lease is kept", _lease_is_kept),
    Step("the job cannot go unnoticed", lambda s: names.FINALIZER in (s.job()["metadata"].get("finalizers") or ())),
    Step("it is told that the job is accepted", lambda s: "Accepted" in s.told()),
    Step("the tokens are made", lambda s: names.token_secret(JOB) in s.has(kinds.SECRETS)),
    Step("the head has a volume", lambda s: s.has(kinds.CLAIMS) == [names.head_claim(JOB)]),
    Step("the services are there", lambda s: set(s.has(kinds.SERVICES)) == {names.head_service(JOB), names.pods_service(JOB)}),
    Step("the budget is there", lambda s: _budget(s) == 2),
)
ENDING: Final = (
    Step("services go", lambda s: s.is_over() and not s.has(kinds.SERVICES)),
    Step("the budget goes", lambda s: not s.has(kinds.BUDGETS_BETA)),
    Step("a job that is over goes in its time", lambda s: not s.job() or "deletionTimestamp" in s.job()["metadata"]),
    Step("the volume goes", lambda s: not s.has(kinds.CLAIMS)),
    Step("nothing is left", lambda s: not s.job() and names.token_secret(JOB) not in s.has(kinds.SECRETS)),
)
PODS: Final = (
    *BEGIN,
    Step(
        "the pods are made",
        lambda s: {pod(names.HEAD, 0), pod(names.WORKER, 0), pod(names.WORKER, 1), pod(names.SPARE, 0)} == set(s.has(kinds.PODS)),
    ),
    Step("the status says how it is", lambda s: "PodsReady" in _conditions(s), lambda s: s.lose_pod(pod(names.WORKER, 0))),
    Step("a pod on a lost node is replaced", lambda s: pod(names.WORKER, 0, 2) in s.has(kinds.PODS), lambda s: s.scale(1)),
    Step("the budget follows the size", lambda s: _budget(s) == 1),
    Step("a surplus pod goes", lambda s: pod(names.WORKER, 1) not in s.has(kinds.PODS)),
    *ENDING,
)
VOLCANO: Final = (
    *BEGIN,
    Step(
        "the PodGroup is there",
        lambda s: (s.one(kinds.POD_GROUPS, JOB).get("spec") or {}).get("minMember") == 3,
        lambda s: s.scale(1),
    ),
    Step(
        "the PodGroup follows the size",
        lambda s: (s.one(kinds.POD_GROUPS, JOB).get("spec") or {}).get("minMember") == 2,
    ),
    Step("the PodGroup goes", lambda s: s.is_over() and not s.has(kinds.POD_GROUPS)),
    *ENDING[2:],
)


def _workers(story: Story) -> int:
    groups = (story.one(kinds.RAY_CLUSTERS, JOB).get("spec") or {}).get("workerGroupSpecs") or []
    return next((int(group["replicas"]) for group in groups if group["groupName"] == names.WORKER), -1)


KUBERAY: Final = (
    *BEGIN,
    Step("the RayCluster is there", lambda s: _workers(s) == 2, lambda s: s.scale(1)),
    Step("the RayCluster follows the size", lambda s: _workers(s) == 1),
    Step("the RayCluster goes", lambda s: s.is_over() and not s.has(kinds.RAY_CLUSTERS)),
    *ENDING[2:],
)
