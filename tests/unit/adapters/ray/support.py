"""An embedded cluster for tests, and a sink that can be waited on."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from orchestrator.adapters.ray.connection import connect, disconnect
from orchestrator.adapters.ray.local_cluster import LocalCluster
from orchestrator.core.supervisor.events import Event

LIMIT_S = 120.0  # for things that must happen; how fast they happen is measured elsewhere


@contextmanager
def joined_cluster(*, nodes: int) -> Iterator[LocalCluster]:
    """A cluster of one-slot nodes that this process has joined; nothing is left of it afterwards."""
    run_dir = Path(tempfile.mkdtemp(prefix="ray-test-"))
    before = dict(os.environ)
    cluster = LocalCluster(nodes=nodes, slots_per_node=1, run_dir=run_dir)
    try:
        cluster.start()
        connect(cluster.address, token_path=cluster.token_path)
        yield cluster
    finally:
        disconnect()
        cluster.stop()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(run_dir)


def lives(pid: int) -> bool:
    """Whether the process runs (a stopped one does, a dead one that nobody has reaped does not)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Seen:
    """A sink. Use it on one event loop."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._more = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._more.set()

    async def until(self, holds: Callable[[Event], bool]) -> Event:
        """The first event, past or to come, of which this holds."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                for event in self.events:
                    if holds(event):
                        return event
                self._more.clear()
                await self._more.wait()
