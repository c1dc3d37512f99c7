"""What tests ask about objects before anything runs: would the real API server take them whole, and whom does a selector take?"""

from __future__ import annotations

import json
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from tests.kube.control_plane import ControlPlane
from tests.kube.kustomized import Manifest


def as_list(manifests: list[Manifest]) -> str:
    """For `kubectl apply -f -`."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})


def dry_run(plane: ControlPlane, manifests: list[Manifest]) -> list[Manifest]:
    """What the API server would store, in the same order. Raises KubectlError where it refuses."""
    given = as_list(manifests)
    answer = json.loads(plane.kubectl("apply", "--server-side", "--dry-run=server", "-o", "json", "-f", "-", input=given))
    return list(answer["items"]) if answer["kind"] == "List" else [answer]


def missing(sent: Any, got: Any, path: str = "") -> list[str]:
    """Paths of what was sent and did not come back as it was: a field that is dropped is a misspelt one."""
    if isinstance(sent, dict) and isinstance(got, dict):
        return [line for key in sent for line in missing(sent[key], got.get(key), f"{path}.{key}")]
    if isinstance(sent, list) and isinstance(got, list) and len(sent) == len(got):
        return [line for n, item in enumerate(sent) for line in missing(item, got[n], f"{path}[{n}]")]
    same = sent == got or (not sent and got is None)
    if not same and ".resources." in path and got is not None:
        same = parse_quantity(sent) == parse_quantity(got)  # 0.5 comes back as 500m
    return [] if same else [f"{path}: sent {sent!r}, got {got!r}"]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels; only the forms that are used here."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    found = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    for wanted in selector.get("matchExpressions", []):
        assert wanted["operator"] in ("Exists", "In")
        found = found and wanted["key"] in labels
        found = found and (wanted["operator"] == "Exists" or labels[wanted["key"]] in wanted["values"])
    return found
