"""Starting and ending the processes of a measured system so that nothing outlives the measurement, stdlib only.

torchrun puts each worker into a session of its own, so killing a process group does not reach them. Instead all
processes of a run carry a token in their environment, by which /proc finds them, and each dies with its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TOKEN_VARIABLE = "ORCHESTRATOR_BENCH_RUN"
_PR_SET_PDEATHSIG = 1
_KILL_ROUNDS_MAX = 200
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Linux: SIGKILL to the calling process when the thread that started it ends."""
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, with output appended to `log`; it dies with this process."""
    with log.open("ab") as out:
        return subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def marked_pids(token: str) -> list[int]:
    """All living processes (zombies do not count) of this user whose environment carries the token."""
    needle = f"{TOKEN_VARIABLE}={token}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # gone meanwhile, or not ours
            continue
    return found


def kill_marked(token: str) -> None:
    """SIGKILL to every process of the run until none is left; raises RuntimeError if some cannot be ended."""
    for _ in range(_KILL_ROUNDS_MAX):
        pids = marked_pids(token)
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
    raise RuntimeError(f"processes {marked_pids(token)} of run {token} did not end")
