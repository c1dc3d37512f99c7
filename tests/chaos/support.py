"""One embedded Ray cluster with a real, detached supervisor, and the few things that a test does to it and asks of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from orchestrator.adapters.files.home import Home
from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.adapters.grpc.client import ControlClient
from orchestrator.adapters.ray.local_cluster import LocalCluster
from orchestrator.adapters.ray.nodes import KEEPER_RECORD_VARIABLE
from orchestrator.apps.wiring import LOCAL, NotRunning, find
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import Fault
from orchestrator.runtime.control import UnreachableError
from orchestrator.runtime.ports import Record
from orchestrator.runtime.replay import replay, story
from orchestrator.runtime.status_types import JobStatus
from tests.world.facts import Facts, Wanted

LIMIT_S = 150.0  # for what must happen, on a machine of which others take most
POLL_S = 0.05


class Cluster:
    """A running embedded cluster below `root`, also when its supervisor is being replaced."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = Home(root)
        # Its machines. The numbers given here do not matter: it is the records that count.
        self.nodes = LocalCluster(nodes=1, slots_per_node=1, run_dir=self.home.cluster(LOCAL))

    @property
    def supervisor_pid(self) -> int:
        """As it was published."""
        endpoint = self.home.read_endpoint(LOCAL)
        assert endpoint is not None
        return endpoint.pid

    @contextmanager
    def client(self) -> Iterator[ControlClient]:
        """The control API of the supervisor as it is now."""
        with find(home=self.root, cluster=LOCAL) as session:
            yield session.client

    def submit(self, job: Job, *faults: Fault) -> None:
        """Start a job, with its faults."""
        with self.client() as client:
            client.submit(job, yaml_text="")
            for fault in faults:
                client.inject(job.name, fault=fault, who="test")

    def status(self, job: Job) -> JobStatus:
        """Now, or as soon as a supervisor answers."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                with self.client() as client:
                    return client.get(job.name)
            except (UnreachableError, NotRunning):
                assert time.monotonic() < deadline, "no supervisor answers"
                time.sleep(POLL_S)

    def records(self, job: Job) -> list[Record]:
        """The journal so far, read from its file: the supervisor is not asked."""
        journal = SqliteJournal(self.home.job(job.name), read_only=True)
        try:
            return list(journal.records(limit=1_000_000))
        finally:
            journal.close()

    def until(self, job: Job, wanted: Wanted, *, after: int = 0) -> Record:
        """The first such record, past or to come."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            records = self.records(job)
            found = next((r for r in records if r.seq > after and wanted(r)), None)
            if found is not None:
                return found
            over = bool(records) and records[-1].phase in ("succeeded", "failed", "cancelled")
            assert not over, f"{job.name} ended without the record that was waited for:\n{story(records)}"
            assert time.monotonic() < deadline, f"not within {LIMIT_S} s:\n{story(records)}"
            time.sleep(POLL_S)

    def finish(self, job: Job) -> Facts:
        """Wait for the end; the journal must replay as it was written."""
        self.until(job, lambda r: r.phase in ("succeeded", "failed", "cancelled"))
        journal = SqliteJournal(self.home.job(job.name), read_only=True)
        try:
            past = replay(journal)
        finally:
            journal.close()
        assert past.mismatches == ()
        return Facts(self.records(job), past.state)

    def cancel(self, job: Job) -> Facts:
        """End it now."""
        with self.client() as client:
            client.cancel(job.name, who="test")
        return self.finish(job)

    def worker(self, job: Job, rank: int) -> tuple[str, int]:
        """(worker id, pid) of a rank."""
        w = next(w for w in self.status(job).workers if w.rank == rank)
        return w.worker_id, w.pid

    def log(self, job: Job) -> str:
        """What the workers' logs hold."""
        return "\n".join(p.read_text(errors="replace") for p in (self.home.job(job.name) / "logs").glob("*.log"))


def unshrinkable(job: Job) -> Job:
    """The job, but it waits for a replacement rather than go on with fewer ranks."""
    return replace(job, resilience=replace(job.resilience, ranks_min=job.parallel.data))


def until_gone(pid: int) -> None:
    """Wait for the end of a process."""
    deadline = time.monotonic() + LIMIT_S
    while lives(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs: {psutil.Process(pid).cmdline()}"
        time.sleep(POLL_S)


def lives(pid: int) -> bool:
    """Whether it runs (a stopped one does; a dead one that nobody has reaped does not)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def processes_of(root: Path) -> list[psutil.Process]:
    """Every process of an embedded cluster below this home: each has its node's record in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            record = process.environ().get(KEEPER_RECORD_VARIABLE, "")
            if record.startswith(f"{root}/") and lives(process.pid):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def pause(pid: int, seconds: float) -> None:
    """Stop a process for that long: the length of the pause is what is tested."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
