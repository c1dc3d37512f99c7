"""The check of Pod Security "restricted" refuses each setting that the standard forbids, and passes a pod that keeps to it.

A check that forgot a field would let everything through in silence, so every rule is broken here once, alone.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.kube.pod_security import violations

GOOD: dict[str, Any] = {
    "metadata": {"annotations": {}},
    "spec": {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "c",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "ports": [{"containerPort": 6379}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    },
}
POD = ("spec", "securityContext")
CONTAINER = ("spec", "containers", 0)
CONTEXT = (*CONTAINER, "securityContext")
Path = tuple[str | int, ...]

# (where, the forbidden value, a word of the complaint)
FORBIDDEN: list[tuple[Path, Any, str]] = [
    (("spec", "hostNetwork"), True, "hostNetwork"),
    (("spec", "hostPID"), True, "hostPID"),
    (("spec", "hostIPC"), True, "hostIPC"),
    (("spec", "volumes", 0), {"name": "h", "hostPath": {"path": "/"}}, "hostPath"),
    (("spec", "volumes", 0), {"name": "n", "nfs": {"server": "s", "path": "/"}}, "nfs"),
    (("spec", "volumes", 0), {"name": "i", "image": {"reference": "r"}}, "image"),
    ((*POD, "sysctls"), [{"name": "kernel.msgmax", "value": "1"}], "sysctls"),
    ((*POD, "runAsUser"), 0, "runAsUser"),
    ((*POD, "runAsNonRoot"), False, "runAsNonRoot"),
    ((*POD, "runAsNonRoot"), None, "runAsNonRoot"),
    ((*POD, "seccompProfile"), None, "seccompProfile"),
    ((*POD, "seccompProfile"), {"type": "Unconfined"}, "seccompProfile"),
    ((*POD, "seLinuxOptions"), {"type": "spc_t"}, "seLinuxOptions.type"),
    ((*POD, "seLinuxOptions"), {"user": "u"}, "seLinuxOptions.user"),
    ((*POD, "seLinuxOptions"), {"role": "r"}, "seLinuxOptions.role"),
    ((*POD, "appArmorProfile"), {"type": "Unconfined"}, "appArmorProfile"),
    ((*POD, "windowsOptions"), {"hostProcess": True}, "hostProcess"),
    (("metadata", "annotations", "container.apparmor.security.beta.kubernetes.io/c"), "unconfined", "apparmor"),
    ((*CONTEXT, "privileged"), True, "privileged"),
    ((*CONTEXT, "allowPrivilegeEscalation"), True, "allowPrivilegeEscalation"),
    ((*CONTEXT, "allowPrivilegeEscalation"), None, "allowPrivilegeEscalation"),
    ((*CONTEXT, "capabilities"), None, "drop"),
    ((*CONTEXT, "capabilities"), {"drop": ["NET_RAW"]}, "drop"),
    ((*CONTEXT, "capabilities"), {"drop": ["ALL"], "add": ["IPC_LOCK"]}, "IPC_LOCK"),
    ((*CONTEXT, "procMount"), "Unmasked", "procMount"),
    ((*CONTEXT, "runAsUser"), 0, "runAsUser"),
    ((*CONTEXT, "runAsNonRoot"), False, "runAsNonRoot"),
    ((*CONTEXT, "seccompProfile"), {"type": "Unconfined"}, "seccompProfile"),
    ((*CONTEXT, "seLinuxOptions"), {"type": "spc_t"}, "seLinuxOptions.type"),
    ((*CONTEXT, "appArmorProfile"), {"type": "Unconfined"}, "appArmorProfile"),
    ((*CONTEXT, "windowsOptions"), {"hostProcess": True}, "hostProcess"),
    ((*CONTAINER, "securityContext"), None, "allowPrivilegeEscalation"),
    ((*CONTAINER, "ports", 0, "hostPort"), 6379, "hostPort"),
    ((*CONTAINER, "livenessProbe"), {"httpGet": {"host": "10.0.0.1", "port": 1}}, "livenessProbe.httpGet.host"),
    ((*CONTAINER, "readinessProbe"), {"tcpSocket": {"host": "10.0.0.1", "port": 1}}, "readinessProbe.tcpSocket.host"),
    ((*CONTAINER, "startupProbe"), {"httpGet": {"host": "10.0.0.1", "port": 1}}, "startupProbe.httpGet.host"),
    ((*CONTAINER, "lifecycle"), {"preStop": {"httpGet": {"host": "10.0.0.1", "port": 1}}}, "preStop.httpGet.host"),
]


def broken(path: Path, value: Any) -> dict[str, Any]:
    """The good pod with one value replaced; None takes the key away."""
    pod = copy.deepcopy(GOOD)
    place: Any = pod
    for step in path[:-1]:
        place = place[step]
    if value is None:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = value
    return pod


def test_a_pod_that_keeps_to_the_standard_passes() -> None:
    assert violations(**GOOD) == []


@pytest.mark.parametrize(("path", "value", "word"), FORBIDDEN, ids=[f"{'.'.join(map(str, p))}={v}"[:80] for p, v, _ in FORBIDDEN])
def test_each_forbidden_setting_is_refused(path: Path, value: Any, word: str) -> None:
    found = violations(**broken(path, value))
    assert [line for line in found if word in line], f"not refused: {found}"


@pytest.mark.parametrize("kind", ["initContainers", "ephemeralContainers"])
def test_all_kinds_of_containers_are_looked_at(kind: str) -> None:
    pod = copy.deepcopy(GOOD)
    pod["spec"][kind] = [{"name": "other", "securityContext": {"privileged": True}}]
    assert any(f"spec.{kind}[other].securityContext.privileged" in line for line in violations(**pod))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*CONTEXT, "capabilities"), {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
        ((*POD, "sysctls"), [{"name": "net.ipv4.tcp_keepalive_time", "value": "60"}]),
        ((*POD, "seLinuxOptions"), {"type": "container_t"}),
        ((*POD, "seccompProfile"), {"type": "Localhost", "localhostProfile": "p.json"}),
        (("spec", "volumes", 0), {"name": "data", "persistentVolumeClaim": {"claimName": "c"}}),
    ],
)
def test_what_the_standard_allows_passes(path: Path, value: Any) -> None:
    assert violations(**broken(path, value)) == []
