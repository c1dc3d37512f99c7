"""What the agent sees of the cluster: its TrainingJob, the pods of the job, and the nodes that these are on, each followed in a
thread of its own.

The newest state of every object is kept, of pods and nodes only the few facts that matter. Pods that were there are remembered
for a while, because that a pod is gone is a fact that the supervisor must learn. An API server that is away leaves the last
picture, which then says so: nothing is concluded from it.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.follow import Changed, Listed, News, Patience, Removed, Server, Trouble, follow
from orchestrator.adapters.kube.gate import Gate
from orchestrator.adapters.kube.notices import NodeSeen, PodSeen, pod_seen, trimmed_node
from orchestrator.adapters.kube.own_nodes import ALL, EACH_MAX, Follower, OwnNodes
from orchestrator.adapters.kube.resources import NODES, PODS, TRAINING_JOBS
from orchestrator.runtime.control import ControlError

Object = Mapping[str, Any]

GONE_MAX: Final = 256  # pods that were there, the newest
NEVER_S: Final = 10.0**9  # an agent gives an API server up at no time: the job trains on meanwhile
RETRY_MAX_S: Final = 10.0
BEGIN_MAX: Final = 8  # streams of nodes that are begun at once
PAGE_MAX: Final = 500  # nodes of a list; each is some 15 KB

# What is kept of an object: the TrainingJob itself, a PodSeen.
_READ: Final[Mapping[str, Callable[[Object], Any]]] = {"job": lambda found: found, "pods": pod_seen}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Picture:
    """The cluster as it was last seen."""

    job: Object | None  # None: it is not there, or was not seen yet
    pods: tuple[PodSeen, ...]  # those that are there, then those that were
    nodes: Mapping[str, NodeSeen | None]  # of the pods; None: it is not there; missing: nothing is known of it now
    unready_s: Mapping[str, float]  # by node that is not Ready: for how long, as far as we saw
    complete: bool  # job and pods were listed, and neither stream is broken now


class Watching:
    """`start` it, look at `picture()` whenever `changed` was called, set `stop` in the end."""

    def __init__(
        self,
        server: Server,
        *,
        namespace: str,
        job: str,
        stop: threading.Event,
        changed: Callable[[], None],
        detect_within_ms: int,
        each_max: int = EACH_MAX,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`each_max`: nodes that are followed one by one; `chance`: a number from 0 to 1, anew at each call."""
        self._server = server
        self._gate = Gate(server, at_once=BEGIN_MAX)
        self._stop = stop
        self._changed = changed
        self._chance = chance
        self._patience = replace(Patience.of(detect_within_ms), give_up_s=NEVER_S)
        self._sources = {
            "job": (TRAINING_JOBS.path(namespace=namespace), {"fieldSelector": f"metadata.name={job}"}),
            "pods": (PODS.path(namespace=namespace), {"labelSelector": f"{names.LABEL_JOB}={job}"}),
        }
        self._lock = threading.Lock()  # guards everything below
        self._kept: dict[str, dict[str, Any]] = {tag: {} for tag in self._sources}  # by uid, else by name
        self._heard: set[str] = set()
        self._gone: deque[PodSeen] = deque(maxlen=GONE_MAX)
        self._nodes = OwnNodes(self._begin, stop=lambda: _Ending(stop), each_max=each_max)
        self._nodes_troubled = False  # and it was said

    def start(self) -> None:
        """Begin to follow; returns at once."""
        for tag in self._sources:
            threading.Thread(target=self._run, args=(tag,), name=f"watch-{tag}", daemon=True).start()

    def picture(self) -> Picture:
        """What is known now."""
        with self._lock:
            return Picture(
                job=next(iter(self._kept["job"].values()), None),
                pods=(*self._kept["pods"].values(), *self._gone),
                nodes=self._nodes.seen(),
                unready_s=self._nodes.unready_s(),
                complete=len(self._heard) == len(self._sources),
            )

    # ---- the job and its pods

    def _run(self, tag: str) -> None:
        path, query = self._sources[tag]

        def broken(error: ControlError, pause_s: float) -> None:
            log.warning("cannot follow %s: %s; trying again in %.0f s", tag, error, pause_s)
            with self._lock:
                self._heard.discard(tag)

        begin = partial(follow, self._server, path, query=query, stop=self._stop, patience=self._patience)
        self._again(begin, self._stop, pause_s=self._patience.pause_s, take=lambda news: self._take(tag, news), broken=broken)

    def _take(self, tag: str, news: News) -> None:
        with self._lock:
            kept, read = self._kept[tag], _READ[tag]
            match news:
                case Listed():
                    found = {_key(o): read(o) for o in news.objects}
                    for key in kept.keys() - found.keys():
                        self._remove(tag, kept[key])
                    self._kept[tag] = found
                    self._heard.add(tag)
                case Changed():
                    kept[_key(news.object)] = read(news.object)
                case Removed():
                    kept.pop(_key(news.object), None)
                    self._remove(tag, read(news.object))
                case Trouble() if news.why:
                    log.warning("following %s: %s", tag, news.why)
                    self._heard.discard(tag)
                case Trouble():
                    log.info("following %s again", tag)
                    self._heard.add(tag)
            if tag == "pods":
                self._nodes.want(self._kept["pods"].values())
        self._changed()

    def _remove(self, tag: str, gone: Any) -> None:
        if tag == "pods":
            self._gone.appendleft(replace(gone, gone=True))

    # ---- the nodes

    def _begin(self, follower: Follower) -> None:
        threading.Thread(target=self._run_nodes, args=(follower,), name=f"watch-nodes-{follower.name}", daemon=True).start()

    def _run_nodes(self, follower: Follower) -> None:
        query = {} if follower.name == ALL else {"fieldSelector": f"metadata.name={follower.name}"}

        def take(news: News) -> None:
            with self._lock:
                self._nodes.take(follower, news)
                self._say_nodes(news.why if isinstance(news, Trouble) else "")
            self._changed()

        def broken(error: ControlError, _pause_s: float) -> None:
            with self._lock:
                self._nodes.broken(follower)
                self._say_nodes(str(error))

        patience = self._own_rhythm()
        begin = partial(follow, self._gate, NODES.path(), query=query, stop=follower.stop, patience=patience)
        begin = partial(begin, page_max=PAGE_MAX, trim=trimmed_node)
        self._again(begin, follower.stop, pause_s=patience.pause_s, take=take, broken=broken)

    def _own_rhythm(self) -> Patience:
        """Each stream of a node ends, and is tried again, at times of its own: never later than the others, and less in step."""
        usual = self._patience
        return replace(
            usual,
            pause_s=usual.pause_s * (0.5 + self._chance() / 2),
            pause_max_s=usual.pause_max_s * (0.5 + self._chance() / 2),
            watch_s=max(1, round(usual.watch_s * (0.75 + self._chance() / 4))),
        )

    def _say_nodes(self, why: str) -> None:
        """Once for all of them, when the first has trouble and when none has any more."""
        if why and not self._nodes_troubled:
            log.warning("following nodes: %s", why)
            self._nodes_troubled = True
        elif self._nodes_troubled and self._nodes.all_heard:
            log.info("following nodes again")
            self._nodes_troubled = False

    # ---- both

    def _again(
        self,
        begin: Callable[[], Iterator[News]],
        stop: threading.Event,
        *,
        pause_s: float,
        take: Callable[[News], None],
        broken: Callable[[ControlError, float], None],
    ) -> None:
        """Hand on all news until `stop` is set; after what even a patient follower gives up at, begin anew."""
        next_pause_s = pause_s
        while not stop.is_set():
            try:
                for news in begin():
                    take(news)
                    next_pause_s = pause_s
                    if stop.is_set():
                        return
            except ControlError as error:
                broken(error, next_pause_s)
                stop.wait(next_pause_s)
                next_pause_s = min(RETRY_MAX_S, 2 * next_pause_s)


class _Ending(threading.Event):
    """Set when it is set itself, or the whole is."""

    def __init__(self, whole: threading.Event) -> None:
        super().__init__()
        self._whole = whole

    def is_set(self) -> bool:
        return super().is_set() or self._whole.is_set()


def _key(found: Object) -> str:
    meta = found["metadata"]
    return str(meta.get("uid") or meta["name"])
