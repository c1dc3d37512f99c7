"""The keeper of a head restarts what ended, in bounds, and starts over with nothing left of the head that was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from orchestrator.adapters.ray import keeper
from orchestrator.adapters.ray.keeper import RESTARTS_MAX

# argv: the folder, the life of the raylet, keeper.py. Starts a GCS and a raylet, and turns into their keeper as node_process does
HEAD = """
import ctypes, json, os, sys
folder, raylet_life = sys.argv[1:3]
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # adopt orphans
def spawn(script):
    return os.posix_spawn("/bin/sh", ["/bin/sh", "-c", script], os.environ)
gcs_command = ["/bin/sh", "-c", f"echo $$ >> {folder}/gcs"]
raylet = spawn(raylet_life)
gcs = spawn("true")
again = ["/bin/sh", "-c", f"echo again > {folder}/again"]
head = {"gcs_pid": gcs, "gcs_command": gcs_command, "raylet_pid": raylet, "again": again}
os.execv(sys.executable, [sys.executable, "-I", "-S", sys.argv[3], json.dumps(head)])
"""


def kept(folder: Path, raylet_life: str) -> str:
    """Run it to its end; what it said."""
    command = [sys.executable, "-S", "-c", HEAD, str(folder), raylet_life, keeper.__file__]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=True)
    return done.stderr


def test_a_gcs_that_cannot_live_is_given_up(tmp_path: Path) -> None:
    said = kept(tmp_path, f"while [ $(cat {tmp_path}/gcs 2>/dev/null | wc -l) -lt {RESTARTS_MAX} ]; do sleep 0.02; done")
    pids = (tmp_path / "gcs").read_text().split()
    assert len(pids) == len(set(pids)) == RESTARTS_MAX
    assert said.count("the GCS has ended: starting it again") == RESTARTS_MAX
    assert "giving it up" in said


def test_a_head_whose_raylet_ended_starts_over_with_nothing_left(tmp_path: Path) -> None:
    orphan = tmp_path / "orphan"
    said = kept(tmp_path, f"sleep 300 & echo $! > {orphan}")
    assert (tmp_path / "again").exists()
    assert not psutil.pid_exists(int(orphan.read_text()))
    assert "the head's raylet has ended: starting it again" in said
