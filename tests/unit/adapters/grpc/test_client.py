"""The control client against a real server: every call, and every way to fail."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import pytest

from orchestrator.adapters.grpc.auth import bearer
from orchestrator.adapters.grpc.client import ControlClient
from orchestrator.adapters.grpc.pb.v1 import control_pb2, control_pb2_grpc
from orchestrator.core.supervisor.events import Fault
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.runtime.checkpoint_types import ExportType
from orchestrator.runtime.control import (
    BadRequestError,
    ControlError,
    Decided,
    NotFoundError,
    NotPossibleError,
    UnauthenticatedError,
    UnreachableError,
)
from orchestrator.testkit.jobs import make_job
from tests.unit.adapters.grpc.support import (
    CHECKPOINT,
    CLUSTER,
    EXPORTED,
    STATUS,
    TOKEN,
    VERDICT,
    WAIT_S,
    Running,
    record,
    serving,
)

T = TypeVar("T")

JOB = make_job(steps=10, zero_stage=1, copies=1)


async def ask(running: Running, question: Callable[[ControlClient], T], *, token: str = TOKEN) -> T:
    """Ask in a thread of its own, since the client blocks and the server lives on this loop."""

    def call() -> T:
        with ControlClient(address=running.address, token=token, timeout_ms=20_000) as client:
            return question(client)

    return await asyncio.to_thread(call)


async def test_every_call_arrives_and_is_answered() -> None:
    fault = Fault("hang", 1, "", 5, 0, 100)
    async with serving() as running:
        assert await ask(running, lambda c: c.submit(JOB, yaml_text="name: j")) == "j"
        assert await ask(running, lambda c: c.get("j")) == STATUS
        assert await ask(running, lambda c: c.list_jobs()) == (STATUS,)
        assert await ask(running, lambda c: list(c.watch_events(after_seq=1))) == [record(2), record(3)]
        phases = await ask(running, lambda c: [s.phase for s in c.watch_status("j")])
        assert phases == [JobPhase.RUNNING, JobPhase.SUCCEEDED]
        assert [line.text for line in await ask(running, lambda c: list(c.tail_logs()))] == ["zero", "one", "spare"]
        assert [line.text for line in await ask(running, lambda c: list(c.tail_logs(rank=0)))] == ["zero"]
        explained = await ask(running, lambda c: c.explain(seq=2))
        assert (explained.record, explained.lines) == (record(2), ("because",))
        await ask(running, lambda c: c.inject(fault=fault, who="me"))
        await ask(running, lambda c: c.drain(node_id="n1", who="me", why="maintenance"))
        assert await ask(running, lambda c: c.cluster()) == CLUSTER
        await ask(running, lambda c: c.shutdown(who="me"))
        assert running.control.calls == [
            ("submit", JOB, "name: j"),
            ("inject", fault, "me"),
            ("drain", "n1", "me", "maintenance"),
            ("shutdown", "me"),
        ]


async def test_changes_of_a_job_are_asked_for_and_answered_with_the_decision() -> None:
    async with serving() as running:
        drained = await ask(running, lambda c: c.drain(node_id="n1", who="me", why="maintenance"))
        assert drained == Decided(7, "drain by maintenance")
        assert await ask(running, lambda c: c.scale(nodes=3, layers_per_stage=(2, 1, 1), who="me")) == Decided(7, "scale by me")
        await ask(running, lambda c: c.scale("j", nodes=2, who="me"))
        await ask(running, lambda c: c.replace_worker(rank=0, who="me"))
        await ask(running, lambda c: c.replace_worker(worker_id="j/w3", who="me"))
        await ask(running, lambda c: c.take_checkpoint(who="me"))
        await ask(running, lambda c: c.node_gone(node_id="n1", who="me", evidence="its pod failed"))
        await ask(running, lambda c: c.suspend(who="me", why="the queue"))
        await ask(running, lambda c: c.go_on("j", who="me"))
        assert running.control.calls[-3:] == [
            ("node_gone", "n1", "me", "its pod failed"),
            ("suspend", "me", "the queue"),
            ("go_on", "me"),
        ]
        assert running.control.calls[1:-3] == [
            ("scale", 3, (2, 1, 1), "me"),
            ("scale", 2, (), "me"),
            ("replace", "", 0, "me"),
            ("replace", "j/w3", None, "me"),
            ("checkpoint", "me"),
        ]
        with pytest.raises(NotPossibleError, match="there are 4 nodes"):
            await ask(running, lambda c: c.scale(nodes=10, who="me"))


async def test_checkpoints_are_looked_at_through_the_supervisor() -> None:
    async with serving() as running:
        newest, oldest = await ask(running, lambda c: c.list_checkpoints("j"))
        assert newest == CHECKPOINT
        assert (oldest.step, oldest.complete, oldest.trouble) == (0, False, "it was never completed")
        assert await ask(running, lambda c: c.verify_checkpoint(uri="/c", step=0)) == VERDICT
        await ask(running, lambda c: c.verify_checkpoint())
        assert await ask(running, lambda c: c.export_checkpoint(path="/m", dtype=ExportType.BF16)) == EXPORTED
        assert running.control.calls == [
            ("verify", "/c", 0),
            ("verify", "", None),
            ("export", "", None, "/m", ExportType.BF16),
        ]


async def test_what_does_not_exist_is_not_found() -> None:
    async with serving() as running:
        questions: list[Callable[[ControlClient], Any]] = [
            lambda c: c.get("x"),
            lambda c: c.explain(seq=9),
            lambda c: list(c.watch_events("x")),
            lambda c: list(c.watch_status("x")),
            lambda c: list(c.tail_logs("x")),
            lambda c: c.scale("x", nodes=2, who="me"),
            lambda c: c.replace_worker("x", rank=0, who="me"),
            lambda c: c.take_checkpoint("x", who="me"),
            lambda c: c.list_checkpoints("x"),
            lambda c: c.verify_checkpoint("x"),
            lambda c: c.export_checkpoint("x", path="/m"),
        ]
        for question in questions:
            with pytest.raises(NotFoundError, match=r"no job named x|no record 9"):
                await ask(running, question)


async def test_a_bad_request_comes_back_with_its_whole_message() -> None:
    async with serving() as running:
        bad = dataclasses.replace(JOB, train=dataclasses.replace(JOB.train, steps=0))
        with pytest.raises(BadRequestError) as caught:
            await ask(running, lambda c: c.submit(bad, yaml_text=""))
        lines = str(caught.value).split("\n")
        assert len(lines) == 200
        assert lines[-1] == "line 199: impossible é"


async def test_nonsense_never_reaches_the_handler() -> None:
    async with serving() as running:
        questions: list[Callable[[ControlClient], Any]] = [
            lambda c: c.inject(fault=Fault("flood", 1, "", 0, 0, 0), who="me"),
            lambda c: c.inject(fault=Fault("hang", -1, "", 0, 0, 0), who="me"),
            lambda c: c.drain(node_id="", who="me"),
            lambda c: c.node_gone(node_id="", who="me", evidence="x"),
            lambda c: c.verify_checkpoint(step=-1),
            lambda c: c.export_checkpoint(path="/m", dtype="fp8"),  # type: ignore[arg-type] # another client could
            lambda c: list(c.tail_logs(rank=-1)),
            lambda c: list(c.watch_events(after_seq=-1)),
        ]
        for question in questions:
            with pytest.raises(BadRequestError):
                await ask(running, question)
        async with grpc.aio.insecure_channel(running.address) as channel:
            stub: Any = control_pb2_grpc.ControlServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.SubmitJob(control_pb2.SubmitJobRequest(job_json="{"), metadata=bearer(TOKEN))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert running.control.calls == []


async def test_what_is_impossible_now_says_so() -> None:
    async with serving() as running:
        with pytest.raises(NotPossibleError, match="the job is over"):
            await ask(running, lambda c: c.cancel(who="me"))


async def test_a_bug_of_the_supervisor_is_told_from_a_bad_request(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as running:
        with pytest.raises(ControlError, match="RuntimeError: a bug") as caught:
            await ask(running, lambda c: c.get())
        assert type(caught.value) is ControlError
        assert "Traceback" in caplog.text


async def test_a_wrong_token_is_said_without_showing_it() -> None:
    async with serving() as running:
        for question in (lambda c: c.get("j"), lambda c: list(c.watch_events())):
            with pytest.raises(UnauthenticatedError, match=running.address) as caught:
                await ask(running, question, token="wrong-token")
            assert "wrong-token" not in str(caught.value)


def test_nobody_at_the_address_is_said_with_the_address_and_what_to_do() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with ControlClient(address=address, token=TOKEN, timeout_ms=20_000) as client:
            with pytest.raises(UnreachableError, match=rf"{address}.*is it running"):
                client.get()
            with pytest.raises(UnreachableError, match=address):
                list(client.watch_events())


def test_a_supervisor_that_does_not_answer_is_not_waited_for_without_end() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with (
            ControlClient(address=address, token=TOKEN, timeout_ms=200) as client,
            pytest.raises(UnreachableError, match=r"did not answer within 0\.2 s"),
        ):
            client.get()


async def test_closing_a_watch_ends_it_on_the_supervisors_side() -> None:
    async with serving() as running:

        def look() -> int:
            with ControlClient(address=running.address, token=TOKEN) as client:
                records = client.watch_events(follow=True)
                first = next(records).seq
                records.close()  # type: ignore[attr-defined] # it is a generator
                return first

        assert await asyncio.to_thread(look) == 1
        async with asyncio.timeout(WAIT_S):
            await running.control.closed.wait()
