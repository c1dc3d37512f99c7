"""Checkpoints that everybody can read, any number of ranks can resume from, and that count only when they are whole."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict_loader as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from orchestrator.core.job import CheckpointSettings, Job
from orchestrator.core.reshard.recovery import Resume, Source
from orchestrator.core.supervisor.events import CheckpointReported, DigestReported
from orchestrator.engine.checkpoint import newest_good, verify
from orchestrator.engine.checkpoint_fence import mark_name
from orchestrator.engine.checkpoint_files import FORMAT, BadCheckpoint, Manifest, list_steps, prune, temp_name
from orchestrator.engine.checkpoint_read import stored_digest
from orchestrator.engine.describe import build_seeded
from orchestrator.engine.tasks.loading import load_task
from orchestrator.runtime.ports import Left
from tests.unit.engine.engine_world import Trap, World, curve, job, undisturbed, world
from tests.unit.engine.forking import forked


@cache
def reference() -> tuple[str, dict[int, tuple[float, float]]]:
    """A run without checkpoints in which nothing fails."""
    return undisturbed(job())


def saving(folder: Path | str, *, every: int = 3, keep: int = 5, **more: Any) -> Job:
    """A job with checkpoints in `folder`."""
    return job(checkpoint=CheckpointSettings(str(folder), every, keep), **more)


def from_checkpoint(uri: str, size: int) -> Resume:
    """All ranks read step 3."""
    return Resume(Source.CHECKPOINT, 3, None, (), tuple(range(size)), uri, 0, ())


def save(folder: Path, **more: Any) -> World:
    """A finished run of four sharded ranks that left checkpoints of steps 3 and 6."""
    workers = [f"w{n}" for n in range(4)]
    with world(saving(folder, size=4, zero_stage=1, copies=1, **more)) as w:
        w.spawn(*workers)
        w.start(*workers)
        assert set(w.finish()) == {reference()[0]}
        return w


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    """Written once; tests only read it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, save(folder)


@forked
def test_what_is_written_and_reported(saved: tuple[Path, World]) -> None:
    folder, w = saved
    assert names(folder) == ["step-00000003", "step-00000006"]
    reports = [e for m in w.members() for e in m.events if isinstance(e, CheckpointReported)]
    assert [(r.step, r.uri, r.ok, r.worker_id) for r in reports] == [
        (3, f"{folder}/step-00000003", True, "w0"),
        (6, f"{folder}/step-00000006", True, "w0"),
    ]
    digests = {e.step: e.digest for m in w.members() for e in m.events if isinstance(e, DigestReported)}
    found = newest_good(str(folder), "tiny")
    assert found is not None
    assert (found.step, found.uri, found.digest) == (6, f"{folder}/step-00000006", digests[6])
    assert verify(f"{folder}/step-00000003").digest == digests[3]


@forked
@pytest.mark.parametrize(("size", "zero", "copies"), [(1, 0, 0), (2, 1, 1), (3, 0, 0), (4, 1, 0)])
def test_any_layout_resumes_from_it(saved: tuple[Path, World], size: int, zero: int, copies: int) -> None:
    workers = [f"n{n}" for n in range(size)]
    with world(job(size=size, zero_stage=zero, copies=copies)) as w:
        w.spawn(*workers)
        uri = f"{saved[0]}/step-00000003"
        w.start(*workers, resume=from_checkpoint(uri, size))
        assert set(w.finish()) == {reference()[0]}
        assert curve(w) == {s: v for s, v in reference()[1].items() if s > 3}


@forked
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_anybody_reads_it_with_plain_torch(saved: tuple[Path, World], tmp_path: Path) -> None:
    the_job = job()
    model = build_seeded(load_task(the_job.task), seed=the_job.train.seed)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optim.inner.weight.exp_avg": torch.empty(96, 48),
        "optim.inner.weight.step": torch.zeros(()),
    }
    dcp.load(state, checkpoint_id=f"{saved[0]}/step-00000006", no_dist=True)
    model.load_state_dict(state["model"], strict=True)
    after = model.state_dict()
    assert torch.equal(after["outer.weight"], after["tied.weight"])
    assert not torch.equal(after["outer.weight"], before["outer.weight"])
    assert torch.equal(after["frozen"], before["frozen"])
    assert int(after["norm.num_batches_tracked"]) == 6
    assert float(state["optim.inner.weight.step"]) == 6.0
    assert float(state["optim.inner.weight.exp_avg"].abs().max()) > 0.0

    whole = tmp_path / "whole.pt"
    dcp_to_torch_save(f"{saved[0]}/step-00000006", whole)
    read = torch.load(whole, weights_only=True)
    assert set(read) == {"model", "optim"}
    assert torch.equal(read["model"]["inner.weight"], after["inner.weight"])
    assert torch.equal(read["optim"]["inner.weight.exp_avg"], state["optim.inner.weight.exp_avg"])


