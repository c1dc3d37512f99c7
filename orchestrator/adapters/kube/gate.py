"""An API server to which only so many requests are begun at once, for one that returns finds everybody at its door.

A follower of one object needs a list and then a stream. Both wait here for a place, which they have until the answer begins; a
stream that runs holds none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from orchestrator.adapters.kube.follow import Server


class Gate:
    """A Server before another one. Threads share it."""

    def __init__(self, server: Server, *, at_once: int) -> None:
        self.server = server.server
        self._asked = server
        self._places = threading.BoundedSemaphore(at_once)

    def get(self, path: str, *, query: Mapping[str, str] | None = None) -> Any:
        """The JSON at a path, once there is a place."""
        with self._places:
            return self._asked.get(path, query=query)

    @contextmanager
    def lines(self, path: str, *, query: Mapping[str, str], quiet_s: float) -> Iterator[Any]:
        """A stream that is opened once there is a place."""
        with ExitStack() as opened:
            with self._places:
                lines = opened.enter_context(self._asked.lines(path, query=query, quiet_s=quiet_s))
            yield lines
