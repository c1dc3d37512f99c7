"""The supervisor goes away and another one takes over: the workers train on, are taken up again, and nothing is forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.core.supervisor.events import Fault, StepCommitted, SupervisorRestarted
from orchestrator.runtime.ports import Record
from tests.e2e.conftest import Calm
from tests.world.facts import Facts, assert_as_if_nothing_happened, at_step, is_in, says
from tests.world.jobs import tiny_job
from tests.world.processes import System
from tests.world.tasks import furthest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

STEPS = 40
READOPT_MS = 10_000


@pytest.mark.parametrize("zero", [0, 1])
async def test_workers_step_on_while_nobody_watches_and_are_taken_up_again(tmp_path: Path, calm: Calm, zero: int) -> None:
    diary, hurry = tmp_path / "diary", tmp_path / "hurry"
    job = tiny_job("alone", zero=zero, steps=STEPS, pace_ms=100, hurry=str(hurry), diary=str(diary))
    async with System(tmp_path / "home") as system:
        await system.submit(job)
        for worker in range(5):
            await system.until(job, says(f"alone/w{worker} is ready"))
        await system.until(job, at_step(5))
        before = (await system.records(job.name))[-1]
        await system.end_supervisor()
        await trained_on(diary, before)
        await system.start_supervisor()
        hurry.touch()
        run = await system.finish(job)
        restarted = next(r for r in run.records if isinstance(r.event, SupervisorRestarted))
        back = [r for r in run.said("is connected again") if r.seq > restarted.seq]
        assert len({r.event.worker_id for r in back if hasattr(r.event, "worker_id")}) == 5
        assert back[-1].at_ms - restarted.at_ms <= READOPT_MS
        assert list(run.epochs) == [1]
        assert [r.event.step for r in run.records if isinstance(r.event, StepCommitted)] == list(range(1, STEPS + 1))
        assert_as_if_nothing_happened(run, await calm(steps=STEPS), swapped=[])


async def trained_on(diary: Path, before: Record) -> None:
    """Wait until a worker has begun a step far beyond what the supervisor knew of when it ended."""
    while furthest(diary) < before.committed_step + 10:  # noqa: ASYNC110  written by another process
        await asyncio.sleep(0.01)


async def test_a_worker_that_dies_while_nobody_watches_is_swapped_once_somebody_does(tmp_path: Path, calm: Calm) -> None:
    hurry = tmp_path / "hurry"
    job = tiny_job("died", zero=1, steps=STEPS, pace_ms=100, hurry=str(hurry))
    async with System(tmp_path / "home") as system:
        await system.submit(job)
        await system.until(job, at_step(5))
        victim = Facts(await system.records(job.name)).epochs[1][2]
        await system.end_supervisor()
        system.processes[victim].kill()
        await system.processes[victim].wait()
        hurry.touch()
        await system.start_supervisor()
        run = await system.finish(job)
        assert_as_if_nothing_happened(run, await calm(steps=STEPS), swapped=[2])


async def test_the_supervisor_goes_in_the_middle_of_a_recovery(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("middle", zero=1, steps=STEPS, pace_ms=10)
    async with System(tmp_path) as system:
        await system.submit(job, Fault("kill-worker", 1, "", 8, 1, 0))
        for wanted in (is_in("fencing", epoch=1), is_in("forming", epoch=2)):
            await system.until(job, wanted)
            await system.replace_supervisor()
        run = await system.finish(job)
        assert_as_if_nothing_happened(run, await calm(steps=STEPS), swapped=[1])


async def test_a_zombie_is_refused_by_the_next_supervisor_too(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("refused", zero=0, steps=STEPS, detect_within="2s", pace_ms=60)
    async with System(tmp_path, kill_lost=False, relayed=True) as system:
        await system.submit(job)
        await system.until(job, at_step(3))
        victim = Facts(await system.records(job.name)).epochs[1][1]
        system.relays[victim].cut()
        await system.until(job, is_in("running", epoch=2))
        await system.replace_supervisor()
        system.relays[victim].heal()
        zombie = system.processes[victim]
        assert await zombie.wait() == 0
        assert "refused" in zombie.said()
        assert "it has been silent" in zombie.said()
        run = await system.finish(job)
        assert_as_if_nothing_happened(run, await calm(steps=STEPS), swapped=[1])
