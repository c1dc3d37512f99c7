"""doctor: each measurement on this machine, and the table, JSON and exit code made of them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from orchestrator.apps.cli import measure
from orchestrator.apps.cli.measure import Check, Level
from orchestrator.core.timeouts import derive, ladder
from tests.unit.apps.world import cli

LADDER = derive(4000)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the seconds that importing torch takes."""
    monkeypatch.setattr(measure, "libraries", lambda: [Check("torch", Level.OK, "2.13.0")])


def test_json_has_checks_and_the_ladder(tmp_path: Path, quick: None) -> None:
    result = cli("doctor", "--json", "--detect-within", "2s", home=tmp_path)
    told = json.loads(result.stdout)
    assert result.exit_code == 0, result.output
    assert told["ok"] is True
    assert told["ladder_ms"] == dict(ladder(derive(2000)))
    names = {c["name"] for c in told["checks"]}
    assert {"python", "torch", "clock monotonic", "clock skew", "ports", "loopback bandwidth", "memory", "disk fsync"} <= names


def test_text_shows_the_ladder_and_talk_stays_on_stderr(tmp_path: Path, quick: None) -> None:
    result = cli("doctor", home=tmp_path)
    assert result.exit_code == 0, result.output
    assert "lost        3500 ms" in result.stdout
    assert "measuring" not in result.stdout


def test_a_failed_check_is_infrastructure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [Check("ray", Level.FAIL, "ImportError", "install it again")]
    monkeypatch.setattr(measure, "libraries", lambda: broken)
    result = cli("doctor", home=tmp_path)
    assert result.exit_code == 3
    assert "ray: install it again" in result.stdout
    assert "1 check(s) failed: ray" in result.stderr


@pytest.mark.parametrize("text", ["4", "100ms", "soon"])
def test_a_bad_detect_within_is_bad_input(tmp_path: Path, quick: None, text: str) -> None:
    result = cli("doctor", "--detect-within", text, home=tmp_path)
    assert result.exit_code == 2
    assert "--detect-within" in result.stderr


@pytest.mark.slow
def test_the_libraries_are_found_by_a_process_of_their_own() -> None:
    checks = {c.name: c for c in measure.libraries()}
    assert {c.level for c in checks.values()} == {Level.OK}, checks
    assert checks["torch"].value.startswith("2.13.0")


def test_imports_that_take_too_long_are_a_failure() -> None:
    (check,) = measure.libraries(limit_s=0.001)
    assert check.level is Level.FAIL


def test_clock_and_wake_up() -> None:
    assert [c.name for c in measure.clock()] == ["clock monotonic", "clock skew"]
    assert measure.clock()[0].level is Level.OK
    late = measure.wake_up(LADDER).number
    assert late is not None
    assert late >= 0


def test_loopback_moves_bytes() -> None:
    rate, trip = measure.loopback()
    assert rate.number is not None
    assert rate.number > 0
    assert trip.number is not None
    assert trip.number > 0


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(measure, "RAY_PORTS", ((port, "somebody's server"),))
        (check,) = measure.ports()
    assert check.level is Level.WARN
    assert f"{port} (somebody's server)" in check.value
    assert measure.ports()[0].level is Level.OK


def test_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    fsync, room = measure.disk(tmp_path, LADDER)
    assert fsync.unit == "ms"
    assert room.level is Level.OK
    assert os.listdir(tmp_path) == []


def test_a_home_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (check,) = measure.disk(tmp_path / "file/home", LADDER)
    assert check.level is Level.FAIL
    assert "--home" in check.fix


def test_shared_memory_that_is_missing_is_a_failure(tmp_path: Path) -> None:
    assert measure.shared_memory(tmp_path).level in (Level.OK, Level.WARN)
    assert measure.shared_memory(tmp_path / "none").level is Level.FAIL
