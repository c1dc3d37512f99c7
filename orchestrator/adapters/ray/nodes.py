"""The processes of one embedded node: who they are, and how to end all of them and nothing else.

Each node hangs under a keeper, a process that leads a session of its own (so that Ctrl-C in a terminal does not reach it) and
adopts every orphan below it (so that a worker whose raylet was killed is still found, and no zombie stays). The keeper writes
a record, pid with start time, before it starts anything; whoever reads the record can end the node, even much later. Start times
are the kernel's ticks since boot: those in Unix time move whenever somebody sets the clock.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

KEEPER_RECORD_VARIABLE = "ORCHESTRATOR_NODE_RECORD"  # every process of a node finds its node's record by it
GCS_PROGRAM = "gcs_server"
_KILL_ROUNDS_MAX = 200
_KILL_ROUND_WAIT_S = 0.05


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One embedded node, as its keeper wrote it down. Fields of a node that is not up yet are empty."""

    name: str
    head: bool
    keeper_pid: int
    keeper_started: int  # ticks since boot; with the pid and the boot it names one process for ever
    boot: str
    raylet_pid: int = 0
    node_id: str = ""
    gcs_address: str = ""  # host:port, of the head
    socket_dir: str = ""  # short path for Ray's unix sockets, removed with the node

    def write(self, path: Path) -> None:
        """Write it so that a reader sees all of it or the one before."""
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(self)))
        scratch.replace(path)

    @staticmethod
    def read(path: Path) -> NodeRecord | None:
        """The record, or None where there is none."""
        try:
            return NodeRecord(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None

    def with_raylet(self, *, raylet_pid: int, node_id: str, gcs_address: str) -> NodeRecord:
        """The same node, now that its raylet runs."""
        return replace(self, raylet_pid=raylet_pid, node_id=node_id, gcs_address=gcs_address)


def process_started(pid: int) -> int:
    """Clock ticks after boot at which this process started (field 22 of proc(5) `stat`); raises psutil.NoSuchProcess."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return int(stat.rpartition(")")[2].split()[19])  # after the name, which may hold anything


def this_boot() -> str:
    """An id that the kernel draws when it starts."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def keeper(record: NodeRecord) -> psutil.Process | None:
    """The keeper itself, or None when it has ended (even if its pid belongs to somebody else by now)."""
    with _gone_is_fine():
        process = psutil.Process(record.keeper_pid)
        same = record.boot == this_boot() and process_started(process.pid) == record.keeper_started
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def members(record: NodeRecord) -> list[psutil.Process]:
    """Every live process of the node, without the keeper.

    They are the keeper's descendants; after the end of the keeper those that are left in its session, whose number cannot
    have been given away while they live.
    """
    root = keeper(record)
    if root is not None:
        with _gone_is_fine():
            return [p for p in root.children(recursive=True) if _lives(p)]
    if psutil.pid_exists(record.keeper_pid):
        return []
    return [p for p in psutil.process_iter() if _in_session(p, record) and _lives(p)]


def end_node(record: NodeRecord) -> int:
    """SIGKILL all processes of the node, keeper last, and wait until they are gone. Returns how many were killed.

    May be called from a process of the node itself: then that process is killed last of all, and this does not return.
    """
    own_pid = os.getpid()
    root = keeper(record)
    if root is not None:
        with _gone_is_fine():
            root.suspend()  # or it would start again what is killed here
    killed: set[int] = set()
    suicide = False
    for _ in range(_KILL_ROUNDS_MAX):
        present = members(record)
        suicide = suicide or any(p.pid == own_pid for p in present)
        others = [p for p in present if p.pid != own_pid]
        if not others:
            break
        for process in others:
            with _gone_is_fine():
                process.kill()
                killed.add(process.pid)
        psutil.wait_procs(others, timeout=_KILL_ROUND_WAIT_S)
    if root is not None:
        with _gone_is_fine():
            root.kill()
            killed.add(root.pid)
            if not suicide:
                psutil.wait_procs([root], timeout=2)
    if suicide:
        os.kill(own_pid, signal.SIGKILL)
    return len(killed)


def end_raylet(record: NodeRecord) -> bool:
    """SIGKILL the raylet alone; its workers stay behind as zombies that train on. False when it was not there."""
    for process in members(record):
        if process.pid == record.raylet_pid:
            with _gone_is_fine():
                process.kill()
                return True
    return False


def gcs_process(record: NodeRecord) -> psutil.Process:
    """The GCS of a head. Raises LookupError when there is none."""
    for process in members(record):
        with _gone_is_fine():
            if process.name() == GCS_PROGRAM:
                return process
    raise LookupError(f"no {GCS_PROGRAM} runs on {record.name}")


def own_node_record() -> NodeRecord | None:
    """The record of the embedded node that this process belongs to; None outside an embedded cluster."""
    path = os.environ.get(KEEPER_RECORD_VARIABLE)
    return NodeRecord.read(Path(path)) if path else None


def _gone_is_fine() -> AbstractContextManager[None]:
    return suppress(psutil.NoSuchProcess, psutil.ZombieProcess, ProcessLookupError)


def _lives(process: psutil.Process) -> bool:
    with _gone_is_fine():
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _in_session(process: psutil.Process, record: NodeRecord) -> bool:
    with _gone_is_fine():
        started_later = process_started(process.pid) >= record.keeper_started
        return started_later and record.boot == this_boot() and os.getsid(process.pid) == record.keeper_pid
    return False
