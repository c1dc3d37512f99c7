"""State that goes bad: bits that flip on the wire or in a replica, a loss that is no number, a disk that is full."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from orchestrator.core.supervisor.events import CheckpointReported, Fault
from orchestrator.engine.checkpoint_files import list_steps, verify
from tests.e2e.conftest import Calm
from tests.netlab.lab import cannot
from tests.world.disks import full, small_disk
from tests.world.facts import Wanted, assert_as_if_nothing_happened
from tests.world.jobs import tiny_job
from tests.world.processes import System

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

STEPS = 12
BAD = 6


async def test_what_arrives_changed_is_fetched_again(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("wire", zero=1, steps=STEPS)
    async with System(tmp_path, flips=1.0) as system:
        run = await system.run(job, Fault("kill-worker", 2, "", 5, 1, 0))
        again = [int(n) for n in re.findall(r"(\d+) part\(s\) fetched again", await system.log(job))]
        assert sum(again) > 0, "nothing arrived changed"
        assert_as_if_nothing_happened(run, await calm(steps=STEPS), swapped=[2])


async def test_a_replica_that_is_wrong_is_voted_out(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("flip", steps=STEPS, digest_every=1)
    async with System(tmp_path) as system:
        run = await system.run(job, Fault("flip", 2, "", 4, 0, 0))
        assert run.said("the majority says that rank 2 is wrong"), str(run)
        assert_as_if_nothing_happened(run, await calm(steps=STEPS), swapped=[2])


async def test_two_replicas_that_differ_have_no_majority_and_that_is_the_end(tmp_path: Path) -> None:
    job = tiny_job("differ", nodes=2, digest_every=1)
    async with System(tmp_path) as system:
        run = await system.run(job, Fault("flip", 1, "", 3, 0, 0))
        assert run.state is not None
        assert (run.state.phase, run.state.outcome) == ("failed", "corrupt-state")
        assert "nobody knows who is wrong, and there is no durable checkpoint" in run.state.last_word
        assert "params, block 0" in run.state.last_word
        assert max(run.losses) == 3
        assert list(run.epochs) == [1], "nothing was tried again"


async def test_a_step_whose_loss_is_no_number_is_skipped_or_taken_back_with_the_same_bits(tmp_path: Path) -> None:
    nan = Fault("nan", 0, "", BAD, 1, 0)
    async with System(tmp_path / "alone") as system:
        job = tiny_job("alone", nodes=1, spares=0, steps=STEPS, resilience={"on_bad_step": "skip"})
        alone = await system.run(job, nan)
    async with System(tmp_path / "skip") as system:
        job = tiny_job("skip", zero=1, nodes=3, steps=STEPS, resilience={"on_bad_step": "skip"})
        skipped = await system.run(job, nan)
    async with System(tmp_path / "rollback") as system:
        job = tiny_job(
            "rollback",
            zero=1,
            nodes=3,
            steps=STEPS,
            pace_ms=20,
            checkpoint=tmp_path / "checkpoints",
            checkpoint_every=2,
            resilience={"on_bad_step": "rollback"},
        )
        back = await system.run(job, nan)
    for run in (alone, skipped, back):
        assert run.state is not None
        assert run.state.outcome == "completed", str(run)
        assert run.state.skipped == 1
        assert run.losses == alone.losses, "a skipped step shows the usual loss"
        assert all(map(math.isfinite, run.losses.values()))
        assert run.digest == alone.digest, str(run)
    assert list(skipped.epochs) == [1], "nobody left"
    assert back.said("it is skipped when it comes again")
    assert back.said("state read from"), str(back)


@pytest.mark.skipif(bool(cannot()), reason=f"A FULL DISK IS NOT TESTED: {cannot()}")
async def test_a_full_disk_costs_a_checkpoint_and_nothing_else(tmp_path: Path, calm: Calm) -> None:
    with small_disk(tmp_path / "disk") as disk:
        hurry = tmp_path / "hurry"
        job = tiny_job("disk", zero=1, nodes=3, steps=40, pace_ms=100, hurry=str(hurry), checkpoint=disk, checkpoint_every=4)
        async with System(tmp_path / "home") as system:
            await system.submit(job)
            await system.until(job, saved(ok=True))
            with full(disk):
                failed = await system.until(job, saved(ok=False))
                assert "failed, training goes on" in failed.reason
                assert "No space left" in failed.reason
            good = await system.until(job, saved(ok=True), after=failed.seq)
            assert good.committed_step > failed.committed_step
            hurry.touch()
            run = await system.finish(job)
            assert list(run.epochs) == [1]
            assert_as_if_nothing_happened(run, await calm(steps=40), swapped=[])
        found = list_steps(str(disk))
        assert found[0][0] == 40
        for step, uri in found:
            assert verify(uri).step == step
        assert sorted(p.name for p in disk.iterdir() if p.name.startswith("step-")) == sorted(
            u.rsplit("/", 1)[-1] for _, u in found
        )


def saved(*, ok: bool) -> Wanted:
    """Whether a record tells of a checkpoint that is durable, or that failed."""
    return lambda r: isinstance(r.event, CheckpointReported) and r.event.ok is ok
