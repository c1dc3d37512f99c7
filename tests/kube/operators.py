"""The operator as a process of its own, against a real API server whose pods are run by hand.

`Hands` does what scheduler and kubelets would: it binds pods to nodes, says that they run, and removes those that were asked to
go, but only on nodes that are switched on. So every object is real, and only the processes inside pods are missing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeApi, KubeError
from orchestrator.adapters.kube.observed import PodFacts, node_ready, pod_facts
from orchestrator.adapters.kube.resources import (
    BUDGETS,
    BUDGETS_BETA,
    CLAIMS,
    EVENTS,
    LEASES,
    NODES,
    PODS,
    SECRETS,
    SERVICES,
    TRAINING_JOBS,
    Resource,
)
from orchestrator.spec.training_job import training_job
from tests.kube.agents import BEAT_S, LIMIT_S, STRATEGIC, Objects, Program, renew_lease, until
from tests.kube.control_plane import ControlPlane
from tests.world.jobs import ROOT, document

Object = dict[str, Any]

OURS: Final = "yard"  # label of our nodes
ROOM: Final = {"cpu": "16", "memory": "64Gi", "pods": "110"}  # of a node
LOOK_S: Final = 0.1
PASSING: Final = (0, 404, 409, 429)  # the API server is away or busy, or somebody was faster than we
# Warnings are errors, but for one: kopf 1.45 may forget an HTTP session that it makes while another task gives up the last one.
STRICT: Final = ("-W", "error", *(f"-Wignore:Unclosed {what}:ResourceWarning" for what in ("client session", "connector")))
BY_HAND: Final = "by-hand"  # a scheduler that nobody is
ACCOUNTS: Final = Resource("v1", "serviceaccounts", "ServiceAccount")
TAINT: Final = {"key": "by-hand", "value": "", "effect": "NoSchedule"}  # the real scheduler puts nothing on our nodes


class Operator(Program):
    """Use as a context; `start`, `kill` and `end` it as often as wanted. It leaves its words in `said`."""

    def __init__(
        self, plane: ControlPlane, *, root: Path, namespace: str, pod: str = "operator-0", kubeconfig: Path | None = None
    ) -> None:
        self._log = root / f"{pod}.log"
        self._argv = ["--namespace", namespace, "--lease-namespace", namespace]
        self._env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("KUBE")},
            names.ENV_POD: pod,
            "KUBECONFIG": str(kubeconfig or plane.kubeconfig),
            "PYTHONPATH": str(ROOT),
        }

    def start(self) -> None:
        """Start one; warnings are errors in it as they are in tests."""
        with self._log.open("ab") as log:
            command = [sys.executable, *STRICT, "-m", "orchestrator.apps.operator", *self._argv]
            self._process = subprocess.Popen(command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """At once and without a word."""
        self.end(signal.SIGKILL)

    @property
    def lives(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    @property
    def said(self) -> str:
        """Its words so far."""
        return self._log.read_text()


class Yard:
    """One namespace: jobs, and nodes and pods by hand. Use as a context."""

    def __init__(self, plane: ControlPlane, *, nodes: int = 3) -> None:
        self.plane = plane
        self.namespace = plane.namespace("operator")
        self.api = KubeApi(plane.api(), timeout_s=LIMIT_S)
        Objects(plane, self.namespace).install()
        self.nodes = [f"{self.namespace}-{n}" for n in range(nodes)]
        self.hands = Hands(self.api, self.namespace, self.nodes)
        for account in (names.AGENT, names.WORKER_ACCOUNT):
            self.api.create(ACCOUNTS, {"metadata": {"name": account, "namespace": self.namespace}})

    def __enter__(self) -> Self:
        for node in self.nodes:
            labels = {"kubernetes.io/hostname": node, OURS: self.namespace}
            self.api.create(NODES, {"metadata": {"name": node, "labels": labels}, "spec": {"taints": [TAINT]}})
        self.hands.start()
        self.until(lambda: all(usable(self.api.get(NODES, node)) for node in self.nodes), True, what="the nodes are usable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.hands.stop()
        for found in self.api.list(TRAINING_JOBS, namespace=self.namespace):
            name = found["metadata"]["name"]
            self.api.merge(TRAINING_JOBS, name, {"metadata": {"finalizers": []}}, namespace=self.namespace)
            self.api.delete(TRAINING_JOBS, name, namespace=self.namespace)
        for pod in self.api.list(PODS, namespace=self.namespace):
            self.api.delete(PODS, pod["metadata"]["name"], namespace=self.namespace, grace_s=0)
        for node in self.nodes:
            self.api.delete(NODES, node)

    def power_off(self, node: str) -> None:
        """Nothing on it does anything any more; Kubernetes notices by its lease."""
        self.hands.on.discard(node)

    def power_on(self, node: str) -> None:
        """It is there again, and ends what it was asked to end."""
        self.hands.on.add(node)

    # ---- jobs

    def submit(self, name: str, *, kubernetes: Object | None = None, change: Mapping[str, Any] = {}, **settings: Any) -> None:
        """Make a TrainingJob of two nodes and a spare; `change` is merged into its spec."""
        asked = {"nodes": 2, "spares": 1, "detect_within": "10s", **settings}  # hands may be late: nothing is evicted for it
        place = {"image": "example.org/x:1", "scheduler": BY_HAND, "backend": "pods", **(kubernetes or {})}
        made = training_job(json.dumps({**document(name, **asked), "kubernetes": place}), namespace=self.namespace)
        made["spec"] |= change
        assert self.api.create(TRAINING_JOBS, made)

    def edit(self, name: str, spec: Object) -> None:
        """Merge into the spec."""
        self.api.merge(TRAINING_JOBS, name, {"spec": spec}, namespace=self.namespace)

    def delete(self, name: str) -> None:
        """`kubectl delete`, without waiting."""
        self.api.delete(TRAINING_JOBS, name, namespace=self.namespace)

    def job(self, name: str) -> Object | None:
        """The TrainingJob."""
        return self.api.get(TRAINING_JOBS, name, namespace=self.namespace)

    def status(self, name: str) -> Object:
        """Its status; empty where there is none yet, or no job."""
        return dict((self.job(name) or {}).get("status") or {})

    def phase(self, name: str) -> str:
        """phase/reason."""
        status = self.status(name)
        return f"{status.get('phase')}/{status.get('reason')}"

    def condition(self, name: str, kind: str) -> str:
        """status/reason of a condition; empty where there is none."""
        found = self.status(name).get("conditions") or []
        return next((f"{c['status']}/{c['reason']}" for c in found if c["type"] == kind), "")

    def agent_says(self, name: str, phase: str, *, numbers: Mapping[str, int] = {}, **conditions: str) -> None:
        """What an agent in the head would write; conditions by type."""
        found = self.job(name)
        assert found is not None
        generation = found["metadata"]["generation"]
        now = _now()
        made = [
            {"type": k, "status": v, "reason": "R", "message": "m", "lastTransitionTime": now, "observedGeneration": generation}
            for k, v in conditions.items()
        ]
        status = {"phase": phase, "reason": phase, "message": "said by the agent", "conditions": made, **numbers}
        body = {"metadata": {"name": name, "namespace": self.namespace}, "status": status}
        self.api.apply(TRAINING_JOBS, body, manager=names.AGENT, subresource="status")

    def agent_submits(self, name: str) -> None:
        """What an agent writes down before it submits the job."""
        found = self.job(name)
        assert found is not None
        body = {"metadata": {"name": name, "namespace": self.namespace}, "status": {"submitted": found["spec"]}}
        self.api.apply(TRAINING_JOBS, body, manager=names.SUBMITTER, subresource="status")

    def said(self, name: str) -> list[str]:
        """reason: message of the operator's Events of a job, in their order."""
        found = [e for e in self.api.list(EVENTS, namespace=self.namespace) if e["involvedObject"]["name"] == name]
        ours = [e for e in found if e.get("reportingComponent") == names.OPERATOR]
        ours.sort(key=lambda e: int(e["metadata"]["resourceVersion"]))
        return [f"{e['reason']}: {e['message']}" for e in ours]

    # ---- what it has

    def pods(self, name: str) -> list[PodFacts]:
        """Its pods, oldest first."""
        found = self.api.list(PODS, namespace=self.namespace, labels=f"{names.LABEL_JOB}={name}")
        return [pod_facts(pod) for pod in sorted(found, key=lambda pod: pod["metadata"]["uid"])]

    def live(self, name: str) -> list[str]:
        """Names of its pods that are neither over nor going, in order."""
        return sorted(pod.name for pod in self.pods(name) if pod.live)

    def left(self, name: str) -> list[str]:
        """Everything there is of a job, as kind/name."""
        budgets = BUDGETS if self.api.serves(BUDGETS) else BUDGETS_BETA
        return sorted(
            f"{resource.kind}/{found['metadata']['name']}"
            for resource in (PODS, CLAIMS, SERVICES, budgets, SECRETS)
            for found in self.api.list(resource, namespace=self.namespace, labels=f"{names.LABEL_JOB}={name}")
        )

    def holder(self) -> str:
        """Who has the lease; empty where nobody has."""
        found = self.api.get(LEASES, names.OPERATOR, namespace=self.namespace)
        return str(((found or {}).get("spec") or {}).get("holderIdentity") or "")

    def until(self, look: Callable[[], Any], wanted: Any, *, what: str = "", limit_s: float = LIMIT_S) -> Any:
        """What is seen, once it is `wanted` (a value, or a test of one)."""
        test = wanted if callable(wanted) else lambda seen: seen == wanted
        return until(look, test, what=what or f"{wanted}", limit_s=limit_s)


