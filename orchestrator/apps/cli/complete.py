"""Shell completion of names that only the running system knows: jobs, nodes, workers, ranks.

A person presses Tab and waits, so this is quick, silent and never an error: names of jobs come from their folders, everything
else from one short question to the supervisor (on Kubernetes: to the API server). Whoever does not answer has nothing to offer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from orchestrator.runtime.status_types import JobStatus

ANSWER_MS = 1_500
HOME = "~/.orchestrator"  # as in options.py, which imports this module


def jobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Jobs that have a folder in the home directory, running or over; on Kubernetes those of the namespace."""
    if _on_kubernetes(ctx):
        from orchestrator.apps.cli.kube.complete import jobs as on_kubernetes

        return on_kubernetes(ctx.params, incomplete)
    try:
        found = sorted(p.name for p in (_home(ctx) / "jobs").iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []
    return [name for name in found if name.startswith(incomplete)]


def namespaces(ctx: typer.Context, incomplete: str) -> list[str]:
    """Namespaces of the cluster."""
    from orchestrator.apps.cli.kube.complete import namespaces as on_kubernetes

    return on_kubernetes(ctx.params, incomplete)


def contexts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Contexts of the kubeconfig."""
    from orchestrator.apps.cli.kube.complete import contexts as on_kubernetes

    return on_kubernetes(ctx.params, incomplete)


def decisions(ctx: typer.Context, incomplete: str) -> list[str]:
    """What `explain` takes beside numbers."""
    return [word for word in ("last", "plan") if word.startswith(incomplete)]


def nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the nodes of the job on the command line."""
    status = _status(ctx)
    return [n.node_id for n in status.nodes if n.node_id.startswith(incomplete)] if status else []


def workers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Living workers that have a rank, without the job's name."""
    status = _status(ctx)
    names = [w.worker_id.rpartition("/")[2] for w in status.workers if w.rank >= 0 and w.phase.alive] if status else []
    return [name for name in names if name.startswith(incomplete)]


def ranks(ctx: typer.Context, incomplete: str) -> list[str]:
    """The job's ranks."""
    if _on_kubernetes(ctx):
        from orchestrator.apps.cli.kube.complete import ranks as on_kubernetes

        return on_kubernetes(ctx.params, incomplete)
    status = _status(ctx)
    plan = status.plan if status else None
    return [str(r) for r in range(plan.ranks) if str(r).startswith(incomplete)] if plan else []


def _on_kubernetes(ctx: typer.Context) -> bool:
    return (ctx.params.get("on") or os.environ.get("ORCHESTRATOR_ON")) == "kubernetes"


def _home(ctx: typer.Context) -> Path:
    return Path(ctx.params.get("home") or os.environ.get("ORCHESTRATOR_HOME") or HOME).expanduser()


def _status(ctx: typer.Context) -> JobStatus | None:
    from orchestrator.apps.wiring import find

    try:
        with find(home=_home(ctx).resolve(), cluster=ctx.params.get("cluster"), timeout_ms=ANSWER_MS) as session:
            return session.client.get(ctx.params.get("job") or "")
    except Exception:  # whatever it is, a person who completes a word must not be shown it
        return None
