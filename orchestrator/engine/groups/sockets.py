"""Which sockets of this process belong to one gloo group, and how to drop them.

gloo has no working abort: a waiter wakes only when its connections go down, so we shut them down ourselves.  The
process has other threads with sockets of their own (gRPC, Ray), so a socket is ours only if its local port is our own
gloo listener's or its far end is the listener of a listed peer; the inode guards against a descriptor that was closed
and given to somebody else.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Endpoint = tuple[str, int]
T = TypeVar("T")

_TRIES_MAX = 16


@dataclass(frozen=True, slots=True)
class Connection:
    """One established connection of a group: descriptor, its inode, both ends."""

    fd: int
    inode: int
    local: Endpoint
    remote: Endpoint

    def alive(self) -> bool:
        """False when the library has closed it or its far end hung up."""
        with _duplicate(self.fd, self.inode) as sock:
            if sock is None:
                return False
            try:
                sock.getpeername()
                return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
            except BlockingIOError:
                return True
            except OSError:
                return False

    def shut(self) -> None:
        """Drop the connection, not the descriptor (the library owns that)."""
        with _duplicate(self.fd, self.inode) as sock, contextlib.suppress(OSError):
            if sock is not None:
                sock.getpeername()  # a listening socket has none: shutting that down makes gloo end the process
                sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _duplicate(fd: int, inode: int) -> Iterator[socket.socket | None]:
    """The socket behind `fd` if it is still the one with `inode`.

    Duplicated first, so that it cannot change under our hands.
    """
    try:
        copy = os.dup(fd)
    except OSError:
        yield None
        return
    try:
        sock = socket.socket(fileno=copy) if os.fstat(copy).st_ino == inode else None
    except OSError:
        sock = None
    try:
        yield sock
    finally:
        if sock is not None:
            sock.close()
        else:
            os.close(copy)


def _sockets() -> set[tuple[int, int]]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target.startswith("socket:["):
                found.add((int(entry), int(target[len("socket:[") : -1])))
    return found


def _endpoint(address: object) -> Endpoint | None:
    """(host, port) of an IPv4 or IPv6 socket address; None for unix sockets and the like."""
    if isinstance(address, tuple) and len(address) >= 2:
        return str(address[0]).removeprefix("::ffff:"), int(address[1])
    return None


def create_with_listener(create: Callable[[], T]) -> tuple[T, Endpoint]:
    """Call `create`, which opens exactly one listening socket, and find that socket's endpoint.

    Another thread may open a listening socket in the same instant; then nothing tells which is which and we try
    again. Raises OSError when that goes on.
    """
    for _ in range(_TRIES_MAX):
        before = _sockets()
        made = create()
        listening = []
        for fd, inode in _sockets() - before:
            with _duplicate(fd, inode) as sock, contextlib.suppress(OSError):
                if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listening.append(_endpoint(sock.getsockname()))
        if len(listening) == 1 and listening[0] is not None:
            return made, listening[0]
        del made
    raise OSError(f"cannot tell gloo's listening socket from those of other threads after {_TRIES_MAX} tries")


def connections(listener: Endpoint, peers: set[Endpoint]) -> list[Connection]:
    """The established connections accepted by `listener` or made to a listener in `peers`."""
    found = []
    for fd, inode in _sockets():
        with _duplicate(fd, inode) as sock, contextlib.suppress(OSError):
            if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            local, remote = _endpoint(sock.getsockname()), _endpoint(sock.getpeername())
            if local is not None and remote is not None and (local == listener or remote in peers):
                found.append(Connection(fd=fd, inode=inode, local=local, remote=remote))
    return found
