"""Virtual time: a timeline of plain callbacks, and an asyncio loop that lives on it.

The world of a simulation (processes, wires, faults) runs as callbacks on a Timeline; the unchanged driver runs on a
VirtualLoop, whose `select` plays the timeline until the driver has something to do. Nothing sleeps, nothing is threaded, and
the same callbacks in the same order give the same run. The supervisor alone can be held up (`Timeline.play`) while the world
goes on.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any

EPOCH_S = 1_800_000_000  # what the wall clock says when virtual time begins


class Stuck(AssertionError):
    """Nothing is ready and nothing will ever happen: a deadlock of whoever waits."""


class Timeline:
    """Callbacks by time; those of one instant run in the order in which they were scheduled."""

    def __init__(self) -> None:
        self.now_us = 0
        self._order = 0
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []

    def after(self, delay_ms: float, callback: Callable[[], None]) -> None:
        """Call it in `delay_ms` (at least 0) virtual milliseconds."""
        self._order += 1
        heapq.heappush(self._waiting, (self.now_us + max(0, round(delay_ms * 1000)), self._order, callback))

    def step(self, until_us: int | None) -> bool:
        """Run the next callback that is due by then, at its time; False when there is none."""
        if not self._waiting or (until_us is not None and self._waiting[0][0] > until_us):
            return False
        at_us, _, callback = heapq.heappop(self._waiting)
        self.now_us = max(self.now_us, at_us)
        callback()
        return True

    def play(self, for_ms: float) -> None:
        """Let that much time pass here and now, with all that happens in it."""
        until_us = self.now_us + round(for_ms * 1000)
        while self.step(until_us):
            pass
        self.now_us = max(self.now_us, until_us)


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio loop on a timeline. No threads, sockets, signals or subprocesses."""

    _ready: deque[asyncio.Handle]

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self._timeline = timeline
        self._selector = self
        self._clock_resolution = 2e-6  # the timeline counts microseconds

    def time(self) -> float:
        """Virtual seconds."""
        return self._timeline.now_us / 1e6

    def select(self, timeout: float | None) -> list[Any]:
        """What BaseEventLoop waits in: play the timeline until a handle is ready or `timeout` seconds have passed."""
        timeline = self._timeline
        until_us = None if timeout is None else timeline.now_us + math.ceil(max(0.0, timeout) * 1e6)
        while timeline.step(until_us):
            if self._ready and until_us != timeline.now_us:
                return []
        if until_us is None:
            raise Stuck("nothing is ready and no timer is set")
        timeline.now_us = max(timeline.now_us, until_us)
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        raise AssertionError("a thread in virtual time")


class VirtualClock:
    """runtime.ports.Clock of a timeline."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def now_ms(self) -> int:
        """Virtual milliseconds since the run began."""
        return self._timeline.now_us // 1000

    def wall_s(self) -> float:
        """Seconds since the Unix epoch."""
        return EPOCH_S + self._timeline.now_us / 1e6
