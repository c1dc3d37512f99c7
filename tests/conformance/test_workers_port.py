"""What every implementation of runtime.ports.Workers must do, whatever carries the streams.

An implementation joins by adding a harness to HARNESSES: an async context manager that gives a WorkersHarness. The gRPC hub runs
here behind a real server on loopback.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import pytest

from orchestrator.adapters.grpc.convert import FromWorker, Goodbye
from orchestrator.core.supervisor.commands import DumpStacks, ExitWorker, FenceEpoch, InjectFault
from orchestrator.core.supervisor.events import EpochReady, Event, Fault, StepCommitted, WorkerDisconnected, WorkerHello
from orchestrator.runtime.ports import Beat, Welcome, WorkerCommand, Workers
from tests.unit.adapters.grpc.support import RawWorker, Running, Seen, beat, hello, raw_worker, serving


class Peer(Protocol):
    """A worker's end of a stream."""

    async def say(self, value: FromWorker) -> bool:
        """Send; False when the stream is over."""
        ...

    async def hear(self) -> Welcome | WorkerCommand | None:
        """The next thing from the supervisor; None when the stream has ended."""
        ...

    async def cut(self) -> None:
        """Break the stream without a word."""
        ...


class WorkersHarness(Protocol):
    """An implementation with its surroundings. Welcomes carry committed step 3."""

    workers: Workers
    events: Seen[Event]
    beats: Seen[Beat]

    async def peer(self, worker_id: str) -> Peer:
        """Open a stream; nothing is said yet."""
        ...


class GrpcHarness:
    def __init__(self, running: Running) -> None:
        self.workers: Workers = running.hub
        self.events = running.heard.events
        self.beats = running.heard.beats
        self._address = running.address
        self._peers: list[RawWorker] = []

    async def peer(self, worker_id: str) -> Peer:
        self._peers.append(await raw_worker(self._address, worker_id))
        return self._peers[-1]

    async def close(self) -> None:
        for peer in self._peers:
            await peer.cut()


@asynccontextmanager
async def grpc_harness() -> AsyncIterator[WorkersHarness]:
    async with serving(committed_step=3) as running:
        harness = GrpcHarness(running)
        try:
            yield harness
        finally:
            await harness.close()


HARNESSES: dict[str, Callable[[], AbstractAsyncContextManager[WorkersHarness]]] = {"grpc": grpc_harness}


@pytest.fixture(params=sorted(HARNESSES))
async def port(request: pytest.FixtureRequest) -> AsyncIterator[WorkersHarness]:
    async with HARNESSES[request.param]() as harness:
        yield harness


async def joined(port: WorkersHarness, worker_id: str) -> Peer:
    peer = await port.peer(worker_id)
    await peer.say(hello(worker_id))
    assert await peer.hear() == Welcome(True, "", 3)
    return peer


def of(port: WorkersHarness, worker_id: str) -> list[Event]:
    return [e for e in port.events if getattr(e, "worker_id", "") == worker_id]


async def test_a_hello_is_welcomed_and_becomes_a_stamped_event(port: WorkersHarness) -> None:
    await joined(port, "w1")
    event = await port.events.of(WorkerHello)
    assert event == hello("w1", at_ms=event.at_ms)
    assert event.at_ms > 0


async def test_commands_arrive_in_order(port: WorkersHarness) -> None:
    peer = await joined(port, "w1")
    fault = Fault("hang", 2, "", 5, 1, 300)
    commands: list[WorkerCommand] = [
        FenceEpoch("w1", 4),
        DumpStacks("w1"),
        InjectFault("w1", fault),
        ExitWorker("w1", "done"),
    ]
    for command in commands:
        assert await port.workers.send(command)
    assert [await peer.hear() for _ in commands] == commands


async def test_a_command_reaches_its_worker_only(port: WorkersHarness) -> None:
    one, two = await joined(port, "w1"), await joined(port, "w2")
    assert await port.workers.send(FenceEpoch("w1", 4))
    assert await port.workers.send(FenceEpoch("w2", 5))
    assert await one.hear() == FenceEpoch("w1", 4)
    assert await two.hear() == FenceEpoch("w2", 5)


