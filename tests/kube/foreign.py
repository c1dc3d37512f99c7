"""Definitions of the kinds of KubeRay, Kueue and Volcano, reduced to the fields that this project writes.

The real ones are not here, so these hold the names, the scopes and the types as their published CRDs have them (Kueue v1beta1,
Volcano v1beta1, KubeRay v1). The API server drops what they do not name, and the tests notice what is dropped; but whether the
real projects act on it as we think, only a cluster with them can tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tests.kube.agents import until
from tests.kube.control_plane import ControlPlane
from tests.kube.manifest_checks import as_list

STRING = {"type": "string"}
INTEGER = {"type": "integer"}
QUANTITY = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
LABELS = {"type": "object", "additionalProperties": STRING}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _definition(group: str, version: str, kind: str, plural: str, spec: dict[str, Any], *, namespaced: bool) -> dict[str, Any]:
    schema = _object(spec=spec, status={"type": "object", "x-kubernetes-preserve-unknown-fields": True})
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "scope": "Namespaced" if namespaced else "Cluster",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


FLAVOR_QUOTAS = _object(name=STRING, resources=_list(_object(name=STRING, nominalQuota=QUANTITY)))
CLUSTER_QUEUE = _object(
    namespaceSelector=_object(matchLabels=LABELS),
    resourceGroups=_list(_object(coveredResources=_list(STRING), flavors=_list(FLAVOR_QUOTAS))),
)
POD_GROUP = _object(
    minMember=INTEGER,
    minResources={"type": "object", "additionalProperties": QUANTITY},
    queue=STRING,
    priorityClassName=STRING,
)

KUEUE = [
    _definition("kueue.x-k8s.io", "v1beta1", "ResourceFlavor", "resourceflavors", _object(nodeLabels=LABELS), namespaced=False),
    _definition("kueue.x-k8s.io", "v1beta1", "ClusterQueue", "clusterqueues", CLUSTER_QUEUE, namespaced=False),
    _definition("kueue.x-k8s.io", "v1beta1", "LocalQueue", "localqueues", _object(clusterQueue=STRING), namespaced=True),
]
ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
TEMPLATE = _object(metadata=_object(labels=LABELS, annotations=LABELS), spec=ANYTHING)  # the spec is a pod's
RAY_CLUSTER = _object(
    headGroupSpec=_object(rayStartParams=LABELS, template=TEMPLATE),
    workerGroupSpecs=_list(
        _object(
            groupName=STRING,
            replicas=INTEGER,
            minReplicas=INTEGER,
            maxReplicas=INTEGER,
            rayStartParams=LABELS,
            template=TEMPLATE,
        )
    ),
)
KUBERAY = [_definition("ray.io", "v1", "RayCluster", "rayclusters", RAY_CLUSTER, namespaced=True)]
VOLCANO = [_definition("scheduling.volcano.sh", "v1beta1", "PodGroup", "podgroups", POD_GROUP, namespaced=True)]


@contextmanager
def installed(plane: ControlPlane, definitions: list[dict[str, Any]]) -> Iterator[None]:
    """These kinds are there inside, and gone afterwards with all of their objects."""
    crds = [definition["metadata"]["name"] for definition in definitions]
    if not crds:
        yield
        return
    plane.kubectl("apply", "--server-side", "-f", "-", input=as_list(definitions))
    until_served(plane, crds)
    yield
    plane.kubectl("delete", "crd", *crds)


def until_served(plane: ControlPlane, definitions: Iterable[str]) -> None:
    """Wait until objects of these kinds (names of their definitions) can be asked for, which comes a moment later."""
    for name in definitions:
        asked = ("get", name, "--all-namespaces", "-o", "name")
        until(partial(plane.kubectl, *asked, check=False), lambda said: "error" not in said.lower(), what=f"{name} is served")
