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
SETTLE_S: Final = 0.1  # changes come in heaps;
SETTLE_MAX_S: Final = 2.0  # those of a job of many pods, at which a look takes long, in larger ones
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
        self._settle_s: dict[Key, float] = {}  # from a change to the turn for it: as long as the last turn took
        self._again: set[Key] = set()  # woken while they had a turn
        self._pause_s: dict[Key, float] = {}  # of those whose last turn failed
        self._said: dict[Key, str] = {}  # why
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

    def wake(self, key: Key) -> None:
        """A turn for this job soon."""
        with self._changed:
            if key in self._busy:
                self._again.add(key)
            else:
                due_s = time.monotonic() + self._settle_s.get(key, SETTLE_S)
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
                now_s = time.monotonic()
                settle_s = min(SETTLE_MAX_S, max(SETTLE_S, now_s - self._busy.pop(key)))
                woken = key in self._again
                self._again.discard(key)
                if wait_s is not None:
                    failing = key in self._pause_s
                    self._settle_s[key] = settle_s
                    self._due_s[key] = now_s + (settle_s if woken and not failing else wait_s)
                else:
                    self._settle_s.pop(key, None)
                    if woken:
                        self._due_s[key] = now_s + SETTLE_S
                self._changed.notify()

    def _next(self) -> Key | None:
        with self._changed:
            while not self._stopping:
                now_s = time.monotonic()
                key = min(self._due_s, key=self._due_s.__getitem__, default=None)
                if key is None or not self._may():
                    self._changed.wait(IDLE_S)
                elif (wait_s := self._due_s[key] - now_s) > 0:
                    self._changed.wait(min(IDLE_S, wait_s))
                else:
                    del self._due_s[key]
                    self._busy[key] = now_s
                    return key
            return None

    def _give(self, key: Key) -> float | None:
        try:
            wait_s = self._turn(key)
            self._pause_s.pop(key, None)
            self._said.pop(key, None)
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
        if self._said.get(key) != said:  # a quota may be full for days
            self._said[key] = said
            log.warning("%s/%s: tried again, from %.1f to %.0f s later: %s", *key, pause_s, RETRY_MAX_S, said)
        return pause_s
