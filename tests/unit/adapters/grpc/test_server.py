"""The server as a stranger sees it: token, health, reflection, bad streams, ports, stopping."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from orchestrator.adapters.grpc.auth import TokenInterceptor, bearer
from orchestrator.adapters.grpc.convert import LogLines, Stacks
from orchestrator.adapters.grpc.hub import WorkerHub
from orchestrator.adapters.grpc.pb.v1 import control_pb2, control_pb2_grpc, worker_pb2, worker_pb2_grpc
from orchestrator.adapters.grpc.server import SERVICES, SupervisorServer
from orchestrator.core.supervisor.commands import DumpStacks, FenceEpoch
from orchestrator.core.supervisor.events import EpochReady, WorkerDisconnected
from orchestrator.runtime.ports import LogLine, Welcome
from tests.unit.adapters.grpc.support import (
    TIMEOUTS,
    TOKEN,
    WAIT_S,
    FakeControl,
    Heard,
    StepClock,
    beat,
    hello,
    raw_worker,
    serving,
)

WRONG: list[Any] = [
    (),
    (("authorization", ""),),
    (("authorization", TOKEN),),
    (("authorization", f"Bearer {TOKEN}x"),),
    (("authorization", f"Bearer {TOKEN[:-1]}"),),
    (("authorization", f"bearer {TOKEN}"),),
    (("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer other")),
    (("token", TOKEN),),
]


@pytest.mark.parametrize("metadata", WRONG)
async def test_without_the_token_every_kind_of_call_is_refused(metadata: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with serving() as running, grpc.aio.insecure_channel(running.address) as channel:
        control: Any = control_pb2_grpc.ControlServiceStub(channel)
        worker: Any = worker_pb2_grpc.WorkerServiceStub(channel)
        reflect: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        calls = [
            control.GetJob(control_pb2.GetJobRequest(name="j"), metadata=metadata),
            control.WatchEvents(control_pb2.WatchEventsRequest(name="j"), metadata=metadata),
            worker.Connect(metadata=metadata),  # refused before it says a word
            reflect.ServerReflectionInfo(metadata=metadata),
        ]
        for call in calls:
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
            assert TOKEN not in await call.details()
        assert running.heard.events == []
        assert TOKEN not in caplog.text


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ValueError, match="everybody"):
        TokenInterceptor("")


async def test_health_needs_no_token_and_says_serving() -> None:
    async with serving() as running, grpc.aio.insecure_channel(running.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, service


async def test_reflection_lists_the_services() -> None:
    async with serving() as running, grpc.aio.insecure_channel(running.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(metadata=bearer(TOKEN))
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        await call.done_writing()
        names = {s.name for s in answer.list_services_response.service}
        assert {"orchestrator.v1.WorkerService", "orchestrator.v1.ControlService", "grpc.health.v1.Health"} <= names
        call.cancel()


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (worker_pb2.WorkerMessage(), "no kind"),
        (worker_pb2.WorkerMessage(beat=worker_pb2.Beat()), "must be a hello, not Beat"),
        (worker_pb2.WorkerMessage(epoch_ready=worker_pb2.EpochReady(epoch=-3)), "less than 0"),
        (worker_pb2.WorkerMessage(goodbye=worker_pb2.Goodbye()), "must be a hello, not Goodbye"),
    ],
)
async def test_a_stream_that_does_not_begin_with_a_hello_is_invalid(first: worker_pb2.WorkerMessage, words: str) -> None:
    async with serving() as running:
        worker = await raw_worker(running.address, "w1")
        await worker.call.write(first)
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await worker.hear()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert running.heard.events == []
        await worker.cut()


async def test_a_message_that_makes_no_sense_ends_the_stream_and_is_told() -> None:
    async with serving() as running:
        worker = await raw_worker(running.address, "w1")
        await worker.say(hello("w1"))
        await worker.hear()
        await worker.call.write(worker_pb2.WorkerMessage(epoch_ready=worker_pb2.EpochReady(epoch=-3)))
        with pytest.raises(grpc.aio.AioRpcError, match="less than 0") as caught:
            await worker.hear()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        event = await running.heard.events.of(WorkerDisconnected)
        assert "less than 0" in event.detail
        assert running.hub.connected == ()
        await worker.cut()


async def test_a_second_hello_is_invalid() -> None:
    async with serving() as running:
        worker = await raw_worker(running.address, "w1")
        await worker.say(hello("w1"))
        await worker.hear()
        await worker.say(hello("w1"))
        with pytest.raises(grpc.aio.AioRpcError, match="second hello"):
            await worker.hear()
        await worker.cut()


async def test_the_drivers_refusal_is_passed_on() -> None:
    async with serving(heard=Heard(refusal="w1 is no worker of this job")) as running:
        worker = await raw_worker(running.address, "w1")
        await worker.say(hello("w1"))
        assert await worker.hear() == Welcome(False, "w1 is no worker of this job", 0)
        assert await worker.hear() is None
        assert running.heard.events == []
        await worker.cut()


async def test_beats_lines_and_stacks_go_where_they_belong() -> None:
    async with serving() as running:
        worker = await raw_worker(running.address, "w1")
        await worker.say(hello("w1"))
        await worker.say(beat("w1", 4))
        lines = (LogLine("w1", 2, "one"), LogLine("w1", 2, "two"))
        await worker.say(LogLines(lines))
        await worker.say(Stacks("Thread 1"))
        assert await running.heard.stacks.first(lambda _: True) == ("w1", "Thread 1")
        assert tuple(running.heard.lines) == lines
        assert list(running.heard.beats) == [beat("w1", 4)]
        await worker.cut()


async def test_a_worker_that_does_not_read_is_cut_off() -> None:
    async with serving(queue_max=3) as running:
        worker = await raw_worker(running.address, "w1")
        await worker.say(hello("w1"))
        await worker.hear()
        # no await between them lets the writer run: as if the worker's window were full
        sent = [running.hub.send(FenceEpoch("w1", n)) for n in range(5)]
        results = []
        for coroutine in sent:
            try:
                coroutine.send(None)
            except StopIteration as done:
                results.append(done.value)
        assert results == [True, True, True, False, False]
        event = await running.heard.events.of(WorkerDisconnected)
        assert "unread" in event.detail
        assert running.hub.connected == ()
        await worker.cut()


async def test_a_port_is_never_shared() -> None:
    async with serving() as running:
        hub = WorkerHub(clock=StepClock(), timeouts=TIMEOUTS)
        other = SupervisorServer(hub=hub, control=FakeControl(), token=TOKEN, timeouts=TIMEOUTS)
        with pytest.raises(OSError, match=f"127.0.0.1:{running.port}"):
            await other.start(port=running.port)
        await other.stop()


async def test_it_listens_on_loopback_and_says_the_real_port() -> None:
    async with serving() as running:
        host, _, port = running.address.rpartition(":")
        assert host == "127.0.0.1"
        assert int(port) > 0


async def test_stopping_is_bounded_ends_streams_and_blames_nobody() -> None:
    async with serving() as running:
        worker = await raw_worker(running.address, "w1")
        await worker.say(hello("w1"))
        await worker.hear()
        channel = grpc.aio.insecure_channel(running.address)
        control: Any = control_pb2_grpc.ControlServiceStub(channel)
        watch = control.WatchEvents(control_pb2.WatchEventsRequest(follow=True), metadata=bearer(TOKEN))
        assert [(await watch.read()).seq for _ in range(3)] == [1, 2, 3]
        await running.control.watching.wait()
        async with asyncio.timeout(WAIT_S):
            await running.server.stop(grace_ms=50)
        assert await worker.hear() is None
        assert await watch.code() is not grpc.StatusCode.OK
        async with asyncio.timeout(WAIT_S):
            await running.control.closed.wait()  # the handler's generator was closed
        assert not [e for e in running.heard.events if isinstance(e, WorkerDisconnected)]
        assert not await running.hub.send(DumpStacks("w1"))
        await channel.close(None)
        await worker.cut()


async def test_events_are_stamped_when_they_are_heard() -> None:
    async with serving() as running:
        worker = await raw_worker(running.address, "w1")
        await worker.say(hello("w1", at_ms=999_999))
        await worker.say(EpochReady(999_999, "w1", 1))
        ready = await running.heard.events.of(EpochReady)
        assert [e.at_ms for e in running.heard.events] == sorted(e.at_ms for e in running.heard.events)
        assert 1000 < ready.at_ms < 1100
        await worker.cut()
