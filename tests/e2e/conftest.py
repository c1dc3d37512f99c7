"""The undisturbed runs that every story is held against, each computed once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.world.facts import Facts
from tests.world.jobs import tiny_job
from tests.world.processes import System

Calm = Callable[..., Awaitable[Facts]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def calm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Calm]:
    """calm(steps=): what one rank alone computes when nothing fails; exactness makes it what any number of ranks compute."""
    known: dict[int, Facts] = {}

    async def facts(*, steps: int) -> Facts:
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
