"""Programs and folders of a test run that end with it, however it ends."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from tests.netlab.lab import started_ticks

LOOPBACK: Final = "127.0.0.1"
PREFIX: Final = "orckube"
PORTS: Final = 12_000  # below those that the kernel gives away, and above those of Ray's workers
MEMORY: Final = Path("/dev/shm")
ROOM: Final = 1 << 30  # bytes; a container often has 64 MiB there
_serial: Final = itertools.count()
# The kernel ends a program with the *thread* that started it, so all are started by one that lives as long as this process.
starter: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kube-starter")


def new_root() -> Path:
    """A folder named after this process; those of dead processes are removed on the way."""
    temporary = Path(tempfile.gettempdir())
    for place in (temporary, MEMORY):
        for left in place.glob(f"{PREFIX}-*-*-*"):
            pid, ticks = (int(part) for part in left.name.split("-")[1:3])
            if started_ticks(pid) != ticks:
                shutil.rmtree(left, ignore_errors=True)
    me = os.getpid()
    root = temporary / f"{PREFIX}-{me}-{started_ticks(me)}-{next(_serial)}"
    root.mkdir(mode=0o755)
    return root


def in_memory(root: Path) -> Path:
    """A folder for what is written all the time: in memory, or below `root` where there is no room. For a disk that is busy with
    other things lets etcd wait for seconds, and everybody waits for etcd."""
    place = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else root
    made = place / root.name
    made.mkdir(mode=0o755)
    return made


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
    """A port of loopback that was free a moment ago, and that the kernel gives to nobody who asks for any port: a server that is
    away for a while finds it free."""
    given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(max(1024, given_away - PORTS), given_away)
        with socket.socket() as s, suppress(OSError):
            s.bind((LOOPBACK, port))
            return port


def tree(pid: int) -> list[psutil.Process]:
    """A process and what it started, as nsenter starts what it was given."""
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []
