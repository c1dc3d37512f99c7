"""What the agent sees of the cluster: its TrainingJob, the pods of the job, and the nodes, each followed in a thread of its own.

The newest state of every object is kept, of pods and nodes only the few facts that matter: a cluster may have thousands of nodes.
Pods that were there are remembered for a while, because that a pod is gone is a fact that the supervisor must learn. An API
server that is away leaves the last picture, which then says so: nothing is concluded from it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.follow import Changed, Listed, Patience, Removed, Server, Trouble, follow
from orchestrator.adapters.kube.notices import NodeSeen, PodSeen, node_seen, pod_seen
from orchestrator.adapters.kube.resources import NODES, PODS, TRAINING_JOBS
from orchestrator.runtime.control import ControlError

Object = Mapping[str, Any]

GONE_MAX: Final = 256  # pods that were there, the newest
NEVER_S: Final = 10.0**9  # an agent gives an API server up at no time: the job trains on meanwhile
RETRY_MAX_S: Final = 10.0

# What is kept of an object: the TrainingJob itself, a PodSeen, a NodeSeen.
_READ: Final[Mapping[str, Callable[[Object], Any]]] = {"job": lambda found: found, "pods": pod_seen, "nodes": node_seen}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Picture:
    """The cluster as it was last seen."""

    job: Object | None  # None: it is not there, or was not seen yet
    pods: tuple[PodSeen, ...]  # those that are there, then those that were
    nodes: Mapping[str, NodeSeen]
    unready_s: Mapping[str, float]  # by node that is not Ready: for how long, as far as we saw
    complete: bool  # everything was listed, and no stream is broken now


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
    ) -> None:
        self._server = server
        self._stop = stop
        self._changed = changed
        self._patience = replace(Patience.of(detect_within_ms), give_up_s=NEVER_S)
        self._sources = {
            "job": (TRAINING_JOBS.path(namespace=namespace), {"fieldSelector": f"metadata.name={job}"}),
            "pods": (PODS.path(namespace=namespace), {"labelSelector": f"{names.LABEL_JOB}={job}"}),
            "nodes": (NODES.path(), {}),
        }
        self._lock = threading.Lock()  # guards everything below
        self._kept: dict[str, dict[str, Any]] = {tag: {} for tag in self._sources}  # by uid, else by name
        self._listed: set[str] = set()
        self._away: set[str] = set(self._sources)
        self._gone: deque[PodSeen] = deque(maxlen=GONE_MAX)
        self._unready_since_s: dict[str, float] = {}

    def start(self) -> None:
        """Begin to follow; returns at once."""
        for tag in self._sources:
            threading.Thread(target=self._run, args=(tag,), name=f"watch-{tag}", daemon=True).start()

    def picture(self) -> Picture:
        """What is known now."""
        with self._lock:
            now_s = time.monotonic()
            return Picture(
                job=next(iter(self._kept["job"].values()), None),
                pods=(*self._kept["pods"].values(), *self._gone),
                nodes={node.name: node for node in self._kept["nodes"].values()},
                unready_s={n: now_s - since for n, since in self._unready_since_s.items()},
                complete=len(self._listed) == len(self._sources) and not self._away,
            )

    def _run(self, tag: str) -> None:
        path, query = self._sources[tag]
        pause_s = self._patience.pause_s
        while not self._stop.is_set():
            try:
                for news in follow(self._server, path, query=query, stop=self._stop, patience=self._patience):
                    self._take(tag, news)
                    pause_s = self._patience.pause_s
            except ControlError as error:
                log.warning("cannot follow %s: %s; trying again in %.0f s", tag, error, pause_s)
                with self._lock:
                    self._away.add(tag)
                self._stop.wait(pause_s)
                pause_s = min(RETRY_MAX_S, 2 * pause_s)

    def _take(self, tag: str, news: Listed | Changed | Removed | Trouble) -> None:
        with self._lock:
            kept, read = self._kept[tag], _READ[tag]
            match news:
                case Listed():
                    found = {_key(o): read(o) for o in news.objects}
                    for key in kept.keys() - found.keys():
                        self._remove(tag, kept[key])
                    self._kept[tag] = found
                    self._listed.add(tag)
                    self._away.discard(tag)
                case Changed():
                    kept[_key(news.object)] = read(news.object)
                case Removed():
                    kept.pop(_key(news.object), None)
                    self._remove(tag, read(news.object))
                case Trouble() if news.why:
                    log.warning("following %s: %s", tag, news.why)
                    self._away.add(tag)
                case Trouble():
                    log.info("following %s again", tag)
                    self._away.discard(tag)
            if tag == "nodes":
                self._note_unready()
        self._changed()

    def _remove(self, tag: str, gone: Any) -> None:
        if tag == "pods":
            self._gone.appendleft(replace(gone, gone=True))

    def _note_unready(self) -> None:
        """A node that is seen to be Ready begins anew; time while nothing was heard of any node counts for nobody."""
        now_s = time.monotonic()
        unready = {node.name for node in self._kept["nodes"].values() if node.ready != "True"}
        if "nodes" in self._away:
            self._unready_since_s.clear()
            return
        self._unready_since_s = {n: self._unready_since_s.get(n, now_s) for n in unready}


def _key(found: Object) -> str:
    meta = found["metadata"]
    return str(meta.get("uid") or meta["name"])
