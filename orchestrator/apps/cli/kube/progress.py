"""Progress lines of a job on Kubernetes for whoever stays with it: each change of its state, and its steps now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.adapters.kube.seen import EventSeen, JobSeen, Phase
from orchestrator.apps.cli.base import say
from orchestrator.apps.cli.kube.words import event_line, progress_text

TELL_EVERY_S = 5.0  # between two lines about steps


class Progress:
    """Says what is new on stderr."""

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._state: object = None
        self._told_s = float("-inf")

    def job(self, job: JobSeen) -> None:
        """The job has changed."""
        why = "" if job.phase is Phase.RUNNING else _first(job.message)
        state = (job.phase, job.reason, job.epoch, job.recoveries, job.leaving, why)
        now_s = self._now_s()
        if state == self._state and now_s - self._told_s < TELL_EVERY_S:
            return
        self._state, self._told_s = state, now_s
        say(f"{progress_text(job)}{f': {why}' if why else ''}")

    def event(self, event: EventSeen) -> None:
        """An Event has come."""
        say(event_line(event))


def _first(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]
