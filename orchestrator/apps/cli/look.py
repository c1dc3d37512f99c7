"""Commands that look at running jobs: status, logs, events, explain, list. They change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.apps.cli import complete, render
from orchestrator.apps.cli.base import CliError, Code, code_of, data, data_json, running, talk
from orchestrator.apps.cli.options import (
    DEFAULT_HOME,
    AsJson,
    Cluster,
    Context,
    HomeDir,
    Kubeconfig,
    MaybeJobName,
    Namespace,
    NoView,
    On,
    Place,
    kubernetes,
    resolved,
)
from orchestrator.core.codec import to_json

if TYPE_CHECKING:
    from orchestrator.adapters.grpc.client import ControlClient
    from orchestrator.runtime.status_types import JobStatus

FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Stay for what is to come, until the job is over.")]


@contextmanager
def client_of(home: Path, cluster: str | None) -> Iterator[ControlClient]:
    """The client of the running supervisor; raises CliError where there is none."""
    session = running(home=resolved(home), cluster=cluster)
    try:
        yield session.client
    finally:
        session.stop()


def node_meant(status: JobStatus, wanted: str) -> str:
    """The id of the one node that is meant, by its id, the beginning of it, or its address; raises CliError."""
    nodes = render.node_of(status, wanted)
    if len(nodes) == 1:
        return nodes[0].node_id
    known = ", ".join(f"{n.node_id[: render.ID_CHARS]} ({n.address})" for n in nodes or status.nodes) or "none yet"
    what = f"{wanted!r} may be any of" if nodes else f"there is no node {wanted!r}; job {status.name} knows"
    raise CliError(f"{what} {known}; name one of them by its id", Code.INPUT)


def status(
    job: MaybeJobName = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay until the job is over; exit with its code.")] = False,
    as_json: AsJson = False,
    no_view: NoView = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Show where a job is, what each node does, and the last decision with its reason."""
    ours = {"--cluster": cluster}
    there = kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig, not_there=ours)
    if there is not None:
        from orchestrator.apps.cli.kube import look as on_kubernetes

        on_kubernetes.status(there, job, watch=watch, as_json=as_json)
        return
    with client_of(home, cluster) as client:
        if not watch:
            newest = client.get(job)
            data_json(to_json(newest)) if as_json else data("\n".join(render.status_lines(newest)))
            return
        last = _watched(client, job, as_json=as_json, no_view=no_view)
    if last is None:
        raise CliError("the supervisor told nothing; try again, or look at its log", Code.INFRA)
    if not as_json:
        data("\n".join(render.status_lines(last)))
    raise typer.Exit(code_of(last.outcome))


def _watched(client: ControlClient, job: str, *, as_json: bool, no_view: bool) -> JobStatus | None:
    last: JobStatus | None = None
    if as_json:
        for last in client.watch_status(job):
            data_json(to_json(last), indent=None)
        return last
    from orchestrator.apps.cli.view import make_view

    with make_view(talk(), live=not no_view, bytewise=False) as view:
        for last in client.watch_status(job):
            view.update(last)
    return last


def logs(
    job: MaybeJobName = "",
    follow: FollowOption = False,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=0, help="Only of this rank.", show_default=False, autocompletion=complete.ranks),
    ] = None,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Print what the workers printed."""
    ours = {"--cluster": cluster}
    there = kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig, not_there=ours)
    if there is not None:
        from orchestrator.apps.cli.kube import look as on_kubernetes

        on_kubernetes.logs(there, job, rank=rank, follow=follow)
        return
    with client_of(home, cluster) as client:
        for line in client.tail_logs(job, rank=rank, follow=follow):
            data(render.log_line(line))


def events(
    job: MaybeJobName = "",
    follow: FollowOption = False,
    as_json: AsJson = False,
    everything: Annotated[bool, typer.Option("--all", help="Also records that needed no decision (JSON has them all).")] = False,
    after: Annotated[int, typer.Option("--after", min=0, help="Only records after this number.")] = 0,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Print the journal: what happened, what was decided and why. With --json one record a line."""
    ours = {"--cluster": cluster, "--all": everything}
    there = kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig, not_there=ours)
    if there is not None:
        from orchestrator.apps.cli.kube import look as on_kubernetes

        on_kubernetes.events(there, job, follow=follow, as_json=as_json, after=after)
        return
    with client_of(home, cluster) as client:
        for record in client.watch_events(job, after_seq=after, follow=follow):
            if as_json:
                data_json(to_json(record), indent=None)
            elif record.reason or everything:
                data(render.event_line(record))


def explain(
    event: Annotated[
        str,
        typer.Argument(
            metavar="EVENT",
            help="Number of a record (as `events` shows it), `last`, or `plan`: the plan of each epoch.",
            autocompletion=complete.decisions,
        ),
    ],
    job: MaybeJobName = "",
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
) -> None:
    """Tell the story of one decision: what led to it, what was decided, what came of it. `plan`: why each plan, and what else."""
    if event == "plan":
        _explain_plan(job, as_json=as_json, home=home, cluster=cluster)
        return
    number = event.removeprefix("#")
    if number != "last" and not (number.isascii() and number.isdigit() and len(number) <= 18):
        raise CliError(
            f"{event!r} is no record number; `orchestrator events` shows them, `last` is the newest, `plan` tells the plans",
            Code.INPUT,
        )
    with client_of(home, cluster) as client:
        if number == "last":
            decision = client.get(job).decision
            if decision is None:
                raise CliError("nothing was decided yet; try again later", Code.INPUT)
            number = str(decision.seq)
        story = client.explain(job, seq=int(number))
    if as_json:
        data_json({"record": to_json(story.record), "lines": list(story.lines)})
    else:
        data("\n".join((render.event_line(story.record), *story.lines)))


def _explain_plan(job: str, *, as_json: bool, home: Path, cluster: str | None) -> None:
    from orchestrator.apps.cli.plan_words import story_lines
    from orchestrator.runtime.explain import plan_stories

    with client_of(home, cluster) as client:
        stories = plan_stories(list(client.watch_events(job)))
    if not stories:
        raise CliError("no epoch was started yet, so there is no plan; try again later", Code.INPUT)
    if as_json:
        data_json([to_json(s) for s in stories])
    else:
        data("\n\n".join("\n".join(story_lines(s)) for s in stories))


def list_jobs(
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """List the jobs of a cluster."""
    ours = {"--cluster": cluster}
    there = kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig, not_there=ours)
    if there is not None:
        from orchestrator.apps.cli.kube import look as on_kubernetes

        on_kubernetes.list_jobs(there, as_json=as_json)
        return
    with client_of(home, cluster) as client:
        jobs = client.list_jobs()
    if as_json:
        data_json([to_json(s) for s in jobs])
    else:
        data("\n".join(render.list_lines(jobs)))
