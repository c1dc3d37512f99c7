"""A worker that is cut off from the world notices by itself, within `detect_within`, and leaves its epoch.

On the supervisor's side of a partition it is declared lost and its rank goes to another; on its own side nobody can tell it so.
Neither sign alone would be enough: a supervisor that is being restarted must not stop the workers, and a collective stands still
for any slow peer. So it takes both: the training thread stands still in a collective, and all the while the *machine* of the
supervisor gives no sign of life, neither an open port nor a refusal. A supervisor that is away refuses; a pulled cable is mute.
See docs/decisions/0008.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from orchestrator.core.timeouts import Timeouts
from orchestrator.runtime.ports import Pulse

Answers = Callable[[int], bool]  # (limit in ms) -> whether the supervisor's machine gave a sign of life; blocks that long at most


class CutOff:
    """Looks after one worker, in a thread of its own, for as long as the process lives.

    `fence` is called with (epoch that the worker was in, how long it stood still in ms) and must be harmless when that epoch is
    over; `epoch` says which one it is in, 0 for none.
    """

    def __init__(
        self,
        *,
        pulse: Callable[[], Pulse],
        epoch: Callable[[], int],
        answers: Answers,
        fence: Callable[[int, int], None],
        timeouts: Timeouts,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pulse = pulse
        self._epoch = epoch
        self._answers = answers
        self._fence = fence
        self._timeouts = timeouts
        self._clock_s = clock_s
        self._at: tuple[int, int] = (0, 0)  # epoch and progress at which it stands
        self._since_s = clock_s()
        self._asked_s = self._since_s  # since then the supervisor's machine has given no sign, or was not asked
        self._stop: Final = threading.Event()

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._run, name="cut-off", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def look(self) -> None:
        """Look once; blocks while the supervisor's machine is asked. Fences where both signs have lasted until `lost_ms`."""
        before = self._stands()
        mute_ms = self._ms(self._asked_s)
        if before is None or mute_ms < self._timeouts.suspect_ms:
            return
        if self._answers(max(1, self._timeouts.lost_ms - mute_ms)):
            self._asked_s = self._clock_s()  # asked again only when it has stood still for as long once more
            return
        if self._stands() == before and self._ms(self._asked_s) >= self._timeouts.lost_ms:
            self._fence(before[0], self._ms(self._since_s))

    def _stands(self) -> tuple[int, int] | None:
        """Where it stands still in a collective, None where it does not; a change starts the clocks anew."""
        pulse, epoch = self._pulse(), self._epoch()
        at = (epoch, pulse.progress)
        if not pulse.in_comm or not epoch or at != self._at:
            self._at = at
            self._since_s = self._asked_s = self._clock_s()
        return at if pulse.in_comm and epoch else None

    def _ms(self, since_s: float) -> int:
        return int((self._clock_s() - since_s) * 1000)

    def _run(self) -> None:
        while not self._stop.wait(self._timeouts.heartbeat_ms / 1000):
            self.look()
