"""init, validate and plan: what they write, print and exit with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.core.planner.planner import PlanError
from orchestrator.engine.task import TaskError
from orchestrator.spec import load
from tests.unit.apps.world import EXAMPLE, cli, install

BAD = Path(__file__).parents[1] / "spec/bad/02-unknown-nested-key.yaml"


def test_init_writes_a_file_that_is_valid_and_named_after_its_folder(tmp_path: Path) -> None:
    result = cli("init", tmp_path / "My Run_2", home=tmp_path)
    assert result.exit_code == 0, result.output
    path = Path(result.stdout.strip())
    assert path == tmp_path / "My Run_2/job.yaml"
    assert load(path).name == "my-run-2"


def test_init_leaves_an_existing_file_alone(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("mine")
    result = cli("init", tmp_path, home=tmp_path)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (tmp_path / "job.yaml").read_text() == "mine"


def test_init_takes_a_name_and_refuses_a_bad_one(tmp_path: Path) -> None:
    assert cli("init", tmp_path / "a", "--name", "fine", home=tmp_path).exit_code == 0
    assert load(tmp_path / "a/job.yaml").name == "fine"
    refused = cli("init", tmp_path / "b", "--name", "Not Fine", home=tmp_path)
    assert refused.exit_code == 2
    assert "not-fine" in refused.stderr
    assert not (tmp_path / "b/job.yaml").exists()


def test_validate_says_ok_on_stdout(tmp_path: Path) -> None:
    result = cli("validate", EXAMPLE, home=tmp_path)
    assert result.exit_code == 0
    assert "ok, job gpt-docs" in result.stdout
    assert result.stderr == ""


def test_validate_lists_the_problems_on_stderr(tmp_path: Path) -> None:
    result = cli("validate", BAD, home=tmp_path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert 'did you mean "optimizer"' in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("file", "ok", "code"), [(EXAMPLE, True, 0), (BAD, False, 2)])
def test_validate_json(tmp_path: Path, file: Path, ok: bool, code: int) -> None:
    result = cli("validate", file, "--json", home=tmp_path)
    told = json.loads(result.stdout)
    assert (result.exit_code, told["ok"]) == (code, ok)
    if ok:
        assert told["job"]["train"]["steps"] == 60
    else:
        assert told["problems"][0]["nearest"] == "optimizer"
        assert told["problems"][0]["line"] == 4


def test_validate_prints_the_schema_without_a_file(tmp_path: Path) -> None:
    result = cli("validate", "--schema", home=tmp_path)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["title"] == "job.yaml"


def test_validate_without_a_file_says_what_is_missing(tmp_path: Path) -> None:
    result = cli("validate", home=tmp_path)
    assert result.exit_code == 2
    assert "name a job file" in result.stderr


def test_plan_shows_ranks_and_their_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    result = cli("plan", EXAMPLE, home=tmp_path)
    assert result.exit_code == 0, result.output
    assert "ZeRO-1" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if line[:1].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert rows[3][2:4] == ["0", "6-7"]  # the only layer; eight micro-batches over four ranks


def test_plan_json_holds_plan_graph_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    told = json.loads(cli("plan", EXAMPLE, "--json", home=tmp_path).stdout)
    assert told["plan"]["zero_stage"] == 1
    assert told["lint"] == []
    # 8192 elements: all parameters, two moments of an own quarter and of a peer's
    assert [r["state_bytes"] for r in told["ranks"]] == [4 * (8192 + 2 * (2048 + 2048))] * 4


@pytest.mark.parametrize(
    ("broken", "code", "words"),
    [
        (TaskError("gpt: width 10 must be a multiple of heads 3"), 2, "width 10"),
        (ZeroDivisionError("in your model"), 1, "raised while its model was built"),
    ],
)
def test_plan_tells_whose_fault_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Exception, code: int, words: str
) -> None:
    install(monkeypatch).broken = broken
    result = cli("plan", EXAMPLE, home=tmp_path)
    assert result.exit_code == code
    assert words in result.stderr
    assert str(broken) in result.stderr


def test_plan_that_does_not_exist_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch)

    def refuse(*_: object) -> None:
        raise PlanError("4 ranks need 4 workers, 2 are ready")

    monkeypatch.setattr(fake, "preview_plan", refuse)
    result = cli("plan", EXAMPLE, home=tmp_path)
    assert result.exit_code == 2
    assert "4 ranks need 4 workers" in result.stderr
