"""The cluster that the tests of one session share, and the undisturbed run that they are held against.

A node that a test kills is gone for good, so the cluster begins with some more than a job needs, and tests add what they use up.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.apps.wiring import start_local
from tests.chaos.support import Cluster, processes_of
from tests.world.facts import Facts
from tests.world.jobs import tiny_job
from tests.world.processes import System

Calm = Callable[[int], Facts]
NODES = 6  # a job has three ranks and a spare: two nodes may be lost before one must be added


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Six nodes."""
    root = Path(tempfile.mkdtemp(prefix="chaos-")).resolve()
    before = dict(os.environ)
    try:
        with start_local(tiny_job("shape", nodes=NODES - 1, spares=1), home=root, on_progress=lambda _: None):
            made = Cluster(root)
            yield made
        made.nodes.stop()  # reaps the nodes that tests have added
        assert processes_of(root) == []
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    """calm(steps): what one rank alone computes, without Ray."""
    known: dict[int, Facts] = {}

    async def alone(steps: int) -> Facts:
        async with System(tmp_path_factory.mktemp("calm")) as system:
            return await system.run(tiny_job("calm", nodes=1, spares=0, steps=steps))

    def facts(steps: int) -> Facts:
        if steps not in known:
            known[steps] = asyncio.run(alone(steps))
            assert known[steps].digest, str(known[steps])
        return known[steps]

    return facts
