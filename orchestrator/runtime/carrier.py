"""Carries the core's commands out: in order for each worker, in the background, with a limit on everything.

The driver's loop must never wait for the world, so each worker has two lanes, one for what is sent to it and one for what the
fleet does with its process; a lane is worked off by one task and a slow worker delays only itself. What goes wrong comes back as
an event where the core can use it (SpawnFailed), and as a log line where it cannot (a kill is best effort by definition).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from orchestrator.core.supervisor.commands import Command, EndJob, ExpectEpoch, KillWorker, ProbeWorker, SpawnWorker
from orchestrator.core.supervisor.events import SpawnFailed, WorkerGone
from orchestrator.core.timeouts import Timeouts
from orchestrator.runtime.ports import Fleet, Prober, Sink, WorkerCommand, Workers

FLEET_CALLS_MAX = 32  # at once, over all workers
LANE_MAX = 1_000  # commands that wait in one lane
PROBE_FIRST_MS = 2  # the kernel closes the sockets of a killed process one after another: ask again, soon, then less soon
PROBE_EVIDENCE = "its port refuses connections: the process has ended"

log = logging.getLogger(__name__)


class Carrier:
    """`carry_out` returns at once. All methods belong to one event loop."""

    def __init__(self, *, fleet: Fleet, workers: Workers, prober: Prober, timeouts: Timeouts, sink: Sink) -> None:
        self._fleet = fleet
        self._workers = workers
        self._prober = prober
        self._timeouts = timeouts
        self._sink = sink
        self._fleet_calls = asyncio.Semaphore(FLEET_CALLS_MAX)
        self._lanes: dict[str, deque[Callable[[], Awaitable[None]]]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def carry_out(self, command: Command) -> None:
        """Start it. EndJob is the driver's own. Raises OverflowError when a lane is full: nothing works any more."""
        match command:
            case SpawnWorker():
                self._enqueue(f"fleet {command.worker_id}", lambda: self._spawn(command))
            case KillWorker():
                self._workers.refuse(command.worker_id, command.why)  # first: what it says from now on counts no more
                self._enqueue(f"fleet {command.worker_id}", lambda: self._kill(command))
            case ProbeWorker():
                self._probe(command)
            case ExpectEpoch():
                pass  # it is in the journal, and that is all it is for
            case EndJob():
                raise AssertionError("EndJob is carried out by the driver")
            case _:
                self._enqueue(f"stream {command.worker_id}", lambda: self._send(command))

    async def drain(self, timeout_ms: int) -> bool:
        """Wait until nothing is under way; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                while self._tasks:
                    await asyncio.wait(list(self._tasks.values()))
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Drop what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _enqueue(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = deque()
            self._start(name, self._work_off(name, lane))
        if len(lane) >= LANE_MAX:
            raise OverflowError(f"{LANE_MAX} commands wait in the lane of {name}")
        lane.append(work)

    async def _work_off(self, name: str, lane: deque[Callable[[], Awaitable[None]]]) -> None:
        try:
            while lane:
                await lane.popleft()()
        finally:
            self._lanes.pop(name)

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._finished(name, done))

    def _finished(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:  # its lane may have been opened anew in the meantime
            self._tasks.pop(name)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("carrying out for %s broke", name, exc_info=error)

    async def _spawn(self, command: SpawnWorker) -> None:
        limit_ms = self._timeouts.spawn_ms
        try:
            async with self._fleet_calls, asyncio.timeout(limit_ms / 1000):
                await self._fleet.spawn(command)
        except TimeoutError:
            self._sink(SpawnFailed(0, command.worker_id, f"the cluster did not start it within {limit_ms} ms"))
        except Exception as error:
            log.warning("spawn of %s failed", command.worker_id, exc_info=error)
            self._sink(SpawnFailed(0, command.worker_id, f"{type(error).__name__}: {error}"))

    async def _kill(self, command: KillWorker) -> None:
        try:
            async with self._fleet_calls, asyncio.timeout(self._timeouts.spawn_ms / 1000):
                await self._fleet.kill(command)
        except Exception as error:
            log.warning("kill of %s failed; it is fenced all the same", command.worker_id, exc_info=error)

    async def _send(self, command: WorkerCommand) -> None:
        try:
            async with asyncio.timeout(self._timeouts.lost_ms / 1000):
                sent = await self._workers.send(command)
        except Exception as error:
            log.warning("%s to %s failed", type(command).__name__, command.worker_id, exc_info=error)
            return
        if not sent:
            log.info("%s not sent: %s is not connected", type(command).__name__, command.worker_id)

    def _probe(self, command: ProbeWorker) -> None:
        name = f"probe {command.worker_id}"
        if name not in self._tasks:
            self._start(name, self._probe_until(command))

    async def _probe_until(self, command: ProbeWorker) -> None:
        pause_ms, waited_ms = PROBE_FIRST_MS, 0
        while True:
            try:
                async with asyncio.timeout(2 * self._timeouts.probe_ms / 1000):
                    refused = await self._prober.refused(command.endpoint, self._timeouts.probe_ms)
            except (TimeoutError, OSError) as error:
                log.info("probe of %s says nothing: %s", command.worker_id, str(error) or "no answer")
                refused = False
            if refused:
                self._sink(WorkerGone(0, command.worker_id, PROBE_EVIDENCE))
                return
            if waited_ms >= self._timeouts.probe_ms:
                return
            await asyncio.sleep(pause_ms / 1000)
            waited_ms += pause_ms
            pause_ms *= 2
