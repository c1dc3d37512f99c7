"""Which nodes an agent follows, and what it may conclude: from bindings and news alone, without a thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.adapters.kube.follow import Changed, Listed, Removed, Trouble
from orchestrator.adapters.kube.notices import PodSeen
from orchestrator.adapters.kube.own_nodes import ALL, Follower, OwnNodes

LIMIT = 4


def node(name: str, *, ready: str = "True") -> dict[str, Any]:
    """A Node."""
    return {"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def pods(*nodes: str, first: int = 0, **more: Any) -> list[PodSeen]:
    """A pod on each of these nodes; they are other pods with another `first`."""
    return [PodSeen(f"p{i}", f"u{i}", "10.0.0.1", name, "", **{"over": "", **more}) for i, name in enumerate(nodes, first)]


class Play:
    """OwnNodes, its followers in the order of their begin, and a clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.begun: list[Follower] = []
        self.nodes = OwnNodes(self.begun.append, each_max=LIMIT, now_s=lambda: self.now_s)

    @property
    def live(self) -> dict[str, Follower]:
        """The followers that were not ended, by name; one of each."""
        found = [f for f in self.begun if not f.stop.is_set()]
        assert len({f.name for f in found}) == len(found)
        return {f.name: f for f in found}

    def list(self, name: str, *found: dict[str, Any]) -> None:
        """What the follower of this name lists."""
        self.nodes.take(self.live[name], Listed(found))

    def tell(self, name: str, news: Any) -> None:
        """What it hears after that."""
        self.nodes.take(self.live[name], news)

    def seen(self) -> Mapping[str, str | None]:
        """By name whether it is ready, None where it is not there."""
        return {name: None if found is None else found.ready for name, found in self.nodes.seen().items()}


@pytest.fixture
def play() -> Play:
    return Play()


def test_nodes_are_followed_from_the_first_pod_to_the_last(play: Play) -> None:
    play.nodes.want(pods("a", "a", "", "b"))
    assert sorted(play.live) == ["a", "b"]
    play.nodes.want([*pods("a"), *pods("b", first=3, gone=True), *pods("c", first=4, over="Evicted")])
    assert sorted(play.live) == ["a"]
    play.nodes.want([])
    assert (play.live, len(play.begun)) == ({}, 2)


def test_a_node_is_unknown_until_it_was_listed_and_while_its_stream_is_broken(play: Play) -> None:
    play.nodes.want(pods("a", "b"))
    assert play.seen() == {}
    play.list("a", node("a"))
    assert play.seen() == {"a": "True"}
    assert not play.nodes.all_heard
    play.list("b", node("b"))
    play.tell("a", Trouble("away"))
    assert play.seen() == {"b": "True"}
    play.tell("a", Trouble(""))
    assert play.seen() == {"a": "True", "b": "True"}
    play.nodes.broken(play.live["b"])
    assert play.seen() == {"a": "True"}
    play.list("b", node("b", ready="Unknown"))
    assert play.seen() == {"a": "True", "b": "Unknown"}


def test_a_node_that_was_deleted_before_anybody_asked_is_not_there(play: Play) -> None:
    play.nodes.want(pods("a"))
    play.list("a")
    assert play.seen() == {"a": None}
    play.tell("a", Trouble("away"))
    assert play.seen() == {"a": None}, "its pod's node is gone, whatever there is later"


def test_a_removal_is_believed_when_a_new_list_says_so(play: Play) -> None:
    play.nodes.want(pods("a"))
    first = play.live["a"]
    play.list("a", node("a"))
    play.tell("a", Removed(node("a")))
    assert first.stop.is_set()
    assert play.seen() == {}
    play.list("a")
    assert play.seen() == {"a": None}
    play.tell("a", Changed(node("a")))  # its kubelet registers again
    assert play.seen() == {"a": "True"}


def test_what_an_ended_follower_brings_is_not_heard(play: Play) -> None:
    play.nodes.want(pods("a"))
    first = play.live["a"]
    play.nodes.want([])
    play.nodes.want(pods("a", first=1))
    play.nodes.take(first, Listed(()))
    assert play.seen() == {}
    play.list("a", node("a"))
    play.nodes.take(first, Removed(node("a")))
    assert play.seen() == {"a": "True"}


