"""Of all nodes those that a job's pods are bound to: which streams tell of them, and what is known of each.

Hundreds of jobs that each followed thousands of nodes would be a burden to the API server, so each node is followed by its name,
as its kubelet does it, from when a pod is bound to it until none is left. A job on more than EACH_MAX nodes is a good part of its
cluster and follows all nodes in one stream.

That a node is not there is a loss, and believed only of an empty list by its name, asked for after its pod was bound: the
scheduler binds to nodes that exist, and a list without a version is answered by what is stored now, while streams may lag. A node
of which no stream tells at the moment is unknown, and nothing is concluded about it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.adapters.kube.follow import Changed, Listed, News, Removed, Trouble
from orchestrator.adapters.kube.notices import NodeSeen, PodSeen, node_seen

EACH_MAX: Final = 64  # streams of single nodes, one thread and one connection each
ALL: Final = ""  # the name of the follower of all nodes


@dataclass(slots=True, eq=False)
class Follower:
    """One stream, of a node or of all."""

    name: str
    stop: threading.Event
    heard: bool = False  # it has listed, and is not broken now


class OwnNodes:
    """`want` the nodes of pods, `take` what the followers bring; whoever holds it guards it by a lock."""

    def __init__(
        self,
        begin: Callable[[Follower], None],
        *,
        stop: Callable[[], threading.Event] = threading.Event,
        each_max: int = EACH_MAX,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`begin` starts to follow and returns at once; `stop` makes the event by which a follower is ended."""
        self._begin = begin
        self._make_stop = stop
        self._each_max = each_max
        self._now_s = now_s
        self._followers: dict[str, Follower] = {}
        self._bindings: frozenset[tuple[str, str]] = frozenset()  # uid of a pod, name of its node
        self._homes: frozenset[str] = frozenset()
        self._kept: dict[str, NodeSeen] = {}
        self._absent: set[str] = set()  # homes that were not there when we asked
        self._unready_since_s: dict[str, float] = {}

    def want(self, pods: Iterable[PodSeen]) -> None:
        """Follow the nodes of these pods, and no others."""
        bindings = frozenset((p.uid, p.node) for p in pods if p.node and not p.gone and not p.over)
        for _, node in bindings - self._bindings:
            if node not in self._kept:  # what was asked before is no answer: there is a node of that name now
                self._absent.discard(node)
                self._end(node)
        self._bindings, self._homes = bindings, frozenset(node for _, node in bindings)
        self._absent &= self._homes
        self._settle()

    def take(self, follower: Follower, news: News) -> None:
        """What a follower brings; nothing, if it was ended meanwhile."""
        if self._followers.get(follower.name) is not follower:
            return
        match news:
            case Listed():
                follower.heard = True
                self._listed(follower.name, {n.name: n for n in map(node_seen, news.objects)})
            case Changed():
                self._put(node_seen(news.object))
            case Removed():
                name = str(news.object["metadata"]["name"])
                self._kept.pop(name, None)
                self._end(name)  # and ask again
            case Trouble():
                follower.heard = not news.why
        self._settle()

    def broken(self, follower: Follower) -> None:
        """It hears nothing any more, and begins anew with a list."""
        follower.heard = False
        self._settle()

    def seen(self) -> dict[str, NodeSeen | None]:
        """By name, of those that are wanted; None: it is not there. One that is missing is unknown."""
        known = {name: self._kept[name] for name in self._homes & self._kept.keys() if self._is_heard(name)}
        return {**known, **dict.fromkeys(self._absent)}

    def unready_s(self) -> Mapping[str, float]:
        """For how long a node that is not Ready has been so, in seconds; time while nothing was heard of it does not count."""
        now_s = self._now_s()
        return {name: now_s - since for name, since in self._unready_since_s.items()}

    @property
    def all_heard(self) -> bool:
        """Whether no stream is broken or about to begin."""
        return all(f.heard for f in self._followers.values())

    def _listed(self, name: str, found: dict[str, NodeSeen]) -> None:
        if name == ALL:
            self._kept = found
            self._absent -= found.keys()
        elif name in found:
            self._put(found[name])
        else:
            self._kept.pop(name, None)
            self._absent.add(name)

    def _put(self, node: NodeSeen) -> None:
        self._kept[node.name] = node
        self._absent.discard(node.name)

    def _is_heard(self, name: str) -> bool:
        return any(f is not None and f.heard for f in (self._followers.get(name), self._followers.get(ALL)))

    def _settle(self) -> None:
        wanted = self._wanted()
        for name in self._followers.keys() - wanted:
            self._end(name)
        for name in sorted(wanted - self._followers.keys()):
            follower = self._followers[name] = Follower(name, self._make_stop())
            self._begin(follower)
        if ALL not in wanted:
            self._kept = {name: node for name, node in self._kept.items() if name in self._homes}
        unready = {n for n in self._homes & self._kept.keys() if self._kept[n].ready != "True" and self._is_heard(n)}
        now_s = self._now_s()
        self._unready_since_s = {n: self._unready_since_s.get(n, now_s) for n in unready}

    def _wanted(self) -> set[str]:
        """The names to follow. Back from all nodes to each only at half the limit, lest a job at the limit goes to and fro."""
        everyone = self._followers.get(ALL)
        if len(self._homes) <= (self._each_max if everyone is None else self._each_max // 2):
            return set(self._homes)
        if everyone is None or not everyone.heard:
            return {ALL, *(self._homes & self._followers.keys())}
        return {ALL, *sorted(self._homes - self._kept.keys() - self._absent)[: self._each_max]}

    def _end(self, name: str) -> None:
        if (follower := self._followers.pop(name, None)) is not None:
            follower.stop.set()
