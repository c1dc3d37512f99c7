"""How fast two processes of this machine talk to each other over TCP: the links of an embedded cluster, before there is one."""

from __future__ import annotations

import socket
import threading
import time

from orchestrator.core.cluster.resources import Link

_BYTES = 64 << 20
_PIECE = 1 << 20
_PINGS = 200
_LIMIT_S = 10.0


def loopback_link() -> Link:
    """Bandwidth of one stream and half a round trip; takes well under a second. Raises OSError."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_LIMIT_S)
        thread = threading.Thread(target=_answer, args=(server,), name="loopback", daemon=True)
        thread.start()
        with socket.create_connection(server.getsockname()[:2], timeout=_LIMIT_S) as here:
            here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            began = time.perf_counter()
            for _ in range(_PINGS):
                here.sendall(b"p")
                _read(here, 1)
            latency_s = (time.perf_counter() - began) / _PINGS / 2
            piece = bytes(_PIECE)
            began = time.perf_counter()
            for _ in range(_BYTES // _PIECE):
                here.sendall(piece)
            _read(here, 1)
            took = time.perf_counter() - began
        thread.join(_LIMIT_S)
    return Link(bandwidth=_BYTES / took, latency_s=latency_s)


def _answer(server: socket.socket) -> None:
    there, _ = server.accept()
    with there:
        there.settimeout(_LIMIT_S)
        there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_PINGS):
            _read(there, 1)
            there.sendall(b"p")
        _read(there, _BYTES)
        there.sendall(b"d")


def _read(end: socket.socket, count: int) -> None:
    while count:
        got = len(end.recv(min(count, _PIECE)))
        if not got:
            raise ConnectionError("the other end closed the connection")
        count -= got
