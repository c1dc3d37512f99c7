"""Every bad job file of `bad/` is refused with exactly the text that lies beside it.

The texts are what a person sees, so they are compared to the last character. After a deliberate change of a message,
look at the difference and write the new text: `SPEC_GOLDEN=write pytest tests/unit/spec/test_bad_files.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.spec import SpecError, load, load_text
from orchestrator.spec.errors import PROBLEMS_MAX, Problem

BAD = Path(__file__).parent / "bad"
NAMES = sorted(path.stem for path in BAD.glob("*.yaml"))


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 25
    assert {path.stem for path in BAD.glob("*.txt")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_message_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(SpecError) as caught:
        load(f"{name}.yaml")
    golden = BAD / f"{name}.txt"
    if os.environ.get("SPEC_GOLDEN") == "write":
        golden.write_text(caught.value.render() + "\n", encoding="utf-8")
    assert caught.value.render() + "\n" == golden.read_text(encoding="utf-8")
    assert str(caught.value) == caught.value.render()


@pytest.mark.parametrize("name", NAMES)
def test_places_lie_within_the_file(name: str) -> None:
    lines = (BAD / f"{name}.yaml").read_bytes().decode("utf-8", "replace").split("\n")
    for problem in refused(BAD / f"{name}.yaml"):
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1


def test_the_parts_of_a_problem_are_kept_apart() -> None:
    (problem,) = refused(BAD / "02-unknown-nested-key.yaml")
    assert (problem.line, problem.column, problem.path, problem.nearest) == (4, 3, "train.optimzer", "optimizer")
    assert problem.allowed[:2] == ("steps", "seed")
    assert problem.message == "unknown key"


def test_a_missing_file(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path / "job.yaml")
    assert problem.message == "there is no such file"
    assert problem.render().startswith(f"{tmp_path}/job.yaml: there is no such file\n")


def test_a_folder(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path)
    assert problem.message == "is a folder, not a job file"
    assert problem.fix.endswith(f"{tmp_path}/job.yaml")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (problem,) = refused(tmp_path / "pipe")
    assert problem.message == "is no regular file"


def test_a_path_through_a_file_and_a_path_with_a_nul(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "job.yaml")[0].message == "cannot be read: Not a directory"
    assert refused(Path("a\0b"))[0].message == "cannot be read: embedded null byte"


def test_a_large_file_is_not_parsed(tmp_path: Path) -> None:
    large = tmp_path / "job.yaml"
    large.write_bytes(b"name: a\n" + b"# padding\n" * 110_000)
    (problem,) = refused(large)
    assert problem.message == "the file is too large"
    with pytest.raises(SpecError, match="the text is too large"):
        load_text("é" * 600_000)


def test_the_number_of_problems_is_bounded_and_the_rest_counted() -> None:
    text = "name: a\n" + "".join(f"unknown_{index}: 1\n" for index in range(500))
    with pytest.raises(SpecError) as caught:
        load_text(text)
    assert len(caught.value.problems) == PROBLEMS_MAX
    assert [problem.line for problem in caught.value.problems] == list(range(2, PROBLEMS_MAX + 2))
    assert caught.value.omitted == 400
    assert caught.value.render().endswith("... and 400 more")


def test_a_broken_field_hides_only_the_rules_that_read_it() -> None:
    with pytest.raises(SpecError) as caught:
        load_text(
            "name: a\ntrain: {micro_batches: x, steps: 5, optimizer: {warmup_steps: 9, betas: [2, 0]}}\n"
            "parallel: {data: 9}\ncheckpoint: {every: 1}\ntask: {target: no:pe:x}\n"
        )
    assert [problem.path for problem in caught.value.problems] == [
        "train.micro_batches",
        "train.optimizer.warmup_steps",
        "train.optimizer.betas[0]",
        "parallel.data",
        "checkpoint.uri",
        "task.target",
    ]


def refused(path: Path) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        load(path)
    return caught.value.problems
