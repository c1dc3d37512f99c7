"""The serving side of the store: one thread, a dictionary, and the clients that wait for a key.

A request is a frame "!I length | !B op | !H key length | key | value", its answer "!I length | value"; a client has
one request under way.  Whatever breaks the protocol or a limit loses its connection and nothing else.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import struct
import threading
from dataclasses import dataclass, field

SET, GET, CHECK, ADD, DELETE = range(1, 6)

FRAME_BYTES_MAX = 1 << 20
_CLIENTS_MAX = 4096
_STORED_BYTES_MAX = 64 << 20
_BACKLOG = 512
_HEADER = struct.Struct("!BH")
_EPOCH = re.compile(r"epoch(\d{1,18})/")


def pack(op: int, key: bytes, value: bytes) -> bytes:
    """A request's frame."""
    return struct.pack("!I", _HEADER.size + len(key) + len(value)) + _HEADER.pack(op, len(key)) + key + value


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes of a blocking socket. Raises OSError when it ends before."""
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionResetError("the connection was closed")
        data += part
    return bytes(data)


@dataclass(slots=True, eq=False)
class _Client:
    sock: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    waits_for: str | None = None


class StoreServer:
    """A store on `host` and a port that the system chooses.

    Raises OSError when `host` is not an address of this machine.
    """

    def __init__(self, host: str) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.bind(address)
            self._listener.listen(_BACKLOG)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self._endpoint = f"{host}:{self._listener.getsockname()[1]}"
        self._values: dict[str, bytes] = {}
        self._stored_bytes = 0
        self._newest_epoch = 0
        self._waiting: dict[str, list[_Client]] = {}
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="store-server", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """ "host:port" for `connect_store`."""
        return self._endpoint

    def close(self) -> None:
        """Stop listening and drop every client; any number of times. Returns when the port is closed."""
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        self._thread.join()
        self._wake.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._end()
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.data)

    def _end(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:  # it went away again, or we are out of descriptors: the others are served on
            return
        if len(self._selector.get_map()) >= _CLIENTS_MAX:
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, selectors.EVENT_READ, _Client(sock))

    def _drop(self, client: _Client) -> None:
        if client.waits_for is not None:
            self._waiting[client.waits_for].remove(client)
            client.waits_for = None
        self._selector.unregister(client.sock)
        client.sock.close()

    def _read(self, client: _Client) -> None:
        try:
            part = client.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        client.buffer += part
        if not part or client.waits_for is not None:  # gone, or it talks while it waits
            self._drop(client)
            return
        if len(client.buffer) < 4:
            return
        (length,) = struct.unpack_from("!I", client.buffer)
        if not _HEADER.size <= length <= FRAME_BYTES_MAX or len(client.buffer) > 4 + length:
            self._drop(client)
        elif len(client.buffer) == 4 + length:
            frame = bytes(client.buffer[4:])
            client.buffer.clear()
            try:
                op, key_bytes = _HEADER.unpack_from(frame)
                key = frame[_HEADER.size : _HEADER.size + key_bytes].decode()
                self._handle(client, op, key, frame[_HEADER.size + key_bytes :])
            except ValueError:  # not UTF-8, not a number, no such operation, too much
                self._drop(client)

    def _handle(self, client: _Client, op: int, key: str, value: bytes) -> None:
        if op == SET:
            self._put(key, value)
            self._answer(client, b"")
        elif op == GET and key in self._values:
            self._answer(client, self._values[key])
        elif op == GET:
            client.waits_for = key
            self._waiting.setdefault(key, []).append(client)
        elif op == CHECK:
            self._answer(client, b"1" if key in self._values else b"0")
        elif op == ADD:
            self._put(key, str(int(self._values.get(key, b"0")) + int(value)).encode())
            self._answer(client, self._values[key])
        elif op == DELETE:
            gone = self._values.pop(key, None)
            self._stored_bytes -= 0 if gone is None else len(key) + len(gone)
            self._answer(client, b"0" if gone is None else b"1")
        else:
            raise ValueError(f"no operation {op}")

    def _forget_before(self, key: str) -> None:
        """Keys `epoch<n>/...` go when a newer epoch writes: full meshes exchange size^2 addresses, recovery after recovery."""
        match = _EPOCH.match(key)
        if match is None or int(match[1]) <= self._newest_epoch:
            return
        self._newest_epoch = int(match[1])
        for old in [k for k in self._values if (m := _EPOCH.match(k)) and int(m[1]) < self._newest_epoch]:
            self._stored_bytes -= len(old) + len(self._values.pop(old))

    def _put(self, key: str, value: bytes) -> None:
        self._forget_before(key)
        old = self._values.get(key)
        grown = len(value) - len(old) if old is not None else len(key) + len(value)
        if self._stored_bytes + grown > _STORED_BYTES_MAX:
            raise ValueError("the store is full")
        self._stored_bytes += grown
        self._values[key] = value
        for waiter in self._waiting.pop(key, []):
            waiter.waits_for = None
            self._answer(waiter, value)

    def _answer(self, client: _Client, value: bytes) -> None:
        try:
            frame = struct.pack("!I", len(value)) + value
            whole = client.sock.send(frame) == len(frame)  # a client that reads nothing is not waited for
        except OSError:
            whole = False
        if not whole:
            self._drop(client)
