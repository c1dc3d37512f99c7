"""A job becomes smaller and larger while it trains, because it must or because somebody asks, and no bit of it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.plan.plan import Plan
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import Fault
from orchestrator.runtime.ports import Record
from tests.e2e.conftest import Calm
from tests.world.facts import Facts, Wanted, at_step, says, starts
from tests.world.jobs import tiny_job
from tests.world.processes import System

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

STEPS = 40
SHRINK = ("swap", "shrink", "wait")


def assert_same_bits(run: Facts, calm: Facts) -> None:
    """Completed, no step lost, every loss and the final digest as undisturbed."""
    assert run.state is not None
    assert run.state.outcome == "completed", f"{run.state.last_word}\n{run}"
    assert run.steps_lost == run.state.steps_lost == 0, str(run)
    assert run.losses == calm.losses, str(run)
    assert run.digest == calm.digest, str(run)


def sizes(run: Facts) -> list[int]:
    """Ranks of each epoch that was started; the same size again counts once."""
    found = [len(seats) for seats in run.epochs.values()]
    return [n for at, n in enumerate(found) if at == 0 or found[at - 1] != n]


@pytest.mark.parametrize(("zero", "pipeline"), [(0, 1), (1, 1), (3, 1), (0, 2)], ids=["dp", "zero1", "zero3", "pipeline"])
async def test_without_a_spare_it_shrinks_at_once_and_grows_back(tmp_path: Path, calm: Calm, zero: int, pipeline: int) -> None:
    job = tiny_job(
        "shrinks",
        zero=zero,
        pipeline=pipeline,
        spares=0,
        steps=STEPS,
        pace_ms=50,
        hurry=str(tmp_path / "hurry"),
        on_loss=SHRINK,
        resilience={"grow_after_steps": 2},
    )
    async with System(tmp_path / "home") as system:
        await system.submit(job, Fault("kill-worker", 1, "", 5, 1, 0))
        smaller = await system.until(job, says("policy for worker-exited: shrink"))
        await system.until(job, starts_with(4), after=smaller.seq)
        (tmp_path / "hurry").touch()
        run = await system.finish(job)
        assert run.said("grow"), str(run)
        first, *_, last = sizes(run)
        assert first == last == 4
        assert min(sizes(run)) in (2, 3)
        assert_same_bits(run, await calm(steps=STEPS))


async def test_two_machines_at_once(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("two", spares=0, steps=STEPS, pace_ms=10, on_loss=SHRINK, detect_within="2s")
    async with System(tmp_path) as system:
        await system.submit(job)
        await system.until(job, at_step(4))
        plan = plan_of(await system.until(job, starts(1)))
        gone = [system.machines.of(s.node_id) for s in plan.seats if s.rank in (1, 3)]
        for machine in gone:
            system.power_off(machine)
        for machine in gone:
            system.declare_dead(machine)
        run = await system.finish(job)
        assert sizes(run) == [4, 2], str(run)
        assert_same_bits(run, await calm(steps=STEPS))


async def test_another_loss_while_the_state_is_moved_to_fewer_ranks(tmp_path: Path, calm: Calm) -> None:
    job = tiny_job("moved", spares=0, steps=STEPS, pace_ms=10, on_loss=SHRINK, resilience={"grow_after_steps": 100})
    async with System(tmp_path) as system:
        await system.submit(job, Fault("kill-worker", 1, "", 5, 1, 0))
        second = plan_of(await system.until(job, starts(2)))
        assert second.size == 3
        victim = second.seats[1].worker_id
        system.processes[victim].kill()
        run = await system.finish(job)
        assert victim in run.killed
        assert_same_bits(run, await calm(steps=STEPS))


async def test_it_is_scaled_down_and_up_again(tmp_path: Path, calm: Calm) -> None:
    hurry = tmp_path / "hurry"
    job = tiny_job("scaled", zero=1, spares=0, steps=STEPS, pace_ms=100, hurry=str(hurry))
    async with System(tmp_path / "home") as system:
        service = system.supervisor.service
        await system.submit(job)
        await system.until(job, at_step(3))
        await service.scale(job.name, nodes=2, layers_per_stage=(), who="test")
        smaller = await system.until(job, starts_with(2))
        await system.until(job, at_step(smaller.committed_step + 2))
        await service.scale(job.name, nodes=4, layers_per_stage=(), who="test")
        await system.until(job, starts_with(4), after=smaller.seq)
        hurry.touch()
        run = await system.finish(job)
        assert sizes(run)[:2] == [4, 2], str(run)
        assert sizes(run)[-1] == 4, str(run)
        assert run.state is not None
        assert run.state.budget == job.resilience.failure_budget, "nobody failed"
        assert_same_bits(run, await calm(steps=STEPS))


async def test_without_a_spare_a_drained_node_is_emptied_by_shrinking(tmp_path: Path, calm: Calm) -> None:
    hurry = tmp_path / "hurry"
    job = tiny_job("emptied", zero=1, spares=0, steps=STEPS, pace_ms=100, hurry=str(hurry), on_loss=SHRINK)
    async with System(tmp_path / "home") as system:
        await system.submit(job)
        node = plan_of(await system.until(job, starts(1))).seats[2].node_id
        await system.until(job, at_step(3))
        await system.supervisor.service.drain(job.name, node_id=node, who="test", why="maintenance")
        hurry.touch()
        run = await system.finish(job)
        assert sizes(run) == [4, 3], str(run)
        assert run.state is not None
        last = list(run.epochs.values())[-1]
        assert all(run.state.workers[w].node_id != node for w in last.values())
        assert run.state.budget == job.resilience.failure_budget
        assert_same_bits(run, await calm(steps=STEPS))


def starts_with(ranks: int) -> Wanted:
    """Whether a record starts an epoch of so many ranks."""
    return lambda r: any(isinstance(c, RunEpoch) and c.plan.size == ranks for c in r.commands)


def plan_of(record: Record) -> Plan:
    """The plan that a record starts."""
    return next(c.plan for c in record.commands if isinstance(c, RunEpoch))
