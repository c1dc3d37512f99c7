"""Destroying a library's group takes tens of milliseconds up to seconds, so it happens off the critical path.

At the interpreter's end a destructor that is still running ends the process with "terminate called without an active
exception": `drain` gives those under way a bounded time, and runs by itself at exit.
"""

from __future__ import annotations

import atexit
import threading
import time

_EXIT_WAIT_S = 5.0

_lock = threading.RLock()  # the collector may finalise a group while this very thread holds it
_running: set[threading.Thread] = set()


def destroy_later(objects: list[object]) -> None:
    """Drop the last references in `objects` in a daemon thread. The caller keeps none."""

    def destroy() -> None:
        objects.clear()
        with _lock:
            _running.discard(threading.current_thread())

    thread = threading.Thread(target=destroy, name="destroy-group", daemon=True)
    with _lock:
        _running.add(thread)
    thread.start()


def drain(timeout_s: float) -> bool:
    """Wait for the destructors under way; False if some are not done in time."""
    deadline = time.monotonic() + timeout_s
    with _lock:
        threads = list(_running)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


atexit.register(drain, _EXIT_WAIT_S)
