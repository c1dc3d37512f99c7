"""The pods of a job: one head, and one pod for each node that trains or stands by.

They pass Pod Security "restricted": not root, nothing that a process could gain, a root file system that cannot be written. A
pod that is asked to go is given the time to hand its shard over, and one on a node that nobody can reach is evicted soon enough
to be replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.adapters.kube import gang, names
from orchestrator.adapters.kube.objects.common import (
    Object,
    PodLimits,
    Target,
    metadata,
    pod_limits,
    selector,
    training_selector,
)
from orchestrator.core.job import DeviceKind
from orchestrator.spec.kubernetes import TolerationSpec

USER: Final = 1000
GPU: Final = "nvidia.com/gpu"
GPU_NAMES: Final = ("/gpu", "/mig-")  # also amd.com/gpu, nvidia.com/gpu.shared, nvidia.com/mig-1g.10gb
AGENT_REQUESTS: Final = {"cpu": "50m", "memory": "128Mi"}
AGENT_READY: Final = "/tmp/agent-ready"  # there once the agent has spoken to the supervisor and to the API server
AGENT_ALIVE: Final = "/tmp/agent-alive"  # touched by every turn of the agent's loop
AGENT_SILENCE_S: Final = 60
API_TOKEN_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # where every client library looks
API_TOKEN_S: Final = 3600  # kubelets renew it long before
PROBE_FAILURES: Final = 3
HOST: Final = "kubernetes.io/hostname"


def head_pod(target: Target, *, incarnation: int, failures: int = 0) -> Object:
    """The pod with Ray's head, the supervisor (both in one container) and the agent that speaks to Kubernetes."""
    limits = pod_limits(target.job)
    asked = target.kubernetes.head
    home = {"name": "home", "mountPath": names.HOME_PATH}
    ray = _container(target, limits, names.HEAD_CONTAINER, ("orchestrator.apps.kube.head",), grace_s=limits.head_grace_s)
    ray["ports"] = [_port("gcs", names.GCS_PORT), _port("control", names.CONTROL_PORT)]
    ray["readinessProbe"] = _reachable(names.CONTROL_PORT, limits)  # the supervisor serves there once Ray does
    ray["volumeMounts"].append(home)
    ray["resources"] = _resources(cpu=asked.cpu, memory=asked.memory, others={})
    agent = _container(target, limits, names.AGENT_CONTAINER, ("orchestrator.apps.kube.agent",), grace_s=limits.head_grace_s)
    agent["volumeMounts"][0]["name"] = "agent-tmp"
    agent["readinessProbe"] = _executed(limits.probe_period_s, "test", "-f", AGENT_READY)
    agent["livenessProbe"] = {
        **_executed(
            AGENT_SILENCE_S // 3, "sh", "-c", f"test $(( $(date +%s) - $(stat -c %Y {AGENT_ALIVE}) )) -lt {AGENT_SILENCE_S}"
        ),
        "initialDelaySeconds": AGENT_SILENCE_S,
    }
    agent["resources"] = {"requests": dict(AGENT_REQUESTS)}
    spec = _spec(target, [ray, agent], limits, tolerations=asked.tolerations, node_selector=asked.node_selector)
    agent["volumeMounts"].append({"name": "api-token", "mountPath": API_TOKEN_PATH, "readOnly": True})
    spec["volumes"] += [
        {"name": "api-token", "projected": {"defaultMode": 0o440, "sources": _api_token()}},
        {"name": "home", "persistentVolumeClaim": {"claimName": names.head_claim(target.name)}},
        {"name": "agent-tmp", "emptyDir": {}},
    ]
    spec |= {
        "restartPolicy": "Always",
        "serviceAccountName": names.AGENT,
        "automountServiceAccountToken": False,  # the agent alone gets it: beside it runs the user's code
        "terminationGracePeriodSeconds": limits.head_grace_s,
    }
    if asked.priority_class:
        spec["priorityClassName"] = asked.priority_class
    return _pod(target, spec, role=names.HEAD, ordinal=0, incarnation=incarnation, failures=failures)


def training_pod(target: Target, *, role: str, ordinal: int, incarnation: int, failures: int = 0) -> Object:
    """A pod that is one node of the job: `role` is worker or spare, which differ only in where they would rather not be."""
    spec = training_pod_spec(target, role=role)
    spec["hostname"] = names.pod_name(target.name, role=role, ordinal=ordinal, incarnation=incarnation)
    return _pod(target, spec, role=role, ordinal=ordinal, incarnation=incarnation, failures=failures)


def training_pod_spec(target: Target, *, role: str) -> Object:
    """What all pods of a role have in common, for whoever makes them."""
    limits = pod_limits(target.job)
    asked, cluster = target.kubernetes.worker, target.job.cluster
    others = dict(asked.resources)
    if cluster.device is DeviceKind.CUDA and not any(part in name for name in others for part in GPU_NAMES):
        others[GPU] = str(cluster.slots_per_node)
    ray = _container(target, limits, names.WORKER_CONTAINER, ("orchestrator.apps.kube.worker",), grace_s=limits.worker_grace_s)
    ray["ports"] = [_port("node-manager", names.NODE_MANAGER_PORT)]
    ray["readinessProbe"] = _reachable(names.NODE_MANAGER_PORT, limits)
    ray["lifecycle"] = {"preStop": {"exec": {"command": ["python", "-m", "orchestrator.apps.kube.leave"]}}}
    ray["resources"] = _resources(cpu=asked.cpu, memory=asked.memory, others=others)
    spec = _spec(target, [ray], limits, tolerations=asked.tolerations, node_selector=asked.node_selector)
    spec |= {
        "restartPolicy": "Never",  # the operator replaces pods, so that a node that fails is always a new one
        "serviceAccountName": names.WORKER_ACCOUNT,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": limits.worker_grace_s,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": training_selector(target.name),
            }
            for key in dict.fromkeys((target.kubernetes.topology_key, HOST))  # over zones, and within them over hosts
        ],
    }
    priority = asked.priority_class
    if role == names.SPARE:
        priority = target.kubernetes.spare.priority_class or priority
        spec["affinity"] = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_away_from_workers(target)]}}
    if priority:
        spec["priorityClassName"] = priority
    return spec


