"""Says once to whoever waits that nobody seems to work on a job, and what may be done about it."""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.adapters.kube.access import Access
from orchestrator.adapters.kube.seen import JobSeen
from orchestrator.apps.cli.base import say
from orchestrator.apps.cli.kube.found import Presence, operator
from orchestrator.core.timeouts import derive
from orchestrator.runtime.control import ControlError


class Reminder:
    """Call `look` often. It speaks when for `measure_ms` the operator has not looked at a generation, or not removed a job."""

    def __init__(
        self, access: Access, *, generation: int, deleting: bool = False, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._access = access
        self._generation = generation
        self._deleting = deleting
        self._now_s = now_s
        self._began_s = now_s()
        self._told = False

    def look(self, job: JobSeen) -> None:
        """Nothing has changed; is it time to say so?"""
        waited_s = self._now_s() - self._began_s
        if self._told or waited_s < derive(job.detect_within_ms).measure_ms / 1000:
            return
        if not self._deleting and job.observed_generation >= self._generation:
            return
        self._told = True
        try:
            found = operator(self._access)
        except ControlError:  # whoever follows the job says that
            self._told = False
            return
        done = "removed what belongs to it" if self._deleting else "looked at it"
        works = found.presence is Presence.WORKS
        why = f"the operator works ({found.words}) and says why in its log" if works else f"{found.words}; fix: {found.fix}"
        say(f"job {job.name}: for {waited_s:.0f} s the operator has not {done}: {why}")
