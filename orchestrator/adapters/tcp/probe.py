"""The active liveness probe: a refused connection is positive evidence that a process has ended.

The kernel answers with a refusal only if nobody listens on the port any more. A stopped process, a busy one or one behind a
cut link does not refuse: it accepts from the backlog or stays silent, and then this says nothing at all.
"""

from __future__ import annotations

import asyncio
import socket
from enum import Enum


class Sign(Enum):
    """What a machine says when one of its ports is tried."""

    ACCEPTS = "accepts"
    REFUSES = "refuses"  # the machine is there, and nobody listens
    MUTE = "mute"  # nothing at all: it, or the way to it, is gone


def sign_of(endpoint: str, timeout_ms: int) -> Sign:
    """Try host:port; blocks for `timeout_ms` at most."""
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_ms / 1000):
            return Sign.ACCEPTS
    except (ConnectionRefusedError, ConnectionResetError):
        return Sign.REFUSES
    except OSError:
        return Sign.MUTE


class TcpProber:
    """runtime.ports.Prober over asyncio."""

    async def refused(self, endpoint: str, timeout_ms: int) -> bool:
        """True only if every address of host:port actively refuses within `timeout_ms`. Raises ValueError for no host:port."""
        host, separator, port = endpoint.rpartition(":")
        if not separator or not port.isdigit():
            raise ValueError(f"an endpoint is host:port, not {endpoint!r}")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._all_refuse(host.strip("[]"), int(port))
        except (TimeoutError, OSError):  # silence, no route, an unknown name: no evidence
            return False

    async def _all_refuse(self, host: str, port: int) -> bool:
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in addresses:
            with socket.socket(family, kind, protocol) as probe:
                probe.setblocking(False)
                try:
                    await loop.sock_connect(probe, address)
                except ConnectionRefusedError:
                    continue
                return False
        return bool(addresses)
