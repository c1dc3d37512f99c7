"""Commands that start a job and stay with it: run (a cluster of its own on this machine) and launch (a cluster that exists).

Both end with the exit code that the job's outcome means, and both leave a report. Whatever `run` started is stopped when it
returns, however it returns. `launch --on kubernetes` hands the job to an API server instead (kube/launch.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from orchestrator.apps.cli import faults, render
from orchestrator.apps.cli.base import CliError, Code, complain, data, data_json, job_from, say, talk
from orchestrator.apps.cli.options import (
    DEFAULT_HOME,
    AsJson,
    ChaosPlan,
    Context,
    HomeDir,
    JobFile,
    Kubeconfig,
    NameOverride,
    Namespace,
    NoView,
    On,
    Place,
    Report,
    kubernetes,
    only_on,
    resolved,
)
from orchestrator.apps.report_facts import bytewise

if TYPE_CHECKING:
    from orchestrator.adapters.grpc.client import ControlClient
    from orchestrator.apps.cli.carry import Ending
    from orchestrator.apps.wiring import Session
    from orchestrator.core.job import Job
    from orchestrator.core.supervisor.events import Fault

LOCAL = "local"  # name of the embedded cluster


class DryRun(StrEnum):
    """Who looks at a manifest that is not kept."""

    CLIENT = "client"
    SERVER = "server"


class Launch(TyperCommand):
    """`--dry-run` alone is `--dry-run=server`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give the bare option its value."""
        return super().parse_args(ctx, [f"--dry-run={DryRun.SERVER}" if a == "--dry-run" else a for a in args])


def run(
    file: JobFile,
    chaos: ChaosPlan,
    home: HomeDir = DEFAULT_HOME,
    name: NameOverride = "",
    report: Report = None,
    no_view: NoView = False,
    as_json: AsJson = False,
) -> None:
    """Run a job on a cluster of its own on this machine, until it is over. Ctrl-C cancels it and leaves nothing running."""
    from orchestrator.apps.wiring import start_local

    job, text = job_from(file, name=name)
    plan = [faults.parse(c, job) for c in chaos]
    root = resolved(home)
    _stay(
        job,
        text,
        open_session=lambda note: start_local(job, home=root, cluster=LOCAL, on_progress=note),
        home=root,
        cluster=LOCAL,
        plan=plan,
        report=report,
        no_view=no_view,
        as_json=as_json,
    )


def launch(
    file: JobFile,
    chaos: ChaosPlan,
    address: Annotated[str, typer.Option("--address", help="Of the Ray cluster, host:port or auto.", show_default=False)] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Return as soon as the job is submitted.")] = False,
    home: HomeDir = DEFAULT_HOME,
    name: NameOverride = "",
    report: Report = None,
    no_view: NoView = False,
    as_json: AsJson = False,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
    image: Annotated[
        str,
        typer.Option(
            "--image", help="Image of the pods, instead of the file's.", show_default=False, rich_help_panel="Kubernetes"
        ),
    ] = "",
    dry_run: Annotated[
        DryRun | None,
        typer.Option(
            "--dry-run",
            metavar="[=server|client]",
            help="Print the object and keep nothing: as the API server would store it, or (client) without asking one.",
            show_default=False,
            rich_help_panel="Kubernetes",
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Stay until the job is over; exit with its code.", rich_help_panel="Kubernetes"),
    ] = False,
) -> None:
    """Run a job on a cluster that exists. On Ray, Ctrl-C cancels it unless it was detached; on Kubernetes it goes on."""
    ours = {"--address": address, "--chaos": chaos, "--detach": detach, "--report": report, "--no-view": no_view}
    there = kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig, not_there=ours)
    if there is not None:
        from orchestrator.apps.cli.kube.launch import launch as on_kubernetes

        on_kubernetes(there, file, name=name, image=image, dry_run=dry_run, stay=wait, as_json=as_json)
        return
    only_on(Place.KUBERNETES, {"--image": image, "--dry-run": dry_run, "--wait": wait})
    if not address:
        raise CliError("name the Ray cluster with --address host:port (or auto), or say --on kubernetes", Code.INPUT)
    from orchestrator.apps.wiring import attach

    job, text = job_from(file, name=name)
    plan = [faults.parse(c, job) for c in chaos]
    root = resolved(home)
    if detach:
        if plan:
            raise CliError("--chaos needs somebody who stays: leave --detach out, or use `orchestrator chaos`", Code.INPUT)
        with _opened(lambda note: attach(address, home=root, on_progress=note), say) as session:
            submitted = session.client.submit(job, yaml_text=text)
            data_json({"job": submitted, "supervisor": session.address}) if as_json else data(submitted)
        say(f"submitted to {session.address}; see it with: orchestrator status {submitted} --watch")
        return
    _stay(
        job,
        text,
        open_session=lambda note: attach(address, home=root, on_progress=note),
        home=root,
        cluster=None,
        plan=plan,
        report=report,
        no_view=no_view,
        as_json=as_json,
    )


def _stay(
    job: Job,
    text: str,
    *,
    open_session: Callable[[Callable[[str], None]], Session],
    home: Path,
    cluster: str | None,
    plan: Sequence[Fault],
    report: Path | None,
    no_view: bool,
    as_json: bool,
) -> None:
    """Open a session, carry the job through, stop the session, tell the ending, exit with its code."""
    from orchestrator.apps.cli.carry import carry
    from orchestrator.apps.cli.signals import Signals
    from orchestrator.apps.cli.view import make_view

    view = make_view(talk(), live=not no_view, bytewise=bytewise(job))
    with Signals() as signals:
        with view:
            try:
                with signals.raising():
                    session = _opened(open_session, view.note)
            except (KeyboardInterrupt, SystemExit):  # Ray's own handler of SIGTERM raises the latter
                raise CliError("interrupted while the cluster was starting; nothing was left running", Code.INTERRUPTED) from None
            signals.take_back()
            try:
                ending = carry(
                    session.client,
                    job,
                    text,
                    view=view,
                    signals=signals,
                    faults=plan,
                    reconnect=_reconnect(session, home=home, cluster=cluster),
                )
            finally:
                view.note("stopping what was started; this takes some seconds")
                session.stop()
        _tell(job, ending, path=report or _report_path(home, job), as_json=as_json)
    raise typer.Exit(ending.code)


def _opened(open_session: Callable[[Callable[[str], None]], Session], note: Callable[[str], None]) -> Session:
    """The session; raises CliError for whatever keeps the cluster or its supervisor from starting."""
    from orchestrator.apps.wiring import NotRunning

    try:
        return open_session(note)
    except NotRunning as error:  # its message says what to do
        raise CliError(str(error), Code.INFRA) from None
    except (RuntimeError, OSError) as error:
        raise CliError(
            f"the cluster could not be used: {error}; `orchestrator doctor` checks this machine", Code.INFRA
        ) from error


def _reconnect(session: Session, *, home: Path, cluster: str | None) -> Callable[[], ControlClient]:
    """For the follower: the client of the supervisor where it is now, or the old one when nobody knows of another place."""
    found: list[Session] = []

    def again() -> ControlClient:
        from orchestrator.apps.wiring import NotRunning, find

        for old in found:
            old.stop()
        found.clear()
        try:
            fresh = find(home=home, cluster=cluster)
        except (NotRunning, ValueError, OSError):
            return session.client
        if fresh.address == session.address:
            fresh.stop()
            return session.client
        found.append(fresh)
        return fresh.client

    return again


def _report_path(home: Path, job: Job) -> Path:
    from orchestrator.adapters.files.home import Home

    return Home(home).job(job.name) / "report.html"


def _tell(job: Job, ending: Ending, *, path: Path, as_json: bool) -> None:
    """The ending on stdout, the report in its file."""
    from orchestrator.core.codec import to_json

    written = ""
    status = ending.status
    if status is not None and ending.records:
        from orchestrator.apps.report import write_report
        from orchestrator.runtime.prediction import predictions

        held = predictions(ending.records, peak_rss_bytes=ending.peak_rss_bytes)
        status = replace(status, prediction=held[-1] if held else None)  # of the whole run, memory included
        try:
            write_report(path, job=job, records=ending.records, status=status, peak_rss_bytes=ending.peak_rss_bytes)
            written = str(path)
        except OSError as error:  # the job's ending is what counts
            complain(f"the report could not be written to {path}: {error.strerror}", word="warning")
    if as_json:
        facts = {"exit_code": int(ending.code), "digest": ending.digest, "report": written, "why": ending.why}
        data_json({"status": to_json(status), **facts})
    elif status is not None:
        lines = render.status_lines(status, bytewise=bytewise(job))
        extra = [("digest", ending.digest)] if ending.digest else []
        extra += [("report", written)] if written else []
        data("\n".join([*lines, "", *render.table(extra)] if extra else lines))
    if ending.why:
        complain(ending.why, word="" if ending.code is Code.INTERRUPTED else "error")
