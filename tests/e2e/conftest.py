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
    """calm(zero=, steps=): the facts of that job when nothing fails."""
    known: dict[tuple[int, int], Facts] = {}

    async def facts(*, zero: int, steps: int) -> Facts:
        if (zero, steps) not in known:
            job = tiny_job(f"calm-{zero}-{steps}", zero=zero, steps=steps, spares=0)
            async with System(tmp_path_factory.mktemp("calm")) as system:
                run = await system.run(job)
            assert run.state is not None
            assert run.state.outcome == "completed", run.state.last_word
            assert len(run.losses) == steps
            assert run.digest
            known[zero, steps] = run
        return known[zero, steps]

    yield facts
