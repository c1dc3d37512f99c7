"""A cluster that exists, reached by the kubeconfig that ORCHESTRATOR_TEST_KUBECONFIG names: kind, or a real one.

Kubernetes itself cannot pull a power cord, so each such act is a command of the reader's in an environment variable, in which
{node} stands for the node's name; a test that needs an act without a command is skipped and says which variable it lacks.
docs/kubernetes-tests.md has the commands for kind.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from tests.kube.kubectl import until
from tests.kube.site import CONTROL_TAINTS, Site

PREFIX: Final = "ORCHESTRATOR_TEST_"
KUBECONFIG: Final = f"{PREFIX}KUBECONFIG"
IMAGE: Final = f"{PREFIX}IMAGE"
SHARE_CLASS: Final = f"{PREFIX}STORAGE_CLASS"  # of volumes that several nodes write
LIMIT_S: Final = 120.0
LEAST_NODES: Final = 3


class ExistingCluster(Site):
    """Use as a context. Raises pytest's failure, with what is missing, when the cluster is not fit for the tests."""

    def __init__(self, *, root: Path) -> None:
        super().__init__(root=root)
        self.kubeconfig = Path(os.environ[KUBECONFIG])
        self.image = os.environ.get(IMAGE, "")
        self.share_class = os.environ.get(SHARE_CLASS, "")
        self.pace_ms = 1200  # there a lost node is NotReady after 50 s, in the lab after 8
        self.job_env = {}
        self.nodes = []
        self.control_node = ""
        self._off: dict[str, str] = {}  # node -> the act that brings it back
        self._api_away = False

    def __enter__(self) -> Self:
        if not self.kubeconfig.is_file():
            pytest.fail(f"{KUBECONFIG}={self.kubeconfig} is no file")
        if not self.image:
            pytest.fail(f"{IMAGE} must name an image of this project (docker build .) that the cluster's nodes can pull or have")
        control: list[str] = []
        for node in self.get("nodes")["items"]:
            labels = node["metadata"].get("labels", {})
            chosen = control if any(key in labels for key in CONTROL_TAINTS) else self.nodes
            chosen.append(node["metadata"]["name"])
        if len(self.nodes) < LEAST_NODES + (not control):
            pytest.fail(
                f"the tests need {LEAST_NODES} nodes for pods and one more for the operator and the heads of jobs: "
                f"there are {len(self.nodes)} worker and {len(control)} control-plane nodes"
            )
        self.control_node = control[0] if control else self.nodes.pop(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.restore()
        self.clear()

    def share(self, namespace: str) -> str:
        if not self.share_class:
            pytest.skip(f"set {SHARE_CLASS} to a StorageClass whose volumes several nodes can write (ReadWriteMany)")
        return super().share(namespace)

    def power_off(self, node: str) -> None:
        self._fail("POWER_OFF", node, back="POWER_ON")

    def power_on(self, node: str) -> None:
        self._off.pop(node, None)
        self._act("POWER_ON", node)

    def unplug(self, node: str) -> None:
        self._fail("UNPLUG", node, back="PLUG")

    def plug(self, node: str) -> None:
        self._off.pop(node, None)
        self._act("PLUG", node)

    def stop_api(self) -> None:
        command("START_API")
        self._api_away = True
        self._act("STOP_API", self.control_node)

    def start_api(self) -> None:
        self._act("START_API", self.control_node)
        until(lambda: self.kubectl("get", "--raw=/readyz", check=False).strip() == "ok", "the API server", limit_s=LIMIT_S)
        self._api_away = False

    def switch_on(self) -> None:
        if self._api_away:
            self.start_api()
        for node, act in list(self._off.items()):
            self._act(act, node)
            del self._off[node]

    def _fail(self, act: str, node: str, *, back: str) -> None:
        command(back)
        self._off[node] = back
        self._act(act, node)

    def _act(self, act: str, node: str) -> None:
        text = command(act).format(node=shlex.quote(node))
        done = subprocess.run(["sh", "-c", text], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode:
            raise RuntimeError(f"{PREFIX}{act} ({text}) ended with {done.returncode}: {done.stderr.strip()}")


def command(act: str) -> str:
    """The reader's command for an act; skips the test when there is none."""
    given = os.environ.get(PREFIX + act)
    if not given:
        pytest.skip(f"this cluster cannot be told to do that: set {PREFIX}{act} to a command in which {{node}} is the node")
    return given