@forked
def test_damaged_and_half_written_ones_are_passed_over_with_a_reason(tmp_path: Path) -> None:
    save(tmp_path)
    newest, older = tmp_path / "step-00000006", tmp_path / "step-00000003"
    part = next(iter(sorted(newest.glob("*.distcp"))))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    (tmp_path / "step-00000009").mkdir()
    why: list[str] = []
    found = newest_good(str(tmp_path), "tiny", why)
    assert found is not None
    assert found.step == 3
    assert "step-00000009: it has no COMMIT.json: it was never completed" in why[0]
    assert "another content than when it was committed" in why[1]

    (older / ".metadata").unlink()
    with pytest.raises(BadCheckpoint, match=r"file \.metadata is missing"):
        verify(str(older))
    assert newest_good(str(tmp_path), "tiny") is None
    part.write_bytes(bytes(data[:-1]))
    with pytest.raises(BadCheckpoint, match="another size"):
        verify(str(newest))


@forked
def test_a_checkpoint_of_another_job_is_none_of_ours(saved: tuple[Path, World]) -> None:
    why: list[str] = []
    assert newest_good(str(saved[0]), "other", why) is None
    assert all("it belongs to job 'tiny'" in w for w in why)
    assert len(why) == 2


def test_a_manifest_that_is_no_manifest(tmp_path: Path) -> None:
    made = tmp_path / "step-00000001"
    made.mkdir()
    for text, why in (("{", "cannot be read"), ('{"format": 99}', "format 99"), ("{}", "cannot be read")):
        (made / "COMMIT.json").write_text(text)
        with pytest.raises(BadCheckpoint, match=re.escape(why)):
            verify(str(made))
    assert newest_good(str(tmp_path / "nowhere"), "tiny") is None


def marked(folder: Path, name: str, *, step: int, epoch: int = 1, job: str = "tiny", digest: str = "d") -> None:
    """A checkpoint of no files that is complete."""
    (folder / name).mkdir()
    manifest = Manifest(
        format=FORMAT,
        job=job,
        step=step,
        digest=digest,
        epoch=epoch,
        ranks=1,
        plan="",
        tensor=1,
        block=1024,
        layers=("model",),
        tensors=(),
        moments={},
        scalars={},
        usual_loss=0.0,
        files={},
    )
    (folder / name / "COMMIT.json").write_text(manifest.to_text())


def names(folder: Path) -> list[str]:
    """What lies in it, but for the mark of the epoch that writes there."""
    return sorted(p.name for p in folder.iterdir() if p.name != mark_name("tiny"))


def test_old_ones_and_leftovers_of_older_epochs_are_removed(tmp_path: Path) -> None:
    for n in range(1, 6):
        marked(tmp_path, f"step-{n:08d}", step=n)
    for name in (temp_name(4, 1), temp_name(5, 1, "0a1bold"), temp_name(4, 2, "ab"), temp_name(9, 1), "notes"):
        (tmp_path / name).mkdir()
    prune(str(tmp_path), job="tiny", keep=2, step=5, epoch=1, committed="step-00000005")
    assert names(tmp_path) == sorted(["notes", "step-00000004", "step-00000005", temp_name(4, 2, "ab"), temp_name(9, 1)])
    assert [s for s, _ in list_steps(str(tmp_path))] == [5, 4]


def test_what_was_just_committed_outlives_damaged_newer_ones_and_those_of_others(tmp_path: Path) -> None:
    marked(tmp_path, "step-00000300", step=300)  # damaged, say: this run went on from step 200
    marked(tmp_path, "step-00000200", step=200)
    marked(tmp_path, "step-00000210", step=210, job="other")
    (tmp_path / "step-00000215").mkdir()  # never completed
    (tmp_path / "step-00000100").mkdir()
    marked(tmp_path, "step-00000220", step=220)
    prune(str(tmp_path), job="tiny", keep=1, step=220, epoch=2, committed="step-00000220")
    assert names(tmp_path) == ["step-00000210", "step-00000220", "step-00000300"]


def test_of_two_attempts_at_one_step_the_committed_one_is_kept(tmp_path: Path) -> None:
    (tmp_path / "step-00000040-e9-ab").mkdir()  # sorts after e10
    marked(tmp_path, "step-00000040-e12-ab", step=40, epoch=12)  # of an earlier run
    marked(tmp_path, "step-00000040-e10-cd", step=40, epoch=10)
    prune(str(tmp_path), job="tiny", keep=1, step=40, epoch=10, committed="step-00000040-e10-cd")
    assert "step-00000040-e10-cd" in names(tmp_path)
    assert "step-00000040-e12-ab" not in names(tmp_path)


@forked
def test_leftovers_of_an_earlier_run_are_not_taken_for_parts_of_this_one(tmp_path: Path) -> None:
    stale = tmp_path / temp_name(3, 1)  # epochs of each run count from 1
    stale.mkdir()
    for rank in range(4):
        (stale / f"part-{rank:05d}.json").write_text('{"chunks": [], "files": {}, "scalars": {}}')
    marked(tmp_path, "step-00000006", step=6, digest="of another state")
    save(tmp_path)
    assert names(tmp_path) == ["step-00000003", "step-00000006"]
    assert [len(verify(uri).files) for _, uri in list_steps(str(tmp_path))] == [5, 5]


