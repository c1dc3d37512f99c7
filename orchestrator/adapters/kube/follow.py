"""Lists objects and then follows their changes, through broken streams, a restarting API server and versions too old.

The first request may fail and then fails at once. Whoever is connected once is patient: each break is told as Trouble and tried
again until the API server has been away for longer than a limit. After a 410 everything is listed anew, so a follower must
expect to be told again what it knows.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from orchestrator.adapters.kube.access import DETECT_WITHIN_MS
from orchestrator.adapters.kube.api import failure
from orchestrator.adapters.kube.refusals import GoneError, refusal
from orchestrator.core.timeouts import derive
from orchestrator.runtime.control import ControlError, UnreachableError

Object: TypeAlias = Mapping[str, Any]  # one object of the API, as JSON

WAITING_MAX = 1_000  # changes that wait for the one who reads them


class Server(Protocol):
    """What is needed of an Access."""

    server: str

    def get(self, path: str, *, query: Mapping[str, str] | None = None) -> Any:
        """The JSON at a path."""
        ...

    def lines(self, path: str, *, query: Mapping[str, str], quiet_s: float) -> Any:
        """A context manager with a stream of lines."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to go on without an answer, in seconds."""

    pause_s: float  # between two tries
    give_up_s: float  # after the last answer
    watch_s: int  # one stream; then it is opened again where it ended

    @staticmethod
    def of(detect_within_ms: int) -> Patience:
        """That follows from a job's `detect_within`: as patient as a worker that hears of no supervisor."""
        limits = derive(detect_within_ms)
        return Patience(
            pause_s=limits.probe_ms * 2 / 1000, give_up_s=limits.orphan_ms / 1000, watch_s=max(1, limits.prove_ms // 2000)
        )


PATIENCE = Patience.of(DETECT_WITHIN_MS)


@dataclass(frozen=True, slots=True)
class Listed:
    """Everything that there is now."""

    objects: tuple[Object, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """One object came or changed."""

    object: Object


@dataclass(frozen=True, slots=True)
class Removed:
    """One object is gone."""

    object: Object


@dataclass(frozen=True, slots=True)
class Trouble:
    """There is no answer at the moment; empty: there is one again."""

    why: str


News: TypeAlias = Listed | Changed | Removed | Trouble


def follow(
    access: Server, path: str, *, query: Mapping[str, str], stop: threading.Event, patience: Patience = PATIENCE
) -> Iterator[News]:
    """What is at a path, then each change, until `stop` is set. Raises ControlError at once or when patience ends."""
    version = ""
    connected = False
    away_since_s: float | None = None
    while not stop.is_set():
        began_s = time.monotonic()
        try:
            if not version:
                found = access.get(path, query=query)
                version = str(found["metadata"]["resourceVersion"])
                connected, away_since_s, told = True, None, away_since_s is not None
                if told:
                    yield Trouble("")
                yield Listed(tuple(found.get("items") or ()))
            watch = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
            watch |= {"timeoutSeconds": str(patience.watch_s)}
            with access.lines(path, query={**query, **watch}, quiet_s=patience.watch_s * 2) as lines:
                if away_since_s is not None:
                    away_since_s = None
                    yield Trouble("")
                for line in lines:
                    change = json.loads(line)
                    seen = change["object"]
                    if change["type"] == "ERROR":
                        raise refusal(failure(int(seen.get("code", 500)), line), what=f"watch {path}", server=access.server)
                    version = str(seen["metadata"]["resourceVersion"])
                    if change["type"] == "DELETED":
                        yield Removed(seen)
                    elif change["type"] != "BOOKMARK":
                        yield Changed(seen)
                    if stop.is_set():
                        return
        except GoneError:
            version = ""
        except UnreachableError as error:
            if not connected:
                raise
            now_s = time.monotonic()
            if away_since_s is None:
                away_since_s = now_s
                yield Trouble(str(error))
            elif now_s - away_since_s > patience.give_up_s:
                raise UnreachableError(f"{error} (given up after {patience.give_up_s:.0f} s)") from None
        if time.monotonic() - began_s < patience.pause_s:
            stop.wait(patience.pause_s)


class Streams:
    """Several follows at once, each in a thread, read by one. Enter it, take from it, leave it."""

    def __init__(
        self, access: Server, paths: Mapping[str, tuple[str, Mapping[str, str]]], *, patience: Patience = PATIENCE
    ) -> None:
        """`paths`: a tag -> the path and its query."""
        self._stop = threading.Event()
        self._arrived: queue.Queue[tuple[str, News | BaseException]] = queue.Queue(WAITING_MAX)
        self._threads = [
            threading.Thread(target=self._read, args=(tag, access, path, query, patience), name=f"follow-{tag}", daemon=True)
            for tag, (path, query) in paths.items()
        ]

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def take(self, timeout_s: float) -> tuple[str, News] | None:
        """The next news and its tag, None when the time is up. Raises what ended one of the follows."""
        try:
            tag, news = self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(news, BaseException):
            raise news
        return tag, news

    def _read(self, tag: str, access: Server, path: str, query: Mapping[str, str], patience: Patience) -> None:
        try:
            for news in follow(access, path, query=query, stop=self._stop, patience=patience):
                self._put(tag, news)
        except ControlError as error:
            self._put(tag, error)
        except Exception as error:  # a bug of ours must end the one who waits, too
            self._put(tag, error)

    def _put(self, tag: str, news: News | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._arrived.put((tag, news), timeout=1)
                return
            except queue.Full:
                continue


def newest(objects: Sequence[Object], *, key: str) -> Object | None:
    """The object whose label `key` holds the highest number."""
    return max(objects, key=lambda o: int((o["metadata"].get("labels") or {}).get(key, -1)), default=None)
