"""Programs and folders of a test run that end with it, however it ends."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import psutil

from tests.netlab.lab import started_ticks

LOOPBACK: Final = "127.0.0.1"
PREFIX: Final = "orckube"
_serial: Final = itertools.count()
# The kernel ends a program with the *thread* that started it, so all are started by one that lives as long as this process.
starter: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kube-starter")


def new_root() -> Path:
    """A folder named after this process; those of dead processes are removed on the way."""
    temporary = Path(tempfile.gettempdir())
    for left in temporary.glob(f"{PREFIX}-*-*-*"):
        pid, ticks = (int(part) for part in left.name.split("-")[1:3])
        if started_ticks(pid) != ticks:
            shutil.rmtree(left, ignore_errors=True)
    me = os.getpid()
    root = temporary / f"{PREFIX}-{me}-{started_ticks(me)}-{next(_serial)}"
    root.mkdir(mode=0o755)
    return root


def here(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program on this machine; it ends with this process, even when that is killed. May be called from any thread."""

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    return starter.submit(start).result()


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as s:
        s.bind((LOOPBACK, 0))
        port: int = s.getsockname()[1]
        return port


def tree(pid: int) -> list[psutil.Process]:
    """A process and what it started, as nsenter starts what it was given."""
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []
