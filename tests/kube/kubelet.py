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
from pathlib import Path
from typing import Any, Final

from tests.kube import logs
from tests.kube.api import STRATEGIC, Api, ApiError, Object, name_of, namespace_of, uid_of
from tests.kube.network import Addresses, Services
from tests.kube.pod import ORPHAN_S, Pod
from tests.kube.registration import Registration, Settings

RETRY_S: Final = 0.5


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
        registration = Registration(self._settings, self._api)
        registration.register()
        for work in (registration.renew, registration.watch, self._send, self._serve_logs):
            threading.Thread(target=work, daemon=True).start()
        for kind in ("services", "endpoints"):
            threading.Thread(target=self._watch_services, args=(kind,), daemon=True).start()
        self._api.follow(
            "/api/v1/pods",
            query={"fieldSelector": f"spec.nodeName={self._settings.name}"},
            listed=self._listed,
            event=lambda change, pod: self._gone(uid_of(pod)) if change == "DELETED" else self._see(pod),
        )

    # ---- what it serves and follows

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
