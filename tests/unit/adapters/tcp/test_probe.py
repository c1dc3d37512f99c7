"""Only a refusal is evidence."""

from __future__ import annotations

import socket

import pytest

from orchestrator.adapters.tcp.probe import TcpProber


async def test_nobody_listens() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can have the port meanwhile
        assert await TcpProber().refused(f"127.0.0.1:{s.getsockname()[1]}", 30_000)


async def test_somebody_listens_and_never_accepts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not await TcpProber().refused(f"127.0.0.1:{listener.getsockname()[1]}", 2_000)


async def test_a_full_backlog_is_silence_and_no_evidence() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = []
        try:
            for _ in range(4):
                s = socket.socket()
                s.setblocking(False)
                s.connect_ex(address)
                waiting.append(s)
            assert not await TcpProber().refused(f"127.0.0.1:{address[1]}", 50)
        finally:
            for s in waiting:
                s.close()


async def test_an_unknown_name_is_no_evidence() -> None:
    assert not await TcpProber().refused("no-such-host.invalid:80", 500)


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1", "127.0.0.1:http"])
async def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ValueError):
        await TcpProber().refused(endpoint, 100)
