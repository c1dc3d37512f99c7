"""Checkpoints seen from outside: listed, verified to the last bit, exported to a file that any model of the task can load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model

from orchestrator.core.job import CheckpointSettings
from orchestrator.core.plan.layout import Interval
from orchestrator.engine.checkpoint import CheckpointWriter
from orchestrator.engine.checkpoint_files import COMMIT, METADATA, temp_name
from orchestrator.engine.checkpoint_tools import Tools
from orchestrator.engine.digest import serial_digest
from orchestrator.runtime.checkpoint_types import ExportType
from orchestrator.runtime.control import NotFoundError, NotPossibleError
from orchestrator.runtime.ports import CheckpointTools
from tests.unit.engine.state_world import KEYS, Layered, Rank, cut_up, job_of, new_state, plan_of, values_of

TOOLS: CheckpointTools = Tools()
PLAN = "zero1"


def save(folder: Path, name: str, *, step: int) -> str:
    """A checkpoint that the ranks of the plan of this name wrote; its digest."""
    plan = plan_of(name)
    job = job_of(name, checkpoint=CheckpointSettings(str(folder), 1, 5))
    ranks = [Rank(plan, r) for r in range(plan.size)]
    whole = (Interval(0, ranks[0].vectors[0].numel()),)
    params, *moments = (cut_up(v, whole, 0) for v in ranks[0].vectors)
    digest = serial_digest(
        step=step, numel=whole[0].numel, block=plan.block, params=params, moments=dict(zip(KEYS, moments, strict=True))
    )
    writers = [CheckpointWriter(job) for _ in ranks]
    for writer, rank in zip(writers, ranks, strict=True):
        writer.start(
            plan=plan, rank=rank.rank, step=step, digest=digest, state=rank.state, moments=rank.moments, scalars=rank.scalars
        )
    assert all(w.wait(60) for w in writers)
    assert [o.ok for w in writers for o in w.outcomes()] == [True] * plan.size
    return digest


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    """A place with checkpoints of steps 4 and 7, and their digests; tests only read it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, {step: save(folder, PLAN, step=step) for step in (4, 7)}


@pytest.fixture
def place(written: tuple[Path, dict[int, str]], tmp_path: Path) -> Path:
    """The same, to be damaged."""
    shutil.copytree(written[0], tmp_path / "c")
    return tmp_path / "c"


def test_a_place_is_listed_newest_first(written: tuple[Path, dict[int, str]]) -> None:
    folder, digests = written
    found = TOOLS.list(str(folder))
    assert [(c.step, c.complete, c.trouble, c.job, c.digest, c.epoch, c.ranks) for c in found] == [
        (step, True, "", "tiny", digests[step], 1, 3) for step in (7, 4)
    ]
    newest = found[0]
    assert newest.uri == f"{folder}/step-00000007"
    files = [p for p in Path(newest.uri).iterdir() if p.is_file()]
    assert (newest.files, newest.size_bytes) == (len(files), sum(p.stat().st_size for p in files))
    assert newest.plan.startswith("epoch 1: ")
    assert TOOLS.list(newest.uri) == (newest,), "one of them is a place too"
    assert TOOLS.list(f"{folder}/nowhere") == ()


def test_what_is_not_complete_says_why(place: Path) -> None:
    (place / "step-00000007" / COMMIT).unlink()
    shutil.copytree(place / "step-00000004", place / "step-00000005")
    data = next((place / "step-00000005").glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-1])
    (place / temp_name(8, 2, "ab")).mkdir()
    found = {c.uri.rsplit("/", 1)[-1]: c for c in TOOLS.list(str(place))}
    assert [(name, c.step, c.complete) for name, c in found.items()] == [
        (".tmp-step-00000008-e2-ab", 8, False),
        ("step-00000007", 7, False),
        ("step-00000004", 4, True),
        ("step-00000005", 4, False),  # as its marker says
    ]
    assert found["step-00000007"].trouble == "it has no COMMIT.json: it was never completed"
    assert found["step-00000005"].trouble == f"{data.name} missing or of another size"


@pytest.mark.parametrize("name", ["serial", "zero3", "interleaved", "tensor3", "all"])
def test_a_good_one_of_any_plan_is_verified_by_its_digest(tmp_path: Path, name: str) -> None:
    digest = save(tmp_path, name, step=7)
    verdict = TOOLS.verify(str(tmp_path), step=None)
    assert (verdict.trouble, verdict.damaged, verdict.digest) == ("", (), digest)
    assert verdict.info == TOOLS.list(str(tmp_path))[0]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "why"),
    [(flip, "its content has changed"), (cut, "were committed"), (Path.unlink, "it is missing")],
    ids=["flip", "cut", "unlink"],
)
@pytest.mark.parametrize("which", ["__1_0.distcp", METADATA])
def test_the_damaged_file_is_named(place: Path, damage: Callable[[Path], None], why: str, which: str) -> None:
    damage(place / "step-00000007" / which)
    verdict = TOOLS.verify(str(place), step=7)
    assert [d.name for d in verdict.damaged] == [which]
    assert why in verdict.damaged[0].why
    assert verdict.trouble.startswith("1 of 4 files")
    assert verdict.digest == ""
    assert TOOLS.verify(str(place), step=4).trouble == ""


