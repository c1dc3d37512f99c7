"""The agent's picture of the cluster: from the news of its streams, and from an API server whose answers the test decides."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from orchestrator.adapters.kube.follow import Changed, Listed, Removed, Trouble
from orchestrator.adapters.kube.gate import Gate
from orchestrator.adapters.kube.watching import BEGIN_MAX, Picture, Watching
from orchestrator.runtime.control import UnreachableError

Object = dict[str, Any]
LIMIT_S = 20.0


def node(name: str, *, ready: str = "True") -> Object:
    """A Node."""
    meta = {"name": name, "uid": f"of-{name}", "resourceVersion": "2"}
    return {"metadata": meta, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def pod(name: str, *, on: str = "a", **status: str) -> Object:
    """A Pod on a node."""
    meta = {"name": name, "uid": f"of-{name}", "resourceVersion": "2"}
    return {"metadata": meta, "spec": {"nodeName": on}, "status": {"podIP": "10.0.0.1", **status}}


class Fake:
    """An API server: lists what it has, streams what the test tells, and may be away."""

    server = "https://nowhere"

    def __init__(self, *, pods: list[Object], nodes: list[Object]) -> None:
        self.pods, self.nodes = pods, nodes
        self.away = False
        self.listed: list[tuple[str, str]] = []  # plural and field selector
        self.streams: dict[tuple[str, str], queue.Queue[bytes | None]] = {}

    def get(self, path: str, *, query: Mapping[str, str] | None = None) -> Any:
        """A list."""
        kind, selector = self._what(path, query or {})
        if self.away:
            raise UnreachableError("nobody answers")
        self.listed.append((kind, selector))
        name = selector.removeprefix("metadata.name=")
        found = {"pods": self.pods, "nodes": self.nodes}.get(kind, [])
        items = [o for o in found if not name or o["metadata"]["name"] == name]
        return {"metadata": {"resourceVersion": "1"}, "items": items}

    @contextmanager
    def lines(self, path: str, *, query: Mapping[str, str], quiet_s: float) -> Iterator[Iterator[bytes]]:
        """A stream that goes on until it is told None."""
        if self.away:
            raise UnreachableError("nobody answers")
        told = self.streams[self._what(path, query)] = queue.Queue()

        def read() -> Iterator[bytes]:
            while (line := told.get()) is not None:
                yield line
            raise UnreachableError("the connection was reset")

        yield read()

    def tell(self, kind: str, change: str, found: Object, *, selector: str = "") -> None:
        """A change, in the stream of this kind and selector, as soon as it is there."""
        until(lambda: (kind, selector) in self.streams)
        self.streams[kind, selector].put(json.dumps({"type": change, "object": found}).encode())

    def leave(self) -> None:
        """All streams break, and nobody answers."""
        self.away = True
        for told in self.streams.values():
            told.put(None)
        self.streams.clear()

    @staticmethod
    def _what(path: str, query: Mapping[str, str]) -> tuple[str, str]:
        return path.rpartition("/")[2], query.get("fieldSelector", "")


def until(true: Callable[[], bool]) -> None:
    """Wait for the threads."""
    due_s = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < due_s
        time.sleep(0.005)


def made(server: Any, *, stop: threading.Event, each_max: int = 64) -> Watching:
    """A picture of what this server tells."""
    return Watching(
        server,
        namespace="n",
        job="j",
        stop=stop,
        changed=lambda: None,
        detect_within_ms=500,
        each_max=each_max,
        chance=lambda: 0.0,
    )


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def watching(stop: threading.Event) -> Watching:
    """One that nobody starts: the news are the test's."""
    return made(Fake(pods=[], nodes=[]), stop=stop)


def readiness(picture: Picture) -> dict[str, str | None]:
    """Of the nodes that are known."""
    return {name: None if found is None else found.ready for name, found in picture.nodes.items()}


def test_the_picture_is_complete_once_job_and_pods_were_listed_and_while_neither_is_away(watching: Watching) -> None:
    for tag in ("job", "pods"):
        assert not watching.picture().complete
        watching._take(tag, Listed(()))
    assert watching.picture().complete
    watching._take("pods", Trouble("no answer"))
    assert not watching.picture().complete
    watching._take("pods", Trouble(""))
    assert watching.picture().complete


def test_a_pod_that_is_gone_is_remembered_as_it_was_in_the_end(watching: Watching) -> None:
    watching._take("pods", Listed((pod("p", on=""), pod("q", on=""))))
    watching._take("pods", Removed(pod("p", on="", phase="Failed", reason="Evicted")))
    watching._take("pods", Listed(()))  # q went while the stream was broken
    assert [(p.name, p.gone, p.over) for p in watching.picture().pods] == [("q", True, ""), ("p", True, "Evicted")]
    watching._take("pods", Changed(pod("r", on="")))
    assert [p.name for p in watching.picture().pods] == ["r", "q", "p"]


