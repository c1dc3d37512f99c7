"""What `kubectl kustomize` makes of the folders under manifests/ and examples/kubernetes, as parsed objects."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
EXAMPLES = ROOT / "examples/kubernetes"
FOLDERS = sorted(
    str(path.parent.relative_to(ROOT))
    for place in (MANIFESTS, EXAMPLES)
    for path in place.rglob("kustomization.yaml")
    if "components" not in path.parts  # parts of an overlay, nothing by themselves
)

Manifest = dict[str, Any]


@functools.cache
def text(folder: str) -> str:
    """The YAML that a folder (relative to the repository) gives. A folder that does not build fails with kubectl's words."""
    made = subprocess.run(["kubectl", "kustomize", str(ROOT / folder)], capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, f"kubectl kustomize {folder}: {made.stderr}"
    return made.stdout


def objects(folder: str) -> list[Manifest]:
    """The objects that a folder gives."""
    return list(yaml.safe_load_all(text(folder)))


def named(manifest: Manifest) -> str:
    """Kind, namespace and name, for messages and for comparing."""
    metadata = manifest["metadata"]
    return "/".join(part for part in (manifest["kind"], metadata.get("namespace"), metadata["name"]) if part)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Those of some kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]
