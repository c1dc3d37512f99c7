"""Whatever plan wrote a checkpoint, any plan reads it; and what goes wrong while it is written leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import state_dict_loader as dcp

from orchestrator.core.job import CheckpointSettings
from orchestrator.core.plan.layout import Interval
from orchestrator.core.plan.plan import Plan
from orchestrator.engine import checkpoint, checkpoint_parts, checkpoint_read
from orchestrator.engine.checkpoint import CheckpointWriter, Outcome
from orchestrator.engine.checkpoint_files import BadCheckpoint, Place, newest_good, verify
from orchestrator.engine.checkpoint_parts import boxes
from orchestrator.engine.checkpoint_read import load_checkpoint, stored_digest
from orchestrator.engine.digest import serial_digest
from orchestrator.engine.extents import Extents
from tests.unit.engine.state_world import (
    KEYS,
    PLANS,
    Layered,
    Rank,
    cut_up,
    job_of,
    new_state,
    plan_of,
    scalars_of,
    values_of,
    whole_vector,
)

STEP = 7


def writers(plan_name: str, folder: Path) -> list[CheckpointWriter]:
    """One per rank."""
    job = job_of(plan_name, checkpoint=CheckpointSettings(str(folder), 1, 3))
    return [CheckpointWriter(job) for _ in range(job.parallel.ranks)]


def begin(writer: CheckpointWriter, rank: Rank, *, step: int = STEP, digest: str = "d") -> None:
    """Start to write a rank's part."""
    writer.start(
        plan=rank.plan,
        rank=rank.rank,
        step=step,
        digest=digest,
        state=rank.state,
        moments=rank.moments,
        scalars=rank.scalars,
        usual_loss=1.25,
    )


def outcomes(them: list[CheckpointWriter]) -> list[Outcome]:
    """Wait for all."""
    out = []
    for writer in them:
        assert writer.wait(60)
        out += writer.outcomes()
    return out


def write(plan: Plan, plan_name: str, folder: Path, **more: Any) -> str:
    """All ranks of a plan; the checkpoint's URI."""
    them = writers(plan_name, folder)
    for n, writer in enumerate(them):
        begin(writer, Rank(plan, n), **more)
    told = outcomes(them)
    assert [(o.ok, o.committed) for o in told] == [(True, n == 0) for n in range(plan.size)]
    assert len({o.detail for o in told}) == 1, "the digest"
    return told[0].uri


