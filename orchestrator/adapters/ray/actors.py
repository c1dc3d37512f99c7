"""What runs inside a worker's process: a Ray actor that starts `worker_main` in a thread and can be watched.

The actor is asynchronous, so that any number of watchers (of this supervisor and of dead ones before it) wait without holding
a thread, and questions are answered while the worker trains. The end of `worker_main` is the end of the process: a worker id
is an incarnation and has no second life.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from typing import Final

from orchestrator.adapters.ray.dotted import resolve
from orchestrator.adapters.ray.settings import THREAD_SETTINGS

_GOODBYE_S: Final = 0.3  # lets the watchers' replies leave before the process does


class WorkerActor:
    """One worker process. Made into a Ray actor by RayFleet."""

    def __init__(self, worker_main: str, settings: dict[str, str]) -> None:
        os.environ.update(THREAD_SETTINGS)  # before torch is imported, which reads them once
        self._worker_main = worker_main
        self._settings = settings
        self._ended: asyncio.Event | None = None
        self._farewell = ""

    async def start(self) -> int:
        """Run `worker_main(settings)` in a thread, once; returns the pid."""
        self._begun()
        return os.getpid()

    async def watch(self) -> str:
        """Wait for the end of `worker_main` (started by this if nothing else did); returns how it ended."""
        await self._begun().wait()
        return self._farewell

    async def pid(self) -> int:
        """Process id."""
        return os.getpid()

    async def ping(self) -> bool:
        """True, promptly, whatever the worker is doing."""
        return True

    def _begun(self) -> asyncio.Event:
        if self._ended is None:
            self._ended = asyncio.Event()
            arguments = (asyncio.get_running_loop(), self._ended)
            threading.Thread(target=self._run, args=arguments, name="worker-main", daemon=True).start()
        return self._ended

    def _run(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
        try:
            resolve(self._worker_main)(self._settings)
            self._farewell = "it ended by itself"
        except BaseException as error:  # SystemExit too: whatever it was, the process is done
            traceback.print_exc(file=sys.stderr)
            self._farewell = f"it ended with {type(error).__name__}: {error}"
        sys.stdout.flush()
        sys.stderr.flush()
        loop.call_soon_threadsafe(ended.set)
        loop.call_soon_threadsafe(loop.call_later, _GOODBYE_S, os._exit, 0)
