"""Workers' lines on disk and on their way to a follower; and the tee that copies what is printed."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

import pytest

from orchestrator.runtime import logs as logs_module
from orchestrator.runtime.logs import WorkerLogs
from orchestrator.runtime.ports import LogLine
from orchestrator.runtime.tee import LineTee


def line(n: int, *, worker: int = 0, rank: int = 0) -> LogLine:
    return LogLine(f"j/w{worker}", rank, f"line {n}")


async def tailed(logs: WorkerLogs, *, rank: int | None = None) -> list[LogLine]:
    return [item async for item in logs.tail("j", rank=rank, follow=False)]


async def test_lines_of_all_workers_come_back_in_the_order_of_their_time(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path)
    said = [line(n, worker=n % 3, rank=n % 3 - 1) for n in range(12)]
    for n, item in enumerate(said):
        logs.append(item, wall_s=1_700_000_000 + n)
    assert await tailed(logs) == said
    assert await tailed(logs, rank=1) == [item for item in said if item.rank == 1]
    assert await tailed(WorkerLogs(tmp_path)) == said  # another supervisor


async def test_a_file_is_rotated_once_and_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "FILE_BYTES_MAX", 1_000)
    logs = WorkerLogs(tmp_path)
    for n in range(200):
        logs.append(line(n), wall_s=1_700_000_000 + n)
    with os.scandir(tmp_path) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert set(sizes) <= {"w0.log", "w0.log.1"}
    assert sum(sizes.values()) < 2_200
    kept = await tailed(logs)
    assert kept == [line(n) for n in range(200 - len(kept), 200)]
    assert len(kept) > 10


async def test_a_follower_gets_what_is_kept_then_what_comes_and_ends_with_the_job(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path)
    logs.append(line(0), wall_s=1.0)
    seen: list[LogLine] = []
    first = asyncio.Event()

    async def follow() -> None:
        async for item in logs.tail("j", rank=None, follow=True):
            seen.append(item)
            first.set()

    task = asyncio.create_task(follow())
    await first.wait()
    for n in (1, 2, 3):
        logs.append(line(n), wall_s=1.0 + n)
    logs.close()
    await task
    assert seen == [line(n) for n in range(4)]
    assert [item async for item in logs.tail("j", rank=None, follow=True)] == seen


async def test_a_line_with_line_ends_or_of_any_length_stays_one_line(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path)
    for text in ("a\nb\r\n", "", "  [rank 3] x", "é" * 100_000, "\ud800"):
        logs.append(LogLine("j/w0", 2, text), wall_s=1.0)
    texts = [item.text for item in await tailed(logs)]
    assert texts == ["a b", "", "  [rank 3] x", "é" * logs_module.LINE_CHARS_MAX, "?"]


async def test_a_disk_without_room_loses_lines_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    logs = WorkerLogs(tmp_path / "logs")
    for n in range(3):
        logs.append(line(n), wall_s=1.0)
    assert caplog.text.count("lines of workers are lost") == 1


async def test_a_worker_id_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path / "logs")
    logs.append(LogLine("j/..", 0, "x"), wall_s=1.0)
    logs.append(LogLine("j/a.b", 0, "x"), wall_s=1.0)
    assert not (tmp_path / "logs").exists()


def test_the_tee_passes_whole_lines_on_and_prints_as_before() -> None:
    inner, lines = io.StringIO(), list[str]()
    tee = LineTee(inner, lines.append)
    for text in ("a", "b\nc\n", "\n", "rest"):
        print(text, end="", file=tee)
    assert lines == ["ab", "c", ""]
    assert inner.getvalue() == "ab\nc\n\nrest"


def test_a_listener_that_prints_itself_is_not_told_of_that() -> None:
    inner, lines = io.StringIO(), list[str]()

    def listen(text: str) -> None:
        lines.append(text)
        print(f"heard {text}", file=tee)

    tee = LineTee(inner, listen)
    print("a", file=tee)
    assert lines == ["a"]
    assert inner.getvalue() == "a\nheard a\n"


def test_a_line_without_end_is_passed_on_in_pieces() -> None:
    lines: list[str] = []
    tee = LineTee(io.StringIO(), lines.append)
    tee.write("x" * 20_000)
    assert [len(text) for text in lines] == [8_192, 8_192]
