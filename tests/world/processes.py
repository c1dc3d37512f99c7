"""A whole system without Ray: the real supervisor, gRPC, journal and engine over worker processes that this fleet starts.

Nodes are names here, so losing one is not real; everything else is. It is what makes a failure story testable in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.adapters.files.home import Home
from orchestrator.apps.supervisor import Supervisor, WorkerSettings
from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import KillWorker, SpawnWorker
from orchestrator.core.supervisor.events import ClusterChanged, SpawnFailed, WorkerGone
from orchestrator.runtime.ports import Clock, Record, Sink


class ProcessFleet:
    """Implements runtime.ports.Fleet with subprocesses. `kill_lost` False leaves lost workers alive, as zombies to be refused."""

    def __init__(self, job: Job, settings: WorkerSettings, *, processes: dict[str, asyncio.subprocess.Process], kill_lost: bool):
        self._job = job
        self._settings = settings
        self._processes = processes
        self._kill_lost = kill_lost
        self._sink: Sink | None = None
        self._watches: list[asyncio.Task[None]] = []

    async def start(self, sink: Sink) -> None:
        self._sink = sink
        c = self._job.cluster
        nodes = tuple(
            NodeView(f"node-{i}", "127.0.0.1", c.device, c.slots_per_node, 1 << 33, True) for i in range(c.nodes + c.spares)
        )
        sink(ClusterChanged(0, ClusterView(1, nodes)))

    async def spawn(self, command: SpawnWorker) -> None:
        if command.worker_id in self._processes:
            return
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "orchestrator.apps.worker_main",
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        self._processes[command.worker_id] = process
        assert process.stdin is not None
        process.stdin.write(
            json.dumps({**self._settings.of(command.worker_id, command.node_id), "bind_host": "127.0.0.1"}).encode()
        )
        process.stdin.close()
        self._watches.append(asyncio.create_task(self._watch(command.worker_id, process)))

    async def _watch(self, worker_id: str, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        assert self._sink is not None
        if code > 0:
            self._sink(SpawnFailed(0, worker_id, f"exit code {code}"))
        self._sink(WorkerGone(0, worker_id, f"its process ended with {code}"))

    async def adopt(self, worker_ids: Sequence[str]) -> None:
        for worker_id in worker_ids:
            self._watches.append(asyncio.create_task(self._watch(worker_id, self._processes[worker_id])))

    async def kill(self, command: KillWorker) -> None:
        process = self._processes.get(command.worker_id)
        if self._kill_lost and process is not None and process.returncode is None:
            process.kill()

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        for process in self._processes.values():
            if process.returncode is None and self._kill_lost:
                process.kill()


class System:
    """One supervisor and its worker processes; use as an async context."""

    def __init__(self, root: Path, *, kill_lost: bool = True) -> None:
        self.home = Home(root)
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._kill_lost = kill_lost
        self.supervisor = self._new()

    def _new(self) -> Supervisor:
        def fleet(job: Job, settings: WorkerSettings, clock: Clock) -> ProcessFleet:
            return ProcessFleet(job, settings, processes=self.processes, kill_lost=self._kill_lost)

        return Supervisor(home=self.home, cluster="test", ray_address="", token="t" * 43, make_fleet=fleet)

    async def __aenter__(self) -> System:
        await self.supervisor.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.supervisor.close()
        for process in self.processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()

    async def replace_supervisor(self) -> None:
        """End the supervisor as a crash would (nothing is said to anybody) and start another on the same journal."""
        await self.supervisor.close()
        self.supervisor = self._new()
        await self.supervisor.start()

    async def records(self, name: str) -> list[Record]:
        """The journal so far."""
        return [r async for r in self.supervisor.service.watch_events(name, after_seq=0, follow=False)]
