"""The lab: a cluster of network namespaces on this machine, with a real control plane and kubelets that run pods as processes.

The control plane has a node of its own, where the operator and the heads of jobs have their place too; the test nodes lose power
or their cable when a test wants it. Each node is a machine of tests/netlab with a kubelet; its pods hang on a bridge behind the
node's one cable. The way in is a port of loopback in front of the API server; nobody else gets in, and nothing gets out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from orchestrator.spec.kube_values import ENV_WORKDIR
from tests.kube.control_plane import SERVICE_IP, ControlPlane
from tests.kube.network import BRIDGE, NETWORK_BITS
from tests.kube.processes import starter
from tests.kube.registration import Settings
from tests.kube.site import CONTROL_TAINTS, SYSTEM, Site
from tests.netlab.door import Door
from tests.netlab.lab import Lab, LabError, Node
from tests.world.jobs import ROOT

TEST_NODES: Final = 3
CONTROL: Final = 0  # the machine with the control plane
API_PORT: Final = 443
COMPILE_LIMIT_S: Final = 120.0
LABEL: Final = "orchestrator.dev/lab"
SHARED: Final = Path("/tmp/hostpath_pv")  # where the controller-manager's provisioner makes volumes
STORAGE_CLASS: Final = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "shared", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "kubernetes.io/host-path",
}


class LabSite(Site):
    """Use as a context; `root` is a short path."""

    share_mode = "ReadWriteOnce"  # all that the provisioner makes; the kubelets let all nodes have it

    def __init__(self, *, root: Path) -> None:
        super().__init__(root=root)
        self.image = "lab.invalid/orchestrator:lab"  # whatever it is called: tests/kube/image.py
        self.pace_ms = 400
        self.job_env = {ENV_WORKDIR: str(ROOT)}  # the tree is at its own path there
        self.lab = Lab(nodes=1 + TEST_NODES, root=root / "lab", private="kubelet")
        self._volumes = root / "volumes"
        self._env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(root)}
        self._door: Door | None = None
        (root / "plane").mkdir()
        self.plane = ControlPlane(
            root=root / "plane",
            data=Path("/dev/shm/etcd"),  # of that machine, whose memory this is
            start=lambda argv, log: self._start(self.lab.node(CONTROL), argv, log),
            address=address(CONTROL),
            port=API_PORT,
            reach=self._reach,
        )
        self.kubeconfig = self.plane.kubeconfig
        self.control_node = name(CONTROL)
        self.nodes = [name(index) for index in range(1, 1 + TEST_NODES)]

    def __enter__(self) -> Self:
        self._volumes.mkdir(mode=0o755)
        compile_sources()
        SHARED.mkdir(exist_ok=True)  # only a place to mount on, in each node's own view
        try:
            starter.submit(self.lab.__enter__).result()
            for node in self.lab.nodes.values():
                self._connect(node)
            self.plane.__enter__()
            self.kubectl("create", "-f", "-", input=json.dumps(STORAGE_CLASS))
            for node in self.lab.nodes.values():
                self._start_kubelet(node)
            self.until_ready()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if CONTROL in self.lab.nodes:
            self.plane.close()
        self.lab.close()
        if self._door is not None:
            self._door.close()

    # ---- what fails

    def power_off(self, node: str) -> None:
        self.lab.power_off(self._index(node))

    def power_on(self, node: str) -> None:
        index = self._index(node)
        made = starter.submit(self.lab.boot, index).result()
        self._connect(made)
        self._start_kubelet(made)

    def unplug(self, node: str) -> None:
        self.lab.unplug(self._index(node))

    def plug(self, node: str) -> None:
        self.lab.plug(self._index(node))

    def kill_operator(self) -> None:
        """Its process ends at once; the kubelet starts it again in the same pod."""
        for process in self.processes(SYSTEM):
            with suppress(psutil.NoSuchProcess):
                if "orchestrator.apps.operator" in process.cmdline():
                    process.kill()

    def processes(self, namespace: str, pod: str = "") -> list[psutil.Process]:
        """All that run in a pod, or in all pods of a namespace, as this machine's kernel numbers them."""
        notes = [json.loads(file.read_text()) for file in self.lab.root.glob("node-*/*/pod.json")]
        networks = {note["network"] for note in notes if note["namespace"] == namespace and pod in ("", note["name"])}
        found = []
        for process in psutil.process_iter():
            with suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/ns/net") in networks:
                    found.append(process)
        return found

    def stop_api(self) -> None:
        self.plane.stop_api()

    def start_api(self) -> None:
        self.plane.start_api()

    def switch_on(self) -> None:
        if not self.plane.api_runs:
            self.start_api()
        for node in self.nodes:
            if not self.lab.node(self._index(node)).on:
                self.power_on(node)
            self.plug(node)

    def _index(self, node: str) -> int:
        if node not in self.nodes:
            raise LabError(f"{node} is no test node of the lab; those are {', '.join(self.nodes)}")
        return self.nodes.index(node) + 1

    # ---- what it is made of

    def _reach(self) -> str:
        self._door = Door(namespace=self.lab.node(CONTROL).namespace, target=(address(CONTROL), API_PORT))
        return self._door.address

    def _start(self, node: Node, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return node.start(argv, env=self._env, output=output, cwd=ROOT)

    def _connect(self, node: Node) -> None:
        """Its address moves to a bridge; the cable is a port of that, each pod another. Volumes are the same on all nodes."""
        commands = [
            f"ip link add {BRIDGE} address 02:00:00:00:01:{node.index:02x} type bridge",
            "ip addr flush dev eth0",
            f"ip link set eth0 master {BRIDGE}",
            f"ip addr add {node.address}/{NETWORK_BITS} dev {BRIDGE}",
            f"ip link set {BRIDGE} up",
            f"mount --bind '{self._volumes}' {SHARED}",
        ]
        if node.index == CONTROL:
            commands.append(f"ip addr add {SERVICE_IP}/32 dev {BRIDGE}")  # the Service `kubernetes`
        done = node.run(["sh", "-e", "-c", "\n".join(commands)], env=self._env)
        if done.returncode:
            raise LabError(f"the network of {node.name}: {done.stderr}")

    def _start_kubelet(self, node: Node) -> None:
        control = node.index == CONTROL
        settings = Settings(
            name=node.name,
            address=node.address,
            index=node.index,
            kubeconfig=str(self.plane.inner_kubeconfig),
            folder=str(self.lab.private),
            addresses=str(self.root / f"addresses-{node.index}"),
            certificate=str(self.plane.ca),
            key=str(self.plane.key),
            labels={LABEL: "control", CONTROL_TAINTS[0]: ""} if control else {LABEL: "test"},
            taints=[{"key": CONTROL_TAINTS[0], "effect": "NoSchedule"}] if control else [],
        )
        argv = [sys.executable, "-m", "tests.kube.kubelet", json.dumps(asdict(settings))]
        self._start(node, argv, self.root / f"kubelet-{node.index}.log")


def compile_sources() -> None:
    """As an image's build does it: the root of a container is read-only, so its programs would compile them at each start."""
    folders = [str(ROOT / "orchestrator"), str(ROOT / "tests" / "world")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *folders], check=True, timeout=COMPILE_LIMIT_S)


def name(index: int) -> str:
    """Of a machine of the lab, as a node of the cluster."""
    return f"node-{index}"


def address(index: int) -> str:
    """Of a machine of the lab; known before it is made."""
    return f"198.18.0.{index + 1}"
