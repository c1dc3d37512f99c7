"""The rendezvous store that each worker hosts, so that no epoch hangs on one machine that may be the lost one.

The server listens on one given address (torch by itself would take all of them) and a port that the system chooses.
The listening socket doubles as the liveness port: the kernel answers for a process that is stopped or busy, so a
refused connection proves that the process is gone.
"""

from __future__ import annotations

import socket
import time
from datetime import timedelta

from torch._C import _distributed_c10d as c10d

from orchestrator.engine.groups.base import GroupBroken
from orchestrator.engine.groups.library import first_line

_BACKLOG = 512
_REQUEST_TIMEOUT_S = 300.0


class StoreServer:
    """A TCPStore server on `host`. Raises OSError when `host` is not an address of this machine."""

    def __init__(self, host: str) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind(address)
            listener.listen(_BACKLOG)
            self._host, self._port = host, int(listener.getsockname()[1])
            self._store: c10d.TCPStore | None = c10d.TCPStore(
                host,
                self._port,
                is_master=True,
                timeout=timedelta(seconds=_REQUEST_TIMEOUT_S),
                wait_for_workers=False,
                master_listen_fd=listener.detach(),  # the server owns it now
            )

    @property
    def endpoint(self) -> str:
        """ "host:port" for `connect_store`."""
        return f"{self._host}:{self._port}"

    def close(self) -> None:
        """Stop listening and drop every client; any number of times."""
        self._store = None


def connect_store(endpoint: str, timeout_s: float) -> c10d.TCPStore:
    """A client of the store at `endpoint`; `timeout_s` bounds the connecting and each later request.

    Raises GroupBroken, at once when the connection is refused; ValueError for an endpoint that is not "host:port".
    """
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"store endpoint {endpoint!r} is not host:port")
    started = time.monotonic()
    try:
        socket.create_connection((host, int(port)), timeout=timeout_s).close()  # TCPStore would retry a refusal
        left_s = max(0.001, timeout_s - (time.monotonic() - started))
        store = c10d.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=left_s), wait_for_workers=False)
    except (OSError, RuntimeError) as error:
        raise GroupBroken(f"store {endpoint} cannot be reached: {first_line(error)}") from error
    store.set_timeout(timedelta(seconds=timeout_s))
    return store
