"""Ending a node's processes: all of them, adopted orphans too, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.adapters.ray import keeper as keeper_module
from orchestrator.adapters.ray.dotted import resolve
from orchestrator.adapters.ray.nodes import NodeRecord, end_node, end_raylet, keeper, members, process_started, this_boot

# A "raylet" with a "worker" below it: it prints both pids. Its parent becomes the keeper, as node_process does.
TREE = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
raylet = "import subprocess, sys; w = subprocess.Popen(['sleep', '600']); print(w.pid, flush=True); w.wait()"
p = subprocess.Popen([sys.executable, "-c", raylet])
print(p.pid, flush=True)
os.execv(sys.executable, [sys.executable, "-I", "-S", sys.argv[1]])
"""


class Tree:
    """A keeper with a raylet and a worker."""

    def __init__(self) -> None:
        self.root = subprocess.Popen(
            [sys.executable, "-c", TREE, keeper_module.__file__], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.root.stdout is not None
        pids = sorted(int(self.root.stdout.readline()) for _ in range(2))
        self.raylet, self.worker = (psutil.Process(p) for p in pids)
        self.record = NodeRecord(
            name="node-1",
            head=False,
            keeper_pid=self.root.pid,
            keeper_started=process_started(self.root.pid),
            boot=this_boot(),
            raylet_pid=self.raylet.pid,
            node_id="abc",
        )

    def close(self) -> None:
        end_node(self.record)
        self.root.kill()
        self.root.wait()
        assert self.root.stdout is not None
        self.root.stdout.close()


@pytest.fixture
def tree() -> Iterator[Tree]:
    made = Tree()
    try:
        yield made
    finally:
        made.close()


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_node_is_ended_whole(tree: Tree) -> None:
    assert {p.pid for p in members(tree.record)} == {tree.raylet.pid, tree.worker.pid}
    assert end_node(tree.record) == 3
    tree.root.wait(timeout=60)
    assert not lives(tree.raylet)
    assert not lives(tree.worker)
    assert end_node(tree.record) == 0


def test_a_worker_outlives_its_raylet_and_is_still_found(tree: Tree) -> None:
    assert end_raylet(tree.record)
    psutil.wait_procs([tree.raylet], timeout=60)
    assert lives(tree.worker)
    assert tree.worker.ppid() == tree.root.pid
    assert not end_raylet(tree.record)
    end_node(tree.record)
    assert not lives(tree.worker)


def test_without_its_keeper_the_rest_of_the_session_is_found(tree: Tree) -> None:
    tree.root.kill()
    tree.root.wait()
    assert keeper(tree.record) is None
    assert {p.pid for p in members(tree.record)} == {tree.raylet.pid, tree.worker.pid}
    assert end_node(tree.record) == 2
    assert not lives(tree.worker)


def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone(tree: Tree) -> None:
    for stale in (replace(tree.record, keeper_started=tree.record.keeper_started - 1), replace(tree.record, boot="another")):
        assert keeper(stale) is None
        assert end_node(stale) == 0
        assert lives(tree.worker)


def test_whoever_sets_the_clock_does_not_hide_a_node(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: 1.0)
    found = keeper(tree.record)
    assert found is not None
    assert found.pid == tree.root.pid


def test_a_process_that_is_gone_has_no_start() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(psutil.NoSuchProcess):
        process_started(child.pid)


def test_the_keeper_ends_when_nothing_is_left_to_keep(tree: Tree) -> None:
    tree.worker.kill()
    tree.raylet.kill()
    assert tree.root.wait(timeout=60) == 0


def test_a_process_can_end_its_own_node_and_goes_last(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from orchestrator.adapters.ray.nodes import *\n"
        "p = os.getppid()\n"
        "end_node(NodeRecord('n', False, p, process_started(p), this_boot()))\n"
        "Path(sys.argv[1]).touch()\n"
    )
    marker = tmp_path / "survived"
    launch = (
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {script!r}, sys.argv[2]])\n"
        "os.execv(sys.executable, [sys.executable, '-I', '-S', sys.argv[1]])\n"
    )
    root = subprocess.Popen(
        [sys.executable, "-c", launch, keeper_module.__file__, str(marker)],
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(keeper_module.__file__).parents[3])},
    )
    session = root.pid
    assert root.wait(timeout=120) == -9
    left = [p for p in psutil.process_iter() if _session(p.pid) == session]
    psutil.wait_procs(left, timeout=60)
    assert not marker.exists()


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    record = NodeRecord(name="head", head=True, keeper_pid=1, keeper_started=25, boot="b")
    path = tmp_path / "head.node.json"
    assert NodeRecord.read(path) is None
    record.write(path)
    assert NodeRecord.read(path) == record
    up = record.with_raylet(raylet_pid=7, node_id="id", gcs_address="127.0.0.1:1")
    up.write(path)
    assert NodeRecord.read(path) == up


def test_dotted_paths() -> None:
    assert resolve("os:getpid") is os.getpid
    for bad in ("os", "os:", ":getpid", "os:name"):
        with pytest.raises(ValueError):
            resolve(bad)
    with pytest.raises(AttributeError):
        resolve("os:no_such_function")
