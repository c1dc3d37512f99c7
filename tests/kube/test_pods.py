# ruff: noqa: F811  the undisturbed run is a fixture that lies elsewhere
"""What runs in pods (head, workers, preStop hook, agent), as plain processes on machines of their own, against a real API server.

There is no kubelet and no operator here: what these programs do by themselves is shown, and the site's tests show the whole.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import Final, Self

import pytest

from orchestrator.adapters.files.home import Home
from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.adapters.kube import names
from orchestrator.apps.kube.pod import EXIT_STOPPED
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import ClusterChanged, SupervisorRestarted
from orchestrator.runtime.ports import Record
from orchestrator.runtime.replay import replay, story
from tests.chaos.conftest import Calm, calm  # noqa: F401
from tests.kube.agents import Agent, Objects, until
from tests.kube.control_plane import ControlPlane
from tests.netlab.door import Door
from tests.netlab.lab import Lab, _run, cannot
from tests.world.facts import Facts, Wanted, at_step, says, starts
from tests.world.jobs import ROOT, document

pytestmark = [pytest.mark.ray]

JOB: Final = "j"
SERVICE: Final = "198.18.0.100"  # of the head, wherever it is
HEADS: Final = (0, 4)
WORKERS: Final = (1, 2, 3)
OUTSIDE: Final = 5  # a machine from which the test looks in
LIMIT_S: Final = 240.0
POLL_S: Final = 0.2


class Pods:
    """The processes of one job's pods on the machines of a lab, with one folder for the head's volume and one for the Secret."""

    def __init__(self, root: Path) -> None:
        self.lab = Lab(nodes=6, root=root)
        self._volume, self._tokens = root / "volume", root / "tokens"
        self.token = secrets.token_urlsafe(32)
        self._head = HEADS[0]
        self._started: dict[str, Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self._tokens.mkdir()
        (self._tokens / names.CONTROL_TOKEN).write_text(self.token)
        (self._tokens / names.RAY_TOKEN).write_text(secrets.token_urlsafe(32))
        self.lab.__enter__()
        self._serve_at(HEADS[0])
        self.door = Door(namespace=self.lab.node(OUTSIDE).namespace, target=(SERVICE, names.CONTROL_PORT))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.door.close()
        for log in sorted([*self.lab.root.glob("*.log"), *self.lab.root.glob("agent/*.log")]):
            print(f"---- {log.name}\n{log.read_text(errors='replace')[-2500:]}")  # pytest shows it when the test has failed
        self.lab.close()

    def start(self, machine: int, program: str) -> None:
        """Start `head` or `worker` there."""
        log = self.log(machine, program).open("ab")
        with log:
            self._started[f"{program}-{machine}"] = self.lab.node(machine).start(
                [sys.executable, "-m", f"orchestrator.apps.kube.{program}"], env=self._env(machine), output=log, cwd=ROOT
            )

    def log(self, machine: int, program: str) -> Path:
        """What it says."""
        return self.lab.root / f"{program}-{machine}.log"

    def hook(self, machine: int) -> str:
        """Run the preStop hook there; what it says."""
        argv = [sys.executable, "-m", "orchestrator.apps.kube.leave"]
        done = self.lab.node(machine).run(argv, env=self._env(machine), cwd=ROOT, limit_s=LIMIT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self, machine: int, program: str) -> int:
        """SIGTERM, as a kubelet sends it; the exit code."""
        module = f"orchestrator.apps.kube.{program}"
        for process in self.lab.node(machine).processes():
            words = process.cmdline()
            if words[:1] == [sys.executable] and module in words:
                process.send_signal(signal.SIGTERM)
        return self._started[f"{program}-{machine}"].wait(LIMIT_S)

    def move_head(self) -> None:
        """The head's machine loses power; another pod behind the same Service, with the same volume, takes over."""
        self.lab.power_off(HEADS[0])
        self._serve_at(HEADS[1])
        self.start(HEADS[1], "head")

    def _serve_at(self, machine: int) -> None:
        _run("ip", "-n", self.lab.node(machine).namespace, "addr", "add", f"{SERVICE}/32", "dev", "eth0")
        for node in self.lab.nodes.values():
            if node.on:
                _run("ip", "-n", node.namespace, "neigh", "flush", "all")

    def _env(self, machine: int) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.lab.private),
            "PYTHONPATH": str(ROOT),
            names.ENV_JOB: JOB,
            names.ENV_NAMESPACE: "n",
            names.ENV_POD: f"{JOB}-{machine}",
            names.ENV_POD_IP: self.lab.node(machine).address,
            names.ENV_SLOTS: "1",
            names.ENV_DEVICE: "cpu",
            names.ENV_GRACE_S: "60",
            "ORCHESTRATOR_HEAD": SERVICE,
            "ORCHESTRATOR_HOME_DIR": str(self._volume),
            "ORCHESTRATOR_TOKEN_DIR": str(self._tokens),
            "ORCHESTRATOR_SCRATCH_DIR": str(self.lab.private),
        }

    # ---- the journal, read from its file

    def records(self) -> list[Record]:
        """So far."""
        try:
            journal = SqliteJournal(Home(self._volume).job(JOB), read_only=True)
        except FileNotFoundError:
            return []
        try:
            return list(journal.records(limit=1_000_000)) if journal.exists else []
        finally:
            journal.close()

    def seat(self, rank: int) -> int:
        """The machine that has a rank in the newest epoch."""
        records = self.records()
        plan = [c.plan for r in records for c in r.commands if isinstance(c, RunEpoch)][-1]
        node = next(s.node_id for s in plan.seats if s.rank == rank)
        views = [r.event.view for r in records if isinstance(r.event, ClusterChanged)]
        address = next(n.address for view in views for n in view.nodes if n.node_id == node)
        return next(m for m in WORKERS if self.lab.node(m).address == address)

    def until(self, wanted: Wanted, *, after: int = 0) -> Record:
        """The first such record, past or to come."""
        due_s = time.monotonic() + LIMIT_S
        while True:
            records = self.records()
            found = next((r for r in records if r.seq > after and wanted(r)), None)
            if found is not None:
                return found
            assert time.monotonic() < due_s, f"not within {LIMIT_S} s:\n{story(records)}"
            time.sleep(POLL_S)

    def finish(self) -> Facts:
        """Wait for the end; the journal must replay as it was written."""
        self.until(lambda r: r.phase in ("succeeded", "failed", "cancelled"))
        journal = SqliteJournal(Home(self._volume).job(JOB), read_only=True)
        try:
            past = replay(journal)
        finally:
            journal.close()
        assert past.mismatches == ()
        return Facts(self.records(), past.state)


