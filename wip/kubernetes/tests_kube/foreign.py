"""Definitions of the kinds of KubeRay, Kueue and Volcano, reduced to the fields that this project writes.

The real ones are not here, so these hold the names, the scopes and the types as their published CRDs have them (Kueue v1beta1,
Volcano v1beta1, KubeRay v1). The API server drops what they do not name, and the tests notice what is dropped; but whether the
real projects act on it as we think, only a cluster with them can tell.
"""

from __future__ import annotations

import json
from typing import Any

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
VOLCANO = [_definition("scheduling.volcano.sh", "v1beta1", "PodGroup", "podgroups", POD_GROUP, namespaced=True)]


def as_list(definitions: list[dict[str, Any]]) -> str:
    """For `kubectl apply -f -`."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": definitions})
