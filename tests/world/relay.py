"""A TCP relay that can be cut: the network between one worker and its supervisor, while the rest of the worker's world stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

CHUNK = 65_536


class Relay:
    """Listens on loopback and passes bytes on to `target` (host:port, asked for each connection), while it is not cut."""

    def __init__(self, target: Callable[[], str]) -> None:
        self._target = target
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Returns its host:port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    def cut(self) -> None:
        """Break what is open and refuse what comes."""
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        """Pass on again."""
        self._cut = False

    async def close(self) -> None:
        """Stop listening, break what is open."""
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._cut:
                return
            host, _, port = self._target().rpartition(":")
            onward, backward = await asyncio.open_connection(host, int(port))
            self._writers.add(backward)
            try:
                await asyncio.gather(_pass(reader, backward), _pass(onward, writer))
            finally:
                self._writers.discard(backward)
                backward.transport.abort()
        except OSError:
            return
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
