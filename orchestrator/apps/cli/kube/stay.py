"""Stays with one TrainingJob: its changes and its Events as they come, through an API server that goes away and comes back.

What is done with them is the caller's; here is only when it ends: the job is over (and a moment has passed in which its last
Events arrive), it was deleted, or the API server is away for longer than patience lasts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.adapters.kube.access import Access
from orchestrator.adapters.kube.follow import Changed, Listed, News, Patience, Removed, Trouble
from orchestrator.adapters.kube.seen import (
    EventSeen,
    JobSeen,
    about,
    event_seen,
    events_path,
    in_order,
    job_path,
    job_seen,
    one,
)
from orchestrator.adapters.kube.streams import Streams
from orchestrator.apps.cli.base import say
from orchestrator.core.timeouts import derive

EVENTS_KNOWN_MAX = 10_000
LOOK_EVERY_S = 0.2


def _nothing(_: object) -> None:
    return


@dataclass(kw_only=True)
class Watcher:
    """What to do with what is seen."""

    on_job: Callable[[JobSeen], None] = _nothing
    on_event: Callable[[EventSeen], None] = _nothing
    on_idle: Callable[[JobSeen], None] = _nothing  # nothing has changed for a moment
    enough: Callable[[JobSeen], bool] = field(default=lambda job: job.phase.terminal)


def stay(access: Access, job: JobSeen, watcher: Watcher, *, events: bool) -> JobSeen | None:
    """Until there is enough, and the job as it is then; None when it was deleted. Raises ControlError."""
    streams: dict[str, tuple[str, Mapping[str, str]]] = {"job": (job_path(job.namespace), one(job.name))}
    if events:
        streams["events"] = (events_path(job.namespace), about(job.name, job.uid))
    quiet_s = derive(job.detect_within_ms).suspect_ms / 1000
    seen = _Seen(job, watcher)
    with Streams(access, streams, patience=Patience.of(job.detect_within_ms)) as arriving:
        while True:
            done = seen.gone or watcher.enough(seen.job)
            if done and not events:
                break
            done = done and seen.events_listed
            got = arriving.take(quiet_s if done else LOOK_EVERY_S)
            if got is not None:
                seen.take(*got)
            elif done:
                break
            else:
                watcher.on_idle(seen.job)
    return None if seen.gone else seen.job


class _Seen:
    """What is known by now."""

    def __init__(self, job: JobSeen, watcher: Watcher) -> None:
        self.job = job
        self.gone = False
        self.events_listed = False
        self._watcher = watcher
        self._known: OrderedDict[str, int] = OrderedDict()  # Events by name -> count
        self._away: set[str] = set()

    def take(self, tag: str, news: News) -> None:
        if isinstance(news, Trouble):
            self._trouble(tag, news.why)
        elif tag == "job":
            self._about_job(news)
        else:
            self._about_events(news)

    def _about_job(self, news: Listed | Changed | Removed) -> None:
        objects = news.objects if isinstance(news, Listed) else () if isinstance(news, Removed) else (news.object,)
        now = [job_seen(o) for o in objects]
        ours = [j for j in now if j.uid == self.job.uid]
        self.gone = self.gone or not ours
        for job in ours:
            if job != self.job:
                self.job = job
                self._watcher.on_job(job)

    def _about_events(self, news: Listed | Changed | Removed) -> None:
        if isinstance(news, Removed):  # it expired
            return
        objects = news.objects if isinstance(news, Listed) else (news.object,)
        for event in in_order([event_seen(o) for o in objects]):
            if self._known.get(event.name, 0) < event.count:
                self._watcher.on_event(event)
            self._known[event.name] = event.count
            self._known.move_to_end(event.name)
        while len(self._known) > EVENTS_KNOWN_MAX:
            self._known.popitem(last=False)
        self.events_listed = True

    def _trouble(self, tag: str, why: str) -> None:
        before = bool(self._away)
        (self._away.add if why else self._away.discard)(tag)
        if why and not before:
            say(f"{why} (the job goes on without it; trying again)")
        elif before and not self._away:
            say("the API server answers again")
