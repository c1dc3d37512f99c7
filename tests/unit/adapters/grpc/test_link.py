"""A worker's link against a real hub: it beats, obeys, comes back, says again what was lost, and ends when it is refused."""

from __future__ import annotations

import asyncio
import queue
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from orchestrator.adapters.grpc.link import RESOLVE_AFTER, GrpcLink
from orchestrator.core.supervisor.commands import DumpStacks, ExitWorker, FenceEpoch
from orchestrator.core.supervisor.events import EpochReady, StepCommitted, WorkerDisconnected, WorkerHello
from orchestrator.core.timeouts import Timeouts, derive
from orchestrator.runtime.ports import LogLine, WorkerCommand
from tests.unit.adapters.grpc.support import TIMEOUTS, TOKEN, WAIT_S, Heard, beat, hello, serving

HASTY = derive(800)  # short pauses between attempts, and an answer is waited for as long: 400 ms
FAST = replace(
    HASTY, suspect_ms=TIMEOUTS.suspect_ms * 10, lost_ms=TIMEOUTS.lost_ms * 10
)  # short pauses, and all the time in between


def committed(step: int) -> StepCommitted:
    return StepCommitted(0, "w1", 1, step, 2.0, 0.5, 1.0, 1e-3, 12.0, 64, False, 2.0)


@dataclass
class Worker:
    """A link and what it did, from the outside."""

    endpoint: str
    token: str = TOKEN
    resolved: str | None = None
    timeouts: Timeouts = FAST
    commands: queue.Queue[WorkerCommand] = field(default_factory=queue.Queue)
    refusals: queue.Queue[str] = field(default_factory=queue.Queue)
    resolves: queue.Queue[None] = field(default_factory=queue.Queue)
    beats: int = 0
    hellos: int = 0

    def __post_init__(self) -> None:
        self.link = GrpcLink(
            worker_id="w1",
            endpoint=self.endpoint,
            token=self.token,
            timeouts=self.timeouts,
            hello=self._hello,
            pulse=self._pulse,
            on_command=self.commands.put,
            on_refused=self.refusals.put,
            resolve=self._resolve,
        )

    def _hello(self) -> WorkerHello:
        self.hellos += 1
        return hello("w1", pid=self.hellos)

    def _pulse(self) -> Any:
        self.beats += 1
        return beat("w1", self.beats)

    def _resolve(self) -> str | None:
        self.resolves.put(None)
        return self.resolved

    async def __aenter__(self) -> Worker:
        self.link.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.link.close)
        assert not self.link._thread.is_alive()


async def got(source: queue.Queue[Any]) -> Any:
    return await asyncio.to_thread(source.get, True, WAIT_S)


