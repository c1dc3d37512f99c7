"""Workers that stop, are cut off, or come back after they were given up: noticed in time, swapped, and refused."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import Fault, Tick
from orchestrator.runtime.ports import Record
from tests.e2e.conftest import Calm
from tests.world.facts import Facts, assert_as_if_nothing_happened, at_step, is_in, loses, says, steps_in
from tests.world.jobs import tiny_job
from tests.world.processes import System

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

STEPS = 12
DETECT_WITHIN = "2s"


def assert_in_time(job: Job, record: Record, worker_id: str, *, stalled: bool = False) -> None:
    """The supervisor waited for a limit below detect_within, and not longer than to its next look after it."""
    assert isinstance(record.event, Tick)
    seen = next(o for o in record.event.observations if o.worker_id == worker_id)
    waited_ms = seen.stalled_ms if stalled else seen.silence_ms
    assert 0.8 * job.resilience.detect_within_ms <= waited_ms <= job.resilience.detect_within_ms, record.reason


async def assert_refused(system: System, job: Job, worker_id: str) -> None:
    """The zombie ends by itself, and says why."""
    process = system.processes[worker_id]
    assert await process.wait() == 0, process.said()
    assert "refused" in process.said()
    assert "declared lost and fenced" in process.said() or "has been silent" in process.said()


@pytest.mark.parametrize(("zero", "rank"), [(0, 1), (1, 0)])
async def test_a_stopped_worker_is_swapped_in_time_and_refused_when_it_is_continued(
    tmp_path: Path, calm: Calm, zero: int, rank: int
) -> None:
    job = tiny_job("stopped", zero=zero, steps=STEPS, detect_within=DETECT_WITHIN, pace_ms=20)
    async with System(tmp_path, kill_lost=False) as system:
        await system.submit(job, Fault("hang", rank, "", 5, 1, 0))
        await system.until(job, is_in("running", epoch=1))
        stopped = Facts(await system.records(job.name)).epochs[1][rank]
        lost = await system.until(job, loses(stopped))
        assert "worker-hung" in lost.reason
        assert_in_time(job, lost, stopped)
        await system.until(job, steps_in(2))
        system.processes[stopped].send_signal(signal.SIGCONT)
        await assert_refused(system, job, stopped)
        run = await system.finish(job)
        assert run.state is not None
        assert run.state.workers[stopped].phase == "lost"
        assert_as_if_nothing_happened(run, await calm(steps=STEPS), swapped=[rank])


async def test_a_stopped_spare_costs_nothing_and_the_training_goes_on(tmp_path: Path) -> None:
    job = tiny_job("spare", zero=1, steps=10_000, spares=1, detect_within=DETECT_WITHIN)
    async with System(tmp_path, kill_lost=False) as system:
        await system.submit(job)
        await system.until(job, is_in("running", epoch=1))
        seated = set(Facts(await system.records(job.name)).epochs[1].values())
        spare = next(f"spare/w{i}" for i in range(5) if f"spare/w{i}" not in seated)
        await system.until(job, says(f"{spare} is ready"))
        system.processes[spare].send_signal(signal.SIGSTOP)
        lost = await system.until(job, loses(spare))
        await system.until(job, at_step(lost.committed_step + 5))
        await system.supervisor.service.cancel(job.name, who="test")
        run = await system.finish(job)
        assert list(run.epochs) == [1]
        assert run.state is not None
        assert run.state.budget == job.resilience.failure_budget
        assert not run.state.recoveries


async def test_a_worker_that_is_cut_off_trains_on_is_given_up_and_refused_when_the_network_heals(
    tmp_path: Path, calm: Calm
) -> None:
    job = tiny_job("cut", zero=1, steps=60, detect_within=DETECT_WITHIN, pace_ms=30)
    async with System(tmp_path, kill_lost=False, relayed=True) as system:
        await system.submit(job)
        await system.until(job, at_step(3))
        victim = Facts(await system.records(job.name)).epochs[1][2]
        system.relays[victim].cut()
        broken = await system.until(job, says("the stream of"))
        lost = await system.until(job, loses(victim))
        assert "unreachable" in lost.reason
        assert_in_time(job, lost, victim)
        assert lost.committed_step >= broken.committed_step + 2, "the cut-off worker was needed for the steps meanwhile"
        await system.until(job, steps_in(2))
        system.relays[victim].heal()
        await assert_refused(system, job, victim)
        run = await system.finish(job)
        assert_as_if_nothing_happened(run, await calm(steps=60), swapped=[2])


async def test_a_short_cut_is_no_failure_and_what_was_said_meanwhile_arrives(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("blip", zero=1, steps=40, pace_ms=10)
    async with System(tmp_path, kill_lost=False, relayed=True) as system:
        await system.submit(job)
        await system.until(job, at_step(3))
        for relay in system.relays.values():
            relay.cut()
        before = len(await system.records(job.name))
        await asyncio.sleep(0.5)  # the length of the cut: time is what is tested
        for relay in system.relays.values():
            relay.heal()
        await system.until(job, says("is connected again"), after=before)
        run = await system.finish(job)
        assert list(run.epochs) == [1]
        assert not run.killed
        assert_as_if_nothing_happened(run, await calm(steps=40), swapped=[])


async def test_a_training_thread_that_never_comes_back_is_told_from_those_that_wait_for_it(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job(
        "blocked",
        zero=1,
        steps=STEPS,
        detect_within=DETECT_WITHIN,
        act="block",
        at_step=7,
        at_micro_batch=3,
        marker=str(tmp_path / "blocked-once"),
    )
    async with System(tmp_path / "home") as system:
        run = await system.run(job)
        (blocked,) = run.killed
        lost = next(r for r in run.records if "its training thread has stood still" in r.reason)
        assert "worker-hung" in lost.reason
        assert_in_time(job, lost, blocked, stalled=True)
        log = await system.log(job)
        assert "---- stacks of all threads:" in log
        assert "in _perform" in log
        assert "tests/world/tasks.py" in log
        rank = next(r for r, w in run.epochs[1].items() if w == blocked)
        assert_as_if_nothing_happened(run, await calm(steps=STEPS), swapped=[rank])


async def test_a_pause_below_the_limit_is_nobodys_failure(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("pause", zero=0, steps=STEPS)
    async with System(tmp_path) as system:
        run = await system.run(job, Fault("hang", 2, "", 5, 1, 1500))
        assert list(run.epochs) == [1]
        assert not run.killed
        assert_as_if_nothing_happened(run, await calm(steps=STEPS), swapped=[])


async def test_a_worker_of_a_finished_job_ends_when_it_comes_back(tmp_path: Path) -> None:
    job = tiny_job("over", steps=STEPS, detect_within=DETECT_WITHIN, pace_ms=100)
    async with System(tmp_path, kill_lost=False) as system:
        await system.submit(job)
        await system.until(job, is_in("running", epoch=1))
        seated = set(Facts(await system.records(job.name)).epochs[1].values())
        spare = next(f"over/w{i}" for i in range(5) if f"over/w{i}" not in seated)
        await system.until(job, says(f"{spare} is ready"))
        os.kill(system.processes[spare].pid, signal.SIGSTOP)
        await system.finish(job)
        os.kill(system.processes[spare].pid, signal.SIGCONT)
        assert await system.processes[spare].wait() == 0
