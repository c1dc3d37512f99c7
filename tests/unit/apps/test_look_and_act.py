"""status, logs, events, explain, list, chaos, drain, cancel, down: data on stdout, errors with words and codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.codec import from_json
from orchestrator.core.supervisor.events import Fault
from orchestrator.core.supervisor.state import Outcome
from orchestrator.runtime.control import (
    BadRequestError,
    ControlError,
    NotFoundError,
    NotPossibleError,
    UnauthenticatedError,
    UnreachableError,
)
from orchestrator.runtime.explain import EpochStory
from orchestrator.runtime.ports import LogLine, Record
from orchestrator.runtime.prediction import PredictionStatus
from orchestrator.runtime.status_types import JobStatus
from tests.unit.apps import planned
from tests.unit.apps.world import FakeClient, cli, ended, expecting, install, running_status, statuses, story

TOLD = story()
NEED_A_SUPERVISOR = [
    ("status",),
    ("logs",),
    ("events",),
    ("explain", "1"),
    ("explain", "plan"),
    ("list",),
    ("chaos", "j", "hang", "--rank", "0"),
    ("scale", "j", "--nodes", "2"),
    ("drain", "j", "n0"),
    ("replace", "j", "--rank", "0"),
    ("checkpoint", "now", "j"),
    ("checkpoint", "list", "j"),
    ("checkpoint", "verify", "j"),
    ("checkpoint", "export", "j", "-o", "m"),
    ("cancel", "j"),
]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """A supervisor with a running job; its journal is another job's, which nobody minds."""
    made = FakeClient(statuses(running_status()), records=TOLD.records)
    install(monkeypatch, made)
    return made


def test_status_shows_nodes_ranks_and_the_last_decision(tmp_path: Path, client: FakeClient) -> None:
    result = cli("status", home=tmp_path)
    assert result.exit_code == 0
    for words in ("step 1 of 20", "rank 3", "spare", "budget 3 of 3", "goodput 90.0 %", "every rank has its state"):
        assert words in result.stdout
    assert result.stderr == ""


def test_status_json_is_the_status(tmp_path: Path, client: FakeClient) -> None:
    told = json.loads(cli("status", "j", "--json", home=tmp_path).stdout)
    assert from_json(JobStatus, told) == running_status()


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.COMPLETED, 0), (Outcome.USER_ERROR, 1), (Outcome.CANCELLED, 130)])
def test_watching_ends_with_the_jobs_code(tmp_path: Path, client: FakeClient, outcome: Outcome, code: int) -> None:
    client.statuses = statuses(running_status(), ended(outcome))
    result = cli("status", "-w", home=tmp_path)
    assert result.exit_code == code
    assert f"({outcome})" in result.stdout
    assert "step 1/20" in result.stderr


def test_watching_with_json_gives_a_line_for_each_change(tmp_path: Path, client: FakeClient) -> None:
    client.statuses = statuses(running_status(), ended(Outcome.COMPLETED))
    lines = cli("status", "-w", "--json", home=tmp_path).stdout.splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["", "completed"]


def test_a_suspect_is_shown(tmp_path: Path, client: FakeClient) -> None:
    status = running_status()
    workers = (replace(status.workers[0], suspect="silent for 2100 ms"), *status.workers[1:])
    client.statuses = statuses(replace(status, workers=workers))
    assert "SUSPECT: silent for 2100 ms" in cli("status", home=tmp_path).stdout


def test_logs_of_all_and_of_one_rank(tmp_path: Path, client: FakeClient) -> None:
    client.lines = [LogLine("j/w0", 0, "hello"), LogLine("j/w1", 1, "[bold]not markup"), LogLine("j/w4", -1, "idle")]
    assert cli("logs", home=tmp_path).stdout.splitlines() == [
        "[rank 0 j/w0] hello",
        "[rank 1 j/w1] [bold]not markup",
        "[spare j/w4] idle",
    ]
    assert cli("logs", "j", "--rank", "1", home=tmp_path).stdout.splitlines() == ["[rank 1 j/w1] [bold]not markup"]


