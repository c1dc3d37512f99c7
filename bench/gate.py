"""How a bench lets several systems take turns, one short block of steps each, in one process tree.

Every rank of a system stands at its gate before a step until the gatekeeper, in the driver, lets it go on for some steps; the
time of a block is from that word until the last rank stands at the gate again. A system that is not on its turn can also be
stopped as a whole (SIGSTOP to its process group), so that it takes nothing from the other's time.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from pathlib import Path
from types import TracebackType

_STEP = struct.Struct("!q")
_EXIT_CODE = 75


class Gate:
    """A rank's side: a connection to the gatekeeper. A gatekeeper that is gone ends the process."""

    def __init__(self, path: str, variant: str) -> None:
        self._path, self._variant = path, variant
        self._link: socket.socket | None = None
        self._allowed = 1  # step 1 is free: it is also what a worker warms up with

    def pass_step(self, step: int) -> None:
        """Return when this step may be done."""
        while step > self._allowed:
            try:
                if self._link is None:
                    self._link = socket.socket(socket.AF_UNIX)
                    self._link.connect(self._path)
                    self._link.sendall(self._variant.encode().ljust(64))
                self._link.sendall(_STEP.pack(step))
                self._allowed = _STEP.unpack(_receive(self._link, _STEP.size))[0]
            except OSError:
                os._exit(_EXIT_CODE)

    def close(self) -> None:
        """Leave the gatekeeper."""
        if self._link is not None:
            self._link.close()


class GateError(Exception):
    """A system did not come to its gate, or left it; the message says which."""


class Gatekeeper:
    """The driver's side; use as a context. `ranks` connect for each variant."""

    def __init__(self, path: Path, *, ranks: int) -> None:
        self._ranks = ranks
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(64)
        self.path = str(path)
        self._links: dict[str, list[socket.socket]] = {}
        self._at: dict[str, int] = {}  # the step before which all ranks of a variant stand

    def __enter__(self) -> Gatekeeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for links in self._links.values():
            for link in links:
                link.close()
        self._server.close()

    def await_all(self, variants: set[str], *, limit_s: float) -> None:
        """Wait until every rank of every variant stands at its gate for the first time. Raises GateError."""
        deadline = time.monotonic() + limit_s
        while any(len(self._links.get(v, ())) < self._ranks for v in variants):
            self._server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                link, _ = self._server.accept()
            except TimeoutError as error:
                found = {v: len(self._links.get(v, ())) for v in sorted(variants)}
                raise GateError(f"not all ranks came to their gates within {limit_s:.0f} s: {found}") from error
            link.settimeout(limit_s)
            self._links.setdefault(_receive(link, 64).decode().strip(), []).append(link)
        for variant in variants:
            self._await_arrival(variant, limit_s)

    def run(self, variant: str, steps: int, *, limit_s: float = 120.0) -> float:
        """Let a variant do `steps` steps; seconds from the word to the last rank's return. Raises GateError."""
        allowed = _STEP.pack(self._at[variant] + steps - 1)
        began = time.monotonic()
        for link in self._links[variant]:
            link.sendall(allowed)
        return self._await_arrival(variant, limit_s) - began

    def _await_arrival(self, variant: str, limit_s: float) -> float:
        waiting, deadline, at = list(self._links[variant]), time.monotonic() + limit_s, 0
        while waiting:
            ready, _, _ = select.select(waiting, [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise GateError(f"{len(waiting)} rank(s) of {variant} did not come back to the gate within {limit_s:.0f} s")
            for link in ready:
                try:
                    at = _STEP.unpack(_receive(link, _STEP.size))[0]
                except OSError as error:
                    raise GateError(f"a rank of {variant} has ended") from error
                waiting.remove(link)
        self._at[variant] = at
        return time.monotonic()


def pause_group(pgid: int) -> None:
    """Stop every process of a group; it costs nothing from here on."""
    os.killpg(pgid, signal.SIGSTOP)


def resume_group(pgid: int) -> None:
    """Continue it."""
    os.killpg(pgid, signal.SIGCONT)


def _receive(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = link.recv(size - len(data))
        if not part:
            raise ConnectionResetError("the other side is gone")
        data += part
    return data
