"""A cluster whose pods really run, as tests see it: kubectl, namespaces for jobs, the operator, and nodes that fail on demand.

What differs from one cluster to another is how a node loses power and how the API server goes away: tests/kube/lab_site.py does
it on this machine, tests/kube/existing.py by commands that a person gives.
"""

from __future__ import annotations

import json
import os
import secrets
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final

from tests.kube import installing
from tests.kube.kubectl import kubectl, until

SYSTEM: Final = "orchestrator-system"
OPERATOR: Final = "orchestrator-operator"
CONTROL_TAINTS: Final = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
READY_LIMIT_S: Final = 120.0
POLL_S: Final = 0.2
Object = dict[str, Any]


class Site(ABC):
    """A cluster with nodes. `nodes` may be switched off by tests; `control_node` has the operator and the heads of jobs.

    `root` is a folder for files. A subclass sets the attributes and says how things fail.
    """

    image: str  # to be written into jobs
    pace_ms: int  # slept in each micro-batch of a job, which must outlive what Kubernetes does about a lost node
    job_env: dict[str, str]  # what jobs need in their `kubernetes.env`
    kubeconfig: Path
    nodes: list[str]
    control_node: str
    share_mode = "ReadWriteMany"
    share_class = ""  # the default one

    def __init__(self, *, root: Path) -> None:
        self.root = root
        self._made: list[str] = []
        self._count = 0

    # ---- what differs

    @abstractmethod
    def power_off(self, node: str) -> None:
        """Every process there ends at once, and nobody hears a word of it."""

    @abstractmethod
    def power_on(self, node: str) -> None:
        """It boots; `until_ready` waits for it."""

    @abstractmethod
    def unplug(self, node: str) -> None:
        """Its network is gone, for its pods too; its processes go on."""

    @abstractmethod
    def plug(self, node: str) -> None:
        """Its network is back."""

    @abstractmethod
    def stop_api(self) -> None:
        """The API server is gone at once; nodes and pods stay."""

    @abstractmethod
    def start_api(self) -> None:
        """It is back, with the same data; returns when it is ready."""

    @abstractmethod
    def switch_on(self) -> None:
        """All that a test may have switched off is on again."""

    # ---- the same everywhere

    @property
    def head_selector(self) -> dict[str, str]:
        """The nodeSelector of a pod that must not be on a test node."""
        return {"kubernetes.io/hostname": self.control_node}

    @property
    def head_placement(self) -> Object:
        """nodeSelector and tolerations of such a pod, with the keys of a pod and of a job's section `kubernetes.head`."""
        tolerations = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in CONTROL_TAINTS]
        return {"nodeSelector": self.head_selector, "tolerations": tolerations}

    def kubectl(self, *argv: str, input: str | None = None, check: bool = True) -> str:
        """What kubectl prints, as the cluster's administrator (stdout; with check=False also stderr). Raises KubectlError."""
        return kubectl(*argv, kubeconfig=self.kubeconfig, cache=self.root / "kubectl-cache", input=input, check=check)

    def get(self, *argv: str) -> Object:
        """An object, or a list of them, as `kubectl get` gets it."""
        found: Object = json.loads(self.kubectl("get", *argv, "-o", "json"))
        return found

    def namespace(self) -> str:
        """A fresh namespace in which jobs may run: manifests/namespace is applied to it. It goes after the test."""
        name = f"jobs-{self._count}-{secrets.token_hex(2)}"
        self._count += 1
        self._made.append(name)
        self.kubectl("apply", "--server-side", "-f", "-", input=installing.accounts(self.root / "accounts", namespace=name))
        needed = ["-n", name, "get", "serviceaccount/default", "configmap/kube-root-ca.crt"]
        until(lambda: "Error" not in self.kubectl(*needed, check=False), f"the default account of {name}", poll_s=POLL_S)
        return name

    def share(self, namespace: str) -> str:
        """The name of a claim there that pods on all nodes may mount and write at once."""
        spec: Object = {"accessModes": [self.share_mode], "resources": {"requests": {"storage": "1Gi"}}}
        if self.share_class:
            spec["storageClassName"] = self.share_class
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shared"}, "spec": spec}
        self.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(claim))
        return "shared"

    def environment(self) -> dict[str, str]:
        """For a program that is to find this cluster and no other, and no Ray."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "KUBE"))}
        return {**own, "KUBECONFIG": str(self.kubeconfig)}

    def start_operator(self) -> None:
        """manifests/base with this site's image, on the control node; returns when its pod is ready. Harmless if it is there."""
        text = installing.operator(self.root / "operator", image=self.image, placement=self.head_placement)
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)
        self.kubectl("-n", SYSTEM, "scale", "deployment", OPERATOR, "--replicas=1")
        until(self._operator_ready, "the operator", limit_s=READY_LIMIT_S, poll_s=POLL_S)

    def stop_operator(self) -> None:
        """Its pod is gone; what it has made stays."""
        self.kubectl("-n", SYSTEM, "scale", "deployment", OPERATOR, "--replicas=0")
        self._until_empty(SYSTEM)

    def kill_operator(self) -> None:
        """Its pod is deleted without any grace; the Deployment makes another one."""
        chosen = ["-l", f"app.kubernetes.io/name={OPERATOR}"]
        self.kubectl("-n", SYSTEM, "delete", "pods", *chosen, "--grace-period=0", "--force")

    def operator_log(self) -> str:
        """What it says, and said before it was restarted, if it was."""
        chosen = ["-n", SYSTEM, "logs", f"deployment/{OPERATOR}", "--tail=200"]
        before = self.kubectl(*chosen, "--previous", check=False)
        return self.kubectl(*chosen, check=False) + ("" if "rror" in before.partition("\n")[0] else f"---- before\n{before}")

    def _operator_ready(self) -> bool:
        deployment = self.get("deployment", OPERATOR, "-n", SYSTEM)
        status = deployment.get("status", {})
        observed = bool(status.get("observedGeneration") == deployment["metadata"]["generation"])
        return observed and status.get("readyReplicas") == 1 and status.get("updatedReplicas") == 1

    def ready(self) -> set[str]:
        """The nodes of which Kubernetes has a good opinion: they are Ready and have no taint that says otherwise."""
        found = set()
        for node in self.get("nodes")["items"]:
            taints = [t["key"] for t in node["spec"].get("taints") or []]
            conditions = {c["type"]: c["status"] for c in node.get("status", {}).get("conditions") or []}
            if conditions.get("Ready") == "True" and not [t for t in taints if t.startswith("node.kubernetes.io/")]:
                found.add(node["metadata"]["name"])
        return found

    def until_ready(self, *nodes: str) -> None:
        """Wait for these nodes, or for all. Raises TimeoutError."""
        wanted = set(nodes or (self.control_node, *self.nodes))
        until(lambda: wanted <= self.ready(), f"{', '.join(sorted(wanted))} Ready", limit_s=READY_LIMIT_S, poll_s=POLL_S)

    def restore(self) -> None:
        """All nodes are on, Ready and uncordoned again, and the API server answers. Raises TimeoutError."""
        self.switch_on()
        for node in self.nodes:
            self.kubectl("uncordon", node)
        self.until_ready()

    def clear(self) -> None:
        """Nothing of the namespaces made so far runs, and they are on their way out. Raises TimeoutError."""
        if self._made:
            self.kubectl("delete", "namespace", *self._made, "--wait=false", "--ignore-not-found")
            for name in self._made:  # the namespaces' own end takes at least five seconds
                self.kubectl("-n", name, "delete", "pods", "--all", "--grace-period=1", "--wait=false")
        for name in self._made:
            self._until_empty(name)
        self._made.clear()

    def _until_empty(self, namespace: str) -> None:
        until(lambda: not self.get("pods", "-n", namespace)["items"], f"the pods of {namespace} end", poll_s=POLL_S)
