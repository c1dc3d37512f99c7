"""The embedded cluster: a Ray head and several Ray nodes on this machine, so that losing a node is real.

Every node is a tree of processes under a keeper of its own (see nodes.py), recorded in the run directory before it starts.
The cluster therefore survives its launcher, and any process that knows the run directory can end it, whole or node by node,
and nothing else. The head keeps its tables on disk, and its keeper starts it again when it ends: the nodes and the workers on
them go on meanwhile. Everything listens on 127.0.0.1 only.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from orchestrator.adapters.ray.connection import authentication, prepare_environment, registered_node_ids
from orchestrator.adapters.ray.node_process import NodeOrder
from orchestrator.adapters.ray.nodes import KEEPER_RECORD_VARIABLE, NodeRecord, end_node, end_raylet, gcs_process, keeper
from orchestrator.adapters.ray.settings import (
    CLUSTER_SETTINGS,
    LOOPBACK_SETTINGS,
    OBJECT_STORE_BYTES,
    THREAD_SETTINGS,
    head_storage,
)

Progress = Callable[[str], None]

START_LIMIT_MS: Final = 120_000
_POLL_S: Final = 0.05
_HEAD: Final = "head"


class LocalClusterError(RuntimeError):
    """The embedded cluster could not be started."""


def _silent(_: str) -> None:
    pass


class LocalCluster:
    """A head without slots, for the supervisor, and `nodes` nodes with `slots_per_node` slots each."""

    def __init__(self, *, nodes: int, slots_per_node: int, run_dir: Path) -> None:
        if nodes < 1 or slots_per_node < 1:
            raise ValueError(f"a cluster needs a node and a slot, not {nodes} nodes with {slots_per_node} slots")
        self._nodes = nodes
        self._slots_per_node = slots_per_node
        self._dir = (run_dir / "cluster").resolve()
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        """host:port that drivers connect to."""
        head = NodeRecord.read(self._record_path(_HEAD))
        if head is None or not head.gcs_address:
            raise LocalClusterError("the embedded cluster is not up")
        return head.gcs_address

    @property
    def token_path(self) -> Path:
        """File (mode 600) with the token that this cluster demands of drivers."""
        return self._dir / "ray-token"

    @property
    def node_ids(self) -> tuple[str, ...]:
        """Ray ids of all nodes but the head, in the order of their names; ended ones are left out."""
        return tuple(r.node_id for r in self.records() if not r.head and r.node_id and keeper(r) is not None)

    def records(self) -> tuple[NodeRecord, ...]:
        """All nodes that were started and not yet cleaned up, the head too."""
        return recorded_nodes(self._dir.parent)

    def start(self, progress: Progress = _silent) -> None:
        """Start everything at once and return when every node is registered.

        Raises LocalClusterError, after which nothing is left running; the same holds for an interrupt.
        """
        if self.records():
            raise LocalClusterError(f"{self._dir} already holds a cluster; end it first")
        prepare_directory(self._dir, self.token_path)
        prepare_environment(self.token_path)
        names = [_HEAD, *(f"node-{i + 1}" for i in range(self._nodes))]
        try:
            started = {name: self._launch(name) for name in names}
            self._wait_until_up(started, progress)
        except BaseException:
            self.stop()
            raise

    def add_node(self, progress: Progress = _silent) -> str:
        """Start one more node and return its id when it is registered. Raises LocalClusterError."""
        taken = [int(r.name.removeprefix("node-")) for r in self.records() if not r.head]
        prepare_environment(self.token_path)
        name = f"node-{max(taken, default=0) + 1}"
        self._wait_until_up({name: self._launch(name)}, progress)
        record = NodeRecord.read(self._record_path(name))
        assert record is not None
        return record.node_id

    def kill_node(self, node_id: str) -> int:
        """SIGKILL the raylet and everything that runs on the node; returns how many processes that were."""
        return end_node(self._record_of(node_id))

    def kill_raylet(self, node_id: str) -> bool:
        """SIGKILL the raylet alone: the node's workers become zombies that go on. False when it was dead already."""
        return end_raylet(self._record_of(node_id))

    @property
    def gcs_pid(self) -> int:
        """The head's GCS; when it ends its keeper starts another one. Raises LookupError while there is none."""
        return gcs_process(self._head()).pid

    def kill_head_raylet(self) -> bool:
        """SIGKILL the head's raylet alone; its keeper starts the whole head again. False when it was dead already."""
        return end_raylet(self._head())

    def stop(self) -> None:
        """End everything; idempotent."""
        stop_recorded(self._dir.parent)
        for child in self._children:
            if child.poll() is None:  # so young that it had no record yet
                child.kill()
            child.wait()
        if self._children:
            stop_recorded(self._dir.parent)  # it may have written one meanwhile
        self._children.clear()

    def _record_path(self, name: str) -> Path:
        return self._dir / f"{name}.node.json"

    def _head(self) -> NodeRecord:
        head = NodeRecord.read(self._record_path(_HEAD))
        if head is None:
            raise LookupError(f"no head in {self._dir}")
        return head

    def _record_of(self, node_id: str) -> NodeRecord:
        for record in self.records():
            if record.node_id == node_id:
                return record
        raise KeyError(f"no node {node_id} in {self._dir}")

    def _launch(self, name: str) -> subprocess.Popen[bytes]:
        memory_bytes = psutil.virtual_memory().total // (self._nodes + 1)
        record_path = self._record_path(name)
        order = NodeOrder(
            name=name,
            record_path=str(record_path),
            head_record_path=str(self._record_path(_HEAD)),
            ray_dir=str(self._dir / "ray"),
            slots=0 if name == _HEAD else self._slots_per_node,
            memory_bytes=memory_bytes,
            object_store_bytes=OBJECT_STORE_BYTES,
            head_wait_ms=START_LIMIT_MS,
        )
        environment = node_environment(self.token_path, record_path)
        if name == _HEAD:
            environment |= head_storage(self._dir / "ray" / "gcs")
        with (self._dir / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.adapters.ray.node_process", order.to_json()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def _wait_until_up(self, started: dict[str, subprocess.Popen[bytes]], progress: Progress) -> None:
        deadline_s = time.monotonic() + START_LIMIT_MS / 1000
        waiting = dict(started)
        while waiting:
            for name, child in started.items():
                if child.poll() is not None:
                    raise LocalClusterError(f"{name} ended while it started: {self._last_words(name)}")
            head = NodeRecord.read(self._record_path(_HEAD))
            alive = registered_node_ids(head.gcs_address, timeout_s=2) if head and head.gcs_address else frozenset()
            for name in list(waiting):
                record = NodeRecord.read(self._record_path(name))
                if record is not None and record.node_id in alive:
                    del waiting[name]
                    progress(f"{name} is up ({len(started) - len(waiting)} of {len(started)})")
            if time.monotonic() > deadline_s:
                raise LocalClusterError(f"not up within {START_LIMIT_MS} ms: {', '.join(waiting)}")
            time.sleep(_POLL_S)

    def _last_words(self, name: str) -> str:
        lines = (self._dir / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def prepare_directory(directory: Path, token_path: Path) -> None:
    """An empty cluster directory, closed to others. A token stays for good: Ray aborts a process that cannot read it again."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.rmtree(directory / "ray", ignore_errors=True)
    if not token_path.exists():
        with os.fdopen(os.open(token_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex(32))


def node_environment(token_path: Path, record_path: Path) -> dict[str, str]:
    """Environment of a node's processes: the user's, with our Ray settings in place of any others."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    package_root = str(Path(__file__).resolve().parents[3])
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([package_root, inherited]) if inherited else package_root
    return {
        **environment,
        **CLUSTER_SETTINGS,
        **LOOPBACK_SETTINGS,
        **THREAD_SETTINGS,
        **authentication(token_path),
        KEEPER_RECORD_VARIABLE: str(record_path),
    }


def recorded_nodes(run_dir: Path) -> tuple[NodeRecord, ...]:
    """What the run directory says about its embedded cluster; nodes that have ended are included."""
    paths = sorted((run_dir / "cluster").glob("*.node.json"), key=lambda p: (len(p.name), p.name))
    return tuple(r for r in map(NodeRecord.read, paths) if r is not None)


def stop_recorded(run_dir: Path) -> int:
    """End the embedded cluster of this run directory, whoever started it; returns how many processes were killed.

    Only processes named by pid and start time in the records, and their descendants, are touched. Logs stay.
    """
    killed = 0
    for record in sorted(recorded_nodes(run_dir), key=lambda r: r.head):  # the head last
        killed += end_node(record)
        if record.socket_dir:
            shutil.rmtree(record.socket_dir, ignore_errors=True)
        (run_dir / "cluster" / f"{record.name}.node.json").unlink(missing_ok=True)
    return killed
