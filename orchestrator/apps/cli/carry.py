"""Carries one submitted job to its end: shows it, hands its faults in, cancels it when the person at the terminal wants that.

The main thread loops here and looks at the newest status, at the signals and at the clock; everything that blocks is elsewhere.
It returns the last status that is known, which may be one of a job that is not over when its supervisor is gone for good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.apps.cli import follow
from orchestrator.apps.cli.base import Code, code_of, who
from orchestrator.apps.cli.faults import Schedule
from orchestrator.apps.cli.follow import Follower
from orchestrator.core.supervisor.events import RankFinished
from orchestrator.core.timeouts import derive
from orchestrator.runtime.control import ControlError, UnreachableError

if TYPE_CHECKING:
    from orchestrator.adapters.grpc.client import ControlClient
    from orchestrator.apps.cli.signals import Signals
    from orchestrator.apps.cli.view import View
    from orchestrator.core.job import Job
    from orchestrator.core.supervisor.events import Fault
    from orchestrator.runtime.ports import Record
    from orchestrator.runtime.status_types import JobStatus

LOOK_EVERY_S = 0.1  # also how long a Ctrl-C may go unnoticed


@dataclass(frozen=True, slots=True)
class Ending:
    """How it went."""

    status: JobStatus | None  # the last one that is known
    code: Code
    why: str  # for people, when the status does not say it
    records: tuple[Record, ...]  # the journal, as far as it could be read; empty when the job is not over
    digest: str  # of the final state; empty when there is none
    peak_rss_bytes: Mapping[int, Mapping[str, int]]  # by epoch and worker id, as far as it was seen


def carry(
    client: ControlClient,
    job: Job,
    yaml_text: str,
    *,
    view: View,
    signals: Signals,
    faults: Sequence[Fault],
    reconnect: Callable[[], ControlClient],
) -> Ending:
    """Submit the job and stay until it is over or was cancelled. Raises ControlError when it cannot be submitted."""
    name = client.submit(job, yaml_text=yaml_text)
    follower = Follower(client, name, reconnect=reconnect, pause_s=follow.PAUSE_S).start()
    try:
        cancelled = _watch(follower, name, job, view=view, signals=signals, schedule=Schedule(list(faults)))
        return _ending(follower, name, cancelled=cancelled)
    finally:
        follower.close()


def _watch(follower: Follower, name: str, job: Job, *, view: View, signals: Signals, schedule: Schedule) -> bool:
    """Until no more news will come; returns whether a cancellation was asked for."""
    seen = 0
    told = ""
    cancelled_s: float | None = None
    patience_s = 5 + derive(job.resilience.detect_within_ms).lost_ms / 1000
    while True:
        follower.wait(after=seen, timeout_s=LOOK_EVERY_S)
        over, version, status = follower.over, follower.version, follower.newest
        if status is not None and version > seen:
            seen = version
            view.update(status)
            _hand_in(follower.client, name, schedule, status, view)
        if follower.trouble != told:
            told = follower.trouble
            view.note(f"{told}; the workers train on, trying again" if told else "the supervisor answers again")
        if over:
            return cancelled_s is not None
        if signals.count and cancelled_s is None:
            cancelled_s = time.monotonic()
            view.note("cancelling the job; once more to hurry")
            try:
                follower.client.cancel(name, who=who())
            except ControlError as error:
                view.note(f"the supervisor could not be asked to cancel ({error}); stopping everything instead")
                return True
        if cancelled_s is not None and (signals.count > 1 or time.monotonic() - cancelled_s > patience_s):
            return True


def _hand_in(client: ControlClient, name: str, schedule: Schedule, status: JobStatus, view: View) -> None:
    give, late = schedule.due(status)
    for complaint in late:
        view.note(complaint)
    for fault in give:
        try:
            client.inject(name, fault=fault, who=who())
        except ControlError as error:
            view.note(f"chaos {fault.kind}@{fault.at_step} was not taken: {error}")


def _ending(follower: Follower, name: str, *, cancelled: bool) -> Ending:
    status = follower.newest
    if status is not None and status.phase.terminal:
        records = _records(follower.client, name)
        digest = next((r.event.digest for r in reversed(records) if isinstance(r.event, RankFinished)), "")
        return Ending(status, code_of(status.outcome), "", records, digest, follower.peak_rss_bytes)
    if cancelled:  # the journal is not asked for: whoever hurries must not wait for a supervisor that may be stopped
        return Ending(status, Code.INTERRUPTED, "interrupted before the job had ended", (), "", {})
    if follower.error is not None and not isinstance(follower.error, UnreachableError):
        raise follower.error
    trouble = status.last_word if status is not None else ""
    why = trouble or str(follower.error or "the supervisor told nothing")
    return Ending(status, Code.INFRA, f"the job was left without a supervisor: {why}", (), "", {})


def _records(client: ControlClient, name: str) -> tuple[Record, ...]:
    got: list[Record] = []
    try:
        for record in client.watch_events(name):
            got.append(record)
    except ControlError:  # whoever shows them says that they are incomplete; the status is what counts
        pass
    return tuple(got)
