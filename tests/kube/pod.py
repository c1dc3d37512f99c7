"""A pod on its node: sandbox and volumes first, then the init containers one by one, then all others until it ends or is deleted.

Each pod has a thread that walks through this, and each container one more. What the API server should know goes through `report`,
which the kubelet sends as soon as it can; a pod does not stop for an API server that is away.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.kube import image
from tests.kube.api import Api, Object, name_of, namespace_of, now, uid_of
from tests.kube.container import unmount
from tests.kube.network import Addresses, Sandbox, Services
from tests.kube.running import Container, Order
from tests.kube.volumes import NotYet, Volumes

RETRY_S: Final = 0.5
ORPHAN_S: Final = 2.0  # grace of a pod whose object is gone
LOST: Final = "ContainerStatusUnknown"


class Pod:
    """`api` may be used from its threads; `report` is told when the status is another."""

    def __init__(
        self,
        thing: Object,
        *,
        api: Api,
        folder: Path,
        node_ip: str,
        addresses: Addresses,
        services: Services,
        serial: int,
        report: Callable[[Pod], None],
    ) -> None:
        self.thing = thing
        self.uid = uid_of(thing)
        self.folder = folder
        self._api = api
        self._node_ip = node_ip
        self._addresses = addresses
        self._services = services
        self._serial = serial
        self._report = report
        self._began = thing.get("status", {}).get("startTime") or now()
        self._address = ""
        self._sandbox: Sandbox | None = None
        self._volumes: Volumes | None = None
        self._ending = threading.Event()
        self.ended = threading.Event()  # after `end`
        self._deadline_s = float("inf")
        self._initialised = not thing["spec"].get("initContainers")
        self._failure = ""
        before = {s["name"]: s for s in thing.get("status", {}).get("containerStatuses") or [] if "waiting" not in s["state"]}
        self._was_here = bool(before)  # then this node was off meanwhile: the processes are gone
        policy = thing["spec"].get("restartPolicy", "Always")
        grace_s = float(thing["spec"].get("terminationGracePeriodSeconds", 30))

        def make(spec: Object, restart: str, restarts: int = 0) -> Container:
            return Container(
                spec, folder=folder, restart=restart, restarts=restarts, grace_s=grace_s, changed=lambda: report(self)
            )

        self.inits = [
            make(spec, "Never" if policy == "Never" else "OnFailure") for spec in thing["spec"].get("initContainers") or []
        ]
        self.containers = [
            make(spec, policy, before[spec["name"]]["restartCount"] + 1 if spec["name"] in before else 0)
            for spec in thing["spec"]["containers"]
        ]

    def start(self) -> None:
        """Begin its life."""
        threading.Thread(target=self._live, daemon=True, name=name_of(self.thing)).start()

    # ---- its life

    def _live(self) -> None:
        if self._was_here and self.thing["spec"].get("restartPolicy") == "Never":
            self._failure = LOST
            for c in self.containers:
                c.lost(LOST)
            self._report(self)
            return
        try:
            if not self._settle():
                return
            for c in self.inits:
                self._run(c)
                if self._ending.is_set() or c.exit_code:
                    self._report(self)
                    return
            self._initialised = True
            threads = [threading.Thread(target=self._run, args=(c,), daemon=True) for c in self.containers]
            for thread in threads:
                thread.start()
        except Exception as error:  # whatever it is, it must not look like a pod that waits
            self._failure = f"{type(error).__name__}: {error}"
            self._report(self)
            raise

    def _settle(self) -> bool:
        """Network and volumes; False when the pod is deleted before it has them."""
        self.folder.mkdir(parents=True)
        (self.folder / "passwd").write_text(image.PASSWD)
        (self.folder / "group").write_text(image.GROUP)
        (self.folder / "resolv.conf").write_text("")
        name = self.thing["spec"].get("hostname") or name_of(self.thing)
        (self.folder / "hostname").write_text(f"{name}\n")
        self._address = self._addresses.take()
        self._sandbox = Sandbox(hostname=name, address=self._address, serial=self._serial)
        self._services.join(self._sandbox, namespace=namespace_of(self.thing), name=name, hosts=self.folder / "hosts")
        where = {"namespace": namespace_of(self.thing), "name": name_of(self.thing), "network": self._sandbox.network}
        (self.folder / "pod.json").write_text(json.dumps(where))  # for the tests
        for c in [*self.inits, *self.containers]:
            c.address = self._address
        self._volumes = Volumes(self.thing, api=self._api, folder=self.folder, pod_ip=self._address, node_ip=self._node_ip)
        self._report(self)
        return self._retried(self._volumes.prepare, [*self.inits, *self.containers], reason="ContainerCreating")

    def _retried(self, work: Callable[[], None], containers: list[Container], *, reason: str = "") -> bool:
        """Until it succeeds, or the pod ends."""
        while not self._ending.is_set():
            try:
                work()
                return True
            except NotYet as error:
                for c in containers:
                    c.wait(reason or error.reason, str(error))
            except OSError as error:  # the API server is away
                for c in containers:
                    c.wait("ContainerCreating", f"{type(error).__name__}: {error}")
            self._ending.wait(RETRY_S)
        return False

    def _run(self, c: Container) -> None:
        orders: list[Order] = []
        if self._retried(lambda: orders.append(self._order(c)), [c]):
            c.run(orders[0])

    def _order(self, c: Container) -> Order:
        assert self._sandbox is not None
        assert self._volumes is not None
        spec, pod_context = c.spec, self.thing["spec"].get("securityContext") or {}
        context = spec.get("securityContext") or {}
        env = image.environment(
            self.thing, spec, api=self._api, services=self._services.all(), pod_ip=self._address, node_ip=self._node_ip
        )
        argv = [image.expand(a, env) for a in [*(spec.get("command") or []), *(spec.get("args") or [])]]
        if not spec.get("command"):
            raise NotYet("the lab's images have no entry point: give the container a command")
        uid, gid = image.user(self.thing, spec)
        mounts = [*image.mounts(), *((str(self.folder / f), f"/etc/{f}", True) for f in image.OWN_FILES)]
        for m in spec.get("volumeMounts") or []:
            place = self._volumes.places[m["name"]] / m.get("subPath", "")
            if m.get("subPath"):
                place.mkdir(parents=True, exist_ok=True)
            mounts.append(
                (str(place), m["mountPath"].rstrip("/"), m.get("readOnly", False) or m["name"] in self._volumes.read_only)
            )
        return Order(
            argv=argv,
            env=env,
            cwd=spec.get("workingDir") or "/",
            uid=uid,
            gid=gid,
            groups=[
                *([pod_context["fsGroup"]] if "fsGroup" in pod_context else []),
                *(pod_context.get("supplementalGroups") or []),
            ],
            mounts=mounts,
            sandbox=self._sandbox.pid,
            read_only_root=context.get("readOnlyRootFilesystem", False),
            no_new_privileges=context.get("allowPrivilegeEscalation", True) is False,
            drop_all="ALL" in ((context.get("capabilities") or {}).get("drop") or []),
        )

    # ---- its end

    def terminate(self, grace_s: float) -> bool:
        """Within this many seconds from now; a second call can only make it sooner. True when this was the first."""
        self._deadline_s = min(self._deadline_s, time.monotonic() + grace_s)
        first = not self._ending.is_set()
        self._ending.set()
        return first

    def end(self, *, hook: bool = True) -> None:
        """After `terminate`: returns when every container is gone and its volumes and network with them."""
        all_of_it = [*self.inits, *self.containers]
        threads = [threading.Thread(target=c.end, args=(lambda: self._deadline_s,), kwargs={"hook": hook}) for c in all_of_it]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._report(self)
        if self._sandbox is not None:
            self._services.leave(self._address)
            self._sandbox.close()
            self._addresses.give_back(self._address)
        for place in self._volumes.mounted if self._volumes is not None else []:
            unmount(str(place))
        self.ended.set()

    def forget(self) -> None:
        """Remove its files, logs included."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- its status

    def status(self) -> Object:
        """What the API server should hold."""
        phase = self._phase()
        running = phase == "Running" and not self._failure
        ready = running and all(c.ready for c in self.containers)
        not_ready = {"reason": "PodCompleted" if phase in ("Succeeded", "Failed") else "ContainersNotReady"}
        made: Object = {
            "phase": phase,
            "hostIP": self._node_ip,
            "startTime": self._began,
            "conditions": [
                self._condition("Initialized", self._initialised, {"reason": "ContainersNotInitialized"}),
                self._condition("Ready", ready, not_ready),
                self._condition("ContainersReady", ready, not_ready),
            ],
            "containerStatuses": [c.status() for c in self.containers],
        }
        if self.inits:
            made["initContainerStatuses"] = [c.status() for c in self.inits]
        if self._address:
            made |= {"podIP": self._address, "podIPs": [{"ip": self._address}]}
        if self._failure:
            made |= {"reason": self._failure.partition(":")[0], "message": self._failure}
        return made

    def _condition(self, kind: str, true: bool, why_not: Object) -> Object:
        known = {c["type"]: c for c in self.thing.get("status", {}).get("conditions") or []}
        status = "True" if true else "False"
        since = known[kind]["lastTransitionTime"] if kind in known and known[kind]["status"] == status else now()
        return {"type": kind, "status": status, "lastTransitionTime": since, **({"reason": None} if true else why_not)}

    def _phase(self) -> str:
        if self._failure:
            return "Failed"
        if any(c.over and c.exit_code for c in self.inits):
            return "Failed"
        if self.containers and all(c.over for c in self.containers):
            return "Failed" if any(c.exit_code for c in self.containers) else "Succeeded"
        began = any("running" in c.state or "terminated" in c.state or c.restarts for c in self.containers)
        return "Running" if began else "Pending"
