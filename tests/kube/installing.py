"""This project's own manifests, as a person would fit them to a cluster: the operator on one node, accounts in a namespace.

What is not the manifests' own is in a kustomization beside them, as docs/kubernetes.md tells people to do it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

from tests.world.jobs import ROOT

MANIFESTS: Final = ROOT / "manifests"
LIMIT_S: Final = 60.0


def operator(folder: Path, *, image: str, placement: dict[str, Any]) -> str:
    """manifests/base with this image and this nodeSelector and tolerations; `folder` takes the kustomization."""
    named = {"name": "orchestrator", **_parts(image)}
    patch = [{"op": "add", "path": f"/spec/template/spec/{key}", "value": value} for key, value in placement.items()]
    return kustomized(
        folder,
        {
            "resources": [_from(folder, "base")],
            "images": [named],
            "patches": [{"target": {"kind": "Deployment", "name": "orchestrator-operator"}, "patch": json.dumps(patch)}],
        },
    )


def accounts(folder: Path, *, namespace: str) -> str:
    """manifests/namespace for a namespace of this name."""
    rename = [{"op": "replace", "path": "/metadata/name", "value": f"orchestrator-agent-{namespace}"}]
    binding = {"kind": "ClusterRoleBinding", "name": "orchestrator-agent-training"}
    patch = {"target": binding, "options": {"allowNameChange": True}, "patch": json.dumps(rename)}
    return kustomized(folder, {"namespace": namespace, "resources": [_from(folder, "namespace")], "patches": [patch]})


def _parts(image: str) -> dict[str, str]:
    """Of an image's name, which may have a registry with a port, and a digest or a tag or neither."""
    rest, _, digest = image.partition("@")
    path, slash, last = rest.rpartition("/")
    name, _, tag = last.partition(":")
    if digest:
        return {"newName": f"{path}{slash}{name}", "digest": digest}
    return {"newName": f"{path}{slash}{name}", "newTag": tag or "latest"}


def _from(folder: Path, part: str) -> str:
    return os.path.relpath(MANIFESTS / part, folder)


def kustomized(folder: Path, document: dict[str, Any]) -> str:
    """What `kubectl kustomize` makes of it. Raises RuntimeError with its words."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **document}
    (folder / "kustomization.yaml").write_text(json.dumps(document))
    done = subprocess.run(
        ["kubectl", "kustomize", folder], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
    )
    if done.returncode:
        raise RuntimeError(f"kubectl kustomize: {done.stderr}")
    return done.stdout