@dataclass
class Relay:
    """Carries bytes to a port until it is frozen; its connections stay open."""

    address: str
    frozen: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def relayed(port: int) -> AsyncIterator[Relay]:
    relay = Relay("")
    open_ends: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while (data := await source.read(65536)) and not relay.frozen.is_set():
            target.write(data)
        if not relay.frozen.is_set():
            target.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
        open_ends.extend((writer, onward_writer))
        tasks.append(asyncio.create_task(carry(reader, onward_writer)))
        tasks.append(asyncio.create_task(carry(onward_reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    relay.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in open_ends:
            end.close()


async def test_it_says_hello_and_beats_without_being_asked() -> None:
    async with serving() as running, Worker(running.address):
        first = await running.heard.events.of(WorkerHello)
        assert first == hello("w1", at_ms=first.at_ms, pid=1)
        await running.heard.beats.first(lambda b: b.step == 3)
        assert [b.step for b in running.heard.beats[:3]] == [1, 2, 3]


async def test_commands_reach_the_worker_in_order() -> None:
    async with serving() as running, Worker(running.address) as worker:
        await running.heard.events.of(WorkerHello)
        sent: list[WorkerCommand] = [FenceEpoch("w1", 3), DumpStacks("w1"), ExitWorker("w1", "enough")]
        for command in sent:
            assert await running.hub.send(command)
        assert [await got(worker.commands) for _ in sent] == sent
        assert worker.link.connected
        assert worker.link.disconnected_ms() == 0


async def test_a_command_that_fails_does_not_end_the_link(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as running:
        worker = Worker(running.address)

        def fail(command: WorkerCommand) -> None:
            worker.commands.put(command)
            raise RuntimeError("a bug in the shell")

        worker.link._on_command = fail
        async with worker:
            await running.heard.events.of(WorkerHello)
            for epoch in (1, 2):
                assert await running.hub.send(FenceEpoch("w1", epoch))
                assert await got(worker.commands) == FenceEpoch("w1", epoch)
        assert "a bug in the shell" in caplog.text


async def test_reports_lines_and_stacks_arrive() -> None:
    async with serving() as running, Worker(running.address) as worker:
        worker.link.report(EpochReady(0, "w1", 1))
        worker.link.report(committed(1))
        worker.link.log(LogLine("w1", 2, "loss 2.0"))
        worker.link.stacks("Thread 1")
        assert await running.heard.stacks.first(lambda _: True) == ("w1", "Thread 1")
        assert await running.heard.lines.first(lambda _: True) == LogLine("w1", 2, "loss 2.0")
        assert [type(e) for e in running.heard.events] == [WorkerHello, EpochReady, StepCommitted]


async def test_it_comes_back_to_a_supervisor_restarted_on_the_same_port() -> None:
    heard = Heard()
    async with serving(heard=heard) as running:
        port = running.port
        worker = Worker(running.address)
        worker.link.start()
        for step in (1, 2, 3):
            worker.link.report(committed(step))
        await heard.events.first(lambda e: isinstance(e, StepCommitted) and e.step == 3)
    await asyncio.to_thread(worker.link.report, committed(4))  # while nobody is there
    again = Heard(committed_step=2)  # step 3 did not make it into the journal
    async with serving(heard=again, port=port):
        await again.events.first(lambda e: isinstance(e, StepCommitted) and e.step == 4)
        assert [e.step for e in again.events if isinstance(e, StepCommitted)] == [3, 4]
        assert again.events[0] == hello("w1", at_ms=again.events[0].at_ms, pid=worker.hellos)
        assert worker.hellos >= 2
        await again.beats.first(lambda _: True)
        await asyncio.to_thread(worker.link.close)


async def test_a_cut_stream_is_said_again_too() -> None:
    async with serving(committed_step=1) as running, Worker(running.address) as worker:
        for step in (1, 2):
            worker.link.report(committed(step))
        await running.heard.events.first(lambda e: isinstance(e, StepCommitted) and e.step == 2)
        attempt = worker.link._attempt
        assert attempt is not None
        start = len(running.heard.events)
        attempt.cancel()
        await running.heard.events.of(StepCommitted, start=start)
        after = running.heard.events[start:]
        assert [type(e) for e in after] == [WorkerDisconnected, WorkerHello, StepCommitted]
        assert isinstance(after[2], StepCommitted)
        assert after[2].step == 2


async def test_a_refused_worker_is_told_once_and_stops() -> None:
    async with serving() as running:
        running.hub.refuse("w1", "declared lost at step 7")
        async with Worker(running.address) as worker:
            assert await got(worker.refusals) == "declared lost at step 7"
            await asyncio.to_thread(worker.link._thread.join, WAIT_S)
            assert not worker.link._thread.is_alive()
            assert worker.refusals.empty()
            assert worker.beats == 0
        assert running.heard.events == []


async def test_a_worker_fenced_while_it_is_connected_is_told_and_stops() -> None:
    async with serving() as running, Worker(running.address) as worker:
        await running.heard.events.of(WorkerHello)
        running.hub.refuse("w1", "silent for 3500 ms")
        assert await got(worker.refusals) == "silent for 3500 ms"
        await asyncio.to_thread(worker.link._thread.join, WAIT_S)
        assert not worker.link._thread.is_alive()
        assert worker.hellos == 1


async def test_it_asks_for_a_new_address_and_goes_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        nowhere = f"127.0.0.1:{free.getsockname()[1]}"
        async with serving() as running, Worker(nowhere, resolved=running.address) as worker:
            await running.heard.events.of(WorkerHello)
            assert worker.link.endpoint == running.address
            assert worker.resolves.qsize() == 1
            assert worker.hellos == RESOLVE_AFTER + 1


async def test_it_tries_for_ever_and_survives_a_resolver_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        worker = Worker(f"127.0.0.1:{free.getsockname()[1]}")

        def fail() -> str | None:
            worker.resolves.put(None)
            raise OSError("the cluster does not answer")

        worker.link._resolve = fail
        async with worker:
            for _ in range(2):
                await got(worker.resolves)
            assert not worker.link.connected
            assert worker.link.disconnected_ms() > 0
        assert worker.hellos >= 2 * RESOLVE_AFTER
        assert "the cluster does not answer" in caplog.text


async def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        async with serving() as running, Worker(address, resolved=running.address, timeouts=HASTY):
            await running.heard.events.of(WorkerHello)


async def test_a_supervisor_that_falls_silent_behind_an_open_connection_is_left() -> None:
    async with serving() as running, relayed(running.port) as relay, Worker(relay.address, timeouts=HASTY) as worker:
        await running.heard.beats.first(lambda b: b.step >= 2)
        worker.resolved = running.address
        before = worker.hellos
        relay.frozen.set()
        await running.heard.events.first(lambda e: isinstance(e, WorkerHello) and e.pid > before)
        assert worker.link.endpoint == running.address


async def test_a_wrong_token_never_gets_in_and_keeps_trying() -> None:
    async with serving() as running, Worker(running.address, token="wrong") as worker:
        await got(worker.resolves)
        assert running.heard.events == []
        assert worker.refusals.empty()
        assert not worker.link.connected


async def test_close_says_what_waits_and_goodbye() -> None:
    async with serving() as running, Worker(running.address) as worker:
        await running.heard.events.of(WorkerHello)
        for step in range(1, 51):
            worker.link.report(committed(step))
        await asyncio.to_thread(worker.link.close, "told to end")
        event = await running.heard.events.of(WorkerDisconnected)
        assert event.detail == "it said goodbye: told to end"
        assert [e.step for e in running.heard.events if isinstance(e, StepCommitted)] == list(range(1, 51))
        assert not worker.link.connected
        worker.link.close()  # harmless


async def test_close_from_a_command_does_not_wait_for_itself() -> None:
    async with serving() as running:
        worker = Worker(running.address)
        worker.link._on_command = lambda command: worker.link.close(getattr(command, "why", ""))
        async with worker:
            await running.heard.events.of(WorkerHello)
            assert await running.hub.send(ExitWorker("w1", "enough"))
            event = await running.heard.events.of(WorkerDisconnected)
            assert event.detail == "it said goodbye: enough"


async def test_close_without_a_supervisor_is_bounded() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        async with Worker(f"127.0.0.1:{mute.getsockname()[1]}", timeouts=HASTY):
            pass  # leaving closes, and checks that the thread has ended


CHILD = """
import os, sys, threading
from tests.unit.adapters.grpc.support import TIMEOUTS, TOKEN, beat, hello
from orchestrator.adapters.grpc.link import GrpcLink
link = GrpcLink(worker_id="w1", endpoint=sys.argv[1], token=TOKEN, timeouts=TIMEOUTS, hello=lambda: hello("w1", pid=os.getpid()),
                pulse=lambda: beat("w1"), on_command=print, on_refused=print, resolve=lambda: None)
link.start()
threading.Event().wait(60)
"""


async def test_a_killed_process_is_seen_at_once() -> None:
    async with serving(timeouts=derive(int(4 * WAIT_S * 1000))) as running:  # whose keepalive comes when the wait is over
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, running.address)
        try:
            said = await running.heard.events.of(WorkerHello)
            assert said.pid == child.pid
            await running.heard.beats.first(lambda _: True)
            child.kill()
            event = await running.heard.events.of(WorkerDisconnected)
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        assert event.worker_id == "w1"
