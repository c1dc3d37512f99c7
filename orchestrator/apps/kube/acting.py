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
from orchestrator.adapters.kube.status import Scaling
from orchestrator.adapters.kube.watching import Picture
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import ScaleRequested
from orchestrator.core.timeouts import derive
from orchestrator.runtime.control import BadRequestError, ControlError, NotFoundError, NotPossibleError, UnreachableError
from orchestrator.runtime.status_types import JobStatus

Object = Mapping[str, Any]

SCALE_REFUSED: Final = " refused: "  # in the reason of a ScaleRequested that changes nothing, as wishes.py words it

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
        self._granted: int | None = self._nodes  # that it trains on at full strength
        self._no_scale = ""  # why it refused the number that it was asked for last
        self._refused: dict[str, str] = {}  # wish -> the supervisor's words
        self._heeded: dict[str, Action] = {}

    def adopt_or_submit(self, record: Callable[[], None] | None) -> None:
        """Have the supervisor take the job, unless it knows one of this name: then that is it. Raises ControlError.

        The journal is the truth about what was submitted; of a spec that was changed since, only what may change later counts.
        `record` writes down that this job is the one: before it is submitted, for afterwards the spec may be another already.
        None: that was done, so a job of this name is the one. It is not submitted again to see whether it is the same, for one
        that ends at that moment would begin anew.
        """
        try:
            status = self._client.get(self._job.name)
        except NotFoundError:
            if record is not None:
                record()
            self._client.submit(self._job, yaml_text="")
            log.info("job %s is submitted", self._job.name)
            return
        if status.phase.terminal:
            log.info("job %s is over (%s): adopted for its last report", self._job.name, status.phase)
            return
        try:
            if record is not None:
                self._client.submit(self._job, yaml_text="")  # the same one: nothing happens
                record()
            log.info("job %s is adopted at step %d", self._job.name, status.step)
        except NotPossibleError:
            log.info("job %s is adopted at step %d; its spec has changed since it was submitted", self._job.name, status.step)
            self._nodes = self._granted = None
        asked = [(r.event, r.reason) for r in self._client.watch_events(self._job.name) if isinstance(r.event, ScaleRequested)]
        for event, reason in asked:
            if event.who.startswith(names.AGENT):
                self._answered(event.nodes, reason if SCALE_REFUSED in reason else "")

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

    def scaling(self, found: Object) -> Scaling:
        """What has come of the number of nodes in the spec so far."""
        refused = self._nodes if self._no_scale and self._wanted_nodes(found) == self._nodes else None
        return Scaling(nodes=self._granted, refused=refused, why=self._no_scale)

    def _answered(self, nodes: int, no_scale: str) -> None:
        """The supervisor was asked for so many; `no_scale`: why not."""
        self._nodes, self._no_scale = nodes, no_scale
        if not no_scale:
            self._granted = nodes

    def _wanted_nodes(self, found: Object) -> int:
        return int(((found.get("spec") or {}).get("cluster") or {}).get("nodes", self._job.cluster.nodes))

    def _follow_spec(self, found: Object, status: JobStatus) -> None:
        spec = found.get("spec") or {}
        suspend = bool(spec.get("suspend"))
        if suspend and not status.suspended:
            self._ask("suspend", lambda: self._client.suspend(self._job.name, who=self._who, why="spec.suspend is true"))
        elif not suspend and status.suspended:
            self._ask("continue", lambda: self._client.go_on(self._job.name, who=self._who))
        else:
            for wish in ("suspend", "continue"):
                self._refused.pop(wish, None)
        nodes = self._wanted_nodes(found)
        if nodes != self._nodes and not suspend:
            wish = f"scale to {nodes} nodes"
            granted = self._ask(wish, lambda: self._client.scale(self._job.name, nodes=nodes, who=self._who))
            if granted or wish in self._refused:
                self._answered(nodes, self._refused.pop(wish, ""))

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
            self._refused[wish] = str(error)
            return False
        except UnreachableError:
            raise
        except ControlError as error:
            log.warning("%s: %s", wish, error)
            return False
        log.info("%s: decision %d: %s", wish, decided.seq, decided.reason)
        return True