class Hands(threading.Thread):
    """Scheduler and kubelets of the nodes that are `on`, for the pods of one namespace. Nodes live on however slow pods are."""

    def __init__(self, api: KubeApi, namespace: str, nodes: list[str]) -> None:
        super().__init__(name="hands", daemon=True)
        self._api = api
        self._namespace = namespace
        self._nodes = nodes
        self._over = threading.Event()
        self._bound = 0
        self._beats = threading.Thread(target=self._often, args=(BEAT_S, self._beat_all), name="beats", daemon=True)
        self._unready: set[str] = set()  # pods that say so themselves
        self.on: set[str] = set(nodes)
        self.held: Callable[[PodFacts], bool] = lambda pod: False  # pods that find no node
        self.trouble: BaseException | None = None

    def run(self) -> None:
        """Until `stop`."""
        self._beats.start()
        self._often(LOOK_S, self._tend_all)

    def stop(self) -> None:
        """No more."""
        self._over.set()
        for thread in (self, self._beats):
            thread.join(LIMIT_S)
        assert self.trouble is None, self.trouble

    def _often(self, pause_s: float, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except KubeError as error:
                if error.status not in PASSING and error.status < 500:
                    self.trouble = error
                    raise
            if self._over.wait(pause_s):
                return

    def _beat_all(self) -> None:
        for node in sorted(self.on):
            self._beat(node)

    def _tend_all(self) -> None:
        for pod in self._api.list(PODS, namespace=self._namespace, labels=names.LABEL_JOB):
            self._tend(pod_facts(pod), pod)

    def _beat(self, node: str) -> None:
        """Renew the node's lease, and say that it is ready where the controllers have said otherwise."""
        renew_lease(self._api, node)
        if not node_ready(self._api.get(NODES, node)):
            told = {
                "type": "Ready",
                "status": "True",
                "reason": "Test",
                "lastHeartbeatTime": _now(),
                "lastTransitionTime": _now(),
            }
            path = NODES.path(name=node, subresource="status")
            status = {"conditions": [told], "capacity": ROOM, "allocatable": ROOM}
            self._api.request("PATCH", path, body={"status": status}, content_type=STRATEGIC)

    def _tend(self, pod: PodFacts, obj: Object) -> None:
        if not pod.node:
            on = [node for node in self._nodes if node in self.on]
            if on and pod.live and not self.held(pod):
                self._bound += 1
                target = {"apiVersion": "v1", "kind": "Node", "name": on[self._bound % len(on)]}
                binding = {"metadata": {"name": pod.name, "namespace": self._namespace}, "target": target}
                self._api.request(
                    "POST", PODS.path(namespace=self._namespace, name=pod.name, subresource="binding"), body=binding
                )
        elif pod.node not in self.on:
            return
        elif pod.terminating:
            self._api.delete(PODS, pod.name, namespace=self._namespace, uid=pod.uid, grace_s=0)
        elif pod.phase == "Pending" or (pod.phase == "Running" and not pod.ready and pod.name not in self._unready):
            # also what the controllers have said of pods on a node that was silent: a kubelet knows better
            self.say(obj, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})

    def say(self, pod: Object, status: Object) -> None:
        """Write a pod's status."""
        path = PODS.path(namespace=self._namespace, name=pod["metadata"]["name"], subresource="status")
        self._api.request(
            "PATCH", path, body={"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}, content_type=STRATEGIC
        )

    def fail(self, name: str, *, container: str = names.WORKER_CONTAINER) -> None:
        """The pod ends by itself."""
        found = self._api.get(PODS, name, namespace=self._namespace)
        assert found is not None, f"{name} is not there"
        ended: Object = {"name": container, "state": {"terminated": {"exitCode": 4, "reason": "Error", "finishedAt": _now()}}}
        ended |= {"image": "x", "imageID": "", "ready": False, "restartCount": 0}
        self.say(found, {"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [ended]})

    def unready(self, name: str, ready: str = "False") -> None:
        """The pod's own word on whether it is ready."""
        (self._unready.discard if ready == "True" else self._unready.add)(name)
        found = self._api.get(PODS, name, namespace=self._namespace)
        assert found is not None, f"{name} is not there"
        self.say(found, {"conditions": [{"type": "Ready", "status": ready}]})


def usable(node: Object | None) -> bool:
    """Whether the real scheduler may put a pod there, as far as Kubernetes itself is concerned."""
    taints = [taint["key"] for taint in ((node or {}).get("spec") or {}).get("taints") or []]
    return node_ready(node) and not [key for key in taints if key.startswith("node.kubernetes.io/")]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
