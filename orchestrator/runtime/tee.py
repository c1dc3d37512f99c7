"""Copies what a worker prints to the supervisor, line by line, while it still goes where it went before.

Only Python's own sys.stdout and sys.stderr are copied; what C code prints stays in the files of whoever started the process.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import BinaryIO, TextIO

LINE_CHARS_MAX = 8_192  # a longer line is passed on in pieces


class LineTee(io.TextIOBase):
    """A text stream that writes to `inner` and gives each whole line (without its end) to `on_line`. Safe from any thread."""

    def __init__(self, inner: TextIO, on_line: Callable[[str], None]) -> None:
        super().__init__()
        self._inner = inner
        self._on_line = on_line
        self._lock = threading.Lock()
        self._rest = ""
        self._telling = threading.local()

    def write(self, text: str) -> int:
        """Write to both; what the listener prints itself goes to `inner` only."""
        written = self._inner.write(text)
        if getattr(self._telling, "now", False):
            return written
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            while len(self._rest) > LINE_CHARS_MAX:
                lines.append(self._rest[:LINE_CHARS_MAX])
                self._rest = self._rest[LINE_CHARS_MAX:]
        self._telling.now = True
        try:
            for line in lines:
                self._on_line(line)
        finally:
            self._telling.now = False
        return written

    def flush(self) -> None:
        """Flush `inner`."""
        self._inner.flush()

    def fileno(self) -> int:
        """The file descriptor of `inner`."""
        return self._inner.fileno()

    def isatty(self) -> bool:
        """Whether `inner` is a terminal."""
        return self._inner.isatty()

    def writable(self) -> bool:
        """Yes."""
        return True

    @property
    def buffer(self) -> BinaryIO:
        """The bytes below `inner`; what is written there is not copied."""
        return self._inner.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of `inner`."""
        return self._inner.encoding
