"""Worker processes that start in a tenth of a second: forked from a server that has imported everything but run nothing.

A worker is a process of its own all the same, with its own threads, sockets and death; only the seconds of importing torch are
saved. Each is a child of the fork server, so the end of the tests ends them all.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

from tests.netlab.namespaces import enter

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PRELOAD = ["pytest", "tests.world.preload"]

_context = multiprocessing.get_context("forkserver")


class WorkerProcess:
    """One worker's process. What it prints, also after its stream is gone, is in the file `output`.

    `endpoint_file`: where it looks for a supervisor that it has lost. `namespace`: of its network. `flips`: share of what it
    receives in a reshard that arrives changed.
    """

    def __init__(
        self, settings: Mapping[str, str], *, output: Path, endpoint_file: Path | None, namespace: str = "", flips: float = 0.0
    ) -> None:
        self.output = output
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(THREADS)  # the server must have them before it imports torch; it starts with the first worker
        _context.set_forkserver_preload(PRELOAD)  # here, because all tests of one session share one server
        try:
            forkserver.ensure_running()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self._process = _context.Process(
            target=_work, args=(dict(settings), output, endpoint_file, namespace, flips), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._process.sentinel, self._on_end)

    @property
    def returncode(self) -> int | None:
        """None while it lives; -signal when it was killed."""
        return self._process.exitcode

    async def wait(self) -> int:
        """Wait for its end; the exit code."""
        await self._ended.wait()
        code = self.returncode
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Harmless when it has ended."""
        with suppress(ProcessLookupError):  # it may have been reaped a moment ago
            if self.returncode is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def said(self) -> str:
        """All that it printed."""
        return self.output.read_text(errors="replace")

    def _on_end(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._ended.set()


def _work(settings: dict[str, str], output: Path, endpoint_file: Path | None, namespace: str, flips: float) -> None:
    """In the new process."""
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    if namespace:
        enter(namespace)  # before there is a second thread
    from orchestrator.apps.worker_main import live

    if flips:
        from tests.world.corruption import install

        install(seed=settings["worker_id"], share=flips)

    def resolve() -> str | None:
        return str(json.loads(endpoint_file.read_text())["address"]) if endpoint_file else None

    live(settings, resolve)