async def test_nothing_is_sent_to_a_worker_that_is_not_connected(port: WorkersHarness) -> None:
    assert not await port.workers.send(FenceEpoch("w9", 1))
    peer = await joined(port, "w1")
    await peer.cut()
    await port.events.of(WorkerDisconnected)
    assert not await port.workers.send(FenceEpoch("w1", 1))


async def test_reports_become_events_and_beats_do_not(port: WorkersHarness) -> None:
    peer = await joined(port, "w1")
    await peer.say(beat("w1", step=9))
    await peer.say(EpochReady(0, "w1", 1))
    await peer.say(StepCommitted(0, "w1", 1, 4, 2.5, 0.5, 1.0, 1e-3, 12.0, 64, False, 2.5))
    ready = await port.events.of(EpochReady)
    step = await port.events.of(StepCommitted)
    assert ready == EpochReady(ready.at_ms, "w1", 1)
    assert step == StepCommitted(step.at_ms, "w1", 1, 4, 2.5, 0.5, 1.0, 1e-3, 12.0, 64, False, 2.5)
    assert 0 < ready.at_ms <= step.at_ms
    assert list(port.beats) == [beat("w1", step=9)]
    assert [type(e) for e in of(port, "w1")] == [WorkerHello, EpochReady, StepCommitted]


async def test_a_worker_speaks_for_itself_only(port: WorkersHarness) -> None:
    peer = await joined(port, "w1")
    await peer.say(EpochReady(0, "w2", 1))
    assert (await port.events.of(EpochReady)).worker_id == "w1"


async def test_a_broken_stream_is_an_event(port: WorkersHarness) -> None:
    peer = await joined(port, "w1")
    await peer.cut()
    event = await port.events.of(WorkerDisconnected)
    assert event.worker_id == "w1"
    assert event.detail


async def test_a_goodbye_ends_the_stream_and_says_why(port: WorkersHarness) -> None:
    peer = await joined(port, "w1")
    await peer.say(Goodbye("told to end"))
    event = await port.events.of(WorkerDisconnected)
    assert "goodbye" in event.detail
    assert "told to end" in event.detail
    assert await peer.hear() is None


async def test_a_newer_stream_replaces_the_older_one(port: WorkersHarness) -> None:
    older = await joined(port, "w1")
    newer = await joined(port, "w1")
    assert await older.hear() is None
    assert await port.workers.send(FenceEpoch("w1", 4))
    assert await newer.hear() == FenceEpoch("w1", 4)
    await newer.say(EpochReady(0, "w1", 1))
    await port.events.of(EpochReady)
    assert [type(e) for e in of(port, "w1")] == [WorkerHello, WorkerHello, EpochReady]  # no break was seen: it has a stream


async def test_a_fenced_worker_loses_its_stream_and_is_told_why(port: WorkersHarness) -> None:
    peer, other = await joined(port, "w1"), await joined(port, "w2")
    port.workers.refuse("w1", "it was declared lost")
    assert not await port.workers.send(FenceEpoch("w1", 4))
    assert await peer.hear() == Welcome(False, "it was declared lost", 0)
    assert await peer.hear() is None
    assert await port.workers.send(FenceEpoch("w2", 4))
    assert await other.hear() == FenceEpoch("w2", 4)


async def test_nothing_that_a_fenced_worker_says_counts(port: WorkersHarness) -> None:
    peer, other = await joined(port, "w1"), await joined(port, "w2")
    await peer.say(EpochReady(0, "w1", 1))
    await port.events.of(EpochReady)
    port.workers.refuse("w1", "lost")
    told = len(of(port, "w1"))
    await peer.say(StepCommitted(0, "w1", 1, 4, 2.5, 0.5, 1.0, 1e-3, 12.0, 64, False, 2.5))
    await other.say(EpochReady(0, "w2", 1))
    await port.events.first(lambda e: isinstance(e, EpochReady) and e.worker_id == "w2")
    assert len(of(port, "w1")) == told


async def test_a_fenced_worker_is_refused_for_ever(port: WorkersHarness) -> None:
    port.workers.refuse("w1", "it was declared lost")
    for _ in range(2):
        peer = await port.peer("w1")
        await peer.say(hello("w1"))
        assert await peer.hear() == Welcome(False, "it was declared lost", 0)
        assert await peer.hear() is None
    assert of(port, "w1") == []
