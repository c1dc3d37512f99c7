"""Everything dies, and the job goes on from what is durable, as if nothing had happened."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.checkpoint.filesystem import FileSystemReader

from orchestrator.adapters.files.home import Home
from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import CheckpointReported, StepCommitted
from orchestrator.engine.checkpoint_files import list_steps, verify
from tests.e2e.conftest import Calm
from tests.world.facts import Facts
from tests.world.jobs import tiny_job
from tests.world.processes import System

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

STEPS = 40


async def until_checkpoint(system: System, job: Job, step: int) -> None:
    """Wait until the checkpoint of this step, or a later one, is durable."""
    await system.until(job, lambda r: isinstance(r.event, CheckpointReported) and r.event.ok and r.event.step >= step)


def assert_curve(run: Facts, calm: Facts, *, resumed_at: int) -> None:
    """From the step after the checkpoint on, every loss and the final digest are those of the undisturbed run."""
    assert run.state is not None
    assert run.state.outcome == "completed", run.state.last_word
    assert run.digest
    assert run.digest == calm.digest
    redone = [r.event for r in run.records if isinstance(r.event, StepCommitted)]
    last = max(i for i, e in enumerate(redone) if e.step == resumed_at + 1)
    assert [e.step for e in redone[last:]] == list(range(resumed_at + 1, STEPS + 1))
    assert all(e.loss == calm.losses[e.step] for e in redone)


def resumed_at(run: Facts) -> int:
    """The step of the checkpoint that the newest epoch was started from."""
    starts = run.said("state read from")
    assert starts, str(run)
    return int(starts[-1].reason.split(" at step ")[1].split(",")[0])


@pytest.mark.parametrize("zero", [0, 1])
async def test_all_processes_die_and_the_journal_is_left(tmp_path: Path, calm: Calm, zero: int) -> None:
    job = tiny_job("dies", zero=zero, steps=STEPS, pace_ms=10, checkpoint=tmp_path / "checkpoints")
    async with System(tmp_path / "home") as system:
        await system.submit(job)
        await until_checkpoint(system, job, 10)
        await system.crash()
    async with System(tmp_path / "home") as system:
        run = await system.finish(job)
        at = resumed_at(run)
        assert at >= 10
        assert at % 5 == 0
        assert run.state is not None
        assert run.state.steps_lost == run.steps_lost < 10
        assert_curve(run, await calm(steps=STEPS), resumed_at=at)


@pytest.mark.parametrize("damage", ["", "truncated", "unfinished"])
async def test_all_processes_die_and_the_journal_is_gone_too(
    tmp_path: Path, calm: Calm, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = tiny_job("gone", zero=1, steps=STEPS, pace_ms=10, checkpoint=tmp_path / "checkpoints")
    async with System(tmp_path / "first") as system:
        await system.submit(job)
        await until_checkpoint(system, job, 15)
        await system.crash()
    (newest, uri), (before, _), *_ = list_steps(str(tmp_path / "checkpoints"))
    if damage == "truncated":
        truncate(uri)
    if damage == "unfinished":
        (Path(uri) / "COMMIT.json").unlink()
    with caplog.at_level(logging.WARNING):
        async with System(tmp_path / "second") as system:
            run = await system.run(job)
    expected = before if damage else newest
    assert resumed_at(run) == expected
    warned = [m for m in caplog.messages if "a checkpoint cannot be used" in m and uri in m]
    assert bool(warned) == bool(damage), caplog.text
    assert_curve(run, await calm(steps=STEPS), resumed_at=expected)


async def test_a_checkpoint_is_read_by_another_number_of_ranks(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    four = tiny_job("ranks", zero=1, steps=STEPS, pace_ms=10, checkpoint=checkpoints)
    async with System(tmp_path / "first") as system:
        await system.submit(four)
        await until_checkpoint(system, four, 10)
        await system.crash()
    two = tiny_job("ranks", zero=1, steps=STEPS, nodes=2, checkpoint=checkpoints)
    async with System(tmp_path / "second") as system:
        run = await system.run(two)
        assert run.state is not None
        assert run.state.outcome == "completed", run.state.last_word
        assert resumed_at(run) >= 10


@pytest.mark.parametrize("name", ["truncate", "flip", "delete"])
async def test_the_checkpoint_that_the_journal_knows_is_damaged_when_it_is_needed(tmp_path: Path, calm: Calm, name: str) -> None:
    damage: Callable[[str], None] = {"truncate": truncate, "flip": flip, "delete": delete}[name]
    job = tiny_job("damaged", zero=1, steps=STEPS, pace_ms=10, checkpoint=tmp_path / "checkpoints")
    async with System(tmp_path / "home") as system:
        await system.submit(job)
        await until_checkpoint(system, job, 15)
        await system.crash()
    (newest, uri), (before, _) = told_of(tmp_path / "home", job)
    damage(uri)
    async with System(tmp_path / "home") as system:
        run = await system.finish(job)
        assert resumed_at(run) == before, str(run)
        assert run.said(f"checkpoint of step {newest} cannot be used")
        assert run.said(f"falling back to that of step {before}")
        assert_curve(run, await calm(steps=STEPS), resumed_at=before)
    assert [verify(u).step for _, u in list_steps(str(tmp_path / "checkpoints"))] == [40, 35, 30]


async def test_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    job = tiny_job("hopeless", zero=1, steps=STEPS, pace_ms=10, checkpoint=tmp_path / "checkpoints")
    async with System(tmp_path / "home") as system:
        await system.submit(job)
        await until_checkpoint(system, job, 10)
        await system.crash()
    for _, uri in list_steps(str(tmp_path / "checkpoints")):
        truncate(uri)
    async with System(tmp_path / "home") as system:
        run = await system.finish(job)
        assert run.state is not None
        assert run.state.outcome == "unrecoverable"
        assert "there is no durable checkpoint" in run.state.last_word


def told_of(home: Path, job: Job) -> list[tuple[int, str]]:
    """(step, uri) of the newest checkpoint that the journal tells of, and of the one before it.

    A newer one, which was made at the last moment, is removed: what becomes of that is another story.
    """
    journal = SqliteJournal(Home(home).job(job.name), read_only=True)
    events = [r.event for r in journal.records(limit=1_000_000)]
    journal.close()
    told = max(e.step for e in events if isinstance(e, CheckpointReported) and e.ok)
    found = list_steps(job.checkpoint.uri)
    for _, uri in [f for f in found if f[0] > told]:
        delete(uri)
    return [f for f in found if f[0] <= told][:2]


def largest_file(uri: str) -> Path:
    """Of a checkpoint."""
    return max(Path(uri).glob("*.distcp"), key=lambda p: p.stat().st_size)


def truncate(uri: str) -> None:
    """Cut the largest file in half."""
    path = largest_file(uri)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(uri: str) -> None:
    """All of it."""
    shutil.rmtree(uri)


def flip(uri: str) -> None:
    """Flip one bit in the middle of a tensor's values: the file has other bytes as well, whose change would change nothing."""
    stored = max(FileSystemReader(uri).read_metadata().storage_data.values(), key=lambda s: s.length)
    path = Path(uri) / stored.relative_path
    data = bytearray(path.read_bytes())
    data[stored.offset + stored.length // 2] ^= 1
    path.write_bytes(bytes(data))
