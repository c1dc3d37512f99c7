"""What a pod's volumes hold: emptyDir, Secret, ConfigMap, downward API, projected service account tokens, and claims.

A claim's content is the folder that the real volume controller provisioned for it; all nodes of the lab share it, as they would
share network storage. What a volume needs but the API server does not have yet is NotYet, and the pod waits; what the lab's
kubelet does not do is said as plainly. Content is written once: a Secret that changes later does not change in running pods.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.kube.api import Api, ApiError, Object, name_of, namespace_of, uid_of
from tests.kube.container import mount

TOKEN_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"


class NotYet(Exception):
    """The pod cannot start now; the text says what is missing, `reason` is what the container's status shows."""

    def __init__(self, text: str, *, reason: str = "CreateContainerConfigError") -> None:
        super().__init__(text)
        self.reason = reason


def fetch(api: Api, path: str, what: str, *, optional: bool = False) -> Object:
    """An object that a pod refers to; empty when it is optional and not there. Raises NotYet, OSError."""
    try:
        return api.get(path)
    except ApiError as error:
        if error.status == 404 and optional:
            return {}
        raise NotYet(f"{what} not found" if error.status == 404 else f"{what}: {error}") from error


def field(pod: Object, path: str, *, pod_ip: str, node_ip: str) -> str:
    """A fieldRef of the downward API. Raises NotYet for a field that the lab does not know."""
    metadata, spec = pod["metadata"], pod["spec"]
    for kind in ("labels", "annotations"):
        if path.startswith(f"metadata.{kind}['"):
            found: str = metadata.get(kind, {}).get(path.split("'")[1], "")
            return found
        if path == f"metadata.{kind}":
            return "\n".join(f'{k}="{v}"' for k, v in sorted(metadata.get(kind, {}).items()))
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec["nodeName"],
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "status.hostIP": node_ip,
    }
    if path not in known:
        raise NotYet(f"the lab's kubelet does not know fieldPath {path!r}")
    return str(known[path])