def test_only_nodes_of_its_own_pods_are_asked_for_and_each_by_its_name(stop: threading.Event) -> None:
    server = Fake(pods=[pod("p", on="a")], nodes=[node("a"), node("b", ready="Unknown"), node("foreign")])
    watching = made(server, stop=stop)
    watching.start()
    until(lambda: readiness(watching.picture()) == {"a": "True"})
    server.tell("pods", "ADDED", pod("q", on="b"))
    until(lambda: readiness(watching.picture()) == {"a": "True", "b": "Unknown"})
    assert set(watching.picture().unready_s) == {"b"}
    server.tell("nodes", "MODIFIED", node("b"), selector="metadata.name=b")
    until(lambda: readiness(watching.picture()) == {"a": "True", "b": "True"})
    server.tell("pods", "DELETED", pod("p", on="a"))
    until(lambda: readiness(watching.picture()) == {"b": "True"})
    assert [selector for kind, selector in server.listed if kind == "nodes"] == ["metadata.name=a", "metadata.name=b"]


def test_a_node_that_was_deleted_while_the_api_server_was_away_is_missed_by_nobody(
    stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    server = Fake(pods=[pod("p", on="a"), pod("q", on="b")], nodes=[node("a"), node("b")])
    watching = made(server, stop=stop)
    with caplog.at_level(logging.INFO, logger="orchestrator.adapters.kube.watching"):
        watching.start()
        until(lambda: readiness(watching.picture()) == {"a": "True", "b": "True"})
        until(lambda: len(server.streams) == 4)
        server.leave()
        until(lambda: watching.picture().nodes == {} and not watching.picture().complete)
        server.nodes = [node("b")]
        server.away = False
        server.tell("nodes", "DELETED", node("a"), selector="metadata.name=a")
        until(lambda: readiness(watching.picture()) == {"a": None, "b": "True"} and watching.picture().complete)
        until(lambda: "following nodes again" in caplog.messages)
    assert len([m for m in caplog.messages if m.startswith("following nodes: ")]) == 1, "not for each of many nodes"
    assert server.listed.count(("nodes", "metadata.name=a")) == 2, "the removal is believed when a list says so"


def test_a_job_on_many_nodes_follows_all_in_one_stream(stop: threading.Event) -> None:
    homes = [f"n{i}" for i in range(3)]
    server = Fake(pods=[pod(f"p{n}", on=n) for n in homes], nodes=[node("n0"), node("n1"), node("foreign")])
    watching = made(server, stop=stop, each_max=2)
    watching.start()
    until(lambda: readiness(watching.picture()) == {"n0": "True", "n1": "True", "n2": None})
    assert [selector for kind, selector in server.listed if kind == "nodes"] == ["", "metadata.name=n2"]
    server.tell("nodes", "MODIFIED", node("n0", ready="False"))
    until(lambda: readiness(watching.picture()) == {"n0": "False", "n1": "True", "n2": None})


def test_threads_end_with_what_they_follow(stop: threading.Event) -> None:
    before = threading.active_count()
    server = Fake(pods=[pod("p", on="a")], nodes=[node("a")])
    watching = made(server, stop=stop)
    watching.start()
    until(lambda: readiness(watching.picture()) == {"a": "True"} and len(server.streams) == 3)
    server.tell("pods", "DELETED", pod("p", on="a"))
    until(lambda: watching.picture().nodes == {})
    server.streams["nodes", "metadata.name=a"].put(None)  # as each stream ends by its own time-out
    until(lambda: threading.active_count() == before + 2)
    stop.set()
    server.leave()
    until(lambda: threading.active_count() == before)


def test_each_stream_of_a_node_has_its_own_rhythm_and_is_no_slower_than_the_others(watching: Watching) -> None:
    usual = watching._patience
    for chance in (0.0, 0.5, 0.999):
        watching._chance = lambda chance=chance: chance  # type: ignore[misc]
        own = watching._own_rhythm()
        assert usual.pause_s / 2 <= own.pause_s <= usual.pause_s
        assert usual.pause_max_s / 2 <= own.pause_max_s <= usual.pause_max_s
        assert 1 <= own.watch_s <= usual.watch_s
        assert own.pause_s != usual.pause_s


def test_only_so_many_are_begun_at_once_and_a_stream_that_runs_holds_no_place() -> None:
    at_once, most, lock, go = 0, 0, threading.Lock(), threading.Event()

    class Slow:
        server = "https://nowhere"

        def _begin(self) -> None:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            assert go.wait(LIMIT_S)
            with lock:
                at_once -= 1

        def get(self, path: str, *, query: Mapping[str, str] | None = None) -> Any:
            self._begin()

        @contextmanager
        def lines(self, path: str, *, query: Mapping[str, str], quiet_s: float) -> Iterator[list[bytes]]:
            self._begin()
            yield []

    gate, running, ended = Gate(Slow(), at_once=BEGIN_MAX), threading.Semaphore(0), threading.Event()

    def follower() -> None:
        gate.get("/x")
        with gate.lines("/x", query={}, quiet_s=1.0):
            running.release()
            ended.wait(LIMIT_S)

    threads = [threading.Thread(target=follower) for _ in range(3 * BEGIN_MAX)]
    for thread in threads:
        thread.start()
    until(lambda: at_once == BEGIN_MAX)
    go.set()
    assert all(running.acquire(timeout=LIMIT_S) for _ in threads), "all run at the same time"
    ended.set()
    for thread in threads:
        thread.join()
    assert most == BEGIN_MAX
