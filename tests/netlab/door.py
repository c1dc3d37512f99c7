"""The one way into a lab: a port of this machine's loopback, behind which is a port of the lab."""

from __future__ import annotations

import socket
import threading

from tests.netlab.namespaces import enter

CHUNK = 65_536
DIAL_S = 5.0


class Door:
    """Listens on loopback, and passes on to host:port as it is seen from a machine of the lab (the name of its namespace)."""

    def __init__(self, *, namespace: str, target: tuple[str, int]) -> None:
        self._namespace, self._target = namespace, target
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more; idempotent."""
        if self._socket.fileno() < 0:
            return
        self._socket.shutdown(socket.SHUT_RDWR)  # or the thread that accepts would never know
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                inner, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(inner,), daemon=True).start()

    def _pass_on(self, inner: socket.socket) -> None:
        enter(self._namespace)  # this thread, for good
        try:
            outer = socket.create_connection(self._target, timeout=DIAL_S)
        except OSError:
            inner.close()
            return
        with inner, outer:
            outer.settimeout(None)
            back = threading.Thread(target=pump, args=(outer, inner), daemon=True)
            back.start()
            pump(inner, outer)
            back.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Until either side ends; then both end."""
    try:
        while data := source.recv(CHUNK):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
