"""Virtual time: nothing waits, order is kept, and a deadlock is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from orchestrator.testkit.virtual_time import Stuck, Timeline, VirtualClock, VirtualLoop


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


@pytest.fixture
def loop(timeline: Timeline) -> Iterator[VirtualLoop]:
    loop = VirtualLoop(timeline)
    yield loop
    loop.close()


def test_an_hour_passes_at_once_and_in_order(timeline: Timeline, loop: VirtualLoop) -> None:
    seen: list[tuple[int, str]] = []
    clock = VirtualClock(timeline)

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((clock.now_ms(), name))

    async def main() -> None:
        await asyncio.gather(sleeper("hour", 3600), sleeper("tick", 0.05), sleeper("second", 1))

    timeline.after(500, lambda: seen.append((clock.now_ms(), "world")))
    loop.run_until_complete(main())
    assert seen == [(50, "tick"), (500, "world"), (1000, "second"), (3_600_000, "hour")]


def test_the_world_wakes_a_waiting_task_at_its_own_time(timeline: Timeline, loop: VirtualLoop) -> None:
    async def main() -> int:
        arrived = asyncio.Event()
        timeline.after(70, arrived.set)
        timeline.after(90, lambda: None)
        async with asyncio.timeout(5):
            await arrived.wait()
        return timeline.now_us

    assert loop.run_until_complete(main()) == 70_000


def test_time_outs_are_virtual(timeline: Timeline, loop: VirtualLoop) -> None:
    async def main() -> None:
        async with asyncio.timeout(2):
            await asyncio.sleep(10)

    with pytest.raises(TimeoutError):
        loop.run_until_complete(main())
    assert timeline.now_us == 2_000_000


def test_a_deadlock_is_an_error(loop: VirtualLoop) -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    task = loop.create_task(main())
    with pytest.raises(Stuck):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


def test_threads_are_refused(loop: VirtualLoop) -> None:
    with pytest.raises(AssertionError, match="thread"):
        loop.call_soon_threadsafe(lambda: None)


def test_playing_on_runs_what_falls_due(timeline: Timeline) -> None:
    seen: list[int] = []
    timeline.after(10, lambda: timeline.after(10, lambda: seen.append(timeline.now_us)))
    timeline.after(30, lambda: seen.append(-1))
    timeline.play(25)
    assert seen == [20_000]
    assert timeline.now_us == 25_000