def pod_labels(target: Target, *, role: str) -> dict[str, str]:
    """Labels of a role's pods beside those of every object of the job."""
    return {names.LABEL_ROLE: role, **gang.pod_labels(target)}


def _pod(target: Target, spec: Object, *, role: str, ordinal: int, incarnation: int, failures: int) -> Object:
    labels = {
        **pod_labels(target, role=role),
        names.LABEL_ORDINAL: str(ordinal),
        names.LABEL_INCARNATION: str(incarnation),
    }
    name = names.pod_name(target.name, role=role, ordinal=ordinal, incarnation=incarnation)
    annotations = gang.pod_annotations(target, role=role) | ({names.NOTE_FAILURES: str(failures)} if failures else {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(target, name, labels=labels, annotations=annotations, controller=True),
        "spec": spec,
    }


def _spec(
    target: Target,
    containers: list[Object],
    limits: PodLimits,
    *,
    tolerations: Sequence[TolerationSpec],
    node_selector: dict[str, str],
) -> Object:
    kubernetes = target.kubernetes
    unreachable = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": limits.unreachable_s,
        }
        for state in ("not-ready", "unreachable")
    ]
    spec: Object = {
        "containers": containers,
        "subdomain": names.pods_service(target.name),
        "enableServiceLinks": True,  # the head's address, also where a cluster has no DNS
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [*unreachable, *(toleration.manifest() for toleration in tolerations)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            {"name": "token", "secret": {"secretName": names.token_secret(target.name), "defaultMode": 0o440}},
            *(
                {
                    "name": f"claim-{n}",
                    "persistentVolumeClaim": {"claimName": volume.claim, "readOnly": volume.read_only},
                }
                for n, volume in enumerate(kubernetes.volumes)
            ),
        ],
    }
    if node_selector:
        spec["nodeSelector"] = dict(node_selector)
    if kubernetes.scheduler:
        spec["schedulerName"] = kubernetes.scheduler
    if kubernetes.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in kubernetes.image_pull_secrets]
    return spec


def _container(target: Target, limits: PodLimits, name: str, module: tuple[str, ...], *, grace_s: int) -> Object:
    kubernetes, cluster = target.kubernetes, target.job.cluster
    made: Object = {
        "name": name,
        "image": kubernetes.image,
        "command": ["python", "-m", *module],
        "terminationMessagePolicy": "FallbackToLogsOnError",  # its last words outlive its log, in the pod's status
        "env": [
            *({"name": key, "value": value} for key, value in sorted(kubernetes.env.items())),
            _value(names.ENV_JOB, target.name),
            _value(names.ENV_NAMESPACE, target.namespace),
            _value(names.ENV_SLOTS, str(cluster.slots_per_node)),
            _value(names.ENV_DEVICE, cluster.device.value),
            _value(names.ENV_GRACE_S, str(grace_s)),
            _value("HOME", "/tmp"),
            _field(names.ENV_POD, "metadata.name"),
            _field(names.ENV_POD_IP, "status.podIP"),
            _field(names.ENV_NODE, "spec.nodeName"),
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "token", "mountPath": names.TOKEN_PATH, "readOnly": True},
            *(
                {"name": f"claim-{n}", "mountPath": volume.path, "readOnly": volume.read_only}
                for n, volume in enumerate(kubernetes.volumes)
            ),
        ],
    }
    if kubernetes.image_pull_policy is not None:
        made["imagePullPolicy"] = kubernetes.image_pull_policy.value
    return made


def _resources(*, cpu: str | None, memory: str | None, others: dict[str, str]) -> Object:
    """Memory is limited to what is asked, CPU is not: a rank that is throttled holds all ranks up."""
    asked = {key: value for key, value in (("cpu", cpu), ("memory", memory)) if value}
    limits = ({"memory": memory} if memory else {}) | others
    return {key: value for key, value in (("requests", asked | others), ("limits", limits)) if value}


def _away_from_workers(target: Target) -> Object:
    return {
        "weight": 100,
        "podAffinityTerm": {
            "labelSelector": {"matchLabels": selector(target.name, names.WORKER)},
            "topologyKey": target.kubernetes.topology_key,
        },
    }


def _reachable(port: int, limits: PodLimits) -> Object:
    period = limits.probe_period_s
    return {"tcpSocket": {"port": port}, "periodSeconds": period, "timeoutSeconds": period, "failureThreshold": PROBE_FAILURES}


def _executed(period_s: int, *command: str) -> Object:
    return {
        "exec": {"command": list(command)},
        "periodSeconds": period_s,
        "timeoutSeconds": period_s,
        "failureThreshold": PROBE_FAILURES,
    }


def _api_token() -> list[Object]:
    """What Kubernetes itself mounts into every container of a pod with `automountServiceAccountToken`."""
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": API_TOKEN_S}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]


def _port(name: str, port: int) -> Object:
    return {"name": name, "containerPort": port, "protocol": "TCP"}


def _value(name: str, value: str) -> Object:
    return {"name": name, "value": value}


def _field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
