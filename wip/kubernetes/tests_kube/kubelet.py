"""The kubelet of a test node: runs the pods that the real scheduler binds to it as real processes, and tells the API server.

It lives on its node, so a node without power says nothing and a node without network is not heard: its lease lapses, and all
that follows is the real control plane's doing. Standard library only, so that five of them start in a second.

    python -S -m tests.kube.kubelet '{"name": ..., "address": ..., "index": 1, "kubeconfig": ..., "folder": ..., ...}'
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.kube import logs
from tests.kube.api import STRATEGIC, Api, ApiError, Object, name_of, namespace_of, now, uid_of
from tests.kube.network import Addresses, Services
from tests.kube.pod import ORPHAN_S, Pod

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


class Kubelet:
    """`run` never returns."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._api = Api(Path(settings.kubeconfig))
        self._folder = Path(settings.folder)
        self._addresses = Addresses(settings.index, Path(settings.addresses))
        self._services = Services()
        self._pods: dict[str, Pod] = {}
        self._done: set[str] = set()  # pods that were over when they were first seen
        self._dirty: set[str] = set()
        self._wake = threading.Event()
        self._lock = threading.RLock()
        self._serial = itertools.count()

    def run(self) -> None:
        """Register, then keep at it."""
        self._register()
        for work in (self._lease, self._watch_node, self._send, self._serve_logs):
            threading.Thread(target=work, daemon=True).start()
        for kind in ("services", "endpoints"):
            threading.Thread(target=self._watch_services, args=(kind,), daemon=True).start()
        self._api.follow(
            "/api/v1/pods",
            query={"fieldSelector": f"spec.nodeName={self._settings.name}"},
            listed=self._listed,
            event=lambda change, pod: self._gone(uid_of(pod)) if change == "DELETED" else self._see(pod),
        )

    # ---- the node

    def _register(self) -> None:
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

    def _lease(self) -> None:
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

    def _watch_node(self) -> None:
        """The control plane may have declared this node dead: say otherwise."""

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

    def _watch_services(self, kind: str) -> None:
        self._api.follow(
            f"/api/v1/{kind}",
            query={},
            listed=lambda things: self._services.set(kind, things),
            event=lambda change, thing: self._services.change(kind, change, thing),
        )

    def _serve_logs(self) -> None:
        logs.serve(self._log, certificate=Path(self._settings.certificate), key=Path(self._settings.key))

    def _log(self, namespace: str, name: str, container: str, previous: bool) -> tuple[Path, Any]:
        with self._lock:
            pod = next((p for p in self._pods.values() if (namespace_of(p.thing), name_of(p.thing)) == (namespace, name)), None)
        found = None if pod is None else next((c for c in [*pod.inits, *pod.containers] if c.name == container), None)
        if found is None:
            raise KeyError(f"{namespace}/{name} has no container {container} here")
        life = found.restarts - previous
        file = found.log(life)
        if not file.exists():
            raise KeyError(f"life {life} of {container} has not started")
        return file, lambda: found.busy and found.restarts == life

    # ---- its pods

    def _listed(self, things: list[Object]) -> None:
        for thing in things:
            self._see(thing)
        there = {uid_of(t) for t in things}
        for uid in [uid for uid in self._pods if uid not in there]:
            self._gone(uid)

    def _see(self, thing: Object) -> None:
        """A pod that is bound to this node, as it is now."""
        uid = uid_of(thing)
        with self._lock:
            pod = self._pods.get(uid)
            if pod is None and uid not in self._done:
                if thing.get("status", {}).get("phase") in ("Succeeded", "Failed") or "deletionTimestamp" in thing["metadata"]:
                    self._done.add(uid)
                else:
                    self._pods[uid] = pod = self._new(thing)
                    pod.start()
        if "deletionTimestamp" in thing["metadata"]:
            if pod is None:
                threading.Thread(target=self._finalise, args=(thing,), daemon=True).start()
            elif pod.terminate(float(thing["metadata"].get("deletionGracePeriodSeconds") or 0)):
                threading.Thread(target=self._end, args=(pod,), daemon=True).start()
        if pod is not None:
            pod.thing["status"] = thing.get("status", {})
            if differs(pod.status(), thing.get("status", {})):
                self._report(pod)

    def _new(self, thing: Object) -> Pod:
        return Pod(
            thing,
            api=self._api,
            folder=self._folder / uid_of(thing),
            node_ip=self._settings.address,
            addresses=self._addresses,
            services=self._services,
            serial=next(self._serial),
            report=self._report,
        )

    def _end(self, pod: Pod) -> None:
        pod.end()
        self._finalise(pod.thing)

    def _finalise(self, thing: Object) -> None:
        """Nothing of the pod runs any more: its object may go."""
        path = f"/api/v1/namespaces/{namespace_of(thing)}/pods/{name_of(thing)}"
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid_of(thing)}}
        while True:
            try:
                self._send_one(uid_of(thing))
                self._api.request("DELETE", path, body)
                return
            except ApiError as error:
                if error.status in (404, 409):
                    return
                print(f"cannot delete {name_of(thing)}: {error}", flush=True)
            except OSError:
                pass  # the API server is away
            time.sleep(RETRY_S)

    def _gone(self, uid: str) -> None:
        """Its object is gone: what still runs of it is an orphan."""
        with self._lock:
            pod = self._pods.get(uid)
            self._done.discard(uid)
        if pod is None:
            return

        def end() -> None:
            if pod.terminate(ORPHAN_S):
                pod.end(hook=False)
            while not pod.ended.wait(RETRY_S):  # it is being ended already
                continue
            with self._lock:
                self._pods.pop(uid, None)
            pod.forget()

        threading.Thread(target=end, daemon=True).start()

    # ---- their status

    def _report(self, pod: Pod) -> None:
        with self._lock:
            self._dirty.add(pod.uid)
        self._wake.set()

    def _send(self) -> None:
        """Tell the API server of every pod whose status is another; what cannot be told now is told later."""
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                dirty = list(self._dirty)
            failed = False
            for uid in dirty:
                try:
                    self._send_one(uid)
                except (OSError, ApiError) as error:
                    failed = failed or not (isinstance(error, ApiError) and error.status in (404, 409, 422))
                    print(f"status of {uid}: {error}", flush=True)
            if failed:
                time.sleep(RETRY_S)
                self._wake.set()

    def _send_one(self, uid: str) -> None:
        with self._lock:
            pod = self._pods.get(uid)
            self._dirty.discard(uid)
        if pod is None:
            return
        path = f"/api/v1/namespaces/{namespace_of(pod.thing)}/pods/{name_of(pod.thing)}/status"
        try:
            self._api.request("PATCH", path, {"metadata": {"uid": uid}, "status": pod.status()}, kind=STRATEGIC)
        except OSError:
            with self._lock:
                self._dirty.add(uid)
            raise


def differs(own: Object, theirs: Object) -> bool:
    """Whether the API server holds something else than what is true."""
    conditions = {c["type"]: c["status"] for c in theirs.get("conditions") or []}
    mine, known = own["containerStatuses"], theirs.get("containerStatuses") or []
    return (
        own["phase"] != theirs.get("phase")
        or any(conditions.get(c["type"]) != c["status"] for c in own["conditions"])
        or [_gist(c) for c in mine] != [_gist(c) for c in known]
    )


def _gist(container: Object) -> tuple[str, int, str]:
    return container["name"], container["restartCount"], next(iter(container.get("state") or {}), "")


def main() -> None:
    """In the node's namespaces, as root."""
    try:
        Kubelet(Settings(**json.loads(sys.argv[1]))).run()
    except BaseException:
        traceback.print_exc()
        raise


if __name__ == "__main__":
    main()
