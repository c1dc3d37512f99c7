"""Lists objects and then follows their changes, through broken streams, a restarting API server and versions too old.

The first request may fail and then fails at once. Whoever is connected once is patient: each break is told as Trouble and tried
again until the API server has been away for longer than a limit. After a 410 everything is listed anew, so a follower must
expect to be told again what it knows.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from orchestrator.adapters.kube.api import failure
from orchestrator.adapters.kube.refusals import ForbiddenError, GoneError, refusal
from orchestrator.core.timeouts import DETECT_WITHIN_MS, derive
from orchestrator.runtime.control import NotFoundError, UnauthenticatedError, UnreachableError

Object: TypeAlias = Mapping[str, Any]  # one object of the API, as JSON

# An API server that has just started knows neither rights nor custom kinds for a moment, so a refusal of what was granted before
# is taken as its absence.
PASSING = (UnreachableError, ForbiddenError, UnauthenticatedError, NotFoundError)


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

    pause_s: float  # before the second try; each further pause is twice as long
    pause_max_s: float
    give_up_s: float  # after the last answer
    watch_s: int  # one stream; then it is opened again where it ended

    @staticmethod
    def of(detect_within_ms: int) -> Patience:
        """That follows from a job's `detect_within`: as patient as a worker that hears of no supervisor."""
        limits = derive(detect_within_ms)
        return Patience(
            pause_s=limits.probe_ms * 2 / 1000,
            pause_max_s=limits.lost_ms / 1000,
            give_up_s=limits.orphan_ms / 1000,
            watch_s=max(1, limits.prove_ms // 2000),
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
    access: Server,
    path: str,
    *,
    query: Mapping[str, str],
    stop: threading.Event,
    patience: Patience = PATIENCE,
    page_max: int = 0,
    trim: Callable[[Object], Object] = lambda found: found,
) -> Iterator[News]:
    """What is at a path, then each change, until `stop` is set. Raises ControlError at once or when patience ends.

    For lists too long to be held whole: `page_max` objects are asked for at a time (0: all), and `trim` leaves what is kept of
    each.
    """
    version = ""
    connected = False
    away_since_s: float | None = None
    pause_s = patience.pause_s
    while not stop.is_set():
        began_s = time.monotonic()
        try:
            if not version:
                objects, version = _list(access, path, query=query, page_max=page_max, trim=trim)
                connected, away_since_s, told = True, None, away_since_s is not None
                if told:
                    yield Trouble("")
                yield Listed(objects)
            watch = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
            watch |= {"timeoutSeconds": str(patience.watch_s)}
            with access.lines(path, query={**query, **watch}, quiet_s=patience.watch_s * 2) as lines:
                pause_s = patience.pause_s
                if away_since_s is not None:
                    away_since_s = None
                    yield Trouble("")
                for line in lines:
                    change = _change(line, path)
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
        except PASSING as error:
            if not connected:
                raise
            now_s = time.monotonic()
            if away_since_s is None:
                away_since_s = now_s
                yield Trouble(str(error))
            elif now_s - away_since_s > patience.give_up_s:
                raise UnreachableError(f"{error} (given up after {patience.give_up_s:.0f} s)") from None
            stop.wait(pause_s)
            pause_s = min(patience.pause_max_s, 2 * pause_s)
            continue
        if time.monotonic() - began_s < patience.pause_s:
            stop.wait(patience.pause_s)


def _list(
    access: Server, path: str, *, query: Mapping[str, str], page_max: int, trim: Callable[[Object], Object]
) -> tuple[tuple[Object, ...], str]:
    """All objects, and the version of the list: every page is of the same one."""
    asked = {**query, "limit": str(page_max)} if page_max else dict(query)
    objects: list[Object] = []
    while True:
        found = access.get(path, query=asked)
        objects += map(trim, found.get("items") or ())
        meta = found["metadata"]
        if not meta.get("continue"):
            return tuple(objects), str(meta["resourceVersion"])
        asked["continue"] = str(meta["continue"])


def _change(line: bytes, path: str) -> Any:
    """One line of a watch. Raises UnreachableError for half a line, which is how a proxy ends a stream that it cuts off."""
    try:
        return json.loads(line)
    except ValueError:
        raise UnreachableError(f"the stream of {path} ended in the middle of a line") from None