@pytest.mark.parametrize("listed", [True, False])
def test_a_pod_that_is_bound_to_a_lost_name_has_it_asked_for_anew(play: Play, listed: bool) -> None:
    play.nodes.want(pods("a"))
    first = play.live["a"]
    if listed:
        play.list("a")
    play.nodes.want(pods("a", "a"))  # a new machine of the name
    play.nodes.take(first, Listed(()))  # asked before that
    assert play.seen() == {}
    play.list("a", node("a"))
    assert play.seen() == {"a": "True"}
    play.nodes.want(pods("a", "a", "a"))
    assert play.seen() == {"a": "True"}, "of one that is there another pod's binding says nothing new"


def test_time_counts_while_a_node_is_heard_of_and_not_ready(play: Play) -> None:
    play.nodes.want(pods("a", "b"))
    for name in "ab":
        play.list(name, node(name, ready="Unknown"))
    play.now_s = 5.0
    assert play.nodes.unready_s() == {"a": 5.0, "b": 5.0}
    play.tell("a", Trouble("away"))
    play.tell("b", Changed(node("b")))
    assert play.nodes.unready_s() == {}
    play.now_s = 9.0
    play.tell("a", Trouble(""))
    play.now_s = 10.0
    assert play.nodes.unready_s() == {"a": 1.0}


MANY = [f"n{i}" for i in range(LIMIT + 1)]


def test_a_large_job_follows_all_nodes_at_once_and_nothing_is_unknown_meanwhile(play: Play) -> None:
    play.nodes.want(pods(*MANY[:LIMIT]))
    for name in MANY[:LIMIT]:
        play.list(name, node(name))
    play.nodes.want(pods(*MANY))
    assert sorted(play.live) == sorted([ALL, *MANY[:LIMIT]])
    assert play.seen() == dict.fromkeys(MANY[:LIMIT], "True")
    play.list(ALL, node("foreign", ready="Unknown"), *map(node, MANY))
    assert (list(play.live), play.seen()) == ([ALL], dict.fromkeys(MANY, "True"))
    assert play.nodes.unready_s() == {}, "what others run on is not ours to watch"
    play.tell(ALL, Changed(node("n1", ready="False")))
    assert play.seen()["n1"] == "False"
    play.tell(ALL, Trouble("away"))
    assert (play.seen(), list(play.live)) == ({}, [ALL])


def test_a_large_job_asks_by_name_for_what_the_stream_of_all_does_not_know(play: Play) -> None:
    play.nodes.want(pods(*MANY))
    assert list(play.live) == [ALL], "a whole job begins at once: not one by one first"
    play.list(ALL, *map(node, MANY[2:]))
    assert sorted(play.live) == [ALL, "n0", "n1"]
    assert play.seen() == dict.fromkeys(MANY[2:], "True")
    play.list("n0")
    play.list("n1", node("n1"))
    assert list(play.live) == [ALL]
    assert play.seen() == {**dict.fromkeys(MANY[1:], "True"), "n0": None}
    play.tell(ALL, Removed(node("n2")))
    assert "n2" not in play.seen()
    play.list("n2")
    assert (play.seen()["n2"], list(play.live)) == (None, [ALL])


def test_not_more_than_the_limit_are_asked_for_by_name(play: Play) -> None:
    homes = [f"n{i}" for i in range(3 * LIMIT)]
    play.nodes.want(pods(*homes))
    play.list(ALL)
    lost = 0
    while len(play.live) > 1:
        assert len(play.live) <= LIMIT + 1
        play.list(next(name for name in play.live if name != ALL))
        lost += 1
    assert (lost, play.seen()) == (len(homes), dict.fromkeys(homes, None))


def test_a_job_goes_back_to_single_nodes_at_half_the_limit(play: Play) -> None:
    play.nodes.want(pods(*MANY))
    play.list(ALL, *map(node, MANY))
    play.nodes.want(pods(*MANY[: LIMIT // 2 + 1]))
    assert list(play.live) == [ALL]
    play.nodes.want(pods(*MANY[: LIMIT // 2]))
    assert (sorted(play.live), play.seen()) == (MANY[: LIMIT // 2], {})
    for name in MANY[: LIMIT // 2]:
        play.list(name, node(name))
    assert play.seen() == dict.fromkeys(MANY[: LIMIT // 2], "True")
