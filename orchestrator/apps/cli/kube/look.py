"""status, logs, events and list of jobs on Kubernetes. They read what the API server holds and change nothing."""

from __future__ import annotations

import time
from dataclasses import asdict

import typer

from orchestrator.adapters.kube.access import Access, Options, connect
from orchestrator.adapters.kube.seen import EventSeen, JobSeen, about, event_seen, events_path, in_order
from orchestrator.apps.cli.base import CliError, Code, data, data_json, say
from orchestrator.apps.cli.kube.found import check_kind, job_at, jobs_in
from orchestrator.apps.cli.kube.lines import Lines
from orchestrator.apps.cli.kube.progress import Progress
from orchestrator.apps.cli.kube.stay import Watcher, stay
from orchestrator.apps.cli.kube.words import code_of, event_line, list_lines, status_lines
from orchestrator.runtime.control import NotFoundError


def status(there: Options, job: str, *, watch: bool, as_json: bool) -> None:
    """Show a job; with `watch` until it is over, then exit with its code. Raises CliError, ControlError."""
    access = connect(there)
    seen = job_at(access, job)
    if not watch:
        _show(seen, as_json=as_json)
        return
    progress = Progress()

    def tell(now: JobSeen) -> None:
        data_json(asdict(now), indent=None) if as_json else progress.job(now)

    tell(seen)
    last = stay(access, seen, Watcher(on_job=tell), events=False)
    if last is None:
        raise CliError(f"job {seen.name} was deleted before it was over", Code.INTERRUPTED)
    if not as_json:
        _show(last, as_json=False)
    raise typer.Exit(code_of(last))


def list_jobs(there: Options, *, as_json: bool) -> None:
    """Show all jobs of a namespace."""
    found = jobs_in(connect(there))
    if as_json:
        data_json([asdict(j) for j in found])
    else:
        data("\n".join(list_lines(found, now_s=time.time())))


def events(there: Options, job: str, *, follow: bool, as_json: bool, after: int) -> None:
    """Print what happened and why, in the journal's order; with `follow` until the job is over."""
    access = connect(there)

    def tell(event: EventSeen) -> None:
        if event.seq > after or not after:  # what comes from elsewhere has no number
            data_json(asdict(event), indent=None) if as_json else data(event_line(event))

    try:
        seen = job_at(access, job)
    except NotFoundError:
        check_kind(access)
        found = _events(access, job)  # those of a deleted job stay for a while
        if follow or not found:
            raise
        say(f"job {job} is gone; what is left of its events:")
    else:
        if follow:
            if stay(access, seen, Watcher(on_event=tell), events=True) is None:
                say(f"job {seen.name} was deleted")
            return
        found = _events(access, seen.name, seen.uid)
    for event in found:
        tell(event)


def logs(there: Options, job: str, *, rank: int | None, follow: bool) -> None:
    """Print what the workers printed, of one rank or of all; with `follow` until the job is over."""
    access = connect(there)
    lines = Lines(access, job_at(access, job), rank=rank)
    for text in lines.follow() if follow else lines.now():
        data(text)


def _events(access: Access, job: str, uid: str = "") -> list[EventSeen]:
    return in_order(event_seen(o) for o in access.get(events_path(access.namespace), query=about(job, uid))["items"])


def _show(job: JobSeen, *, as_json: bool) -> None:
    data_json(asdict(job)) if as_json else data("\n".join(status_lines(job)))
