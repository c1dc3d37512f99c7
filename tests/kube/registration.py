"""What a kubelet says of its node: that it is there, that it is Ready, and every second that it still lives."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from tests.kube import logs
from tests.kube.api import STRATEGIC, Api, ApiError, Object, now

LEASE_S: Final = 1.0
RETRY_S: Final = 0.5
PRESSURES: Final = ("MemoryPressure", "DiskPressure", "PIDPressure")
LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a kubelet is started with."""

    name: str
    address: str
    index: int
    kubeconfig: str
    folder: str  # of this node alone
    addresses: str  # file of the last address given; survives the node
    certificate: str
    key: str
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[dict[str, str]] = field(default_factory=list)
    resources: dict[str, str] = field(default_factory=dict)


class Registration:
    """Of one node."""

    def __init__(self, settings: Settings, api: Api) -> None:
        self._settings = settings
        self._api = api

    def register(self) -> None:
        """Until it is known and Ready; harmless when it was known before."""
        s = self._settings
        node: Object = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": s.name, "labels": {"kubernetes.io/hostname": s.name, "kubernetes.io/os": "linux", **s.labels}},
            "spec": {"taints": s.taints} if s.taints else {},
        }
        while True:
            try:
                try:
                    self._api.request("POST", "/api/v1/nodes", node)
                except ApiError as error:
                    if error.status != 409:  # it was here before
                        raise
                self._ready(first=True)
                return
            except (OSError, ApiError) as error:
                print(f"not registered yet: {error}", flush=True)
                time.sleep(RETRY_S)

    def _ready(self, *, first: bool = False) -> None:
        s = self._settings
        resources = {"cpu": "8", "memory": "32Gi", "pods": "30", "ephemeral-storage": "64Gi", **s.resources}
        beat = {"lastHeartbeatTime": now(), "lastTransitionTime": now()}
        conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the lab's kubelet", **beat}]
        if first:  # later they are whatever a test has made them
            conditions += [{"type": p, "status": "False", "reason": f"KubeletHasNo{p}", "message": "", **beat} for p in PRESSURES]
        info = ("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeProxyVersion")
        status = {
            "capacity": resources,
            "allocatable": resources,
            "conditions": conditions,
            "addresses": [{"type": "InternalIP", "address": s.address}, {"type": "Hostname", "address": s.name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": logs.PORT}},
            "nodeInfo": dict.fromkeys(info, "lab")
            | {"kubeletVersion": "v1.20.2-lab", "operatingSystem": "linux", "architecture": "amd64"},
        }
        self._api.request("PATCH", f"/api/v1/nodes/{s.name}/status", {"status": status}, kind=STRATEGIC)

    def renew(self) -> None:
        """Renew its lease, for ever."""
        name = self._settings.name
        lapsed = False
        while True:
            began_s = time.monotonic()
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1000 % 1_000_000:06d}Z"
            spec = {"holderIdentity": name, "leaseDurationSeconds": 4, "renewTime": stamp}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec}
            try:
                try:
                    self._api.request("PATCH", f"{LEASES}/{name}", body, kind="application/merge-patch+json")
                except ApiError as error:
                    if error.status != 404:
                        raise
                    self._api.request("POST", LEASES, body)
                if lapsed:
                    self._ready()
                lapsed = False
            except (OSError, ApiError):
                lapsed = True
            time.sleep(max(0.1, LEASE_S - (time.monotonic() - began_s)))

    def watch(self) -> None:
        """The control plane may have declared this node dead: say otherwise, for ever."""

        def see(nodes: list[Object]) -> None:
            for node in nodes:
                ready = [c["status"] for c in node.get("status", {}).get("conditions") or [] if c["type"] == "Ready"]
                if ready != ["True"]:
                    self._ready()

        self._api.follow(
            "/api/v1/nodes",
            query={"fieldSelector": f"metadata.name={self._settings.name}"},
            listed=see,
            event=lambda change, node: see([node]) if change != "DELETED" else None,
        )