def test_events_tell_what_was_decided_and_why(tmp_path: Path, client: FakeClient) -> None:
    out = cli("events", home=tmp_path).stdout
    reasons = [r for r in TOLD.records if r.reason]
    assert len(out.splitlines()) == len(reasons) < len(TOLD.records)
    assert "WorkerGone: rank 2" in out
    assert len(cli("events", "--all", home=tmp_path).stdout.splitlines()) == len(TOLD.records)


def test_events_json_is_every_record(tmp_path: Path, client: FakeClient) -> None:
    lines = cli("events", "--json", "--after", "5", home=tmp_path).stdout.splitlines()
    assert [from_json(Record, json.loads(line)) for line in lines] == TOLD.records[5:]


@pytest.mark.parametrize("number", ["7", "#7"])
def test_explain_tells_a_story(tmp_path: Path, client: FakeClient, number: str) -> None:
    result = cli("explain", number, home=tmp_path)
    assert result.exit_code == 0
    assert "so a spare took over" in result.stdout
    assert client.asked == [("explain", "", 7)]


def test_explain_last_and_json(tmp_path: Path, client: FakeClient) -> None:
    decision = running_status().decision
    assert decision is not None
    told = json.loads(cli("explain", "last", "j", "--json", home=tmp_path).stdout)
    assert told["lines"] == ["a worker was lost", "so a spare took over"]
    assert client.asked == [("explain", "j", decision.seq)]


def test_explain_plan_tells_the_plan_of_each_epoch(tmp_path: Path, client: FakeClient) -> None:
    result = cli("explain", "plan", "j", home=tmp_path)
    assert result.exit_code == 0
    assert [line.split(",")[0] for line in result.stdout.splitlines() if not line.startswith(" ") and line] == [
        "epoch 1",
        "epoch 2",
    ]
    assert "nothing was predicted: the job fixes its plan" in result.stdout
    shown = planned.option(planned.strategy(pipeline=1, data=4))
    client.records = expecting(TOLD.records, shown, planned.choice(shown))
    assert "1,234 weighed" in cli("explain", "plan", home=tmp_path).stdout
    told = json.loads(cli("explain", "plan", "--json", home=tmp_path).stdout)
    assert [from_json(EpochStory, s).plan.epoch for s in told] == [1, 2]
    assert told[0]["choice"]["weighed"] == 1234
    client.records = []
    assert cli("explain", "plan", home=tmp_path).exit_code == 2


def test_status_tells_prediction_and_measurement(tmp_path: Path, client: FakeClient) -> None:
    assert "nothing was predicted: the job fixes its plan" in cli("status", home=tmp_path).stdout
    made = PredictionStatus(
        epoch=1,
        step_ms=103.0,
        measured_step_ms=100.0,
        steps=7,
        step_error=0.03,
        memory_bytes=900_000_000,
        measured_memory_bytes=10**9,
        memory_error=-0.1,
    )
    client.statuses = statuses(replace(running_status(), prediction=made))
    text = cli("status", home=tmp_path).stdout
    assert "103 ms predicted, 100 ms measured (median of 7 steps): 3.0 % too long" in text
    assert "900 MB predicted, 1 GB measured: 10 % too little" in text
    assert json.loads(cli("status", "--json", home=tmp_path).stdout)["prediction"]["step_error"] == 0.03
    unknown = replace(made, measured_step_ms=None, step_error=None, measured_memory_bytes=None, memory_error=None)
    client.statuses = statuses(replace(running_status(), prediction=unknown))
    text = cli("status", home=tmp_path).stdout
    assert "103 ms predicted, no steady step measured" in text
    assert "900 MB predicted, none measured" in text


def test_explain_wants_a_number(tmp_path: Path, client: FakeClient) -> None:
    result = cli("explain", "yesterday", home=tmp_path)
    assert result.exit_code == 2
    assert "orchestrator events" in result.stderr


