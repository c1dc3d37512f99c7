"""The undisturbed runs that every story is held against, each computed once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.world.facts import Facts, at_step
from tests.world.jobs import tiny_job
from tests.world.processes import System

Calm = Callable[..., Awaitable[Facts]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def calm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Calm]:
    """calm(steps=): what one rank alone computes when nothing fails; exactness makes it what any number of ranks compute.

    calm(steps=, until=): the same, cancelled once that many of the steps and their digests are in the journal.
    """
    known: dict[int, Facts] = {}

    async def beginning(steps: int, until: int) -> Facts:
        job = tiny_job("calm", nodes=1, spares=0, steps=steps)
        async with System(tmp_path_factory.mktemp("calm")) as system:
            await system.submit(job)
            await system.until(job, at_step(until + 1))  # a step's digest is told before the next step
            await system.supervisor.service.cancel(job.name, who="test")
            run = await system.finish(job)
        assert len(run.losses) > until
        return run

    async def facts(*, steps: int, until: int = 0) -> Facts:
        if 0 < until < steps:
            return await beginning(steps, until)
        if steps not in known:
            job = tiny_job("calm", nodes=1, spares=0, steps=steps)
            async with System(tmp_path_factory.mktemp("calm")) as system:
                run = await system.run(job)
            assert run.state is not None
            assert run.state.outcome == "completed", run.state.last_word
            assert len(run.losses) == steps
            assert run.digest
            known[steps] = run
        return known[steps]

    yield facts
