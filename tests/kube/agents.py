"""The agent as a process of its own, against a real API server and a supervisor that is not in its pod.

Nodes and pods are objects that a test makes and changes by hand: no kubelet is needed to see what the agent makes of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeApi, KubeError
from orchestrator.adapters.kube.resources import LEASES, NODES, PODS
from orchestrator.spec.training_job import training_job
from tests.kube.control_plane import ControlPlane
from tests.world.jobs import ROOT

T = TypeVar("T")
Object = dict[str, Any]

LIMIT_S = 180.0  # for what takes a second, on a machine that does many other things
POLL_S = 0.1
BEAT_S = 1.0
LEASES_OF_NODES = "kube-node-lease"
STRATEGIC = "application/strategic-merge-patch+json"
CRD = ROOT / "manifests" / "crd" / "trainingjobs.yaml"


class Program(ABC):
    """A program of ours as a process. Use as a context; `start` and `end` it as often as wanted."""

    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)

    @abstractmethod
    def start(self) -> None:
        """Start one."""

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, by default as a kubelet does; how it ended."""
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(LIMIT_S)
        self._process = None
        return code


class Agent(Program):
    """Use as a context; `start` and `end` it as often as wanted. It leaves its own words in `said`, workers' lines in `shown`."""

    def __init__(
        self,
        plane: ControlPlane,
        *,
        root: Path,
        job: str,
        namespace: str,
        supervisor: str,
        token: str,
        kubeconfig: Path | None = None,  # as whom it speaks; by default the administrator
    ) -> None:
        self._root = root
        tokens, scratch = root / "tokens", root / "scratch"
        for folder in (tokens, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        (tokens / names.CONTROL_TOKEN).write_text(token)
        self.scratch = scratch
        self._env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "KUBE"))},
            names.ENV_JOB: job,
            names.ENV_NAMESPACE: namespace,
            names.ENV_POD: f"{job}-head-1",
            names.ENV_POD_IP: "127.0.0.1",
            "KUBECONFIG": str(kubeconfig or plane.kubeconfig),
            "ORCHESTRATOR_SUPERVISOR": supervisor,
            "ORCHESTRATOR_TOKEN_DIR": str(tokens),
            "ORCHESTRATOR_SCRATCH_DIR": str(scratch),
            "ORCHESTRATOR_WORKDIR": str(ROOT),
            "PYTHONPATH": str(ROOT),
        }

    def start(self) -> None:
        """Start one."""
        with (self._root / "said.log").open("ab") as said, (self._root / "shown.log").open("ab") as shown:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.apps.kube.agent"],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=shown,
                stderr=said,
            )

    @property
    def said(self) -> str:
        """Its own words so far."""
        return (self._root / "said.log").read_text()

    @property
    def shown(self) -> list[str]:
        """The workers' lines so far."""
        return (self._root / "shown.log").read_text().splitlines()