def serial(degree: int) -> str:
    """The digest of a tensor degree's vector."""
    state = new_state(degree=degree)
    parts = [cut_up(whole_vector(state, s, params_only=s > 1), (Interval(0, state.space.numel),), s) for s in (1, 2, 3)]
    moments = dict(zip(KEYS, parts[1:], strict=True))
    return serial_digest(step=STEP, numel=state.space.numel, block=state.block, params=parts[0], moments=moments)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URIs by name of the plan that wrote it; tests only read them."""
    out = {}
    for name in PLANS:
        plan = plan_of(name)
        degree = plan.axis("tensor")
        out[name] = write(plan, name, tmp_path_factory.mktemp(name), digest=serial(degree))
    return out


@pytest.mark.parametrize(
    "reader", [name if name in ("serial", "all") else pytest.param(name, marks=pytest.mark.slow) for name in PLANS]
)
def test_any_plan_reads_what_any_plan_wrote(written: dict[str, str], reader: str) -> None:
    plan = plan_of(reader)
    blank = [Rank(plan, n, blank=True) for n in range(plan.size)]
    for uri in written.values():
        for rank in blank:
            for extents in (rank.params, *rank.moments.values()):
                for _, tensor in extents:
                    tensor.fill_(9.0)
            loaded = load_checkpoint(uri, state=rank.state, params=rank.params, moments=rank.moments, step=STEP)
            rank.check()
            assert loaded.scalars == rank.scalars
            assert loaded.usual_loss == 1.25


@pytest.mark.parametrize("name", ["serial", "zero3", "pipeline", "tensor3", "all"])
def test_the_stored_bytes_have_the_digest_that_was_committed(
    written: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_read, "DIGEST_NUMEL", 9000)
    manifest = verify(written[name])
    assert stored_digest(written[name]) == manifest.digest
    assert manifest.tensor == plan_of(name).axis("tensor")
    assert manifest.plan


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("name", ["serial", "all", "tensor3"])
def test_anybody_reads_whole_tensors_under_their_own_names(written: dict[str, str], name: str) -> None:
    model = Layered()
    blank: dict[str, Any] = {
        "model": {k: torch.zeros_like(v) for k, v in model.state_dict().items()},
        "optim.a.up.weight.exp_avg": torch.zeros(100, 61),
        "optim.b.conv.weight.exp_avg_sq": torch.zeros(5, 7, 3, 4),
        "optim.b.scale.step": torch.zeros(()),
    }
    dcp.load(blank, checkpoint_id=written[name], no_dist=True)
    state = new_state()
    values = {s: values_of(state, s) for s in (1, 2, 3)}
    got = blank["model"]
    for s in state.shapes:
        if s.name == "a.norm.num_batches_tracked":
            assert (got[s.name].dtype, int(got[s.name])) == (torch.int64, 8)
        else:
            assert torch.equal(got[s.name], values[1][s.twin or s.name]), s.name
    assert torch.equal(got["head.weight"], values[1]["embed.weight"])
    assert torch.equal(got["a.table"], torch.arange(5))
    assert torch.equal(got["b.frozen"], torch.ones(3))
    assert torch.equal(blank["optim.a.up.weight.exp_avg"], values[2]["a.up.weight"])
    assert torch.equal(blank["optim.b.conv.weight.exp_avg_sq"], values[3]["b.conv.weight"])
    assert float(blank["optim.b.scale.step"]) == 7.0


def test_a_twin_is_stored_once(written: dict[str, str]) -> None:
    metadata = checkpoint_read._metadata_of(written["all"])
    assert "optim.embed.weight.exp_avg" in metadata.state_dict_metadata
    assert "optim.head.weight.exp_avg" not in metadata.state_dict_metadata
    whole = metadata.state_dict_metadata["model.embed.weight"]
    other = metadata.state_dict_metadata["model.head.weight"]
    assert whole == other
    assert "embed.weight" in verify(written["all"]).scalars
    assert "head.weight" not in verify(written["all"]).scalars


def test_stretches_that_are_cut_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_parts, "STRETCH_NUMEL_MAX", 1000)
    uri = write(plan_of("tensor3"), "tensor3", tmp_path)
    rank = Rank(plan_of("zero1"), 2, blank=True)
    load_checkpoint(uri, state=rank.state, params=rank.params, moments=rank.moments, step=STEP)
    rank.check()


def test_step_0_and_an_optimizer_that_has_no_state_yet(tmp_path: Path) -> None:
    plan = plan_of("zero1")
    for step in (0, 1):
        them = writers("zero1", tmp_path)
        for n, writer in enumerate(them):
            rank = Rank(plan, n)
            rank.scalars = {}
            begin(writer, rank, step=step)
        (uri,) = {o.uri for o in outcomes(them)}
        rank = Rank(plan, 1, blank=True)
        loaded = load_checkpoint(uri, state=rank.state, params=rank.params, moments=rank.moments, step=step)
        assert loaded.scalars == {}
        assert all(torch.equal(t, rank.vectors[0][i.start : i.stop]) for i, t in rank.params)
        if step == 0:
            assert not any(t.any() for e in rank.moments.values() for _, t in e)


def test_what_does_not_fit_is_refused(written: dict[str, str], tmp_path: Path) -> None:
    rank = Rank(plan_of("serial"), 0)
    with pytest.raises(BadCheckpoint, match="is of step 7, not 8"):
        load_checkpoint(written["serial"], state=rank.state, params=rank.params, moments=rank.moments, step=8)
    with pytest.raises(BadCheckpoint, match=r"its optimizer kept .*exp_avg_sq.*, this one keeps {'exp_avg': 'float32'}"):
        load_checkpoint(
            written["serial"], state=rank.state, params=rank.params, moments={"exp_avg": rank.moments["exp_avg"]}, step=STEP
        )
    empty: dict[str, Extents] = {}
    uri = write(plan_of("serial"), "serial", tmp_path)
    marker = Path(uri) / "COMMIT.json"
    data = json.loads(marker.read_text())
    marker.write_text(json.dumps({**data, "moments": {}, "scalars": {"a.up.weight": {}}}))
    with pytest.raises(BadCheckpoint, match=r"it has no optimizer state of embed\.weight"):
        load_checkpoint(uri, state=rank.state, params=rank.params, moments=empty, step=STEP)


def test_without_elementwise_state_all_scalars_come_along(tmp_path: Path) -> None:
    plan = plan_of("zero1")
    them = writers("zero1", tmp_path)
    ranks = [Rank(plan, n) for n in range(3)]
    for writer, rank in zip(them, ranks, strict=True):
        rank.moments = {}
        begin(writer, rank)
    (uri,) = {o.uri for o in outcomes(them)}
    loaded = load_checkpoint(uri, state=ranks[0].state, params=ranks[0].params, moments={}, step=STEP)
    assert loaded.scalars == scalars_of(ranks[0].state, (Interval(0, ranks[0].state.space.numel),))


def test_a_flipped_bit_is_noticed_where_the_digest_cannot_tell(tmp_path: Path) -> None:
    uri = write(plan_of("serial"), "serial", tmp_path, digest=serial(1))
    part = next(Path(uri).glob("*.distcp"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    rank = Rank(plan_of("tensor2"), 1, blank=True)
    with pytest.raises(BadCheckpoint, match="another content than when it was committed"):
        load_checkpoint(uri, state=rank.state, params=rank.params, moments=rank.moments, step=STEP)
    with pytest.raises(BadCheckpoint, match="another content"):
        verify(uri)


def test_damaged_metadata_is_a_bad_checkpoint(tmp_path: Path) -> None:
    uri = write(plan_of("serial"), "serial", tmp_path)
    (Path(uri) / ".metadata").write_bytes(b"no pickle")
    rank = Rank(plan_of("serial"), 0, blank=True)
    with pytest.raises(BadCheckpoint, match="its metadata cannot be read"):
        load_checkpoint(uri, state=rank.state, params=rank.params, moments=rank.moments, step=STEP)


@given(shape=st.lists(st.integers(1, 5), max_size=4), data=st.data())
def test_a_stretch_is_few_boxes(shape: list[int], data: st.DataObject) -> None:
    numel = math.prod(shape)
    lo = data.draw(st.integers(0, numel))
    hi = data.draw(st.integers(lo, numel))
    whole = torch.arange(numel).view(shape)
    seen = []
    found = list(boxes(shape, lo, hi))
    for offsets, sizes in found:
        part = whole
        for dim, (start, length) in enumerate(zip(offsets, sizes, strict=True)):
            part = part.narrow(dim, start, length)
        seen += part.reshape(-1).tolist()
    assert seen == list(range(lo, hi))
    assert len(found) <= max(1, 2 * len(shape) - 1)


# ------------------------------------------------------------------------------------------------------------- failures


def left(folder: Path) -> list[str]:
    """What lies there besides the mark of the epoch."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".epoch"))