class Volumes:
    """Those of one pod, below `folder`."""

    def __init__(self, pod: Object, *, api: Api, folder: Path, pod_ip: str, node_ip: str) -> None:
        self._pod = pod
        self._api = api
        self._folder = folder
        self._addresses = {"pod_ip": pod_ip, "node_ip": node_ip}
        self._group: int | None = (pod["spec"].get("securityContext") or {}).get("fsGroup")
        self._base = f"/api/v1/namespaces/{namespace_of(pod)}"
        self.places: dict[str, Path] = {}
        self.read_only: set[str] = set()
        self.mounted: list[Path] = []  # tmpfs mounts of this machine, to be unmounted with the pod

    def prepare(self) -> None:
        """Fill all that are not filled yet. Raises NotYet, OSError; may be called again."""
        for volume in self._pod["spec"].get("volumes") or []:
            if volume["name"] not in self.places:
                self.places[volume["name"]] = self._make(volume)

    def _make(self, volume: Object) -> Path:
        place = self._folder / "volumes" / str(volume["name"])
        makers: dict[str, Callable[[Path, Object], Path]] = {
            "emptyDir": self._empty,
            "persistentVolumeClaim": self._claim,
            "secret": self._only,
            "configMap": self._only,
            "downwardAPI": self._only,
            "projected": self._projected,
        }
        kind = next((k for k in volume if k in makers), None)
        if kind is None:
            raise NotYet(
                f"the lab's kubelet does not mount {', '.join(sorted(set(volume) - {'name'}))} (volume {volume['name']})"
            )
        place.mkdir(parents=True, exist_ok=True)
        if makers[kind] == self._only:
            source = dict(volume[kind])
            if kind == "secret":
                source["name"] = source.pop("secretName")
            return self._projected(place, {"sources": [{kind: source}], "defaultMode": source.get("defaultMode", 0o644)})
        return makers[kind](place, volume[kind])

    def _only(self, place: Path, source: Object) -> Path:
        raise AssertionError("turned into a projection of one source")

    def _empty(self, place: Path, source: Object) -> Path:
        if source.get("medium") == "Memory":
            mount("tmpfs", str(place), "tmpfs", options="mode=777,size=1g")
            self.mounted.append(place)
        place.chmod(0o777)
        self._give_to_group(place)
        return place

    def _claim(self, place: Path, source: Object) -> Path:
        claim = fetch(self._api, f"{self._base}/persistentvolumeclaims/{source['claimName']}", f"claim {source['claimName']}")
        if claim.get("status", {}).get("phase") != "Bound":
            raise NotYet(f"claim {source['claimName']} is not bound", reason="ContainerCreating")
        volume = fetch(self._api, f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}", "its volume")
        folder = Path(volume["spec"]["hostPath"]["path"])
        folder.mkdir(parents=True, exist_ok=True)
        self._give_to_group(folder)
        if source.get("readOnly"):
            self.read_only.add(place.name)
        return folder

    def _give_to_group(self, folder: Path) -> None:
        """What fsGroup does."""
        if self._group is not None:
            os.chown(folder, -1, self._group)
            folder.chmod(folder.stat().st_mode | 0o2770)

    def _projected(self, place: Path, projection: Object) -> Path:
        mode = projection.get("defaultMode", 0o644)
        for source in projection["sources"]:
            for kind, content in source.items():
                for path, data, own_mode in self._items(kind, content):
                    file = place / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
                    file.chmod(own_mode if own_mode is not None else mode)
                    if self._group is not None:
                        os.chown(file, -1, self._group)
                        file.chmod(file.stat().st_mode | 0o040)
        self.read_only.add(place.name)
        return place

    def _items(self, kind: str, source: Object) -> list[tuple[str, bytes, int | None]]:
        if kind == "serviceAccountToken":
            return [(source["path"], self._token(source), None)]
        if kind == "downwardAPI":
            made = []
            for item in source.get("items") or []:
                if "fieldRef" not in item:
                    raise NotYet("the lab's kubelet does not do resourceFieldRef")
                text = field(self._pod, item["fieldRef"]["fieldPath"], **self._addresses)
                made.append((item["path"], text.encode(), item.get("mode")))
            return made
        plural = {"secret": "secrets", "configMap": "configmaps"}.get(kind)
        if plural is None:
            raise NotYet(f"the lab's kubelet does not project {kind}")
        optional = source.get("optional", False)
        found = fetch(self._api, f"{self._base}/{plural}/{source['name']}", f"{kind} {source['name']!r}", optional=optional)
        data = content(found)
        wanted = source.get("items") or [{"key": key, "path": key} for key in data]
        for item in wanted:
            if item["key"] not in data and not optional:
                raise NotYet(f"{kind} {source['name']!r} has no key {item['key']!r}")
        return [(item["path"], data[item["key"]], item.get("mode")) for item in wanted if item["key"] in data]

    def _token(self, source: Object) -> bytes:
        account = self._pod["spec"].get("serviceAccountName", "default")
        bound = {"kind": "Pod", "apiVersion": "v1", "name": name_of(self._pod), "uid": uid_of(self._pod)}
        spec: Object = {"expirationSeconds": source.get("expirationSeconds", 3600), "boundObjectRef": bound}
        if source.get("audience"):
            spec["audiences"] = [source["audience"]]
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        try:
            answer = self._api.request("POST", f"{self._base}/serviceaccounts/{account}/token", body)
        except ApiError as error:
            raise NotYet(f"no token for service account {account}: {error}") from error
        token: str = answer["status"]["token"]
        return token.encode()


def content(thing: Object) -> dict[str, bytes]:
    """Of a Secret or a ConfigMap."""
    if thing.get("kind") == "ConfigMap":
        return {k: v.encode() for k, v in (thing.get("data") or {}).items()} | {
            k: base64.b64decode(v) for k, v in (thing.get("binaryData") or {}).items()
        }
    return {k: base64.b64decode(v) for k, v in (thing.get("data") or {}).items()}
