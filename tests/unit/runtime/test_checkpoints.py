"""The desk through which a supervisor looks at checkpoints: in threads, a few at a time, whoever waits or goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, ExportedModel, ExportType
from orchestrator.runtime.checkpoints import LOOKS_MAX, CheckpointDesk, place_of
from orchestrator.runtime.control import NotFoundError, NotPossibleError
from orchestrator.testkit.jobs import make_job


class FakeTools:
    """runtime.ports.CheckpointTools of a storage that answers when it is told to."""

    def __init__(self, *, open_: bool = True) -> None:
        self.gate = threading.Event()
        self.began = threading.Semaphore(0)
        self.threads: list[str] = []
        self.places: list[str] = []
        self.error: Exception | None = None
        if open_:
            self.gate.set()

    def list(self, uri: str) -> Sequence[CheckpointInfo]:
        self.places.append(uri)
        self.threads.append(threading.current_thread().name)
        self.began.release()
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        return ()

    def verify(self, uri: str, *, step: int | None) -> CheckpointVerdict:
        self.places.append(uri)
        raise NotFoundError(f"there is no checkpoint of step {step}")

    def export(self, uri: str, *, step: int | None, path: str, dtype: ExportType) -> ExportedModel:
        self.places.append(uri)
        return ExportedModel(path=path, job="j", step=step or 0, digest="d", tensors=1, size_bytes=4, dtype=dtype)


async def test_an_answer_comes_from_a_thread() -> None:
    tools = FakeTools()
    assert await CheckpointDesk(lambda: tools).ask(lambda t: t.list("/c")) == ()
    assert tools.threads == ["checkpoints"]


async def test_errors_are_those_of_the_control_api() -> None:
    tools = FakeTools()
    desk = CheckpointDesk(lambda: tools)
    with pytest.raises(NotFoundError, match="no checkpoint of step 7"):
        await desk.ask(lambda t: t.verify("/c", step=7))
    tools.error = PermissionError(13, "Permission denied", "/c")
    with pytest.raises(NotPossibleError, match=r"cannot be reached: .*Permission denied"):
        await desk.ask(lambda t: t.list("/c"))
    tools.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        await desk.ask(lambda t: t.list("/c"))


async def test_a_storage_that_hangs_takes_a_few_threads_and_no_more() -> None:
    tools = FakeTools(open_=False)
    desk = CheckpointDesk(lambda: tools)
    asked = [asyncio.create_task(desk.ask(lambda t: t.list("/c"))) for _ in range(LOOKS_MAX)]
    for _ in asked:
        assert await asyncio.to_thread(tools.began.acquire, timeout=60)
    with pytest.raises(NotPossibleError, match="under way"):
        await desk.ask(lambda t: t.list("/c"))
    asked[0].cancel()  # its caller has gone, its thread has not
    await asyncio.wait(asked[:1])
    with pytest.raises(NotPossibleError, match="under way"):
        await desk.ask(lambda t: t.list("/c"))
    tools.gate.set()
    assert await asked[1] == ()
    async with asyncio.timeout(60):
        while desk._under_way:  # noqa: ASYNC110 -- the abandoned thread tells nobody that it has ended
            await asyncio.sleep(0.001)
    assert await desk.ask(lambda t: t.list("/c")) == ()


def test_where_to_look() -> None:
    assert place_of(make_job(uri="/c"), "") == "/c"
    assert place_of(make_job(uri="/c"), "/d") == "/d"
    with pytest.raises(NotPossibleError, match="job j has no checkpoints"):
        place_of(make_job(), "")
