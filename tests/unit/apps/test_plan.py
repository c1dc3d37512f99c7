"""The command `plan`: a job as it is, a job that is left to the planner, a model and a cluster that are only described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.codec import from_json
from orchestrator.core.planner.cost.estimate import estimate
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.search.choose import choose
from orchestrator.core.planner.strategy import Choice, Option, Problem
from orchestrator.engine.devices import DeviceUnavailable
from orchestrator.engine.task import TaskError
from tests.scenarios.story import DEEP
from tests.unit.apps import planned
from tests.unit.apps.world import EXAMPLE, FakeWiring, cli, install

CLUSTER = """
name: pair
devices:
  - {name: toy, kind: cpu, flops: 100 GFLOP/s, bandwidth: 10 GB/s, memory: 8 GiB}
nodes:
  - {count: 2, device: toy, devices: 2, inside: {bandwidth: 2 GB/s, latency: 1 us}, network: {bandwidth: 1 GB/s, latency: 10 us}}
"""
MODEL = """
name: toy-model
layers:
  - {name: first, params: 1000, flops: 1.0e+9, moved_bytes: 1000, kept_bytes: 1000, output_bytes: 1000}
  - {name: middle, count: 6, params: 2000, flops: 2.0e+9, moved_bytes: 1000, kept_bytes: 1000, output_bytes: 1000}
"""


@pytest.fixture
def wiring(monkeypatch: pytest.MonkeyPatch) -> FakeWiring:
    """Nothing runs; the model has four layers."""
    fake = install(monkeypatch)
    fake.graph, fake.costs = DEEP, planned.costs_of(DEEP)
    return fake


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model and a cluster."""
    model, cluster = tmp_path / "model.yaml", tmp_path / "cluster.yaml"
    model.write_text(MODEL)
    cluster.write_text(CLUSTER)
    return model, cluster


@pytest.fixture
def auto(tmp_path: Path) -> Path:
    """The example, left to the planner."""
    lines = EXAMPLE.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("parallel:"))
    end = next((n for n in range(at + 1, len(lines)) if lines[n] and not lines[n][0].isspace()), len(lines))
    path = tmp_path / "auto.yaml"
    path.write_text("\n".join([*lines[:at], "parallel: auto", *lines[end:]]))
    return path


