"""The supervisor's window to durable checkpoints: a port whose methods block, called in threads, a few at a time.

Storage may be slow or hang. Neither may stop the event loop, nor keep the process from ending: the threads are daemons, and one
whose caller has gone away counts as under way until it returns.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from orchestrator.core.job import Job
from orchestrator.runtime.control import NotPossibleError
from orchestrator.runtime.ports import CheckpointTools

LOOKS_MAX = 2  # at a time; each may read whole checkpoints

T = TypeVar("T")


class CheckpointDesk:
    """Runs CheckpointTools in threads. `make_tools` is called in them too, since importing what it needs takes a while."""

    def __init__(self, make_tools: Callable[[], CheckpointTools]) -> None:
        self._make_tools = make_tools
        self._under_way = 0

    async def ask(self, question: Callable[[CheckpointTools], T]) -> T:
        """The answer. Raises what the tools raise, OSError as NotPossibleError, which also says when too many are under way."""
        if self._under_way >= LOOKS_MAX:
            raise NotPossibleError(f"{LOOKS_MAX} looks at checkpoints are under way here; try again when they are done")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            self._under_way -= 1
            if answer.done():  # nobody waits any more
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type] # without an error it is a T

        def work() -> None:
            result, failed = None, None
            try:
                result = question(self._make_tools())
            except BaseException as error:  # raised where it is awaited
                failed = error
            try:
                loop.call_soon_threadsafe(settle, result, failed)
            except RuntimeError:  # the loop has ended, and with it the process
                return

        self._under_way += 1
        threading.Thread(target=work, name="checkpoints", daemon=True).start()
        try:
            return await answer
        except OSError as error:
            raise NotPossibleError(f"the checkpoints cannot be reached: {error}") from error


def place_of(job: Job, uri: str) -> str:
    """Where to look: `uri`, else where the job's checkpoints are. Raises NotPossibleError when it has none."""
    place = uri or job.checkpoint.uri
    if not place:
        raise NotPossibleError(f"job {job.name} has no checkpoints: its file sets no checkpoint.uri")
    return place