@pytest.mark.parametrize("victim", [0, 2])
def test_a_part_that_fails_ends_the_checkpoint_at_once(tmp_path: Path, victim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files = checkpoint._write_files

    def failing(place: Place, work: Any) -> Any:
        if work.rank == victim:
            raise OSError(28, "No space left on device")
        return write_files(place, work)

    monkeypatch.setattr(checkpoint, "_write_files", failing)
    plan = plan_of("zero1")
    them = writers("zero1", tmp_path)
    for n, writer in enumerate(them):
        begin(writer, Rank(plan, n))
    told = outcomes(them)
    assert [o.ok for o in told] == [n not in (0, victim) for n in range(3)]
    assert "No space left on device" in told[victim].detail
    if victim:
        assert "the part of rank 2 could not be written: OSError: [Errno 28]" in told[0].detail
    assert left(tmp_path) == []
    monkeypatch.undo()
    for n, writer in enumerate(them):  # and the next one is fine
        begin(writer, Rank(plan, n), step=STEP + 1)
    assert all(o.ok for o in outcomes(them))
    assert left(tmp_path) == ["step-00000008"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB: one checkpoint fits, two do not."""
    if os.getuid() != 0:
        pytest.skip("only root mounts file systems")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", str(tmp_path)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.decode()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_costs_a_checkpoint_and_stays_usable(small_disk: Path) -> None:
    plan = plan_of("zero1")
    first = write(plan, "zero1", small_disk, step=1)
    them = writers("zero1", small_disk)
    for n, writer in enumerate(them):
        begin(writer, Rank(plan, n), step=2)
    told = outcomes(them)
    assert not told[0].ok
    assert any("No space left" in o.detail or "Errno 28" in o.detail for o in told), told
    assert left(small_disk) == ["step-00000001"]
    assert verify(first).step == 1
    room = os.statvfs(small_disk)
    assert room.f_bavail * room.f_bsize > 300_000
    found = newest_good(str(small_disk), "tiny")
    assert found is not None
    assert found.step == 1


def test_an_ended_epoch_leaves_nothing(tmp_path: Path) -> None:
    them = writers("zero1", tmp_path)
    begin(them[0], Rank(plan_of("zero1"), 0))
    thread = them[0]._thread
    assert thread is not None
    them[0].cancel()
    thread.join(30)
    (told,) = them[0].outcomes()
    assert "epoch 1 ended before ranks [1, 2] had written their parts" in told.detail
    assert left(tmp_path) == []


# -------------------------------------------------------------------------------------------------------------- fencing


def one_rank(folder: Path) -> CheckpointWriter:
    """A worker of its own."""
    (made,) = writers("serial", folder)
    return made


def attempt(writer: CheckpointWriter, *, epoch: int, step: int) -> Outcome:
    """One checkpoint of a plan of one rank."""
    begin(writer, Rank(plan_of("serial", epoch=epoch), 0), step=step)
    (told,) = outcomes([writer])
    return told


def test_an_epoch_that_is_over_commits_nothing(tmp_path: Path) -> None:
    old, new, silent = (one_rank(tmp_path) for _ in range(3))
    assert attempt(old, epoch=1, step=1).ok
    assert attempt(new, epoch=2, step=2).ok
    for step in (1, 2, 3):  # the cut-off rank 0 trains on
        told = attempt(old, epoch=1, step=step)
        assert not told.ok
        assert "epoch 2 has begun to write checkpoints" in told.detail
    assert left(tmp_path) == ["step-00000001", "step-00000002"]
    assert attempt(new, epoch=2, step=4).ok
    assert attempt(old, epoch=3, step=5).ok  # it came back and has a seat again
    assert not attempt(new, epoch=2, step=6).ok
    assert "epoch 3 writes checkpoints" in attempt(silent, epoch=2, step=7).detail


def test_an_epoch_that_ends_while_it_writes_commits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = one_rank(tmp_path), one_rank(tmp_path)
    finish = checkpoint._finish
    told: list[Outcome] = []

    def slow(place: Place, work: Any, results: Any, *, job: str) -> None:
        finish(place, work, results, job=job)
        if work.epoch == 1:
            told.append(attempt(new, epoch=2, step=3))

    monkeypatch.setattr(checkpoint, "_finish", slow)
    late = attempt(old, epoch=1, step=9)
    assert told[0].ok
    assert not late.ok
    assert left(tmp_path) == ["step-00000003"]
    assert "epoch 2 has begun to write checkpoints" in late.detail


def test_epochs_of_another_run_count_from_1_again(tmp_path: Path) -> None:
    first = one_rank(tmp_path)
    assert attempt(first, epoch=7, step=1).ok
    second = one_rank(tmp_path)
    assert attempt(second, epoch=1, step=2).ok
    assert not attempt(first, epoch=7, step=3).ok  # a leftover of the first run, newer by its number
    assert attempt(second, epoch=1, step=4).ok
    assert attempt(second, epoch=2, step=5).ok
    assert left(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