def test_list(tmp_path: Path, client: FakeClient) -> None:
    assert "running" in cli("list", home=tmp_path).stdout
    assert [j["name"] for j in json.loads(cli("list", "--json", home=tmp_path).stdout)] == ["j"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("kill-worker", "--rank", "2"), Fault("kill-worker", 2, "", 0, 0, 0)),
        (("kill-node", "--node", "n1", "--at-step", "9"), Fault("kill-node", -1, "n1", 9, 0, 0)),
        (("slow", "--rank", "0", "--amount", "1.5s"), Fault("slow", 0, "", 0, 0, 1500)),
        (("hang", "--rank", "1", "--at-step", "4", "--micro-batch", "1"), Fault("hang", 1, "", 4, 1, 0)),
    ],
)
def test_chaos_hands_in_a_fault(tmp_path: Path, client: FakeClient, arguments: tuple[str, ...], fault: Fault) -> None:
    result = cli("chaos", "j", *arguments, home=tmp_path)
    assert result.exit_code == 0, result.output
    assert client.asked == [("inject", "j", fault)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hang",), "--rank N or --node ID"),
        (("hang", "--rank", "0", "--node", "n1"), "--rank N or --node ID"),
        (("slow", "--rank", "0"), "needs --amount"),
        (("kill-worker", "--rank", "0", "--amount", "1s"), "leave --amount out"),
        (("hang", "--rank", "9"), "ranks 0 to 3"),
        (("hang", "--rank", "0", "--at-step", "1"), "is at step 1"),
        (("kill-node", "--node", "nowhere"), "there is no node 'nowhere'"),
        (("kill-node", "--node", "n"), "may be any of n0"),
        (("explode", "--rank", "0"), "kill-worker"),
    ],
)
def test_chaos_refuses_what_makes_no_sense(tmp_path: Path, client: FakeClient, arguments: tuple[str, ...], words: str) -> None:
    result = cli("chaos", "j", *arguments, home=tmp_path)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert client.asked == []


def test_drain_and_cancel(tmp_path: Path, client: FakeClient) -> None:
    assert cli("drain", "j", "n3", home=tmp_path).exit_code == 0
    assert cli("cancel", "j", home=tmp_path).exit_code == 0
    assert [a[:2] for a in client.asked] == [("drain", "j"), ("cancel", "j")]
    assert client.asked[0][2] == "n3"
    assert "@" in client.asked[1][2]


def test_down_says_what_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch)
    assert "nothing was running" in cli("down", home=tmp_path).stderr
    fake.ended = ["supervisor 12", "raylet 13"]
    assert cli("down", home=tmp_path).stdout.splitlines() == fake.ended
    assert json.loads(cli("down", "--json", home=tmp_path).stdout) == {"ended": fake.ended}
    assert fake.calls[-1] == ("down", tmp_path, None)


@pytest.mark.parametrize("command", NEED_A_SUPERVISOR, ids=" ".join)
def test_without_a_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    install(monkeypatch)
    result = cli(*command, home=tmp_path)
    assert result.exit_code == 3
    assert "orchestrator run" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", NEED_A_SUPERVISOR, ids=" ".join)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("there is no job x; there is j"), 2),
        (BadRequestError("node n9 is unknown"), 2),
        (NotPossibleError("job j is over"), 2),
        (UnreachableError("no supervisor answers at 127.0.0.1:1"), 3),
        (UnauthenticatedError("the token was refused"), 3),
        (ControlError("the supervisor failed"), 3),
    ],
    ids=lambda e: type(e).__name__,
)
def test_each_error_has_its_code_and_its_words(
    tmp_path: Path, client: FakeClient, command: tuple[str, ...], error: ControlError, code: int
) -> None:
    client.fails = error
    result = cli(*command, home=tmp_path)
    assert result.exit_code == code
    assert str(error) in result.stderr
    assert "Traceback" not in result.output


def test_a_bug_of_ours_is_said_to_be_one(tmp_path: Path, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("unexpected")

    monkeypatch.setattr(FakeClient, "list_jobs", broken)
    result = cli("list", home=tmp_path)
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "bug of the orchestrator" in result.stderr