@forked
def test_two_jobs_do_not_take_each_others_checkpoints(tmp_path: Path) -> None:
    marked(tmp_path, "step-00000003", step=3, job="other")
    with world(saving(tmp_path, size=1)) as w:
        w.spawn("w0")
        w.start("w0")
        w.finish()
        reports = {e.step: e for e in w.workers["w0"].events if isinstance(e, CheckpointReported)}
    assert (reports[3].ok, reports[6].ok) == (False, True)
    assert "belongs to job 'other'" in reports[3].detail
    assert verify(f"{tmp_path}/step-00000003").job == "other"


@forked
def test_a_place_that_cannot_be_reached_is_reported() -> None:
    with world(saving("nosuchscheme://bucket/x", size=1)) as w:
        w.spawn("w0")
        w.start("w0")
        w.finish()
        reports = [e for e in w.workers["w0"].events if isinstance(e, CheckpointReported)]
    assert [(r.step, r.ok) for r in reports] == [(3, False), (6, False)]
    assert "nosuchscheme" in reports[0].detail


@forked
def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, every=1, keep=2)
    assert names(tmp_path) == ["step-00000005", "step-00000006"]


@forked
def test_the_last_checkpoint_is_written_again_when_its_epoch_breaks(tmp_path: Path) -> None:
    with world(saving(tmp_path, size=2)) as w:
        w.spawn("w0", "spare")
        w.spawn("w1", traps=[Trap("checkpoint", 6)])
        w.start("w0", "w1")
        resume = w.recover("spare")
        assert resume.step == 6
        assert set(w.finish()) == {reference()[0]}
        reports = [(e.step, e.epoch, e.ok) for m in w.members() for e in m.events if isinstance(e, CheckpointReported)]
        assert (6, 2, True) in reports
    found = newest_good(str(tmp_path), "tiny")
    assert found is not None
    assert found.step == 6
    assert names(tmp_path) == ["step-00000003", "step-00000006"]


@forked
def test_a_swapped_digest_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    save(tmp_path)
    marker = tmp_path / "step-00000003" / "COMMIT.json"
    manifest = json.loads(marker.read_text())
    marker.write_text(json.dumps({**manifest, "digest": "0" * 64}))
    with world(job(size=2)) as w:
        w.spawn("n0", "n1")
        w.start("n0", "n1", resume=from_checkpoint(str(marker.parent), 2))
        for outcome in w.outcomes():
            assert isinstance(outcome, Left)
            assert outcome.held is None, "what was read is not what was committed"
            assert "its manifest says 000" in outcome.detail
        told = [e for m in w.members() for e in m.events if isinstance(e, CheckpointReported)]
        assert {(e.step, e.uri, e.ok) for e in told} == {(3, str(marker.parent), False)}


LAYERED: dict[str, Any] = {"target": "layered_task.py:Layered", "batch_norm": True, "steps": 4}


@forked
def test_a_run_goes_on_from_the_checkpoint_of_another_plan_at_equal_bits(tmp_path: Path) -> None:
    every = CheckpointSettings(str(tmp_path), 2, 9)
    writer = job(size=2, zero_stage=3, fields={"pipeline": 2}, checkpoint=every, **LAYERED)
    readers: list[tuple[dict[str, Any], int]] = [
        ({"size": 1}, 1),
        ({"size": 3, "zero_stage": 1, "copies": 1}, 3),
        ({"size": 1, "fields": {"pipeline": 3}}, 3),
        ({"size": 1, "fields": {"tensor": 2}}, 2),
    ]
    workers = [f"w{n}" for n in range(4)]
    with world(writer) as w:
        w.spawn(*workers)
        w.start(*workers)
        (digest,) = set(w.finish())
        whole = curve(w)
        for epoch, (cut, ranks) in enumerate(readers, start=2):
            for worker in w.workers.values():
                worker.events.clear()
            resume = Resume(Source.CHECKPOINT, 2, None, (), tuple(range(ranks)), f"{tmp_path}/step-00000002", 0, ())
            w.start(*workers[-ranks:], epoch=epoch, cut_as=job(**cut, **LAYERED), resume=resume)
            (found,) = set(w.finish())
            losses = curve(w)
            assert list(losses) == [3, 4]
            if "tensor" in cut.get("fields", {}):  # the order of sums is another one
                assert losses[4] == pytest.approx(whole[4], rel=1e-4)
                continue
            assert found == digest
            assert losses == {step: whole[step] for step in (3, 4)}
    newest = newest_good(str(tmp_path), "tiny")
    assert newest is not None
    assert newest.step == 4
    assert stored_digest(newest.uri) == newest.digest
