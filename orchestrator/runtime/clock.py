"""Time for the driver: the machine's monotonic clock, and a clock that goes on where a journal stopped.

The times in a journal are monotonic milliseconds, which start anew when the machine boots and mean nothing on another one. A
supervisor that resumes a journal there shifts its clock, so that time in the journal neither runs backwards nor leaps.
"""

from __future__ import annotations

import time

from orchestrator.runtime.ports import Clock

LEAP_MS = 60_000  # the two clocks of one machine drift apart by less than this


class SystemClock:
    """runtime.ports.Clock of this machine."""

    def now_ms(self) -> int:
        """Monotonic milliseconds; comparable between processes of one machine."""
        return time.monotonic_ns() // 1_000_000

    def wall_s(self) -> float:
        """Seconds since the Unix epoch, for people."""
        return time.time()


class ContinuedClock:
    """A clock shifted so that it follows the last record of a journal.

    On the machine that wrote the record nothing is shifted. Where monotonic time disagrees with what the wall clock says has
    passed by more than LEAP_MS (another machine, or a reboot) the wall clock decides, and time never runs backwards.
    """

    def __init__(self, clock: Clock, *, last_ms: int, last_wall_s: float) -> None:
        self._clock = clock
        passed_ms = max(0, round((clock.wall_s() - last_wall_s) * 1000))
        leap_ms = last_ms + passed_ms - clock.now_ms()
        self._shift_ms = leap_ms if abs(leap_ms) > LEAP_MS else max(0, last_ms - clock.now_ms())

    def now_ms(self) -> int:
        """Monotonic milliseconds in the journal's count."""
        return self._clock.now_ms() + self._shift_ms

    def wall_s(self) -> float:
        """Seconds since the Unix epoch, for people."""
        return self._clock.wall_s()
