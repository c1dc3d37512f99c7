"""scale, drain and replace: what is asked for, what is told, and what --wait waits for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.plan.plan import MeshAxis
from orchestrator.core.supervisor.state import ChangeKind, JobPhase, Outcome
from orchestrator.runtime.control import NotPossibleError
from orchestrator.runtime.status_types import ChangeStatus
from tests.unit.apps.world import FakeClient, cli, install, plain_status, statuses, told

THREE = (MeshAxis("pipeline", 1), MeshAxis("data", 3), MeshAxis("tensor", 1))
MOVING = ChangeStatus(kind=ChangeKind.MOVE, why="n1 is drained")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """A supervisor with a running job."""
    made = FakeClient(statuses(plain_status()))
    install(monkeypatch, made)
    return made


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("scale", "j", "--nodes", "3"), ("scale", "j", 3, ())),
        (("scale", "j", "--layers-per-stage", "2,1, 1"), ("scale", "j", 0, (2, 1, 1))),
        (("scale", "j", "--nodes", "2", "--layers-per-stage", "3"), ("scale", "j", 2, (3,))),
        (("drain", "j", "n1"), ("drain", "j", "n1", "")),
        (("drain", "j", "10.0.0.1", "--why", "spot reclaim"), ("drain", "j", "n1", "spot reclaim")),
        (("replace", "j", "--rank", "0"), ("replace", "j", "", 0)),
        (("replace", "j", "--worker", "w1"), ("replace", "j", "w1", None)),
    ],
)
def test_a_change_is_asked_for_and_answered_with_the_reason(
    tmp_path: Path, client: FakeClient, arguments: tuple[str, ...], asked: tuple[Any, ...]
) -> None:
    result = cli(*arguments, home=tmp_path)
    assert result.exit_code == 0, result.output
    assert client.asked == [asked]
    assert result.stderr.splitlines() == [f"#40 {asked[0]} it is", "see: orchestrator status j -w"]
    assert result.stdout == ""
    as_json = json.loads(cli(*arguments, "--json", home=tmp_path).stdout)
    assert as_json == {"job": "j", "seq": 40, "reason": f"{asked[0]} it is", "done": ""}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("scale", "j"), "--nodes N, --layers-per-stage"),
        (("scale", "j", "--nodes", "0"), "--nodes"),
        (("scale", "j", "--layers-per-stage", "2,,1"), "such as 2,1,1"),
        (("scale", "j", "--layers-per-stage", "2,0"), "such as 2,1,1"),
        (("drain", "j", "n"), "may be any of n0"),
        (("drain", "j", "n9"), "there is no node 'n9'"),
        (("replace", "j"), "--rank N or --worker ID"),
        (("replace", "j", "--rank", "1", "--worker", "w1"), "--rank N or --worker ID"),
    ],
)
def test_what_makes_no_sense_is_bad_input(tmp_path: Path, client: FakeClient, arguments: tuple[str, ...], words: str) -> None:
    result = cli(*arguments, home=tmp_path)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert client.asked == []


def test_scaling_waits_for_the_mesh_that_was_asked_for(tmp_path: Path, client: FakeClient) -> None:
    grown = plain_status(on=("n0", "n1", "n2"), spares=(), target=THREE)
    client.looks = [
        plain_status(target=THREE, change=ChangeStatus(kind=ChangeKind.RESHAPE, why="3 nodes")),
        plain_status(target=THREE, shrunk=True),
        replace(grown, phase=JobPhase.FORMING),
        grown,
    ]
    client.records = [
        told(39, "before"),
        told(41, "leaving"),
        told(42, ""),
        told(43, "forming"),
        told(44, "there"),
        told(45, "more"),
    ]
    result = cli("scale", "j", "--nodes", "3", "--wait", home=tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "#40 scale it is",
        "#41 leaving",
        "#43 forming",
        "#44 there",
        "job j trains on 3 nodes: data 3, ZeRO-1, 1 copies",
    ]


def test_new_stages_are_waited_for_by_their_layers(tmp_path: Path, client: FakeClient) -> None:
    plan = plain_status().plan
    assert plan is not None
    client.looks = [plain_status(), plain_status(plan=replace(plan, layers_per_stage=(3, 1)))]
    client.records = [told(41, "there")]
    result = cli("scale", "j", "--layers-per-stage", "3,1", "--wait", "--json", home=tmp_path)
    assert json.loads(result.stdout)["done"] == "job j trains on 2 nodes: data 2, ZeRO-1, 1 copies, layers per stage 3,1"


def test_a_drain_waits_until_no_rank_is_left_on_the_node(tmp_path: Path, client: FakeClient) -> None:
    client.looks = [
        plain_status(),  # to find the node
        plain_status(change=MOVING),
        plain_status(on=("n0", "n2"), spares=(), phase=JobPhase.FORMING),
        plain_status(on=("n0", "n2"), spares=()),
    ]
    client.records = [told(41, "forming"), told(42, "running")]
    result = cli("drain", "j", "n1", "--wait", home=tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-2:] == ["#42 running", "node n1 holds no state any more"]


@pytest.mark.parametrize("which", [("--rank", "1"), ("--worker", "w1"), ("--worker", "j/w1")])
def test_a_replacement_waits_until_the_worker_has_no_rank(tmp_path: Path, client: FakeClient, which: tuple[str, str]) -> None:
    client.looks = [plain_status(), plain_status(change=MOVING), plain_status(on=("n0", "n2"), spares=())]
    client.records = [told(41, "running")]
    result = cli("replace", "j", *which, "--wait", home=tmp_path)
    assert result.exit_code == 0, result.output
    assert "worker j/w1 has no rank any more" in result.stderr


def test_a_job_that_ends_first_is_told_of(tmp_path: Path, client: FakeClient) -> None:
    over = plain_status(phase=JobPhase.FAILED, outcome=Outcome.USER_ERROR, last_word="Traceback\nValueError: no")
    client.looks = [plain_status(), plain_status(change=MOVING), over]
    client.records = [told(41, "it failed")]
    result = cli("drain", "j", "n1", "--wait", home=tmp_path)
    assert result.exit_code == 3
    assert "job j is failed before that was done: ValueError: no" in result.stderr


def test_ctrl_c_only_ends_the_waiting(tmp_path: Path, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[object]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(FakeClient, "watch_events", interrupted)
    client.looks = [plain_status(), plain_status(change=MOVING)]
    result = cli("drain", "j", "n1", "--wait", home=tmp_path)
    assert result.exit_code == 130
    assert "what was asked for goes on, see: orchestrator status j -w" in result.stderr
    assert "Traceback" not in result.output


def test_what_is_impossible_says_why(tmp_path: Path, client: FakeClient) -> None:
    client.fails = NotPossibleError("scale to 9 nodes refused: there are 4")
    result = cli("scale", "j", "--nodes", "9", home=tmp_path)
    assert result.exit_code == 2
    assert "there are 4" in result.stderr


def test_the_status_shows_a_shrunk_job_and_what_is_planned(tmp_path: Path, client: FakeClient) -> None:
    client.looks = [
        plain_status(target=THREE, shrunk=True, skipped=2, change=ChangeStatus(kind=ChangeKind.GROW, why="n2 is back"))
    ]
    out = cli("status", "j", home=tmp_path).stdout
    for words in ("data 2, ZeRO-1", "SHRUNK, full strength is data 3", "grow: n2 is back", "2 update(s) skipped", "so be it"):
        assert words in out


COMPLETIONS = [
    ("scale ", {"job-a", "job-b"}),
    ("drain job-a n", {"n0", "n1", "n2"}),
    ("replace job-a --rank ", {"0", "1"}),
    ("replace job-a --worker w1", {"w1"}),
    ("checkpoint verify job-b", {"job-b"}),
    ("status job-", {"job-a", "job-b"}),
]


@pytest.mark.parametrize(("line", "expected"), COMPLETIONS)
def test_names_are_completed(tmp_path: Path, client: FakeClient, line: str, expected: set[str]) -> None:
    for name in ("job-a", "job-b", ".past"):
        (tmp_path / "jobs" / name).mkdir(parents=True)
    assert completed(tmp_path, line) == expected


def test_completion_is_silent_where_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    for line, _ in COMPLETIONS:
        assert completed(tmp_path, line) == set()


def completed(home: Path, line: str) -> set[str]:
    """What bash would offer for the last word."""
    from typer.testing import CliRunner

    from orchestrator.apps.cli.main import app

    words = f"orchestrator {line}"
    environment = {
        "_ORCHESTRATOR_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "ORCHESTRATOR_HOME": str(home),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="orchestrator")
    assert "Traceback" not in result.output
    return set(result.stdout.split())
