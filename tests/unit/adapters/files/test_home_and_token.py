"""The state directory, atomic files, and the token that only its owner may read."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.adapters.files.home import ClusterEndpoint, Home, write_atomically
from orchestrator.adapters.files.token import TokenRefused, ensure_token, read_token

ROOT = Path(__file__).resolve().parents[4]


def test_folders_are_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "h")
    for path in (home.jobs, home.job("a"), home.cluster("b"), home.root / "clusters", home.root):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("name", ["", "..", "a/b", ".past", "A", "a" * 64, "a\n", "-a", "../x", "é"])
def test_a_name_cannot_lead_out_of_the_home(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path)
    with pytest.raises(ValueError, match="no DNS label"):
        home.job(name)
    with pytest.raises(ValueError, match="no DNS label"):
        home.cluster(name)
    assert list(tmp_path.iterdir()) == []


def test_an_endpoint_is_published_and_withdrawn(tmp_path: Path) -> None:
    home, endpoint = Home(tmp_path), ClusterEndpoint("127.0.0.1:5000", "127.0.0.1:6379", 42)
    assert home.read_endpoint("c") is None
    home.write_endpoint("c", endpoint)
    assert home.read_endpoint("c") == endpoint
    home.remove_endpoint("c")
    home.remove_endpoint("c")
    assert home.read_endpoint("c") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"address": 3}', '{"address": "a", "ray_address": "b", "pid": "c"}'])
def test_a_damaged_endpoint_is_reported_with_its_path(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.endpoint_file("c").write_text(text)
    with pytest.raises(ValueError, match=r"endpoint\.json is damaged"):
        home.read_endpoint("c")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_atomically(path, "old", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, broken)
            with pytest.raises(OSError, match="No space"):
                write_atomically(path, "new")
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["f"]
    write_atomically(path, "new")
    assert path.read_text() == "new"


def test_a_token_is_made_once_and_private(tmp_path: Path) -> None:
    token = ensure_token(tmp_path / "token")
    assert len(token) == 43
    assert ensure_token(tmp_path / "token") == read_token(tmp_path / "token") == token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["token"]
    assert ensure_token(tmp_path / "other") != token


def test_processes_that_start_together_end_up_with_one_token(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.adapters.files.token import ensure_token;"
        "sys.stdin.readline(); print(ensure_token(Path(sys.argv[1])))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "token")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    tokens = {racer.communicate(timeout=200)[0].strip() for racer in racers}
    assert tokens == {read_token(tmp_path / "token")}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_token_that_others_could_have_read_is_refused(tmp_path: Path, mode: int) -> None:
    ensure_token(tmp_path / "token")
    (tmp_path / "token").chmod(mode)
    for read in (read_token, ensure_token):
        with pytest.raises(TokenRefused, match=f"has mode {mode:03o}"):
            read(tmp_path / "token")


@pytest.mark.parametrize("text", ["", "short", "x" * 44, "ä" * 43])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    write_atomically(tmp_path / "token", text, mode=0o600)
    with pytest.raises(TokenRefused, match="holds no token"):
        read_token(tmp_path / "token")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    ensure_token(tmp_path / "token")
    (tmp_path / "link").symlink_to(tmp_path / "token")
    with pytest.raises(OSError, match="link"):
        read_token(tmp_path / "link")


def test_without_a_token_there_is_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_token(tmp_path / "token")
