"""What a container is made of, whatever image it names: this machine's programs, this project, and its .venv first on the path.

The parts are bound read-only at the paths that they have here, because a .venv's scripts hold absolute paths. Nothing else of
this machine is in a container: no home directories, no other checkouts, no /etc but the few files that programs read. The user
is 1000, as in the project's Dockerfile.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.kube.api import Api, Object, name_of, namespace_of
from tests.kube.volumes import NotYet, content, fetch, field

ROOT: Final = Path(__file__).resolve().parents[2]
USER: Final = 1000
SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC: Final = (
    "alternatives", "host.conf", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "nsswitch.conf", "os-release",
    "protocols", "services", "ssl",
)  # fmt: skip
PASSWD: Final = "root:x:0:0::/root:/bin/sh\norchestrator:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
OWN_FILES: Final = ("passwd", "group", "hosts", "hostname", "resolv.conf")  # below /etc, each pod has its own
GROUP: Final = "root:x:0:\norchestrator:x:1000:\nnogroup:x:65534:\n"
PATH: Final = f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin"
_REFERENCE: Final = re.compile(r"\$(\$)?\(([\w.-]+)\)")

Mount = tuple[str, str, bool]  # source, target, read-only


def mounts() -> list[Mount]:
    """Of the image."""
    own = {str(ROOT), sys.prefix, sys.base_prefix}
    outside = [p for p in own if not any(p != q and p.startswith(f"{q}/") for q in {*own, *SYSTEM})]
    files = [*SYSTEM, *(f"/etc/{name}" for name in ETC), *outside]
    return [(path, path, True) for path in files if Path(path).exists()]


def user(pod: Object, spec: Object) -> tuple[int, int]:
    """uid and gid of a container. Raises NotYet when they break runAsNonRoot."""
    wanted = {**(pod["spec"].get("securityContext") or {}), **(spec.get("securityContext") or {})}
    uid: int = wanted.get("runAsUser", USER)
    if wanted.get("runAsNonRoot") and uid == 0:
        raise NotYet("container has runAsNonRoot and image will run as root")
    gid: int = wanted.get("runAsGroup", uid if uid == USER else 0)
    return uid, gid


def environment(pod: Object, spec: Object, *, api: Api, services: list[Object], pod_ip: str, node_ip: str) -> dict[str, str]:
    """Of a container: the image's, the services', its own. Raises NotYet, OSError."""
    made = {"PATH": PATH, "PYTHONPATH": str(ROOT), "HOME": "/tmp", "HOSTNAME": name_of(pod)}
    links = pod["spec"].get("enableServiceLinks", True)
    for service in services:
        if service["spec"].get("clusterIP") in (None, "", "None"):
            continue
        api_server = (name_of(service), namespace_of(service)) == ("kubernetes", "default")
        if api_server or (links and namespace_of(service) == namespace_of(pod)):
            made.update(_links(service))
    base = f"/api/v1/namespaces/{namespace_of(pod)}"
    for source in spec.get("envFrom") or []:
        for kind, plural in (("secretRef", "secrets"), ("configMapRef", "configmaps")):
            if kind in source:
                ref = source[kind]
                found = fetch(
                    api, f"{base}/{plural}/{ref['name']}", f"{kind} {ref['name']!r}", optional=ref.get("optional", False)
                )
                made.update({source.get("prefix", "") + k: v.decode() for k, v in content(found).items()})
    for item in spec.get("env") or []:
        if "valueFrom" not in item:
            made[item["name"]] = expand(item.get("value", ""), made)
            continue
        ((kind, ref),) = item["valueFrom"].items()
        if kind == "fieldRef":
            made[item["name"]] = field(pod, ref["fieldPath"], pod_ip=pod_ip, node_ip=node_ip)
        elif kind in ("secretKeyRef", "configMapKeyRef"):
            plural = "secrets" if kind == "secretKeyRef" else "configmaps"
            optional = ref.get("optional", False)
            data = content(fetch(api, f"{base}/{plural}/{ref['name']}", f"{plural} {ref['name']!r}", optional=optional))
            if ref["key"] in data:
                made[item["name"]] = data[ref["key"]].decode()
            elif not optional:
                raise NotYet(f"{plural} {ref['name']!r} has no key {ref['key']!r}")
        else:
            raise NotYet(f"the lab's kubelet does not do {kind} (variable {item['name']})")
    return made


def _links(service: Object) -> dict[str, str]:
    """The variables of a service, those of Docker's links too: a service named `ray` really sets RAY_PORT to a URL."""
    name = name_of(service).upper().replace("-", "_")
    address, ports = service["spec"]["clusterIP"], service["spec"]["ports"]
    first = ports[0]
    made = {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(first["port"]),
        f"{name}_PORT": f"{first['protocol'].lower()}://{address}:{first['port']}",
    }
    for port in ports:
        if port.get("name"):
            made[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
    return made


def expand(text: str, values: Mapping[str, str]) -> str:
    """$(NAME) replaced; $$(NAME) is $(NAME), and an unknown one stays as it is."""

    def one(match: re.Match[str]) -> str:
        return match[0][1:] if match[1] else values.get(match[2], match[0])

    return _REFERENCE.sub(one, text)
