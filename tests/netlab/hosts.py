"""A Ray cluster over the machines of a lab, started with `ray start` as people do it, and the few things that tests ask of it.

Machine 0 is the head, without slots; every other one has one. The machines share a folder for checkpoints, as they would share
storage; what Ray keeps (sockets, logs, sessions) and the orchestrator's home are each machine's own, and commands may be given on
any of them. Journals are read from their files on the head's disk, because then the reader needs no network.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.adapters.files.home import Home
from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.adapters.ray.settings import CLUSTER_SETTINGS, THREAD_SETTINGS, head_storage
from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import ClusterChanged, WorkerHello
from orchestrator.runtime.ports import Record
from orchestrator.runtime.replay import replay, story
from tests.netlab.lab import Lab, LabError, Node
from tests.world.facts import Facts, Wanted
from tests.world.jobs import ROOT

PORT: Final = 6379
LIMIT_S: Final = 150.0
POLL_S: Final = 0.05
STORE_BYTES: Final = 80 * 2**20
OVER: Final = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Seated:
    """A worker with a rank."""

    worker_id: str
    machine: Node
    pid: int  # as this machine's kernel numbers it


class Hosts:
    """The cluster. `start` once; `join` for each machine that comes later."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.home = Home(lab.root / "node-0" / "home")  # the head's, as it is seen from outside
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(lab.root),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            **CLUSTER_SETTINGS,
            **THREAD_SETTINGS,
        }

    @property
    def address(self) -> str:
        """What `launch --address` is given."""
        return f"{self.lab.node(0).address}:{PORT}"

    # ---- machines

    def start(self) -> None:
        """The head first, then all others at once; returns when every one is registered."""
        self.joined(0, self.join(0))
        started = {index: self.join(index) for index in self.lab.nodes if index}
        for index, process in started.items():
            self.joined(index, process)

    def joined(self, index: int, process: subprocess.Popen[bytes]) -> None:
        """Wait until the machine is a Ray node. Raises LabError with what `ray start` said."""
        if process.wait(LIMIT_S):
            raise LabError(f"node {index}: {self._log(index).read_text()}")

    def join(self, index: int) -> subprocess.Popen[bytes]:
        """Begin to make a machine a Ray node (the head, if it is machine 0); `joined` waits for it."""
        node = self.lab.node(index)
        role = (
            ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
            if index == 0
            else [f"--address={self.address}", "--num-cpus=1"]
        )
        where = [f"--node-ip-address={node.address}", f"--temp-dir={self.lab.private}"]
        lean = ["--disable-usage-stats", f"--object-store-memory={STORE_BYTES}", "--num-gpus=0"]
        env = {**self.env, **head_storage(self.lab.root / "gcs")} if index == 0 else self.env
        with self._log(index).open("wb") as log:
            return node.start(["ray", "start", *role, *where, *lean], env=env, output=log)

    def _log(self, index: int) -> Path:
        return self.lab.root / f"start-{index}.log"

    # ---- jobs

    def orchestrator(self, *argv: str, on: int, limit_s: float = LIMIT_S) -> str:
        """The command line, given on this machine; what it prints."""
        command = [sys.executable, "-m", "orchestrator.apps.cli.main", *argv, "--home", str(self.lab.private / "home")]
        done = self.lab.node(on).run(command, env=self.env, cwd=ROOT, limit_s=limit_s)
        if done.returncode:
            raise LabError(f"orchestrator {' '.join(argv)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def launch(self, document: dict[str, Any], *, on: int) -> None:
        """`orchestrator launch --address ... --detach`, given on this machine."""
        file = self.lab.root / f"{document['name']}.yaml"
        file.write_text(json.dumps(document))
        self.orchestrator("launch", str(file), "--address", self.address, "--detach", "--json", on=on)

    def seated(self, job: Job, rank: int) -> Seated:
        """Who has a rank in the newest epoch, as the journal tells it."""
        records = self.records(job)
        plan = [c.plan for r in records for c in r.commands if isinstance(c, RunEpoch)][-1]
        seat = next(s for s in plan.seats if s.rank == rank)
        pid = next(r.event.pid for r in records if isinstance(r.event, WorkerHello) and r.event.worker_id == seat.worker_id)
        views = [r.event.view for r in records if isinstance(r.event, ClusterChanged)]
        address = next(n.address for view in views for n in view.nodes if n.node_id == seat.node_id)
        machine = next(n for n in self.lab.nodes.values() if n.address == address)
        return Seated(seat.worker_id, machine, machine.outer_pid(pid))

    def records(self, job: Job) -> list[Record]:
        """The journal so far."""
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
            over = bool(records) and records[-1].phase in OVER
            assert not over, f"{job.name} ended without the record that was waited for:\n{story(records)}"
            assert time.monotonic() < deadline, f"not within {LIMIT_S} s:\n{story(records)}"
            time.sleep(POLL_S)

    def finish(self, job: Job) -> Facts:
        """Wait for the end; the journal must replay as it was written."""
        self.until(job, lambda r: r.phase in OVER)
        journal = SqliteJournal(self.home.job(job.name), read_only=True)
        try:
            past = replay(journal)
        finally:
            journal.close()
        assert past.mismatches == ()
        return Facts(self.records(job), past.state)
