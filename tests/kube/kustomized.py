"""What `kubectl kustomize` makes of the folders under manifests/ and examples/kubernetes, as parsed objects."""

from __future__ import annotations

import functools
import re
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


class Loader(yaml.SafeLoader):
    """PyYAML, with the numbers of YAML 1.2: kustomize writes 1e-08, which YAML 1.1 takes for a text."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+"), list("-+0123456789"))


@functools.cache
def text(folder: str) -> str:
    """The YAML that a folder (relative to the repository) gives. A folder that does not build fails with kubectl's words."""
    made = subprocess.run(["kubectl", "kustomize", str(ROOT / folder)], capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, f"kubectl kustomize {folder}: {made.stderr}"
    return made.stdout


def objects(folder: str) -> list[Manifest]:
    """The objects that a folder gives."""
    return list(yaml.load_all(text(folder), Loader=Loader))


def named(manifest: Manifest) -> str:
    """Kind, namespace and name, for messages and for comparing."""
    metadata = manifest["metadata"]
    return "/".join(part for part in (manifest["kind"], metadata.get("namespace"), metadata["name"]) if part)


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Those of some kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]
