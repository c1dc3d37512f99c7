"""Ending what was recorded: whatever is wrong with a supervisor's address or token, `down` goes on and tells the truth."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.adapters.files.home import ClusterEndpoint, Home
from orchestrator.adapters.files.journal import FILE_NAME, SqliteJournal
from orchestrator.adapters.files.token import ensure_token
from orchestrator.apps import wiring
from orchestrator.apps.wiring import down
from orchestrator.runtime.entry import CLUSTER_FILE
from orchestrator.testkit.jobs import make_job


@pytest.mark.parametrize("token", ["good", "open to others", "absent"])
def test_a_supervisor_that_cannot_be_asked_is_forgotten_and_not_said_to_be_ended(tmp_path: Path, token: str) -> None:
    home = Home(tmp_path)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can have the port meanwhile
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        home.write_endpoint("local", ClusterEndpoint(address, "", 1))
        if token != "absent":
            ensure_token(home.token_file("local"))
        if token == "open to others":
            home.token_file("local").chmod(0o644)
        assert down(home=tmp_path, cluster=None) == [
            f"cluster local: its supervisor at {address} does not answer, it is only forgotten"
        ]
        assert home.read_endpoint("local") is None
        assert down(home=tmp_path, cluster=None) == []


@pytest.mark.parametrize("keep", ["j", "another"])
def test_a_journal_of_another_version_is_put_aside_with_a_word(tmp_path: Path, keep: str) -> None:
    home = Home(tmp_path)
    folder = home.jobs / "j"
    journal = SqliteJournal(folder)
    journal.create(make_job())
    journal.close()
    (folder / CLUSTER_FILE).write_text("local")
    with sqlite3.connect(folder / FILE_NAME) as db:
        db.execute("UPDATE meta SET value = '1' WHERE key = 'format'")
    db.close()
    told: list[str] = []
    wiring._put_aside(home, "local", keep=keep, on_progress=told.append)
    assert not folder.exists()
    assert (home.jobs / ".past" / "j.1" / FILE_NAME).is_file()
    assert "journal format 1" in told[0]


def test_the_supervisors_main_does_not_load_torch() -> None:
    # Seconds of the time in which a supervisor that was killed is away.
    look = "import sys, orchestrator.apps.ray_supervisor; assert 'ray' in sys.modules; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", look], check=True, timeout=200)
