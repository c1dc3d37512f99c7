"""What the agent writes to the API server: the job's status by server-side apply, and Events, in order.

Nothing is lost while the API server is away: the status is made anew from what is known then, and the decision that waits to be
told holds up those behind it. A refusal (a right that is missing) is said once and not waited for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeApi, KubeError
from orchestrator.adapters.kube.events import timestamp
from orchestrator.adapters.kube.recorder import event_of
from orchestrator.adapters.kube.resources import EVENTS, TRAINING_JOBS
from orchestrator.adapters.kube.status import NOT_KNOWN, Scaling, job_fields
from orchestrator.runtime.ports import Record
from orchestrator.runtime.status_types import JobStatus

Object = Mapping[str, Any]

PAUSE_S: Final = 1.0  # between two writes of the status
HEARTBEAT_S: Final = 5.0  # the longest time without one; that the job has got on is no reason to write sooner
RETRY_S: Final = 0.5
RETRY_MAX_S: Final = 8.0
PROGRESS: Final = frozenset({"step", "progress", "loss", "etaSeconds", "goodput", "message", "lastDecision"})

log = logging.getLogger(__name__)


def passing(error: KubeError) -> bool:
    """Whether the same call may succeed later: the API server is away, or too busy."""
    return error.status in (0, 429) or error.status >= 500


class Told:
    """Decisions become Events, one after another; knows which was told last."""

    def __init__(
        self, api: KubeApi, *, about: Callable[[], Object | None], pod: str, newest: tuple[int, str], stop: threading.Event
    ) -> None:
        self._api = api
        self._about = about
        self._pod = pod
        self._stop = stop
        self._refused = ""
        self._newest = newest  # what an agent before this one told

    @property
    def newest(self) -> tuple[int, str]:
        """Number and reason of the decision that was told last."""
        return self._newest

    def tell(self, record: Record) -> None:
        """Make its Event; returns when the API server has it (or will never take it), or we stop."""
        pause_s = RETRY_S
        while not self._stop.is_set():
            about = self._about()
            try:
                if about is not None:
                    self._api.create(EVENTS, event_of(record, about, pod=self._pod))
                break
            except KubeError as error:
                if not passing(error):
                    self._say(f"decision {record.seq} cannot be told as an Event: {error}")
                    break
                log.debug("decision %d waits: %s", record.seq, error)
            self._stop.wait(pause_s)
            pause_s = min(RETRY_MAX_S, 2 * pause_s)
        else:
            return
        self._newest = (record.seq, record.reason)

    def _say(self, words: str) -> None:
        kind = words.partition(":")[2]
        if kind != self._refused:
            self._refused = kind
            log.error("%s", words)


class StatusWriter:
    """Applies `.status`. `write` often: it decides whether it is time."""

    def __init__(self, api: KubeApi, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._now_s = now_s
        self._written: Object | None = None  # what of it was news
        self._conditions: tuple[Object, ...] = ()
        self._next_s = 0.0  # not before
        self._due_s = 0.0  # at the latest
        self._pause_s = PAUSE_S
        self._trouble = ""
        self.final = False  # the end of the job is written

    def write(
        self,
        job: Object,
        status: JobStatus,
        *,
        decision: tuple[int, str],
        digest: str,
        pods: Mapping[str, str],
        scaling: Scaling = NOT_KNOWN,
    ) -> bool:
        """Apply it where it differs from what is there, or is due. Whether it was applied now.

        `pods`: name by IP.
        """
        now_s = self._now_s()
        if now_s < self._next_s:
            return False
        before = self._conditions or tuple((job.get("status") or {}).get("conditions") or ())
        generation = int(job["metadata"].get("generation") or 0)
        now = timestamp(datetime.now(UTC))
        fields = job_fields(
            status,
            decision=decision,
            digest=digest,
            generation=generation,
            before=before,
            now=now,
            pods=pods,
            scaling=scaling,
        )
        overruled = (job.get("status") or {}).get("phase") != fields["phase"]  # the operator says so at a transition, once
        news = _news(fields)
        if news == self._written and not overruled and now_s < self._due_s:
            return False
        meta = job["metadata"]
        body = {"metadata": {"name": meta["name"], "namespace": meta["namespace"]}, "status": {**fields, "lastReport": now}}
        self._next_s = now_s + self._pause_s
        try:
            self._api.apply(TRAINING_JOBS, body, manager=names.AGENT, subresource="status")
        except KubeError as error:
            self._pause_s = min(RETRY_MAX_S, 2 * self._pause_s)
            if str(error) != self._trouble:
                log.warning("the status cannot be written: %s", error)
            self._trouble = str(error)
            return False
        if self._trouble:
            log.info("the status is written again")
        self._trouble, self._pause_s, self._written = "", PAUSE_S, news
        self._conditions = tuple(fields["conditions"])
        self._due_s = now_s + HEARTBEAT_S
        self.final = status.phase.terminal
        return True


def _news(fields: Object) -> Object:
    """What people must not wait for. A thousand jobs that only got on must not cost an API server a thousand writes a second."""
    conditions = [(c["type"], c["status"], c["reason"], c["observedGeneration"]) for c in fields["conditions"]]
    return {**{k: v for k, v in fields.items() if k not in PROGRESS}, "conditions": conditions}
