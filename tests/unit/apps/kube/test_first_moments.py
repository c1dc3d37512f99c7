"""Processes of pods that are told to stop before they have begun: as process 1 of a container, where a signal without a
handler does nothing. Each is a real process that starts with SIGTERM ignored, and is held where the test wants it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.adapters.kube import names
from orchestrator.apps.kube.pod import EXIT_STOPPED
from tests.unit.apps.kube.test_pod import ENV

ROOT = Path(__file__).resolve().parents[4]
LIMIT_S = 60
CODES = {"head": EXIT_STOPPED, "agent": 0, "worker": EXIT_STOPPED}
# Runs a module as `python -m` does, and waits for ever in its first import of ours.
HELD = """
    import runpy, sys, time

    class Held:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("orchestrator.adapters"):
                print("imports", flush=True)
                time.sleep(600)

    sys.meta_path.insert(0, Held())
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""


def as_process_1(*argv: str, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that ignores SIGTERM until it says otherwise, in a pod's environment."""
    places = {name: str(tmp_path) for name in ("ORCHESTRATOR_TOKEN_DIR", "ORCHESTRATOR_SCRATCH_DIR", "ORCHESTRATOR_HOME_DIR")}
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a child inherits
    try:
        return subprocess.Popen(
            [sys.executable, *argv],
            env={**os.environ, **ENV, **places, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        signal.signal(signal.SIGTERM, before)


def told_to_stop(process: subprocess.Popen[str]) -> int:
    """Its exit code after a SIGTERM; it is killed when it does not heed it."""
    try:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode


@pytest.mark.parametrize("program", ["head", "agent", "worker"])
def test_it_ends_while_it_is_still_being_read_from_disk(program: str, tmp_path: Path) -> None:
    with as_process_1("-c", textwrap.dedent(HELD), f"orchestrator.apps.kube.{program}", tmp_path=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "imports\n"
        assert told_to_stop(process) == CODES[program]


@pytest.mark.parametrize("program", ["head", "agent"])
def test_it_ends_while_it_reads_its_token(program: str, tmp_path: Path) -> None:
    token = tmp_path / names.CONTROL_TOKEN
    os.mkfifo(token)
    with (
        as_process_1("-m", f"orchestrator.apps.kube.{program}", tmp_path=tmp_path) as process,
        token.open("w"),  # which waits until it is read, and says no word
    ):
        assert told_to_stop(process) == CODES[program]
