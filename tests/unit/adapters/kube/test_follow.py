"""Lists and watches through what a server does to them; several at once; and Events in their order."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from orchestrator.adapters.kube.follow import Changed, Listed, News, Patience, Removed, Trouble, follow
from orchestrator.adapters.kube.refusals import ForbiddenError, GoneError
from orchestrator.adapters.kube.streams import Streams, newest
from orchestrator.runtime.control import ControlError, NotFoundError, UnreachableError

AWAY = UnreachableError("nobody answers")
PATIENCE = Patience(pause_s=0.25, pause_max_s=1.0, give_up_s=60.0, watch_s=1)
HASTE = Patience(pause_s=0.001, pause_max_s=0.001, give_up_s=60.0, watch_s=1)


def thing(name: str, version: int, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version), "labels": labels}}


def change(kind: str, item: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode()


class Script:
    """A server that answers from two scripts: lists, and streams of lines; an error in them is raised."""

    server = "https://example.org"

    def __init__(self, lists: Sequence[Any], streams: Sequence[Any]) -> None:
        self._lists, self._streams = list(lists), list(streams)
        self.listed: list[Mapping[str, str]] = []
        self.asked: list[Mapping[str, str]] = []

    def get(self, path: str, *, query: Mapping[str, str] | None = None) -> Any:
        """The next list."""
        self.listed.append(dict(query or {}))
        found = self._lists.pop(0)
        if isinstance(found, ControlError):
            raise found
        return found

    @contextmanager
    def lines(self, path: str, *, query: Mapping[str, str], quiet_s: float) -> Iterator[Iterator[bytes]]:
        """The next stream."""
        self.asked.append(query)
        found = self._streams.pop(0) if self._streams else AWAY
        if isinstance(found, ControlError):
            raise found
        yield self._told(found)

    def _told(self, found: Sequence[Any]) -> Iterator[bytes]:
        for item in found:
            if isinstance(item, ControlError):
                raise item
            yield item


class Stop(threading.Event):
    """Notes pauses and takes no time for them; set after so many."""

    def __init__(self, pauses: int) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._left = pauses

    def wait(self, timeout: float | None = None) -> bool:
        """A pause."""
        assert timeout is not None
        self.pauses.append(timeout)
        self._left -= 1
        if self._left <= 0:
            self.set()
        return self.is_set()


def told(server: Script, *, pauses: int) -> tuple[list[News], Stop]:
    stop = Stop(pauses)
    return list(follow(server, "/x", query={}, stop=stop, patience=PATIENCE)), stop


LIST = {"metadata": {"resourceVersion": "5"}, "items": [thing("a", 4)]}


def test_a_list_then_changes_and_a_stream_goes_on_where_it_ended() -> None:
    server = Script(
        [LIST],
        [[change("ADDED", thing("b", 6)), change("BOOKMARK", thing("", 9))], [change("DELETED", thing("a", 10))]],
    )
    news, _ = told(server, pauses=3)
    assert news[:3] == [Listed((thing("a", 4),)), Changed(thing("b", 6)), Removed(thing("a", 10))]
    assert [q["resourceVersion"] for q in server.asked] == ["5", "9", "10"]


def test_a_long_list_comes_in_pages_and_little_is_kept_of_it() -> None:
    def page(version: int, token: str, *names: str) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": str(version), "continue": token}, "items": [thing(name, 1) for name in names]}

    gone = GoneError("the continue token is too old")
    server = Script([page(5, "t1", "a", "b"), gone, page(7, "t2", "a", "b"), page(7, "", "c")], [[]])
    news = follow(
        server,
        "/x",
        query={"q": "1"},
        stop=Stop(2),
        patience=PATIENCE,
        page_max=2,
        trim=lambda o: {"name": o["metadata"]["name"]},
    )
    assert list(news) == [Listed(({"name": "a"}, {"name": "b"}, {"name": "c"}))]
    first = {"q": "1", "limit": "2"}
    assert server.listed == [first, {**first, "continue": "t1"}, first, {**first, "continue": "t2"}]
    assert (server.asked[0]["resourceVersion"], "limit" in server.asked[0]) == ("7", False)


def test_pauses_double_up_to_a_limit_and_trouble_is_told_once() -> None:
    server = Script([LIST], [[], AWAY, AWAY, AWAY, AWAY, []])
    news, stop = told(server, pauses=7)
    assert news == [Listed((thing("a", 4),)), Trouble("nobody answers"), Trouble(""), Trouble("nobody answers")]
    assert stop.pauses == [0.25, 0.25, 0.5, 1.0, 1.0, 0.25, 0.25]
    assert all(after <= 2 * before for before, after in pairwise(stop.pauses[1:5]))


@pytest.mark.parametrize("error", [ForbiddenError("no rights yet"), NotFoundError("no such kind yet")])
def test_a_server_that_has_just_started_may_refuse_for_a_moment(error: ControlError) -> None:
    news, _ = told(Script([LIST], [error, []]), pauses=2)
    assert news[1:] == [Trouble(str(error)), Trouble("")]


@pytest.mark.parametrize("error", [AWAY, ForbiddenError("no"), NotFoundError("no")])
def test_the_first_answer_is_believed(error: ControlError) -> None:
    with pytest.raises(type(error)):
        told(Script([error], []), pauses=5)


def test_a_version_too_old_is_listed_anew() -> None:
    gone = change("ERROR", {"code": 410, "message": "too old", "reason": "Expired"})
    again = {"metadata": {"resourceVersion": "20"}, "items": []}
    server = Script([LIST, again], [[gone], []])
    news, _ = told(server, pauses=2)
    assert news == [Listed((thing("a", 4),)), Listed(())]
    assert server.asked[1]["resourceVersion"] == "20"


def test_half_a_line_is_a_stream_that_was_cut_off() -> None:
    server = Script([LIST], [[change("ADDED", thing("b", 6)), change("ADDED", thing("c", 7))[:20]], []])
    news, _ = told(server, pauses=2)
    assert news[1:] == [Changed(thing("b", 6)), Trouble("the stream of /x ended in the middle of a line"), Trouble("")]
    assert [q["resourceVersion"] for q in server.asked] == ["5", "6"]


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr("orchestrator.adapters.kube.follow.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(UnreachableError, match="given up after 60 s"):
        told(Script([LIST], []), pauses=50)


def test_patience_follows_from_detect_within() -> None:
    patience = Patience.of(4_000)
    assert (patience.pause_s, patience.pause_max_s, patience.give_up_s, patience.watch_s) == (0.5, 3.5, 300.0, 30)
    assert Patience.of(1_000).give_up_s > 60  # the least that a job may have outlives an API server that is away for a minute


def test_several_are_read_by_one_and_an_error_ends_it() -> None:
    class Two(Script):
        def get(self, path: str, *, query: Mapping[str, str] | None = None) -> Any:
            if path == "/bad":
                raise NotFoundError("no such kind")
            return LIST

    with Streams(Two([], []), {"good": ("/good", {})}, patience=HASTE) as streams:
        assert streams.take(10) == ("good", Listed((thing("a", 4),)))
    with Streams(Two([], []), {"bad": ("/bad", {})}, patience=HASTE) as streams, pytest.raises(NotFoundError):
        streams.take(10)


def test_the_newest_of_several() -> None:
    assert newest([], key="n") is None
    found = newest([thing("a", 1, n="9"), thing("b", 1, n="10"), thing("c", 1)], key="n")
    assert found is not None
    assert found["metadata"]["name"] == "b"
