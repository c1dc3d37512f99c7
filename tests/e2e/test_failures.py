"""Failures that no spare can heal: the job ends at once, with the reason, and nothing is tried again for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.supervisor.commands import SpawnWorker
from tests.world.facts import Facts, is_in
from tests.world.jobs import tiny_job
from tests.world.processes import System

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


async def test_an_exception_of_the_user_ends_the_job_with_its_traceback(tmp_path: Path) -> None:
    job = tiny_job("raises", act="raise", at_step=4, at_micro_batch=6)
    async with System(tmp_path) as system:
        run = await system.run(job)
        assert run.state is not None
        assert (run.state.phase, run.state.outcome) == ("failed", "user-error")
        assert "ZeroDivisionError: the user's own mistake" in run.state.last_word
        assert "in _perform" in run.state.last_word
        assert "in step 4" in run.state.last_word
        assert max(run.losses) == 3
        assert list(run.epochs) == [1], "nothing was tried again"
        for process in system.processes.values():
            assert await process.wait() in (0, -9), process.said()  # those that were still starting are killed


async def test_a_task_that_cannot_be_set_up_ends_the_job_after_three_attempts(tmp_path: Path) -> None:
    job = tiny_job("refusing", target="tests.world.tasks:Refusing")
    async with System(tmp_path) as system:
        run = await system.run(job)
        assert run.state is not None
        assert (run.state.phase, run.state.outcome) == ("failed", "user-error")
        assert "the user's library is not installed here" in run.state.last_word
        assert not run.epochs
        assert attempts(run) <= 3


async def test_a_task_that_does_not_exist_ends_the_job_with_the_nearest_name(tmp_path: Path) -> None:
    job = tiny_job("missing", target="tests.world.tasks:Stagd")
    async with System(tmp_path) as system:
        run = await system.run(job)
        assert run.state is not None
        assert (run.state.phase, run.state.outcome) == ("failed", "user-error")
        assert "did you mean 'Staged'?" in run.state.last_word


async def test_failures_without_progress_spend_the_budget(tmp_path: Path) -> None:
    job = tiny_job("budget", failures=1, spares=2, steps=40, pace_ms=50)
    async with System(tmp_path) as system:
        await system.submit(job)
        for epoch in (1, 2):
            await system.until(job, is_in("running", epoch=epoch))
            victim = Facts(await system.records(job.name)).epochs[epoch][0]
            system.processes[victim].kill()
        run = await system.finish(job)
        assert run.state is not None
        assert (run.state.phase, run.state.outcome) == ("failed", "budget-spent")
        assert "the budget of 1 failures is spent" in run.state.last_word


def attempts(run: Facts) -> int:
    """How many times each slot was filled at most."""
    nodes = [c.node_id for r in run.records for c in r.commands if isinstance(c, SpawnWorker)]
    return max(nodes.count(n) for n in nodes)
