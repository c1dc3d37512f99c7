"""The agent's picture of the cluster, from the news of its streams."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from orchestrator.adapters.kube.follow import Changed, Listed, Removed, Trouble
from orchestrator.adapters.kube.watching import Watching

Object = dict[str, Any]


class Nobody:
    """An API server that nobody asks: the news are the test's."""

    server = "https://nowhere"


@pytest.fixture
def watching() -> Watching:
    return Watching(
        Nobody(),  # type: ignore[arg-type]
        namespace="n",
        job="j",
        stop=threading.Event(),
        changed=lambda: None,
        detect_within_ms=4_000,
    )


def node(name: str, *, ready: str = "True") -> Object:
    """A Node."""
    return {"metadata": {"name": name, "uid": f"of-{name}"}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def pod(name: str, **status: str) -> Object:
    """A Pod on node a."""
    return {"metadata": {"name": name, "uid": f"of-{name}"}, "spec": {"nodeName": "a"}, "status": {"podIP": "10.0.0.1", **status}}


def test_the_picture_is_complete_once_everything_was_listed_and_while_nothing_is_away(watching: Watching) -> None:
    for tag in ("job", "pods", "nodes"):
        assert not watching.picture().complete
        watching._take(tag, Listed(()))
    assert watching.picture().complete
    watching._take("nodes", Trouble("no answer"))
    assert not watching.picture().complete
    watching._take("nodes", Trouble(""))
    assert watching.picture().complete


def test_a_pod_that_is_gone_is_remembered_as_it_was_in_the_end(watching: Watching) -> None:
    watching._take("pods", Listed((pod("p"), pod("q"))))
    watching._take("pods", Removed(pod("p", phase="Failed", reason="Evicted")))
    watching._take("pods", Listed(()))  # q went while the stream was broken
    assert [(p.name, p.gone, p.over) for p in watching.picture().pods] == [("q", True, ""), ("p", True, "Evicted")]


def test_only_facts_of_nodes_are_kept_and_the_newest(watching: Watching) -> None:
    watching._take("nodes", Listed((node("a"), node("b"))))
    watching._take("nodes", Changed(node("a", ready="Unknown")))
    watching._take("nodes", Removed(node("b")))
    picture = watching.picture()
    assert {name: seen.ready for name, seen in picture.nodes.items()} == {"a": "Unknown"}
    assert set(picture.unready_s) == {"a"}
    watching._take("nodes", Changed(node("a")))
    assert watching.picture().unready_s == {}
