"""Follows one job's status in a thread, through restarts of its supervisor, so that the main thread is free for the screen and
for Ctrl-C.

Only the newest status is kept, and how large each worker grew in each epoch. A supervisor that does not answer is not an end: it
is started again by itself, so the follower tries again, at its new address if it has one, and gives up only after a limit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from orchestrator.core.supervisor.state import JobPhase
from orchestrator.runtime.control import ControlError, UnreachableError

if TYPE_CHECKING:
    from orchestrator.adapters.grpc.client import ControlClient
    from orchestrator.runtime.status_types import JobStatus

GIVE_UP_TRIES = 90
PAUSE_S = 1.0


class Follower:
    """Start it, look at `newest`, wait with `wait`, close it. `reconnect` gives the client for the next try."""

    def __init__(
        self,
        client: ControlClient,
        name: str,
        *,
        reconnect: Callable[[], ControlClient],
        tries_max: int = GIVE_UP_TRIES,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._client = client
        self._name = name
        self._reconnect = reconnect
        self._tries_max = tries_max
        self._pause_s = pause_s
        self._condition = threading.Condition()
        self._newest: JobStatus | None = None
        self._peak_rss_bytes: dict[int, dict[str, int]] = {}
        self._version = 0
        self._over = False
        self._closed = threading.Event()
        self.error: ControlError | None = None
        self.trouble = ""  # why there is no news at the moment
        self._thread = threading.Thread(target=self._run, name="follow-status", daemon=True)

    def start(self) -> Follower:
        """Begin; returns itself."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop after the news that is under way; a stream that is open ends when its client is closed."""
        self._closed.set()

    @property
    def newest(self) -> JobStatus | None:
        """The newest status."""
        return self._newest

    @property
    def peak_rss_bytes(self) -> Mapping[int, Mapping[str, int]]:
        """By epoch, the most resident memory that each worker was seen to have while it trained."""
        return self._peak_rss_bytes

    @property
    def version(self) -> int:
        """Moves with each status."""
        return self._version

    @property
    def over(self) -> bool:
        """No more will come: the job is over, or `error` says why nobody knows."""
        return self._over

    @property
    def client(self) -> ControlClient:
        """The client that was used last."""
        return self._client

    def wait(self, *, after: int, timeout_s: float) -> bool:
        """Wait for a status newer than version `after`, or for the end; false when the time is up."""
        with self._condition:
            return self._condition.wait_for(lambda: self._version > after or self._over, timeout_s)

    def _run(self) -> None:
        tries = 0
        try:
            while not self._closed.is_set():
                try:
                    for status in self._client.watch_status(self._name):
                        tries = 0
                        self._publish(status)
                        if status.phase.terminal or self._closed.is_set():
                            return
                    status = self._client.get(self._name)  # the stream ended: is the job over, or the supervisor ill?
                    self._publish(status)
                    if status.phase.terminal or status.last_word:
                        return
                    raise UnreachableError("the supervisor ended the stream of its status")
                except UnreachableError as error:
                    tries += 1
                    self.trouble = str(error)
                    if tries > self._tries_max:
                        self.error = error
                        return
                if self._closed.wait(self._pause_s):
                    return
                self._client = self._reconnect()
        except ControlError as error:
            self.error = error
        finally:
            with self._condition:
                self._over = True
                self._condition.notify_all()

    def _publish(self, status: JobStatus) -> None:
        with self._condition:
            self.trouble = ""
            self._newest = status
            if status.phase is JobPhase.RUNNING:
                peaks = self._peak_rss_bytes.setdefault(status.epoch, {})
                peaks |= {w.worker_id: max(w.rss_bytes, peaks.get(w.worker_id, 0)) for w in status.workers}
            self._version += 1
            self._condition.notify_all()
