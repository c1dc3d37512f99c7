"""What the threads of a worker share: the epoch it is in, the fence, the group to abort, and the pulse.

The training thread is the only one that trains; heartbeats, fences and faults come from others. A fence is remembered
even when it comes before its epoch, so that a late command cannot start what was already given up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.engine.groups.base import EpochGroup, GroupBroken
from orchestrator.runtime.ports import Pulse

_SMOOTHING = 0.3

Hook = Callable[[str, int], None]  # (phase, step), called by the training thread when it enters a phase; for tests


class Control:
    """Made once per engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fenced = 0
        self._newest = 0
        self._epoch = 0  # that it is in; 0: none
        self._groups: tuple[EpochGroup, ...] = ()
        self._wishes: dict[int, int] = {}  # of whom they were asked, by epoch
        self._cancelled = threading.Event()
        self._step = 0
        self._phase = "idle"
        self._since = time.monotonic()
        self._progress = 0
        self._in_comm = False
        self._micro_batch_ms = 0.0
        self.hook: Hook | None = None

    # ------------------------------------------------------------------------------------------------- epoch and fence

    def enter(self, epoch: int) -> str:
        """Take part in an epoch from here on; a reason if that is refused, else the empty string."""
        with self._lock:
            if epoch <= self._newest:
                return f"epoch {epoch} is not newer than epoch {self._newest}"
            self._newest = epoch
            if epoch <= self._fenced:
                return f"epoch {epoch} was fenced before it began (epochs up to {self._fenced} are)"
            self._epoch = epoch
            self._wishes = {e: wish for e, wish in self._wishes.items() if e >= epoch}
            self._cancelled = threading.Event()
            return ""

    def leave(self) -> None:
        """It is in no epoch; the group is nobody's to abort any more."""
        with self._lock:
            self._epoch = 0
            self._groups = ()
        self.phase("idle")

    def attach(self, group: EpochGroup) -> None:
        """A fence aborts this group too from now on. Raises GroupBroken when the fence was faster."""
        with self._lock:
            self._groups = (*self._groups, group)
        if self._cancelled.is_set():
            group.abort()
        self.check()

    def wish(self, epoch: int, wish: int) -> None:
        """From any thread: what the ranks of this epoch should agree on in their next commit exchange (bits, commit.py).

        It may come before its epoch; one for an epoch that is over is forgotten.
        """
        with self._lock:
            if epoch >= self._newest:
                self._wishes[epoch] = self._wishes.get(epoch, 0) | wish

    def wishes(self) -> int:
        """Those for the present epoch, told once: who takes part in the exchange that follows knows of them."""
        with self._lock:
            return self._wishes.pop(self._epoch, 0)

    def fence(self, epoch: int) -> None:
        """From any thread."""
        with self._lock:
            self._fenced = max(self._fenced, epoch)
            if not 0 < self._epoch <= epoch:
                return
            self._cancelled.set()
            groups = self._groups
        for group in groups:
            group.abort()

    def check(self) -> None:
        """Raises GroupBroken when this epoch was fenced."""
        if self._cancelled.is_set():
            raise GroupBroken(f"epoch {self._epoch} was fenced")

    @property
    def cancelled(self) -> threading.Event:
        """Set when the present epoch is fenced."""
        return self._cancelled

    @property
    def running(self) -> bool:
        """Whether it is inside an epoch."""
        return self._epoch > 0

    # ----------------------------------------------------------------------------------------------------------- pulse

    def phase(self, name: str, step: int | None = None) -> None:
        """The training thread enters a phase (and a step)."""
        if step is not None:
            self._step = step
        self._phase = name
        self._since = time.monotonic()
        self._progress += 1
        if self.hook is not None:
            self.hook(name, self._step)

    def advance(self) -> None:
        """It got somewhere within a phase."""
        self._progress += 1

    @contextmanager
    def comm(self) -> Iterator[None]:
        """It waits for other ranks."""
        self._in_comm = True
        try:
            yield
        finally:
            self._in_comm = False
            self._progress += 1

    def computed(self, micro_batch_s: float) -> None:
        """One micro-batch took this long."""
        ms = micro_batch_s * 1e3
        last = self._micro_batch_ms
        self._micro_batch_ms = ms if last == 0.0 else last + _SMOOTHING * (ms - last)

    def pulse(self) -> Pulse:
        """From any thread; a torn read across fields does no harm."""
        return Pulse(
            step=self._step,
            phase=self._phase,
            phase_ms=int((time.monotonic() - self._since) * 1e3),
            progress=self._progress,
            in_comm=self._in_comm,
            micro_batch_ms=round(self._micro_batch_ms),
        )
