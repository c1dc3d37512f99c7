"""Commands that change who trains: scale, drain, replace. No step is lost by them and survivors keep their processes.

Each is decided on and journaled before it answers; the answer is the decision's reason. `--wait` stays until the job trains the
new way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.apps.cli import complete, render
from orchestrator.apps.cli.base import CliError, Code, data_json, say, who
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
)
from orchestrator.apps.cli.waiting import Judge, settled, wait

if TYPE_CHECKING:
    from orchestrator.adapters.grpc.client import ControlClient
    from orchestrator.runtime.control import Decided
    from orchestrator.runtime.ports import Record
    from orchestrator.runtime.status_types import JobStatus


def scale(
    job: JobName,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes that are to train.", show_default=False)] = None,
    layers_per_stage: Annotated[
        str,
        typer.Option(
            "--layers-per-stage", metavar="N,N,..", help="Layers of each pipeline stage, in forward order.", show_default=False
        ),
    ] = "",
    stay: Wait = False,
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
    on: On = Place.RAY,
    namespace: Namespace = "",
    context: Context = "",
    kubeconfig: Kubeconfig = "",
) -> None:
    """Train on more or fewer nodes, or cut the pipeline anew; state moves in memory and no step is lost."""
    ours = {"--cluster": cluster, "--layers-per-stage": layers_per_stage}
    there = kubernetes(on, namespace=namespace, context=context, kubeconfig=kubeconfig, not_there=ours)
    if there is not None:
        if nodes is None:
            raise CliError("say how many nodes: --nodes N", Code.INPUT)
        from orchestrator.apps.cli.kube.act import scale as on_kubernetes

        on_kubernetes(there, job, nodes=nodes, stay=stay, as_json=as_json)
        return
    layers = _layers(layers_per_stage)
    if nodes is None and not layers:
        raise CliError("say what is to change: --nodes N, --layers-per-stage N,N,.., or both", Code.INPUT)
    with client_of(home, cluster) as client:
        decided = client.scale(job, nodes=nodes or 0, layers_per_stage=layers, who=who())

        def judge(_: Record | None, status: JobStatus) -> str:
            cut = status.plan.layers_per_stage if status.plan is not None else ()
            there = settled(status) and render.at_full_strength(status) and layers in ((), cut)
            on = len(render.training_nodes(status))
            return f"job {status.name} trains on {on} nodes: {render.plan_text(status)}" if there else ""

        _finish(client, job, decided, judge, stay=stay, as_json=as_json)


def drain(
    job: JobName,
    node: Annotated[
        str,
        typer.Argument(metavar="NODE", help="Id of the node, its beginning, or its address.", autocompletion=complete.nodes),
    ],
    why: Annotated[str, typer.Option("--why", help="For the journal: maintenance, spot reclaim, ...", show_default=False)] = "",
    stay: Wait = False,
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
) -> None:
    """Empty a node: its ranks move elsewhere, with their state, and nothing new starts there."""
    with client_of(home, cluster) as client:
        node_id = node_meant(client.get(job), node)
        decided = client.drain(job, node_id=node_id, who=who(), why=why)

        def judge(_: Record | None, status: JobStatus) -> str:
            left = [w for w in status.workers if w.node_id == node_id and w.rank >= 0 and w.phase.alive]
            return f"node {node_id[: render.ID_CHARS]} holds no state any more" if settled(status) and not left else ""

        _finish(client, job, decided, judge, stay=stay, as_json=as_json)


def replace(
    job: JobName,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", min=0, help="The rank that gets another worker.", show_default=False, autocompletion=complete.ranks
        ),
    ] = None,
    worker: Annotated[
        str,
        typer.Option(
            "--worker", help="Or the worker that gives up its rank.", show_default=False, autocompletion=complete.workers
        ),
    ] = "",
    stay: Wait = False,
    as_json: AsJson = False,
    home: HomeDir = DEFAULT_HOME,
    cluster: Cluster = None,
) -> None:
    """Give a rank to a spare, with its state, and end the worker that had it."""
    if (rank is None) == (not worker):
        raise CliError("say which: either --rank N or --worker ID", Code.INPUT)
    with client_of(home, cluster) as client:
        status = client.get(job)
        full = worker if "/" in worker else f"{status.name}/{worker}"
        seats = {w.worker_id: w.rank for w in status.workers if w.rank >= 0 and w.phase.alive}
        old = full if worker else next((w for w, r in seats.items() if r == rank), "")
        decided = client.replace_worker(job, worker_id=worker, rank=rank, who=who())

        def judge(_: Record | None, status: JobStatus) -> str:
            now = [w.worker_id for w in status.workers if w.rank >= 0 and w.phase.alive]
            return f"worker {old} has no rank any more" if settled(status) and old not in now else ""

        _finish(client, job, decided, judge, stay=stay, as_json=as_json)


def _finish(client: ControlClient, job: str, decided: Decided, judge: Judge, *, stay: bool, as_json: bool) -> None:
    """Tell what was decided, and with `stay` wait for what comes of it."""
    say(f"#{decided.seq} {decided.reason}")
    done = wait(client, job, decided, judge) if stay else ""
    if as_json:
        data_json({"job": job, "seq": decided.seq, "reason": decided.reason, "done": done})
    else:
        say(done or f"see: orchestrator status {job} -w")


def _layers(text: str) -> tuple[int, ...]:
    """`2,1,1` -> (2, 1, 1); raises CliError."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdigit() and 0 < len(part) <= 6 and int(part) > 0 for part in parts):
        raise CliError(f"--layers-per-stage {text!r}: write a positive number for each stage, such as 2,1,1", Code.INPUT)
    return tuple(int(part) for part in parts)
