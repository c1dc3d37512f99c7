"""What the worker and supervisor processes of these tests run; named by dotted path, imported in the actors."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable

HERE = "tests.unit.adapters.ray.mains"


def wait_for_ever(settings: dict[str, str]) -> None:
    """A worker that does nothing."""
    threading.Event().wait()


def end_at_once(settings: dict[str, str]) -> None:
    """A worker that is done before it began."""


def raise_at_once(settings: dict[str, str]) -> None:
    """A worker with a bug."""
    raise LookupError(f"worker {settings['worker_id']} has a bug")


async def supervise(settings: dict[str, str], ready: Callable[[str], None]) -> None:
    """Listens until somebody connects and says `end` or `crash`; answers anything else with its settings."""
    over = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        word = (await reader.readline()).strip()
        if word == b"crash":
            os._exit(1)
        writer.write(settings["greeting"].encode() + b"\n")
        await writer.drain()
        writer.close()
        if word == b"end":
            over.set()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    ready(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await over.wait()
    server.close()
