"""Ctrl-C and SIGTERM as a count that the main loop looks at, so that stopping is a step of the program and not an accident.

While a cluster starts nobody can look, so there a signal raises KeyboardInterrupt; everywhere else it only counts. The first
one asks for an orderly end, the second one for a quick one; what was started is stopped in either case.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Counts interrupts while it is entered; handlers are put back afterwards. For the main thread."""

    def __init__(self) -> None:
        self.count = 0
        self._raises = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in CAUGHT:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """A signal inside raises KeyboardInterrupt; so does one that came before."""
        if self.count:
            raise KeyboardInterrupt
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def take_back(self) -> None:
        """Install the handlers again: `ray.init` puts its own in their place."""
        for number in CAUGHT:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._raises:
            raise KeyboardInterrupt
