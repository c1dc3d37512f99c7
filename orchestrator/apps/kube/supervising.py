"""The agent's side of the supervisor: three streams (status, decisions, workers' lines) that are opened again whenever they
break.

A supervisor that is away for a while is normal (its head may just move to another node), so a break is said once and tried again
for as long as the agent lives. Decisions are handed on one by one, in order, and the next is read only when the one before is
told.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from orchestrator.adapters.files.home import write_atomically
from orchestrator.adapters.grpc.client import ControlClient
from orchestrator.core.supervisor.events import RankFinished
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.core.timeouts import derive
from orchestrator.runtime.control import ControlError, NotFoundError, UnreachableError
from orchestrator.runtime.ports import LogLine, Record
from orchestrator.runtime.status_types import JobStatus

T = TypeVar("T")

RETRY_MAX_S: Final = 5.0
SKIP_S: Final = 5.0  # lines that were kept arrive at once; what comes later is new
SAVE_LINES: Final = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of the supervisor now."""

    status: JobStatus | None
    reachable: bool
    over: bool  # every decision of a job that is over was told
    digest: str  # of the final state; "" before it is known


class Supervising:
    """`start` after the job was submitted or adopted; `heard()` whenever `changed` was called.

    `tell(record)` is called in a thread of its own for each record after `after_seq` and may block; `show(line)` for each line.
    """

    def __init__(
        self,
        client: ControlClient,
        *,
        job: str,
        after_seq: int,
        detect_within_ms: int,
        scratch: Path,
        stop: threading.Event,
        changed: Callable[[], None],
        tell: Callable[[Record], None],
        show: Callable[[LogLine], None],
    ) -> None:
        self._client = client
        self._job = job
        self._after_seq = after_seq
        self._pause_s = derive(detect_within_ms).probe_ms / 1000
        self._stop = stop
        self._changed = changed
        self._tell = tell
        self._lines = ShownLines(scratch / "agent-lines.json", show)
        self._lock = threading.Lock()  # guards everything below
        self._status: JobStatus | None = None
        self._reachable = True
        self._over = False
        self._digest = ""

    def start(self) -> None:
        """Begin to listen; returns at once."""
        for name, run in (("status", self._statuses), ("decisions", self._decisions), ("lines", self._tail)):
            threading.Thread(target=run, name=f"supervisor-{name}", daemon=True).start()

    def heard(self) -> Heard:
        """What is known now."""
        with self._lock:
            return Heard(self._status, self._reachable, self._over, self._digest)

    def close(self) -> None:
        """Write down what was shown."""
        self._lines.save()

    def _statuses(self) -> None:
        def take(status: JobStatus) -> bool:
            with self._lock:
                self._status, self._reachable = status, True
            self._changed()
            return status.phase.terminal

        self._again("status", lambda: self._client.watch_status(self._job), take)

    def _decisions(self) -> None:
        def take(record: Record) -> bool:
            self._note_digest(record)
            if record.reason and not self._stop.is_set():
                self._tell(record)
            self._after_seq = record.seq
            return JobPhase(record.phase).terminal

        def follow() -> Iterator[Record]:
            return self._client.watch_events(self._job, after_seq=self._after_seq, follow=True)

        self._again("decisions", follow, take)
        if not self._digest and not self._stop.is_set():  # it was told before this agent was there
            self._again("the digest", lambda: self._client.watch_events(self._job), self._note_digest)
        if not self._stop.is_set():
            with self._lock:
                self._over = True
            self._changed()

    def _note_digest(self, record: Record) -> bool:
        if isinstance(record.event, RankFinished):
            with self._lock:
                self._digest = record.event.digest
        return False

    def _tail(self) -> None:
        def follow() -> Iterator[LogLine]:
            self._lines.begin()
            return self._client.tail_logs(self._job, follow=True)

        def take(line: LogLine) -> bool:
            self._lines.take(line)
            return False

        self._again("lines", follow, take)

    def _again(self, what: str, follow: Callable[[], Iterator[T]], take: Callable[[T], bool]) -> None:
        """Follow until `take` says that it was the last, or the job is over when the stream ends."""
        pause_s = self._pause_s
        told = False
        while not self._stop.is_set():
            try:
                for item in follow():
                    if told:
                        log.info("the supervisor answers again (%s)", what)
                    told, pause_s = False, self._pause_s
                    if take(item):
                        return
                    if self._stop.is_set():
                        return
                if self._client.get(self._job).phase.terminal:
                    return
            except (UnreachableError, NotFoundError) as error:  # not found: it has not taken its jobs up yet
                if not told:
                    log.warning("%s", error)
                told = True
                if what == "status":
                    with self._lock:
                        self._reachable = False
            except ControlError as error:
                log.warning("%s: %s", what, error)
            self._stop.wait(pause_s)
            pause_s = min(RETRY_MAX_S, 2 * pause_s)


class ShownLines:
    """Shows each line of the workers once, though every stream begins with all that is kept: it counts them, by worker."""

    def __init__(self, path: Path, show: Callable[[LogLine], None], *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._show = show
        self._now_s = now_s
        self._shown: Counter[str] = Counter(_saved(path))
        self._skip: Counter[str] = Counter()
        self._began_s = 0.0
        self._unsaved = 0

    def begin(self) -> None:
        """A stream begins: what was shown comes again."""
        self._skip = Counter(self._shown)
        self._began_s = self._now_s()

    def take(self, line: LogLine) -> None:
        """One line of the stream."""
        if self._skip[line.worker_id] > 0 and self._now_s() - self._began_s < SKIP_S:
            self._skip[line.worker_id] -= 1
            return
        self._show(line)
        self._shown[line.worker_id] += 1
        self._unsaved += 1
        if self._unsaved >= SAVE_LINES:
            self.save()

    def save(self) -> None:
        """Write the counts down. A disk that is full only means that lines are shown again."""
        self._unsaved = 0
        try:
            write_atomically(self._path, json.dumps(self._shown), mode=0o600)
        except OSError as error:
            log.warning("which lines were shown cannot be written down: %s", error)


def _saved(path: Path) -> dict[str, int]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return {str(k): int(v) for k, v in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