def told(*arguments: str | Path, home: Path) -> dict[str, Any]:
    """The JSON that `plan` prints."""
    result = cli("plan", *arguments, "--json", home=home)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_a_fixed_job_shows_its_ranks_and_what_would_be_chosen(tmp_path: Path, wiring: FakeWiring) -> None:
    result = cli("plan", EXAMPLE, home=tmp_path)
    assert result.exit_code == 0, result.output
    for words in ("as the job asks", "ZeRO-1", "STEP TIME", "MEMORY", "`parallel: auto` would take", "REJECTED", "weighed"):
        assert words in result.stdout
    seats = result.stdout.split("RANK ")[1]
    rows = [line.split() for line in seats.splitlines() if line[:1].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert rows[3][2:4] == ["0-3", "6-7"]  # all layers; eight micro-batches over four ranks
    assert "measuring this machine" in result.stderr


def test_a_fixed_jobs_estimate_is_that_of_its_own_plan(tmp_path: Path, wiring: FakeWiring) -> None:
    found = told(EXAMPLE, home=tmp_path)
    shown, problem = from_json(Option, found["shown"]), from_json(Problem, found["problem"])
    assert shown.estimate == estimate(problem, shown.strategy)
    assert (shown.strategy.data, shown.strategy.zero, shown.strategy.micro_batches) == (4, 1, 8)
    assert found["fixed"] is True
    assert from_json(Choice, found["choice"]).best.estimate.effective_s <= shown.estimate.effective_s


def test_json_holds_plan_graph_and_bytes(tmp_path: Path, wiring: FakeWiring) -> None:
    found = told(EXAMPLE, home=tmp_path)
    assert found["plan"]["zero_stage"] == 1
    assert found["lint"] == []
    assert len(found["graph"]["layers"]) == 4
    # 8192 elements: all parameters, two moments of an own quarter and of a peer's
    assert [r["state_bytes"] for r in found["ranks"]] == [4 * (8192 + 2 * (2048 + 2048))] * 4


def test_a_job_left_to_the_planner_shows_the_choice(tmp_path: Path, wiring: FakeWiring, auto: Path) -> None:
    found = told(auto, home=tmp_path)
    assert found["fixed"] is False
    assert found["shown"] == found["choice"]["best"]
    strategy = from_json(Option, found["shown"]).strategy
    assert len(found["plan"]["seats"]) == strategy.ranks
    assert [s["node_id"] for s in found["plan"]["seats"]] == [f"n{d}" for d in strategy.devices]
    assert found["lint"] == []
    text = cli("plan", auto, home=tmp_path).stdout
    assert "chosen" in text
    assert "would take" not in text


@pytest.mark.parametrize("most", [0, 1])
def test_as_many_alternatives_as_asked_for(tmp_path: Path, wiring: FakeWiring, auto: Path, most: int) -> None:
    found = told(auto, "--alternatives", str(most), home=tmp_path)
    assert len(found["alternatives"]) == len(found["choice"]["runners_up"]) <= most
    assert ("INSTEAD" in cli("plan", auto, "--alternatives", str(most), home=tmp_path).stdout) == bool(found["alternatives"])


def test_the_search_is_asked_for_as_many_plans(
    tmp_path: Path, wiring: FakeWiring, auto: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def chosen(problem: Problem, *, runners: int) -> Choice:
        asked.append(runners)
        return choose(problem, runners=runners)

    monkeypatch.setattr("orchestrator.apps.plan_making.choose", chosen)
    told(auto, "--alternatives", "9", home=tmp_path)
    told(EXAMPLE, "--alternatives", "8", home=tmp_path)
    told("--model", files[0], "--cluster", files[1], "--batch", "8", "--alternatives", "7", home=tmp_path)
    assert asked == [9, 8, 7]


def test_another_cluster_takes_the_place_of_this_machine(tmp_path: Path, wiring: FakeWiring, files: tuple[Path, Path]) -> None:
    result = cli("plan", EXAMPLE, "--cluster", files[1], home=tmp_path)
    assert result.exit_code == 0, result.output
    assert "pair: 4 x toy in 2 nodes" in result.stdout
    assert "measuring" not in result.stderr
    assert "timing" not in result.stderr, "how long a layer takes here says nothing about that cluster"


def test_a_device_that_is_not_here_is_needed_for_no_graph_view_and_no_described_cluster(
    tmp_path: Path, wiring: FakeWiring, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_job: object) -> None:
        raise DeviceUnavailable("NVIDIA GPU: torch finds none on this machine")

    monkeypatch.setattr(wiring, "local_costs", missing)
    monkeypatch.setattr(wiring, "local_resources", missing)
    of_graph = cli("plan", EXAMPLE, "--graph", home=tmp_path)
    assert "nothing is timed: NVIDIA GPU" in of_graph.stderr
    assert "no kind of layer was measured" in of_graph.stdout
    assert cli("plan", EXAMPLE, "--cluster", files[1], home=tmp_path).exit_code == 0
    here = cli("plan", EXAMPLE, home=tmp_path)
    assert here.exit_code == 3
    assert "--cluster FILE" in here.stderr


def test_a_described_cluster_is_used_whole(tmp_path: Path, wiring: FakeWiring, auto: Path, files: tuple[Path, Path]) -> None:
    auto.write_text(auto.read_text().replace("nodes: 4", "nodes: 1"))
    assert told(auto, home=tmp_path)["problem"]["space"]["ranks_max"] == 1
    assert told(auto, "--cluster", files[1], home=tmp_path)["problem"]["space"]["ranks_max"] == 0


def test_a_model_and_a_cluster_need_no_job(tmp_path: Path, wiring: FakeWiring, files: tuple[Path, Path]) -> None:
    model, cluster = files
    found = told("--model", model, "--cluster", cluster, "--batch", "16", home=tmp_path)
    assert (found["name"], found["plan"], found["ranks"]) == ("toy-model", None, [])
    strategy = from_json(Option, found["shown"]).strategy
    assert strategy.units * strategy.micro_batches == 16
    assert found["problem"]["program"]["name"] == "ours"
    other = told("--model", model, "--cluster", cluster, "--batch", "16", "--program", "deepspeed", home=tmp_path)
    assert other["problem"]["program"]["name"] == "deepspeed"


def test_a_model_takes_the_place_of_the_jobs_task(tmp_path: Path, wiring: FakeWiring, files: tuple[Path, Path]) -> None:
    wiring.broken = AssertionError("the task is not looked at")
    found = told(EXAMPLE, "--model", files[0], "--cluster", files[1], home=tmp_path)
    assert found["problem"]["costs"]["name"] == "toy-model"
    assert found["problem"]["batch"] == 8
    assert found["fixed"] is True
    assert found["shown"]["strategy"]["data"] == 4
    text = cli("plan", EXAMPLE, "--model", files[0], "--cluster", files[1], home=tmp_path).stdout
    assert "none, and nothing is linted: the model is only described" in text


def test_the_graph_view_needs_no_cluster(tmp_path: Path, wiring: FakeWiring, files: tuple[Path, Path]) -> None:
    of_job = cli("plan", EXAMPLE, "--graph", home=tmp_path)
    assert "ON cpu" in of_job.stdout
    assert "4 ms + 8 ms" in of_job.stdout
    of_model = cli("plan", "--model", files[0], "--graph", home=tmp_path)
    assert of_model.exit_code == 0
    assert "6 x middle" in of_model.stdout
    assert "STEP TIME" not in of_model.stdout
    costs = told("--model", files[0], "--graph", home=tmp_path)["model"]
    assert [k["name"] for k in costs["kinds"]] == ["first", "middle"]


def test_page_and_picture_are_written(tmp_path: Path, wiring: FakeWiring, files: tuple[Path, Path]) -> None:
    html, svg = tmp_path / "plan.html", tmp_path / "plan.svg"
    result = cli("plan", "--model", files[0], "--cluster", files[1], "--batch", "8", "--html", html, "--svg", svg, home=tmp_path)
    assert result.exit_code == 0, result.output
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert svg.read_text().startswith("<svg ")
    assert f"written: {svg}" in result.stderr
    assert "STEP TIME" in result.stdout
    refused = cli("plan", "--model", files[0], "--cluster", files[1], "--batch", "8", "--svg", tmp_path, home=tmp_path)
    assert refused.exit_code == 2
    assert "cannot be written" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--model FILE"),
        (("--cluster", "CLUSTER"), "--model FILE"),
        (("--graph",), "--model FILE"),
        (("--model", "MODEL"), "--cluster FILE"),
        (("--model", "MODEL", "--cluster", "CLUSTER"), "--batch N"),
        (("--model", "MODEL", "--cluster", "CLUSTER", "--batch", "8", "--program", "mine"), "ours, megatron, deepspeed"),
        (("JOB", "--batch", "8"), "leave the job out"),
        (("--model", "CLUSTER"), "problem"),
        (("JOB", "--graph", "--html", "plan.html"), "--graph plans nothing"),
        (("--model", "MODEL", "--graph", "--cluster", "CLUSTER"), "--graph plans nothing"),
        (("JOB", "--svg", "no/such/folder/plan.svg"), "a folder that is there"),
        (("JOB", "--cluster", "MODEL"), "model.yaml:3:1: layers"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    tmp_path: Path, wiring: FakeWiring, files: tuple[Path, Path], arguments: tuple[str, ...], words: str
) -> None:
    names = {"MODEL": str(files[0]), "CLUSTER": str(files[1]), "JOB": str(EXAMPLE)}
    result = cli("plan", *(names.get(a, a) for a in arguments), home=tmp_path)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("broken", "code", "words"),
    [
        (TaskError("gpt: width 10 must be a multiple of heads 3"), 2, "width 10"),
        (ZeroDivisionError("in your model"), 1, "raised while its model was built"),
    ],
)
def test_whose_fault_it_is(tmp_path: Path, wiring: FakeWiring, broken: Exception, code: int, words: str) -> None:
    wiring.broken = broken
    result = cli("plan", EXAMPLE, home=tmp_path)
    assert result.exit_code == code
    assert words in result.stderr
    assert str(broken) in result.stderr


def test_a_plan_that_does_not_exist_is_bad_input(tmp_path: Path, wiring: FakeWiring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wiring, "local_resources", lambda _job: planned.resources(2, 1))
    result = cli("plan", EXAMPLE, home=tmp_path)
    assert result.exit_code == 2
    assert "4 ranks need 4 workers, 2 are ready" in result.stderr
    assert "change parallel or cluster" in result.stderr


def test_ctrl_c_ends_it_quietly(tmp_path: Path, wiring: FakeWiring, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_job: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wiring, "local_resources", interrupted)
    result = cli("plan", EXAMPLE, home=tmp_path)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.output


def test_a_fixed_job_that_the_planner_finds_nothing_for_is_still_shown(
    tmp_path: Path, wiring: FakeWiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_problem: Problem, **_: object) -> Choice:
        raise PlanError("nothing fits")

    monkeypatch.setattr("orchestrator.apps.plan_making.choose", nothing)
    result = cli("plan", EXAMPLE, home=tmp_path)
    assert result.exit_code == 0
    assert "no plan could be chosen: nothing fits" in result.stdout


def test_help_names_every_option(tmp_path: Path) -> None:
    text = cli("plan", "--help", home=tmp_path).stdout
    for option in ("--cluster", "--model", "--batch", "--program", "--graph", "--alternatives", "--html", "--svg", "--json"):
        assert option in text


def test_a_job_left_to_the_planner_is_valid_without_a_number_of_ranks(tmp_path: Path, auto: Path) -> None:
    assert "on as many ranks as the planner chooses" in cli("validate", auto, home=tmp_path).stdout
