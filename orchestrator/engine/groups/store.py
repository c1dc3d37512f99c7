"""The rendezvous store that each worker hosts, so that no epoch hangs on one machine that may be the lost one.

torch's TCPStore is not used: its client and its server both ask the name service for the peer's name at each
connection (to print it in a log line), and one lost DNS answer stalls every client for 5 s, in the middle of a
recovery.  This one speaks a few lines of protocol, listens on one given address alone, and a client that is closed
wakes whoever waits in it. The listening socket doubles as the liveness port: the kernel answers for a process that is
stopped or busy, so a refused connection proves that the process is gone.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

from torch._C import _distributed_c10d as c10d

from orchestrator.engine.groups.base import GroupBroken
from orchestrator.engine.groups.store_server import (
    ADD,
    CHECK,
    DELETE,
    FRAME_BYTES_MAX,
    GET,
    SET,
    StoreServer,
    pack,
    receive,
)

__all__ = ["StoreClient", "StoreServer", "connect_store"]


class StoreClient(c10d.Store):
    """One connection to a StoreServer, usable as the store of a torch process group; thread-safe.

    Every method raises GroupBroken when the server is gone, does not answer in time, or the client is closed; after
    that for ever. Keep a reference while torch uses it.
    """

    def __init__(self, sock: socket.socket, endpoint: str, timeout_s: float) -> None:
        super().__init__()
        self.endpoint = endpoint
        self._sock = sock
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    def set(self, key: str, value: str | bytes) -> None:
        """Store bytes (a str is encoded) under `key`, over what was there."""
        self._ask(SET, key, value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        """The value of `key`; waits until there is one."""
        return self._ask(GET, key, b"")

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return when all `keys` are there, within `timeout` if given."""
        until = time.monotonic() + (self._timeout_s if timeout is None else timeout.total_seconds())
        for key in keys:
            self._ask(GET, key, b"", min(self._timeout_s, max(0.001, until - time.monotonic())))

    def check(self, keys: Sequence[str]) -> bool:
        """True when all `keys` are there; does not wait."""
        return all(self._ask(CHECK, key, b"") == b"1" for key in keys)

    def add(self, key: str, amount: int) -> int:
        """Add to the decimal number under `key` (0 at first); the new value."""
        return int(self._ask(ADD, key, str(amount).encode()))

    def delete_key(self, key: str) -> bool:
        """Forget `key`; whether it was there."""
        return self._ask(DELETE, key, b"") == b"1"

    def close(self) -> None:
        """Drop the connection and wake whoever waits in it. Any thread, any number of times."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._lock.acquire(blocking=False):  # else the waiter, awake now, closes it
            try:
                self._sock.close()
            finally:
                self._lock.release()

    def _ask(self, op: int, key: str, value: bytes, timeout_s: float | None = None) -> bytes:
        with self._lock:
            try:
                self._sock.settimeout(self._timeout_s if timeout_s is None else timeout_s)
                self._sock.sendall(pack(op, key.encode(), value))
                (length,) = struct.unpack("!I", receive(self._sock, 4))
                if length > FRAME_BYTES_MAX:
                    raise OSError(f"an answer of {length} bytes")
                return receive(self._sock, length)
            except OSError as error:
                self._sock.close()  # an answer may still be on its way: the next one would be taken for another's
                raise GroupBroken(f"store {self.endpoint}: no answer for {key!r}: {error}") from error


def connect_store(endpoint: str, timeout_s: float) -> StoreClient:
    """A client of the store at `endpoint`, "host:port"; `timeout_s` bounds the connecting and each later request.

    Raises GroupBroken, at once when the connection is refused; ValueError for an endpoint that is not "host:port".
    """
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"store endpoint {endpoint!r} is not host:port")
    try:
        sock = socket.create_connection((host, int(port)), timeout=timeout_s)
    except OSError as error:
        raise GroupBroken(f"store {endpoint} cannot be reached: {error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return StoreClient(sock, endpoint, timeout_s)
