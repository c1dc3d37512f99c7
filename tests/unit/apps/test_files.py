"""init and validate: what they write, print and exit with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.spec import load
from tests.unit.apps.world import EXAMPLE, cli

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