def test_files_that_are_whole_and_hold_another_state_are_found_by_the_digest(place: Path) -> None:
    marker = place / "step-00000007" / COMMIT
    manifest = json.loads(marker.read_text())
    marker.write_text(json.dumps({**manifest, "digest": "0" * 64}))
    verdict = TOOLS.verify(str(place), step=None)
    assert verdict.damaged == ()
    assert verdict.digest == manifest["digest"]
    assert verdict.trouble == f"the state has digest {manifest['digest']}, the manifest says {'0' * 64}"


def test_one_that_was_never_completed_is_no_good_one(place: Path) -> None:
    (place / "step-00000007" / COMMIT).unlink()
    (place / temp_name(8, 2)).mkdir()
    verdict = TOOLS.verify(str(place), step=None)
    assert (verdict.info.step, verdict.digest) == (7, "")
    assert "never completed" in verdict.trouble
    with pytest.raises(NotFoundError, match=r"no checkpoint of step 5 at .*; there are: 8, 7, 4"):
        TOOLS.verify(str(place), step=5)
    with pytest.raises(NotFoundError, match="there are: none"):
        TOOLS.verify(str(place / "nowhere"), step=None)


@pytest.mark.parametrize("name", [PLAN, "all"])
def test_an_exported_model_is_the_model(tmp_path: Path, name: str) -> None:
    digest = save(tmp_path / "c", name, step=7)
    path = tmp_path / "model.safetensors"
    made = TOOLS.export(str(tmp_path / "c"), step=None, path=str(path), dtype=ExportType.FP32)
    assert (made.path, made.job, made.step, made.digest, made.size_bytes) == (str(path), "tiny", 7, digest, path.stat().st_size)
    tensors = load_file(path)
    model = Layered()
    names = set(model.state_dict())
    assert set(tensors) == names - {"head.weight"}, "tied weights are there once"
    assert made.tensors == len(tensors)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(3)
    missing, unexpected = load_model(model, path)
    assert (set(missing), unexpected) == (set(), [])
    loaded = model.state_dict()
    for key, value in values_of(new_state(), 1).items():
        assert torch.equal(loaded[key], value.to(loaded[key].dtype)), key
    assert torch.equal(loaded["head.weight"], loaded["embed.weight"])
    for key in ("a.table", "b.frozen", "b.nothing"):  # no state of ours, and part of the model
        assert torch.equal(loaded[key], Layered().state_dict()[key]), key
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    assert told == {
        "format": "pt",
        "job": "tiny",
        "step": "7",
        "digest": digest,
        "dtype": "fp32",
        "tied": '{"head.weight": "embed.weight"}',
    }


@pytest.mark.parametrize(("dtype", "torch_dtype"), [(ExportType.BF16, torch.bfloat16), (ExportType.FP16, torch.float16)])
def test_an_export_of_another_type_casts_what_is_floating(
    written: tuple[Path, dict[int, str]], tmp_path: Path, dtype: ExportType, torch_dtype: torch.dtype
) -> None:
    path = tmp_path / "model.safetensors"
    made = TOOLS.export(str(written[0]), step=4, path=str(path), dtype=dtype)
    assert (made.step, made.dtype) == (4, dtype)
    tensors = load_file(path)
    assert torch.equal(tensors["embed.weight"], values_of(new_state(), 1)["embed.weight"].to(torch_dtype))
    assert {n for n, t in tensors.items() if t.dtype is torch.int64} == {"a.norm.num_batches_tracked", "a.table"}
    assert {t.dtype for t in tensors.values()} == {torch_dtype, torch.int64}


def test_what_cannot_be_exported_leaves_an_older_file_alone(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("older")
    flip(place / "step-00000007" / "__1_0.distcp")
    with pytest.raises(NotPossibleError, match=r"__1_0\.distcp has another content"):
        TOOLS.export(str(place), step=7, path=str(path), dtype=ExportType.FP32)
    (place / "step-00000007" / COMMIT).unlink()
    with pytest.raises(NotPossibleError, match="is not complete: it has no COMMIT"):
        TOOLS.export(str(place), step=7, path=str(path), dtype=ExportType.FP32)
    assert path.read_text() == "older"
    made = TOOLS.export(str(place), step=None, path=str(path), dtype=ExportType.FP32)
    assert made.step == 4, "the newest complete one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "model.safetensors"]
    with pytest.raises(FileNotFoundError, match=r"folder .*/no does not exist"):
        TOOLS.export(str(place), step=4, path=str(tmp_path / "no" / "m"), dtype=ExportType.FP32)


def test_a_full_disk_leaves_nothing_behind(
    written: tuple[Path, dict[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.engine import checkpoint_tools

    def full(tensors: object, part: Path, metadata: object) -> None:
        part.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint_tools, "save_file", full)
    with pytest.raises(OSError, match="cannot be written: No space left"):
        TOOLS.export(str(written[0]), step=4, path=str(tmp_path / "m"), dtype=ExportType.FP32)
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_fp16_cannot_hold_is_not_made_infinite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.engine import state_world

    drawn = state_world.values_of
    monkeypatch.setattr(state_world, "values_of", lambda state, seed: {n: v * 1e5 for n, v in drawn(state, seed).items()})
    save(tmp_path / "c", "serial", step=7)
    with pytest.raises(NotPossibleError, match="beyond what fp16 can hold"):
        TOOLS.export(str(tmp_path / "c"), step=None, path=str(tmp_path / "m"), dtype=ExportType.FP16)
    TOOLS.export(str(tmp_path / "c"), step=None, path=str(tmp_path / "m"), dtype=ExportType.BF16)