class Objects:
    """One namespace of a control plane: the TrainingJob, and nodes and pods made by hand."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace
        self._api = KubeApi(plane.api(), timeout_s=LIMIT_S)
        self._nodes = Nodes(self._api)

    def install(self) -> None:
        """The CRD; harmless when it is there."""
        self.plane.kubectl("apply", "-f", str(CRD))
        served = ["get", "trainingjobs", "-n", self.namespace, "-o", "name"]
        until(
            lambda: self.plane.kubectl(*served, check=False), lambda said: "error" not in said.lower(), what="the kind is served"
        )

    def submit(self, document: Mapping[str, Any]) -> Object:
        """The TrainingJob of a job file, as `kubectl apply` makes it; returns the object that was sent."""
        made = training_job(json.dumps({**document, "kubernetes": {"image": "example.org/x:1"}}), namespace=self.namespace)
        self.plane.kubectl("apply", "-f", "-", input=json.dumps(made))
        return made

    def node(self, name: str, *, ready: str = "True", conditions: Mapping[str, str] | None = None) -> None:
        """Make a node, or change its conditions; it stays so."""
        self._nodes.tell(name, {"Ready": ready, **(conditions or {})})

    def taint(self, name: str, key: str, effect: str = "NoSchedule") -> None:
        """Put a taint on a node."""
        self.plane.kubectl("taint", "node", name, f"{key}=:{effect}")

    def pod(self, job: str, *, ordinal: int, node: str, address: str) -> str:
        """A running worker pod with this IP; its name."""
        name = names.pod_name(job, role=names.WORKER, ordinal=ordinal, incarnation=1)
        made = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": {names.LABEL_JOB: job, names.LABEL_ROLE: names.WORKER},
            },
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 60,
                "containers": [{"name": names.WORKER_CONTAINER, "image": "example.org/x:1"}],
                "tolerations": [{"operator": "Exists"}],
            },
        }
        self.plane.kubectl("create", "-f", "-", input=json.dumps(made))
        self._status(name, {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]})
        return name

    def fail_pod(self, name: str, *, reason: str, code: int) -> None:
        """Its container ended."""
        ended: Object = {"name": names.WORKER_CONTAINER, "state": {"terminated": {"reason": reason, "exitCode": code}}}
        ended |= {"image": "x", "imageID": "", "ready": False, "restartCount": 0}
        self._status(name, {"phase": "Failed", "containerStatuses": [ended]})

    def status(self, job: str) -> Object:
        """What the TrainingJob's status is now."""
        found = json.loads(self.plane.kubectl("-n", self.namespace, "get", "trainingjob", job, "-o", "json"))
        return dict(found.get("status") or {})

    def conditions(self, job: str) -> dict[str, Object]:
        """By type."""
        return {c["type"]: c for c in self.status(job).get("conditions") or ()}

    def events(self) -> list[Object]:
        """All of the agent's, by their number in the journal."""
        found = json.loads(self.plane.kubectl("-n", self.namespace, "get", "events", "-o", "json"))["items"]
        ours = [e for e in found if e.get("reportingComponent") == names.AGENT]
        return sorted(ours, key=seq_of)

    def clear_nodes(self) -> None:
        """They belong to the whole control plane."""
        self._nodes.clear()

    def _status(self, pod: str, status: Object) -> None:
        path = PODS.path(namespace=self.namespace, name=pod, subresource="status")
        self._api.request("PATCH", path, body={"status": status}, content_type=STRATEGIC)


class Nodes(threading.Thread):
    """Nodes that stay as a test says: their leases are renewed, and what the controllers say of them otherwise is put right."""

    def __init__(self, api: KubeApi) -> None:
        super().__init__(name="nodes", daemon=True)
        self._api = api
        self._told: dict[str, Mapping[str, str]] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()

    def tell(self, name: str, conditions: Mapping[str, str]) -> None:
        """What conditions it has; it is made, if need be."""
        with self._lock:
            if not self._told:
                self.start()
            if name not in self._told:
                self._api.create(NODES, {"metadata": {"name": name}, "spec": {"taints": []}})
            self._told[name] = conditions
            renew_lease(self._api, name)
            self._say(name)

    def clear(self) -> None:
        """They are gone."""
        self._over.set()
        if self._told:
            self.join(LIMIT_S)
        for name in self._told:
            self._api.delete(NODES, name)

    def run(self) -> None:
        """Until they are cleared."""
        while not self._over.wait(BEAT_S):
            with self._lock:
                for name, told in self._told.items():
                    with suppress(KubeError):  # it is away, or the test has deleted the node
                        renew_lease(self._api, name)
                        found = self._api.get(NODES, name)
                        if found is not None and not told.items() <= condition_states(found).items():
                            self._say(name)

    def _say(self, name: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        told = [
            {"type": k, "status": v, "reason": "Test", "lastHeartbeatTime": now, "lastTransitionTime": now}
            for k, v in self._told[name].items()
        ]
        path = NODES.path(name=name, subresource="status")
        self._api.request("PATCH", path, body={"status": {"conditions": told}}, content_type=STRATEGIC)


def renew_lease(api: KubeApi, node: str) -> None:
    """As its kubelet does: the controllers call a node lost whose lease does not change."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": stamp}
    if not api.create(LEASES, {"metadata": {"name": node, "namespace": LEASES_OF_NODES}, "spec": spec}):
        api.merge(LEASES, node, {"spec": spec}, namespace=LEASES_OF_NODES)


def condition_states(thing: Object) -> dict[str, str]:
    """Type -> status."""
    return {c["type"]: c["status"] for c in (thing.get("status") or {}).get("conditions") or ()}


def seq_of(event: Mapping[str, Any]) -> int:
    """Number of the decision that an Event tells of."""
    return int(event["metadata"]["name"].rpartition(".")[2])


def until(look: Callable[[], T], wanted: Callable[[T], bool], *, what: str, limit_s: float = LIMIT_S) -> T:
    """What is seen, once it is as wanted; AssertionError with what was seen last."""
    due_s = time.monotonic() + limit_s
    while not wanted(seen := look()):
        assert time.monotonic() < due_s, f"{what}: not within {limit_s} s; last seen: {seen}"
        time.sleep(POLL_S)
    return seen
