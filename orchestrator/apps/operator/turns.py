"""When each job gets its next turn: woken by a change, or by its own clock, and never in two threads at once.

A turn that fails is tried again after a pause that doubles up to a limit. An API server that is away therefore costs a few
requests a minute, and nothing is concluded from its silence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from orchestrator.adapters.kube.api import KubeError
from orchestrator.apps.operator.execute import NotLeaderError

Key: TypeAlias = tuple[str, str]  # namespace, name
Turn: TypeAlias = Callable[[Key], float | None]  # seconds until the next one at the latest; None: the job is gone

THREADS: Final = 4
SETTLE_S: Final = 0.1  # changes come in heaps
RETRY_S: Final = 0.5
RETRY_MAX_S: Final = 30.0
IDLE_S: Final = 1.0  # between two looks at whether we may act and whether we are to stop

log = logging.getLogger(__name__)


class Turns:
    """`wake` from any thread; `start` gives turns until `stop`. While `may()` is false nobody gets one."""

    def __init__(self, turn: Turn, *, may: Callable[[], bool]) -> None:
        self._turn = turn
        self._may = may
        self._changed = threading.Condition()  # guards all below
        self._due_s: dict[Key, float] = {}
        self._busy: dict[Key, float] = {}  # since when
        self._again: set[Key] = set()  # woken while they had a turn
        self._pause_s: dict[Key, float] = {}
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin; returns at once."""
        self._threads = [threading.Thread(target=self._run, name=f"turns-{n}", daemon=True) for n in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def stop(self, *, limit_s: float) -> None:
        """No further turns; those that are under way may end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        due_s = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, due_s - time.monotonic()))

    def wake(self, key: Key, *, after_s: float = SETTLE_S) -> None:
        """A turn for this job soon."""
        with self._changed:
            if key in self._busy:
                self._again.add(key)
            else:
                due_s = time.monotonic() + after_s
                self._due_s[key] = min(due_s, self._due_s.get(key, due_s))
            self._changed.notify()

    def longest_s(self) -> float:
        """How long the longest turn of those under way has taken so far."""
        with self._changed:
            return max((time.monotonic() - since_s for since_s in self._busy.values()), default=0.0)

    def _run(self) -> None:
        while (key := self._next()) is not None:
            wait_s = self._give(key)
            with self._changed:
                del self._busy[key]
                woken = key in self._again
                self._again.discard(key)
                if wait_s is not None:
                    failing = key in self._pause_s
                    self._due_s[key] = time.monotonic() + (SETTLE_S if woken and not failing else wait_s)
                elif woken:
                    self._due_s[key] = time.monotonic() + SETTLE_S
                self._changed.notify()

    def _next(self) -> Key | None:
        with self._changed:
            while not self._stopping:
                now_s = time.monotonic()
                key = min(self._due_s, key=self._due_s.__getitem__, default=None)
                if key is not None and self._due_s[key] <= now_s and self._may():
                    del self._due_s[key]
                    self._busy[key] = now_s
                    return key
                self._changed.wait(IDLE_S if key is None else min(IDLE_S, max(0.05, self._due_s[key] - now_s)))
            return None

    def _give(self, key: Key) -> float | None:
        try:
            wait_s = self._turn(key)
            self._pause_s.pop(key, None)
            return wait_s
        except NotLeaderError:
            return IDLE_S
        except KubeError as error:
            if error.reason == "Conflict":  # somebody has changed the job since we looked
                return RETRY_S
            said = f"{error}"
        except Exception:
            log.exception("%s/%s: a turn failed", *key)
            said = "see above"
        pause_s = min(RETRY_MAX_S, 2 * self._pause_s.get(key, RETRY_S / 2))
        self._pause_s[key] = pause_s
        log.warning("%s/%s: tried again in %.1f s: %s", *key, pause_s, said)
        return pause_s
