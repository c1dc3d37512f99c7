"""The Pod Security Standards' profile "restricted", as a function of a pod's metadata and spec.

The test control plane is older than Kubernetes' own admission of these standards, so the check is written out here from the text
of the standard (the union of all versions up to v1.34, Linux pods). A newer cluster enforces the same by the labels on our
namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
ALLOWED_SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
ALLOWED_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe")


def violations(metadata: Json, spec: Json) -> list[str]:
    """What "restricted" forbids in this pod, one line each with the path; empty when it passes."""
    found = [*_pod_level(metadata, spec)]
    pod_context = spec.get("securityContext") or {}
    for path, container in _containers(spec):
        found.extend(_container_level(path, container, pod_context))
    return found


def _containers(spec: Json) -> Iterator[tuple[str, Json]]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            yield f"spec.{kind}[{container.get('name')}]", container


def _pod_level(metadata: Json, spec: Json) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"spec.{field} must not be true"
    for volume in spec.get("volumes") or ():
        for kind in volume.keys() - {"name"} - ALLOWED_VOLUMES:
            yield f"spec.volumes[{volume['name']}].{kind}: this type of volume is forbidden"
    for sysctl in (spec.get("securityContext") or {}).get("sysctls") or ():
        if sysctl["name"] not in ALLOWED_SYSCTLS:
            yield f"spec.securityContext.sysctls: {sysctl['name']} is forbidden"
    for key, value in (metadata.get("annotations") or {}).items():
        if key.startswith(APPARMOR_ANNOTATION) and value != "runtime/default" and not value.startswith("localhost/"):
            yield f"metadata.annotations[{key}]: {value} is forbidden"
    yield from _context("spec.securityContext", spec.get("securityContext") or {})


def _context(path: str, context: Json) -> Iterator[str]:
    """What holds for a pod's and for a container's securityContext alike."""
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{path}.windowsOptions.hostProcess must not be true"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type") not in ALLOWED_SELINUX_TYPES:
        yield f"{path}.seLinuxOptions.type: {selinux['type']} is forbidden"
    for field in ("user", "role"):
        if selinux.get(field):
            yield f"{path}.seLinuxOptions.{field} must not be set"
    if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield f"{path}.appArmorProfile.type must not be Unconfined"
    if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
        yield f"{path}.seccompProfile.type must not be Unconfined"
    if context.get("runAsUser") == 0:
        yield f"{path}.runAsUser must not be 0"
    if context.get("runAsNonRoot") is False:
        yield f"{path}.runAsNonRoot must not be false"


def _container_level(path: str, container: Json, pod_context: Json) -> Iterator[str]:
    context = container.get("securityContext") or {}
    yield from _context(f"{path}.securityContext", context)
    if context.get("privileged"):
        yield f"{path}.securityContext.privileged must not be true"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{path}.securityContext.allowPrivilegeEscalation must be false"
    if context.get("procMount") not in (None, "Default"):
        yield f"{path}.securityContext.procMount must be Default"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield f"{path}.securityContext.capabilities.drop must hold ALL"
    for capability in set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield f"{path}.securityContext.capabilities.add: {capability} is forbidden"
    if not context.get("runAsNonRoot", pod_context.get("runAsNonRoot")):
        yield f"{path}: runAsNonRoot must be true, here or for the pod"
    if not (context.get("seccompProfile") or pod_context.get("seccompProfile")):
        yield f"{path}: seccompProfile must be set, here or for the pod"
    for port in container.get("ports") or ():
        if port.get("hostPort"):
            yield f"{path}.ports: hostPort {port['hostPort']} is forbidden"
    hooks = container.get("lifecycle") or {}
    for name, handler in [*((name, container.get(name)) for name in HANDLERS), *hooks.items()]:
        for action in ("httpGet", "tcpSocket"):
            if ((handler or {}).get(action) or {}).get("host"):
                yield f"{path}.{name}.{action}.host must not be set"
