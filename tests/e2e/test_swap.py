"""A lost worker is swapped for a spare, and nothing of the run tells that it happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.plan.layout import intersect
from orchestrator.core.plan.plan import OPTIMIZER, Plan
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import Fault
from orchestrator.runtime.ports import Record
from tests.e2e.conftest import Calm
from tests.world.facts import assert_as_if_nothing_happened, at_step, is_in, starts
from tests.world.jobs import tiny_job
from tests.world.processes import System

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


def kill(rank: int, *, step: int, micro_batch: int = 1) -> Fault:
    """kill -9 before this rank's own micro-batch of that number; the number after its last one: before the reduction."""
    return Fault("kill-worker", rank, "", step, micro_batch, 0)


@pytest.mark.parametrize(
    ("zero", "rank", "step", "micro_batch"),
    [(0, 2, 5, 1), (0, 3, 1, 0), (1, 2, 6, 1), (1, 1, 12, 2)],
    ids=["dp", "dp-first-step", "zero1", "zero1-last-step"],
)
async def test_killed_worker(tmp_path: Path, calm: Calm, zero: int, rank: int, step: int, micro_batch: int) -> None:
    job = tiny_job("killed", zero=zero)
    async with System(tmp_path) as system:
        run = await system.run(job, kill(rank, step=step, micro_batch=micro_batch))
        assert run.said(f"kill-worker of rank {rank}")
        assert_as_if_nothing_happened(run, await calm(steps=12), swapped=[rank])


@pytest.mark.parametrize("zero", [0, 1])
async def test_killed_rank_0_whose_store_hosts_the_epoch(tmp_path: Path, calm: Calm, zero: int) -> None:
    job = tiny_job("rank0", zero=zero)
    async with System(tmp_path) as system:
        run = await system.run(job, kill(0, step=5))
        assert_as_if_nothing_happened(run, await calm(steps=12), swapped=[0])


async def test_one_after_another_until_every_first_worker_is_gone(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("all", zero=1, failures=4)
    async with System(tmp_path) as system:  # each is handed to the first worker of its rank, which has it until its step
        run = await system.run(job, kill(3, step=2), kill(0, step=4), kill(2, step=6), kill(1, step=8))
        assert len(run.epochs) == 5
        assert_as_if_nothing_happened(run, await calm(steps=12), swapped=[0, 1, 2, 3])


async def test_two_at_once_that_hold_no_copies_of_each_other(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("two", zero=1, spares=2, pace_ms=50)
    async with System(tmp_path) as system:
        await system.submit(job)
        first = await system.until(job, starts(1))
        plan = plan_of(first)
        pair = next((a, b) for a in range(4) for b in range(a) if not holds_copy(plan, a, b) and not holds_copy(plan, b, a))
        for rank in pair:
            await system.supervisor.service.inject(job.name, fault=kill(rank, step=10), who="test")
        run = await system.finish(job)
        assert_as_if_nothing_happened(run, await calm(steps=12), swapped=pair)


async def test_both_holders_of_a_shard_at_once_without_a_checkpoint_is_the_end_and_says_so(tmp_path: Path) -> None:
    job = tiny_job("both", zero=1, spares=2, pace_ms=50)
    async with System(tmp_path) as system:
        await system.submit(job)
        first = await system.until(job, starts(1))
        plan = plan_of(first)
        pair = next((a, b) for a in range(4) for b in range(4) if a != b and holds_copy(plan, a, b))
        for rank in pair:
            await system.supervisor.service.inject(job.name, fault=kill(rank, step=10), who="test")
        run = await system.finish(job)
        assert run.state is not None
        assert run.state.outcome == "unrecoverable"
        assert "there is no durable checkpoint" in run.state.last_word


@pytest.mark.parametrize("zero", [0, 1])
async def test_the_spare_is_lost_as_well_while_it_takes_its_seat(tmp_path: Path, calm: Calm, zero: int) -> None:
    job = tiny_job("again", zero=zero, spares=2)
    async with System(tmp_path) as system:
        await system.submit(job, kill(2, step=5))
        second = await system.until(job, starts(2))
        spare = plan_of(second).seats[2].worker_id
        system.processes[spare].kill()
        run = await system.finish(job)
        assert spare in run.killed
        assert len(run.epochs) >= 3
        assert_as_if_nothing_happened(run, await calm(steps=12), swapped=[2])


async def test_a_survivor_is_lost_while_the_state_is_moved(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("survivor", spares=2)
    async with System(tmp_path) as system:
        await system.submit(job, kill(2, step=5))
        second = await system.until(job, starts(2))
        survivor = plan_of(second).seats[0].worker_id
        system.processes[survivor].kill()
        run = await system.finish(job)
        assert_as_if_nothing_happened(run, await calm(steps=12), swapped=[0, 2])


async def test_without_a_spare_the_job_waits_visibly_and_goes_on_with_the_next_worker(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("waits", zero=1, spares=0)
    async with System(tmp_path) as system:
        await system.submit(job, kill(1, step=5))
        waiting = await system.until(job, is_in("waiting", epoch=1))
        assert "1 spare(s) are missing; waiting for a node or a worker" in waiting.reason
        status = await system.supervisor.service.get(job.name)
        assert status.phase in ("waiting", "forming")
        run = await system.finish(job)
        assert_as_if_nothing_happened(run, await calm(steps=12), swapped=[1])


async def test_a_drained_node_is_emptied_without_cost(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("drained", zero=1, pace_ms=200, hurry=str(tmp_path / "hurry"))
    async with System(tmp_path) as system:
        await system.submit(job)
        first = await system.until(job, starts(1))
        node = plan_of(first).seats[1].node_id
        await system.until(job, at_step(3))
        await system.supervisor.service.drain(job.name, node_id=node, who="test", why="maintenance")
        (tmp_path / "hurry").touch()
        run = await system.finish(job)
        assert run.state is not None
        assert run.state.budget == job.resilience.failure_budget
        assert all(run.state.workers[w].node_id != node for w in run.epochs[2].values())
        assert_as_if_nothing_happened(run, await calm(steps=12), swapped=[1])


def holds_copy(plan: Plan, owner: int, other: int) -> bool:
    """Whether `other` has a copy of what `owner` updates."""
    holdings = plan.layout(OPTIMIZER).holdings
    return bool(intersect(holdings[owner].primary, holdings[other].extra))


def plan_of(record: Record) -> Plan:
    """The plan that a record starts."""
    return next(c.plan for c in record.commands if isinstance(c, RunEpoch))
