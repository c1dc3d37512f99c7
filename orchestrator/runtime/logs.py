"""What the workers of one job printed: a file for each, capped, rotated once, and followed by whoever asks.

Logs are for people and never influence the job: a disk that is full loses lines, says so once, and nothing else happens.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from orchestrator.runtime.ports import LogLine

FILE_BYTES_MAX = 8 * 1024 * 1024  # twice that per worker, with the rotated file
LINE_CHARS_MAX = 16_384
FOLLOW_MAX = 10_000  # lines that wait for one follower; older ones are left out
KEPT_MAX = 50_000  # lines that one tail returns of what is kept, the newest

_LINE = re.compile(r"(\S+) \[rank (-|\d+)\] ?(.*)")

log = logging.getLogger(__name__)


class WorkerLogs:
    """The log files in one folder. All methods belong to one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._followers: list[_Follower] = []
        self._broken = False
        self._closed = False

    def append(self, line: LogLine, *, wall_s: float) -> None:
        """Keep one line; returns soon and never raises for what the disk does."""
        text = line.text.rstrip("\r\n").replace("\r", " ").replace("\n", " ")[:LINE_CHARS_MAX]
        at = datetime.datetime.fromtimestamp(wall_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        rank = "-" if line.rank < 0 else str(line.rank)
        try:
            self._write(self._file(line.worker_id), f"{at} [rank {rank}] {text}\n".encode(errors="replace"))
        except OSError as error:
            if not self._broken:
                log.warning("lines of workers are lost: %s", error)
            self._broken = True
        for follower in self._followers:
            follower.put(line)

    async def tail(self, job: str, *, rank: int | None, follow: bool) -> AsyncGenerator[LogLine, None]:
        """Lines that are kept, in the order in which they came, then with `follow` new ones until `close`."""
        follower = _Follower() if follow and not self._closed else None
        if follower is not None:
            self._followers.append(follower)
        try:
            for line in self._kept(job):
                if rank is None or line.rank == rank:
                    yield line
            while follower is not None:
                for line in follower.take():
                    if rank is None or line.rank == rank:
                        yield line
                if self._closed:
                    return
                await follower.arrived.wait()
        finally:
            if follower is not None:
                self._followers.remove(follower)

    def close(self) -> None:
        """No more lines will come: end all followers."""
        self._closed = True
        for follower in self._followers:
            follower.arrived.set()

    def _file(self, worker_id: str) -> Path:
        name = worker_id.rpartition("/")[2]
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name, re.ASCII):
            raise OSError(f"no log file for a worker called {worker_id!r}")
        return self._folder / f"{name}.log"

    def _write(self, path: Path, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as file:
            file.write(data)
            full = file.tell() >= FILE_BYTES_MAX
        if full:
            os.replace(path, path.with_suffix(".log.1"))

    def _kept(self, job: str) -> list[LogLine]:
        lines: deque[tuple[str, int, LogLine]] = deque()
        for path in sorted(self._folder.glob("*.log")):
            for older_or_newer in (path.with_suffix(".log.1"), path):
                lines.extend(_read(older_or_newer, f"{job}/{path.stem}", len(lines)))
        newest = sorted(lines, key=lambda item: item[:2])[-KEPT_MAX:]
        return [line for _, _, line in newest]


class _Follower:
    """Lines on their way to one reader."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self._lines: deque[LogLine] = deque(maxlen=FOLLOW_MAX)

    def put(self, line: LogLine) -> None:
        self._lines.append(line)
        self.arrived.set()

    def take(self) -> list[LogLine]:
        lines = list(self._lines)
        self._lines.clear()
        self.arrived.clear()
        return lines


def _read(path: Path, worker_id: str, offset: int) -> Iterator[tuple[str, int, LogLine]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for number, raw in enumerate(text.split("\n")):
        match = _LINE.fullmatch(raw)
        if match:  # else half a line: the supervisor was killed while writing it
            at, rank, said = match.groups()
            yield at, offset + number, LogLine(worker_id, -1 if rank == "-" else int(rank), said)
