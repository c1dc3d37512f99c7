"""What the agent asks of the supervisor: to take the job, to follow changes of its spec, and to heed what happens to nodes and
pods.

Every request is one that may be made again: who restarts, or hears of a thing twice, does no harm. A request that the supervisor
refuses is said once and not repeated until the wish changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from orchestrator.adapters.grpc.client import ControlClient
from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.notices import Notice, Place, notices
from orchestrator.adapters.kube.signs import Action
from orchestrator.adapters.kube.watching import Picture
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import ScaleRequested
from orchestrator.core.timeouts import derive
from orchestrator.runtime.control import BadRequestError, ControlError, NotFoundError, NotPossibleError, UnreachableError
from orchestrator.runtime.status_types import JobStatus

Object = Mapping[str, Any]

_STRENGTH: Final = {Action.NOTE: 0, Action.DRAIN: 1, Action.GONE: 2}

log = logging.getLogger(__name__)


class Acting:
    """`adopt_or_submit` once, then `act` in each round."""

    def __init__(self, client: ControlClient, job: Job, *, agent: str) -> None:
        self._client = client
        self._job = job
        self._who = f"{names.AGENT} ({agent})"
        limits = derive(job.resilience.detect_within_ms)
        self._silent_ms = limits.suspect_ms
        self._settle_s = limits.measure_ms / 1000  # kubelets renew their leases every ten seconds
        self._nodes: int | None = job.cluster.nodes  # that the supervisor was asked for; None: it is not known
        self._refused: set[str] = set()
        self._heeded: dict[str, Action] = {}

    def adopt_or_submit(self, found: Object) -> None:
        """Have the supervisor take the job, unless it knows one of this name: then that is it. Raises ControlError.

        The journal is the truth about what was submitted; of a spec that was changed since, only what may change later counts.
        """
        try:
            status = self._client.get(self._job.name)
        except NotFoundError:
            self._client.submit(self._job, yaml_text="")
            log.info("job %s is submitted", self._job.name)
            return
        if status.phase.terminal:
            log.info("job %s is over (%s): adopted for its last report", self._job.name, status.phase)
            return
        try:
            self._client.submit(self._job, yaml_text="")  # the same one: nothing happens
            log.info("job %s is adopted at step %d", self._job.name, status.step)
        except NotPossibleError:
            log.info("job %s is adopted at step %d; its spec has changed since it was submitted", self._job.name, status.step)
            self._nodes = None
        asked = [r.event for r in self._client.watch_events(self._job.name) if isinstance(r.event, ScaleRequested)]
        ours = [e.nodes for e in asked if e.who.startswith(names.AGENT)]
        if ours:
            self._nodes = ours[-1]

    def act(self, picture: Picture, status: JobStatus) -> None:
        """Ask for whatever is wanted now and was not asked for. Errors of the supervisor are said, and tried again."""
        try:
            if picture.job is not None:
                self._follow_spec(picture.job, status)
            if picture.complete:
                self._heed(picture, status)
        except UnreachableError as error:  # each try takes its time-out: what else is wanted waits for the next round
            log.warning("%s", error)

    # ---- the spec

    def _follow_spec(self, found: Object, status: JobStatus) -> None:
        spec = found.get("spec") or {}
        suspend = bool(spec.get("suspend"))
        if suspend and not status.suspended:
            self._ask("suspend", lambda: self._client.suspend(self._job.name, who=self._who, why="spec.suspend is true"))
        elif not suspend and status.suspended:
            self._ask("continue", lambda: self._client.go_on(self._job.name, who=self._who))
        else:
            self._refused -= {"suspend", "continue"}
        nodes = (spec.get("cluster") or {}).get("nodes", self._job.cluster.nodes)
        if nodes != self._nodes and not suspend:
            wish = f"scale to {nodes} nodes"
            if self._ask(wish, lambda: self._client.scale(self._job.name, nodes=nodes, who=self._who)) or wish in self._refused:
                self._nodes = nodes
                self._refused.discard(wish)

    # ---- nodes and pods

    def _heed(self, picture: Picture, status: JobStatus) -> None:
        places = [Place(n.node_id, n.address, self._silent(n.node_id, status)) for n in status.nodes if n.healthy]
        drained = {n.node_id for n in status.nodes if not n.schedulable}
        found = notices(places, picture.pods, picture.nodes, unready_s=picture.unready_s, settle_s=self._settle_s)
        for notice in found:
            heeded = self._heeded.get(notice.node_id)
            if heeded is not None and _STRENGTH[notice.action] <= _STRENGTH[heeded]:
                continue
            if self._carry_out(notice, already_drained=notice.node_id in drained):
                self._heeded[notice.node_id] = notice.action
        here = {p.node_id for p in places}
        self._heeded = {n: a for n, a in self._heeded.items() if n in here}

    def _carry_out(self, notice: Notice, *, already_drained: bool) -> bool:
        node_id, why = notice.node_id, notice.reason
        if notice.action is Action.NOTE:
            log.warning("node %s: %s", node_id[:12], why)
            return True
        if notice.action is Action.GONE:
            wish = f"{node_id} is gone: {why}"
            granted = self._ask(
                wish, lambda: self._client.node_gone(self._job.name, node_id=node_id, who=self._who, evidence=why)
            )
        elif already_drained:
            return True
        else:
            wish = f"drain {node_id}: {why}"
            granted = self._ask(wish, lambda: self._client.drain(self._job.name, node_id=node_id, who=self._who, why=why))
        return granted or wish in self._refused

    def _silent(self, node_id: str, status: JobStatus) -> bool:
        there = [w for w in status.workers if w.node_id == node_id and w.phase.alive]
        return bool(there) and all(not w.connected or w.silence_ms >= self._silent_ms for w in there)

    def _ask(self, wish: str, call: Callable[[], Any]) -> bool:
        """Whether it was granted. What is refused for good is remembered. Raises UnreachableError."""
        if wish in self._refused:
            return False
        try:
            decided = call()
        except (NotPossibleError, BadRequestError, NotFoundError) as error:
            log.warning("%s: refused: %s", wish, error)
            self._refused.add(wish)
            return False
        except UnreachableError:
            raise
        except ControlError as error:
            log.warning("%s: %s", wish, error)
            return False
        log.info("%s: decision %d: %s", wish, decided.seq, decided.reason)
        return True
