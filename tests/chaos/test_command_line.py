"""`orchestrator run` as people use it, in a process of its own: what it exits with, and that it leaves nothing running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.conftest import Calm
from tests.chaos.support import LIMIT_S, POLL_S, Cluster, processes_of
from tests.world.facts import at_step
from tests.world.jobs import ROOT, document, tiny_job

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(400)]

STEPS = 60
PROGRAM = [sys.executable, "-m", "orchestrator.apps.cli.main"]


class Program:
    """Starts the program on one home, and ends whatever it left."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._started: list[subprocess.Popen[str]] = []

    def run(self, *settings: object, **options: Any) -> subprocess.Popen[str]:
        """`orchestrator run` of a small job on one node."""
        job = document("shell", nodes=1, spares=0, **options)
        file = self.home / "job.yaml"
        file.write_text(json.dumps(job))
        return self.start("run", str(file), "--no-view", "--json", "--home", str(self.home))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """In a session of its own, as from a terminal of its own."""
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Kill what is left of it."""
        for process in self._started:
            with suppress(ProcessLookupError):
                process.kill()
            process.communicate()
        for left in processes_of(self.home):
            with suppress(OSError):
                left.kill()


@pytest.fixture
def program() -> Iterator[Program]:
    home = Path(tempfile.mkdtemp(prefix="cli-")).resolve()
    made = Program(home)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(home, ignore_errors=True)


def until_steps(program: Program, process: subprocess.Popen[str], steps: int) -> Cluster:
    """Wait until the job has made some."""
    cluster = Cluster(program.home)
    journal = program.home / "jobs" / "shell" / "journal.db"
    deadline = time.monotonic() + LIMIT_S
    while not journal.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(POLL_S)
    cluster.until(tiny_job("shell"), at_step(steps))
    return cluster


def test_a_job_that_succeeds_exits_with_0_and_leaves_a_digest_and_a_report(program: Program, calm: Calm) -> None:
    process = program.run(steps=STEPS)
    out, talk = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, talk
    told = json.loads(out)
    assert told["digest"] == calm(STEPS).digest
    assert Path(told["report"]).read_text().startswith("<!")
    assert processes_of(program.home) == []


def test_a_job_that_fails_by_its_own_code_exits_with_1_and_shows_the_traceback(program: Program) -> None:
    process = program.run(steps=STEPS, act="raise", at_step=4, at_micro_batch=6)
    out, talk = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, talk
    assert "ZeroDivisionError: the user's own mistake" in json.loads(out)["status"]["last_word"]
    assert processes_of(program.home) == []


def test_a_task_that_cannot_be_set_up_exits_with_1_and_says_why(program: Program) -> None:
    process = program.run(steps=STEPS, target="tests.world.tasks:Refusing")
    out, talk = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1, talk
    assert "the user's library is not installed here" in out + talk
    assert processes_of(program.home) == []


def test_ctrl_c_exits_with_130_and_leaves_nothing_running(program: Program) -> None:
    process = program.run(steps=100_000)
    until_steps(program, process, 3)
    os.killpg(process.pid, signal.SIGINT)
    _, talk = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, talk
    assert processes_of(program.home) == []


def test_the_job_goes_on_without_its_launcher_and_down_ends_everything(program: Program) -> None:
    process = program.run(steps=100_000)
    cluster = until_steps(program, process, 3)
    process.kill()
    process.wait()
    known = cluster.records(tiny_job("shell"))[-1]
    cluster.until(tiny_job("shell"), at_step(known.committed_step + 10))
    status = program.start("status", "shell", "--json", "--home", str(program.home))
    out, talk = status.communicate(timeout=LIMIT_S)
    assert status.returncode == 0, talk
    assert json.loads(out)["phase"] == "running"
    down = program.start("down", "--home", str(program.home))
    _, talk = down.communicate(timeout=LIMIT_S)
    assert down.returncode == 0, talk
    assert processes_of(program.home) == []
