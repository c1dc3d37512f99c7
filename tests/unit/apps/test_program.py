"""The program as a whole: help of every command, and what the quick commands do not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.apps.cli.main import app
from tests.unit.apps.world import EXAMPLE, cli

COMMANDS = (
    *("init", "validate", "plan", "run", "launch", "status", "logs", "events"),
    *("explain", "list", "scale", "drain", "replace", "chaos", "cancel", "suspend", "resume", "doctor", "down"),
)
CHECKPOINT = ("now", "list", "verify", "export")
MODEL, CLUSTER = (EXAMPLE.parents[1] / name for name in ("models/resnet-50.yaml", "clusters/laptop.yaml"))
HEAVY = ("torch", "ray", "numpy", "kubernetes")
QUICK: tuple[tuple[tuple[str, ...], int], ...] = (
    (("--help",), 0),
    (("run", "--help"), 0),
    (("checkpoint", "--help"), 0),
    (("checkpoint", "list", "j", "--home", "."), 3),
    (("validate", str(EXAMPLE)), 0),
    (("validate", "none.yaml"), 2),
    (("plan", "--model", str(MODEL), "--cluster", str(CLUSTER), "--batch", "8"), 0),
    (("plan", "--model", str(MODEL), "--graph"), 0),
    (("status", "--home", "."), 3),
    (("events", "--home", "."), 3),
)
_RUN = """
import json, sys
from orchestrator.apps.cli.main import app
told = []
typed, heavy = map(json.loads, sys.argv[1:])
for arguments in typed:
    code = 0
    try:
        app(arguments)
    except SystemExit as e:
        code = e.code or 0
    told.append({"code": code, "heavy": [m for m in heavy if sys.modules.pop(m, None)]})
print(json.dumps(told), file=sys.stderr)
"""


def test_the_commands_are_those_of_the_issue() -> None:
    names = [c.name or getattr(c.callback, "__name__", "") for c in app.registered_commands]
    assert sorted(names) == sorted(COMMANDS)


def test_checkpoint_is_a_group(tmp_path: Path) -> None:
    (group,) = app.registered_groups
    assert group.typer_instance is not None
    commands = group.typer_instance.registered_commands
    assert [c.name or getattr(c.callback, "__name__", "") for c in commands] == list(CHECKPOINT)
    for name in CHECKPOINT:
        result = cli("checkpoint", name, "--help", home=tmp_path)
        assert result.exit_code == 0
        assert f"checkpoint {name}" in result.stdout
    assert cli("checkpoint", home=tmp_path).exit_code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(tmp_path: Path, command: str) -> None:
    result = cli(command, "--help", home=tmp_path)
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    function = next(c.callback for c in app.registered_commands if command in (c.name, getattr(c.callback, "__name__", "")))
    assert function is not None
    first = (function.__doc__ or "").split()[:5]
    assert " ".join(first) in " ".join(result.stdout.split())


def test_the_program_explains_its_exit_codes(tmp_path: Path) -> None:
    result = cli("--help", home=tmp_path)
    assert result.exit_code == 0
    assert "130 interrupted" in " ".join(result.stdout.split())
    for command in (*COMMANDS, "checkpoint"):
        assert f" {command} " in result.stdout


def test_version(tmp_path: Path) -> None:
    assert cli("--version", home=tmp_path).stdout.strip() == "0.1.0"


@pytest.mark.parametrize("arguments", [("statsu",), ("status", "--unknown"), ("explain",), ("run",)])
def test_usage_errors_are_bad_input(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments, home=tmp_path)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], dict[str, object]]:
    """What each of the quick commands returned and had imported, one after the other in a process of their own."""
    typed = [arguments for arguments, _ in QUICK]
    command = [sys.executable, "-c", _RUN, json.dumps(typed), json.dumps(HEAVY)]
    done = subprocess.run(command, cwd=tmp_path_factory.mktemp("quick"), capture_output=True, text=True, timeout=200)
    assert "Traceback" not in done.stderr, done.stderr
    return dict(zip(typed, json.loads(done.stderr.strip().splitlines()[-1]), strict=True))


@pytest.mark.parametrize(("arguments", "code"), QUICK, ids=lambda a: a[0] if isinstance(a, tuple) else str(a))
def test_quick_commands_import_nothing_heavy(
    quick: dict[tuple[str, ...], dict[str, object]], arguments: tuple[str, ...], code: int
) -> None:
    assert quick[arguments] == {"code": code, "heavy": []}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("explain ", {"last", "plan"}),
        ("explain p", {"plan"}),
        ("plan --program ", {"ours", "megatron", "deepspeed"}),
        ("plan --program m", {"megatron"}),
        ("plan --h", {"--html", "--help"}),
    ],
)
def test_the_shell_completes_words(tmp_path: Path, typed: str, offered: set[str]) -> None:
    arguments = typed.split(" ")
    asked = {
        "_ORCHESTRATOR_COMPLETE": "complete_bash",
        "COMP_WORDS": f"orchestrator {typed}",
        "COMP_CWORD": str(len(arguments)),
        "ORCHESTRATOR_HOME": str(tmp_path),
    }
    result = CliRunner().invoke(app, [], env=asked, prog_name="orchestrator")
    assert set(result.stdout.split()) == offered, result.output


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m orchestrator.apps.cli.main validate --schema | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.stdout.startswith("{")
    assert "Traceback" not in done.stderr
