"""Commands that break, pause or end something: chaos, cancel, suspend, resume, down.

What goes to a supervisor is journaled with who asked for it. `suspend` and `resume` are of Kubernetes only, where pods that do
nothing would keep their devices from others.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.apps.cli import complete, render
from orchestrator.apps.cli.base import CliError, Code, data, data_json, milliseconds, say, who
from orchestrator.apps.cli.look import client_of, node_meant
from orchestrator.apps.cli.options import (
    DEFAULT_HOME,
    AsJson,
    Cluster,
    Context,
    HomeDir,
    JobName,
    Kubeconfig,
    Namespace,
    On,
    Place,
    Wait,
    kubernetes,
    only_on,
    resolved,
)


class Kind(StrEnum):
    """Faults that can be injected."""

    KILL_WORKER = "kill-worker"
    KILL_NODE = "kill-node"
    KILL_RAYLET = "kill-raylet"
    HANG = "hang"
    SLOW = "slow"
    RAISE = "raise"
    FLIP = "flip"
    NAN = "nan"


def chaos(
    job: JobName,
    kind: Annotated[Kind, typer.Argument(help="What goes wrong.", show_default=False)],
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=0, help="The rank that it happens to.", show_default=False, autocompletion=complete.ranks),
    ] = None,
    node: Annotated[
        str,
        typer.Option(
            "--node", help="Or the node (id, its beginning, or address).", show_default=False, autocompletion=complete.nodes
        ),
    ] = "",
    at_step: Annotated[int, typer.Option("--at-step", min=0, help="While this step is computed; 0 is now.")] = 0,
    micro_batch: Annotated[int, typer.Option("--micro-batch", min=0, help="Before this one of the rank's own.")] = 0,
    amount: Annotated[
        str,
        typer.Option("--amount", help="slow: added to each micro-batch; hang: how long (absent: for ever).", show_default=False),
    ] = "",
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
) -> None:
    """Inject a fault into a running job."""
    from orchestrator.core.supervisor.events import Fault

    if (rank is None) == (not node):
        raise CliError("say where: either --rank N or --node ID", Code.INPUT)
    amount_ms = milliseconds(amount, option="--amount") if amount else 0
    if kind is Kind.SLOW and not amount_ms:
        raise CliError("slow needs --amount, such as --amount 300ms", Code.INPUT)
    if amount_ms and kind not in (Kind.SLOW, Kind.HANG):
        raise CliError(f"{kind} has no amount; leave --amount out", Code.INPUT)
    with client_of(home, cluster) as client:
        status = client.get(job)
        if rank is not None and status.plan is not None and rank >= status.plan.ranks:
            raise CliError(f"there is no rank {rank}; job {status.name} has ranks 0 to {status.plan.ranks - 1}", Code.INPUT)
        if at_step and at_step <= status.step:
            raise CliError(f"step {at_step} is over; job {status.name} is at step {status.step}, name a later one", Code.INPUT)
        fault = Fault(
            kind=kind.value,
            rank=-1 if rank is None else rank,
            node_id=node_meant(status, node) if node else "",
            at_step=at_step,
            micro_batch=micro_batch,
            amount_ms=amount_ms,
        )
        client.inject(job, fault=fault, who=who())
    where = f"rank {rank}" if rank is not None else f"node {fault.node_id[: render.ID_CHARS]}"
    say(f"{kind} of {where} {f'at step {at_step}' if at_step else 'now'}: handed in; see: orchestrator events {job} -f")


def cancel(
    job: JobName,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """End a job; what it has saved stays."""
    ours = {"--cluster": cluster}
    if kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig, not_there=ours) is not None:
        raise CliError(
            f"on Kubernetes a job is paused, which keeps its journal, with `orchestrator suspend {job}`,"
            f" or deleted with `orchestrator down {job}`; both need --on kubernetes",
            Code.INPUT,
        )
    with client_of(home, cluster) as client:
        client.cancel(job, who=who())
    say(f"job {job} is being cancelled")


def suspend(
    job: JobName,
    stay: Wait = False,
    as_json: AsJson = False,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Give a job's pods back after a checkpoint; the job and its journal stay. On Kubernetes only."""
    _pause(job, True, stay=stay, as_json=as_json, on=on, namespace=namespace, context=context, kubeconfig=kubeconfig)


def resume(
    job: JobName,
    stay: Wait = False,
    as_json: AsJson = False,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Let a suspended job go on from its newest checkpoint. On Kubernetes only."""
    _pause(job, False, stay=stay, as_json=as_json, on=on, namespace=namespace, context=context, kubeconfig=kubeconfig)


def _pause(
    job: str, wanted: bool, *, stay: bool, as_json: bool, on: Place, namespace: str, context: str, kubeconfig: str
) -> None:
    there = kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig)
    if there is None:
        raise CliError("only jobs on Kubernetes are suspended and resumed; add --on kubernetes", Code.INPUT)
    from orchestrator.apps.cli.kube.act import suspend as on_kubernetes

    on_kubernetes(there, job, wanted=wanted, stay=stay, as_json=as_json)


def down(
    job: Annotated[
        str,
        typer.Argument(
            metavar="[JOB]", help="On Kubernetes: the job to delete.", show_default=False, autocompletion=complete.jobs
        ),
    ] = "",
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
    stay: Annotated[bool, typer.Option("--wait", help="Stay until nothing of it is left.", rich_help_panel="Kubernetes")] = False,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """End everything that was started on this machine: jobs, supervisors, embedded clusters. On Kubernetes: delete one job."""
    ours = {"--cluster": cluster}
    there = kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig, not_there=ours)
    if there is not None:
        if not job:
            raise CliError("name the job to delete; `orchestrator list --on kubernetes` shows them", Code.INPUT)
        from orchestrator.apps.cli.kube.act import down as on_kubernetes

        on_kubernetes(there, job, stay=stay, as_json=as_json)
        return
    only_on(Place.KUBERNETES, {f"the job {job}" if job else "": job, "--wait": stay})
    from orchestrator.apps.wiring import down as end_all

    try:
        ended = end_all(home=resolved(home), cluster=cluster)
    except ValueError as error:  # no name of a cluster, or a damaged file; it says which
        raise CliError(str(error), Code.INPUT) from None
    if as_json:
        data_json({"ended": ended})
    elif ended:
        data("\n".join(ended))
    else:
        say("nothing was running")