@pytest.fixture
def pods(kube_root: Path) -> Iterator[Pods]:
    """The lab, with nothing started on it. Skips, loudly, where namespaces cannot be made."""
    if reason := cannot():
        pytest.skip(f"NO POD IS REALLY RUN: {reason}")
    root = kube_root / f"pods-{secrets.token_hex(2)}"
    root.mkdir()
    with Pods(root) as made:
        yield made


@pytest.fixture
def objects(plane: ControlPlane) -> Objects:
    """A fresh namespace in which TrainingJobs can be made."""
    made = Objects(plane, plane.namespace("pods"))
    made.install()
    return made


def submit(objects: Objects, *, steps: int) -> None:
    """A job of two ranks and a spare that waits for a spare rather than shrink."""
    asked = document(JOB, nodes=2, spares=1, zero=1, steps=steps, pace_ms=30, detect_within="10s")
    objects.submit(asked)


def started(pods: Pods) -> None:
    """Head and workers, all at once."""
    pods.start(HEADS[0], "head")
    for machine in WORKERS:
        pods.start(machine, "worker")


def agent(pods: Pods, objects: Objects) -> Agent:
    """The agent of that job."""
    return Agent(
        objects.plane,
        root=pods.lab.root / "agent",
        job=JOB,
        namespace=objects.namespace,
        supervisor=pods.door.address,
        token=pods.token,
    )


def test_a_job_trains_to_its_end_through_a_lost_head_and_a_pod_that_leaves(pods: Pods, objects: Objects, calm: Calm) -> None:
    steps = 300
    alone = calm(steps)
    (pods.lab.root / "agent").mkdir()
    submit(objects, steps=steps)
    started(pods)
    with agent(pods, objects) as seen:
        pods.until(at_step(10))
        until(lambda: objects.status(JOB), lambda s: s.get("phase") == "Running", what="running")

        before = pods.records()[-1]
        pods.move_head()
        restarted = pods.until(lambda r: isinstance(r.event, SupervisorRestarted))
        back = pods.until(at_step(before.committed_step + 5), after=restarted.seq)
        assert not any(starts(2)(r) for r in pods.records()), "the workers trained on"
        until(lambda: objects.status(JOB), lambda s: s.get("step", 0) >= back.committed_step, what="the status follows")

        machine = pods.seat(1)
        said = pods.hook(machine)
        assert "no rank is here any more" in said  # what it says while one is there, it may have no time to say
        pods.until(says("epoch 2 runs"))
        assert pods.stop(machine, "worker") == EXIT_STOPPED

        run = pods.finish()
        end = until(lambda: objects.status(JOB), lambda s: s.get("phase") == "Succeeded", what="the end")
        assert end["digest"] == run.digest == alone.digest
        assert run.state is not None
        assert (run.steps_lost, end["stepsLost"], run.state.budget) == (0, 0, 5)
        assert seen.end(signal.SIGTERM) == 0
    assert pods.stop(HEADS[1], "head") == EXIT_STOPPED
