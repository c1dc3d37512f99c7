"""Where the control plane's binaries are: named by KUBEBUILDER_ASSETS, in this user's cache, or built now and kept there.

KUBEBUILDER_ASSETS is the convention of controller-runtime's envtest, so people who have newer binaries use those. Building takes
about three minutes and happens once on a machine; tools/kube_assets.sh does it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.world.jobs import ROOT

PARTS: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
TOOLS: Final = ("kubectl", "openssl", "setpriv")
KUBECTL_MINOR: Final = 21  # the first 1.x with kustomize components
BUILD_LIMIT_S: Final = 1800.0


class AssetsError(RuntimeError):
    """There is no control plane to test with, and why."""


def find() -> Path:
    """The folder with all PARTS, built when it must be. Raises AssetsError with what to do."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if named:
        absent = [part for part in PARTS if not os.access(Path(named) / part, os.X_OK)]
        if absent:
            raise AssetsError(
                f"KUBEBUILDER_ASSETS={named} lacks {', '.join(absent)}: add them, or unset it to use a built 1.20.2"
            )
        return _with_tools(Path(named))
    done = subprocess.run(
        [ROOT / "tools" / "kube_assets.sh"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_LIMIT_S
    )
    if done.returncode:
        raise AssetsError(f"no Kubernetes control plane could be had:\n{done.stderr.strip()}")
    return _with_tools(Path(done.stdout.strip()))


def _with_tools(assets: Path) -> Path:
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        raise AssetsError(
            f"{', '.join(absent)} missing on PATH: apt install kubernetes-client openssl util-linux, or your system's"
        )
    said = subprocess.run(["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, timeout=60).stdout
    minor = re.search(r'"minor": *"(\d+)', said)
    if minor is None or int(minor[1]) < KUBECTL_MINOR:
        raise AssetsError(
            f"{shutil.which('kubectl')} is older than 1.{KUBECTL_MINOR}, which the manifests need: put a newer one on PATH"
        )
    return assets


def minor_version(assets: Path) -> int:
    """The y of the API server's version 1.y."""
    said = subprocess.run([assets / "kube-apiserver", "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"v1\.(\d+)\.", said)
    if found is None:
        raise AssetsError(f"kube-apiserver --version said {said!r}")
    return int(found[1])
