"""What stands around a job's pods: tokens, the head's volume, the services, the disruption budget.

The tokens are the only random thing about a job: they are made when the Secret is first created, and the operator can never read
them again.
"""

from __future__ import annotations

import secrets

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.objects.common import Object, Target, metadata, selector, training_selector
from orchestrator.adapters.kube.resources import Resource

TOKEN_BYTES = 32


def token_secret(target: Target) -> Object:
    """The Secret with fresh tokens, for the control API and for Ray: of several such Secrets the first that is created counts."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(target, names.token_secret(target.name)),
        "type": "Opaque",
        "stringData": {key: secrets.token_urlsafe(TOKEN_BYTES) for key in (names.CONTROL_TOKEN, names.RAY_TOKEN)},
    }


def head_claim(target: Target) -> Object:
    """The claim of the head's volume: journal, Ray's tables, logs. It outlives every pod of the job."""
    head = target.kubernetes.head
    spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": head.storage}}}
    if head.storage_class:
        spec["storageClassName"] = head.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(target, names.head_claim(target.name)),
        "spec": spec,
    }


def head_service(target: Target, *, incarnation: int | None = None) -> Object:
    """One address for the head. Not only when it is ready: workers join before the supervisor answers.

    With an `incarnation` it leads to that pod only, and never to a dead one that nobody has removed yet.
    """
    ports = [_port("gcs", names.GCS_PORT), _port("control", names.CONTROL_PORT)]
    only = {} if incarnation is None else {names.LABEL_INCARNATION: str(incarnation)}
    spec = {"selector": selector(target.name, names.HEAD) | only, "ports": ports}
    return _service(target, names.head_service(target.name), spec)


def pods_service(target: Target) -> Object:
    """A headless Service: it gives every pod of the job a name in DNS."""
    spec = {
        "clusterIP": "None",
        "selector": selector(target.name),
        "ports": [_port("node-manager", names.NODE_MANAGER_PORT)],
    }
    return _service(target, names.pods_service(target.name), spec)


def disruption_budget(target: Target, resource: Resource) -> Object:
    """At most one training pod goes at a time by eviction; `resource` is the version of the API that the server has.

    As `minAvailable`, because `maxUnavailable` is counted by the scale of the pods' owner: a TrainingJob's is its nodes without
    its spares, and a RayCluster has none, which would forbid every eviction.
    """
    return {
        "apiVersion": resource.group_version,
        "kind": resource.kind,
        "metadata": metadata(target, target.name),
        "spec": {"minAvailable": target.pods_training - 1, "selector": training_selector(target.name)},
    }


def _service(target: Target, name: str, spec: Object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(target, name),
        "spec": {**spec, "publishNotReadyAddresses": True},
    }


def _port(name: str, port: int) -> Object:
    return {"name": name, "port": port, "targetPort": port, "protocol": "TCP"}
