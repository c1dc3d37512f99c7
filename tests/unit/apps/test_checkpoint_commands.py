"""checkpoint now, list, verify, export: through the supervisor, or from here where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.core.codec import from_json
from orchestrator.core.supervisor.events import CheckpointReported
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, DamagedFile, ExportType
from orchestrator.runtime.control import NotFoundError, NotPossibleError
from tests.unit.apps.world import FakeClient, FakeTools, checkpoint, cli, install, plain_status, statuses, told

TWO = (checkpoint(10, trouble="it has no COMMIT.json: it was never completed"), checkpoint(5))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """A supervisor with a running job and two checkpoints."""
    made = FakeClient(statuses(plain_status()), tools=FakeTools(*TWO))
    install(monkeypatch, made)
    return made


def reported(seq: int, *, ok: bool) -> CheckpointReported:
    detail = "d" * 64 if ok else "No space left on device"
    return CheckpointReported(seq, "j/w0", 1, 8, "/c/step-00000008", ok, detail)


def test_now_only_asks(tmp_path: Path, client: FakeClient) -> None:
    result = cli("checkpoint", "now", "j", home=tmp_path)
    assert result.exit_code == 0
    assert client.asked == [("checkpoint", "j")]
    assert "#40 checkpoint it is" in result.stderr
    assert result.stdout == ""


def test_now_waits_until_it_is_durable(tmp_path: Path, client: FakeClient) -> None:
    client.records = [
        told(38, "an older one", reported(38, ok=True)),
        told(41, "asked the workers"),
        told(43, "checkpoint of step 8 is durable", reported(43, ok=True)),
    ]
    result = cli("checkpoint", "now", "j", "--wait", home=tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["/c/step-00000008"]
    assert [line[:3] for line in result.stderr.splitlines()] == ["#40", "#41", "#43"]
    as_json = json.loads(cli("checkpoint", "now", "j", "--wait", "--json", home=tmp_path).stdout)
    assert as_json == {"job": "j", "seq": 40, "reason": "checkpoint it is", "uri": "/c/step-00000008"}


def test_now_fails_when_the_checkpoint_does(tmp_path: Path, client: FakeClient) -> None:
    client.records = [told(43, "checkpoint failed", reported(43, ok=False))]
    result = cli("checkpoint", "now", "j", "--wait", home=tmp_path)
    assert result.exit_code == 3
    assert "the checkpoint of step 8 failed: No space left on device" in result.stderr


def test_list_shows_step_state_size_plan_and_digest(tmp_path: Path, client: FakeClient) -> None:
    lines = cli("checkpoint", "list", "j", home=tmp_path).stdout.splitlines()
    assert lines[0].split() == ["STEP", "STATE", "SIZE", "WRITTEN", "BY", "DIGEST", "WHERE"]
    assert "incomplete: it has no COMMIT.json" in lines[1]
    assert lines[2].split("  ")[0] == "5"
    for words in ("complete", "2.5 MB", "epoch 3, 4 ranks", "555555555555", "/c/step-00000005"):
        assert words in lines[2]
    found = json.loads(cli("checkpoint", "list", "j", "--json", home=tmp_path).stdout)
    assert tuple(from_json(CheckpointInfo, item) for item in found) == TWO


def test_nothing_there_is_no_error(tmp_path: Path, client: FakeClient) -> None:
    client.tools = FakeTools()
    result = cli("checkpoint", "list", "j", home=tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no checkpoints" in result.stderr
    assert cli("checkpoint", "verify", "j", "--all", home=tmp_path).exit_code == 2


def test_verify_tells_that_all_is_well(tmp_path: Path, client: FakeClient) -> None:
    result = cli("checkpoint", "verify", "j", "--step", "5", home=tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [f"step 5 at /c/step-00000005: ok, 5 files, 2.5 MB, digest {'5' * 64}"]
    assert client.asked == [("verify", "j", "", 5)]
    cli("checkpoint", "verify", "j", "--all", home=tmp_path)
    assert client.asked[1:] == [("verify", "j", "", 5)], "what is not complete cannot be verified"


def test_verify_names_the_damaged_file(tmp_path: Path, client: FakeClient) -> None:
    client.tools = FakeTools(TWO[1], damaged={5: (DamagedFile(name="__1_0.distcp", why="its content changed"),)})
    result = cli("checkpoint", "verify", "j", home=tmp_path)
    assert result.exit_code == 3
    assert "DAMAGED, 1 of 5 files" in result.stdout
    assert "__1_0.distcp  its content changed" in result.stdout
    assert "step 5: 1 of 5 files" in result.stderr
    as_json = cli("checkpoint", "verify", "j", "--json", home=tmp_path)
    assert as_json.exit_code == 3
    (verdict,) = (from_json(CheckpointVerdict, v) for v in json.loads(as_json.stdout))
    assert verdict.damaged == (DamagedFile(name="__1_0.distcp", why="its content changed"),)


def test_export_writes_where_it_is_told(tmp_path: Path, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("checkpoint", "export", "j", "--step", "5", "-o", "m.safetensors", "--dtype", "bf16", home=tmp_path)
    assert result.exit_code == 0, result.output
    path = str(tmp_path / "m.safetensors")
    assert client.asked == [("export", "j", "", 5, path, ExportType.BF16)]
    assert result.stdout.splitlines() == [path]
    assert "7 tensors, 1 MB, bf16, of step 5" in result.stderr
    assert json.loads(cli("checkpoint", "export", "j", "--step", "5", "-o", path, "--json", home=tmp_path).stdout)["step"] == 5


def test_a_place_needs_no_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch)
    fake.tools = FakeTools(*TWO)
    monkeypatch.chdir(tmp_path)
    for uri in ("/c", "c", "s3://bucket/c"):
        assert cli("checkpoint", "list", "--uri", uri, home=tmp_path).exit_code == 0
    assert fake.tools.places == ["/c", str(tmp_path / "c"), "s3://bucket/c"]
    assert fake.calls == []


def test_a_job_without_a_supervisor_is_known_by_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch)
    fake.tools = FakeTools(*TWO)
    fake.uris["j"] = "/c"
    result = cli("checkpoint", "list", "j", home=tmp_path)
    assert result.exit_code == 0, result.output
    assert "no supervisor runs" in result.stderr
    assert fake.tools.places == ["/c"]
    unknown = cli("checkpoint", "list", "k", home=tmp_path)
    assert unknown.exit_code == 3
    assert "orchestrator run" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "j", "--uri", "/c"), "either a job or --uri"),
        (("verify", "j", "--step", "5", "--all"), "either --step N or --all"),
        (("export", "j"), "--output"),
        (("export", "j", "-o", "m", "--dtype", "fp8"), "fp8"),
    ],
)
def test_what_makes_no_sense_is_bad_input(tmp_path: Path, client: FakeClient, arguments: tuple[str, ...], words: str) -> None:
    result = cli("checkpoint", *arguments, home=tmp_path)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize("error", [NotFoundError("there is no checkpoint of step 7"), NotPossibleError("no checkpoint.uri")])
@pytest.mark.parametrize("command", [("now", "j"), ("list", "j"), ("verify", "j"), ("export", "j", "-o", "m")])
def test_errors_have_their_words(tmp_path: Path, client: FakeClient, command: tuple[str, ...], error: Exception) -> None:
    client.fails = error  # type: ignore[assignment] # both are ControlErrors
    result = cli("checkpoint", *command, home=tmp_path)
    assert result.exit_code == 2
    assert str(error) in result.stderr
