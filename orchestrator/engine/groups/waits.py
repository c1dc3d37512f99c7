"""Waits that can be left behind.

gloo forgets a send or receive that is half-way through when its connection goes down: whoever waits for it in the library
waits until the time-out. So such a wait happens in a thread of its own, and the one who wants to know waits for an event,
which an abort can set too. A thread that is left behind ends its wait with the library's time-out and is used again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class LeftBehind:
    """One blocking call that runs elsewhere. `done` is set when it has ended, or by whoever gives it up."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.done = threading.Event()
        self.error: RuntimeError | None = None

    def run(self) -> None:
        """In the helper's thread."""
        try:
            self._call()
        except RuntimeError as error:
            self.error = error
        self._call = _nothing  # what it refers to may be large


class Helpers:
    """Threads for blocking calls: as many as calls were ever under way at once, started when they are needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[LeftBehind]] = []

    def start(self, job: LeftBehind) -> None:
        """Run it in an idle thread, or a new one; returns at once."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="group-wait", daemon=True).start()
        inbox.put(job)

    def _serve(self, inbox: SimpleQueue[LeftBehind]) -> None:
        while True:
            job = inbox.get()
            job.run()
            with self._lock:
                self._idle.append(inbox)
            job.done.set()
            del job


def _nothing() -> None:
    pass
