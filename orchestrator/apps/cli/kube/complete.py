"""Names that the API server knows, for the shell: jobs, ranks, namespaces, contexts.

One short question each; whoever does not answer offers none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.adapters.kube.access import Access, Options, connect, contexts_of

ANSWER_S = 1.5
NAMES_MAX = "500"


def jobs(params: Mapping[str, Any], incomplete: str) -> list[str]:
    """TrainingJobs of the namespace on the command line."""
    from orchestrator.adapters.kube.seen import job_path

    return _names(params, lambda access: job_path(access.namespace), incomplete)


def ranks(params: Mapping[str, Any], incomplete: str) -> list[str]:
    """Ranks of the job on the command line."""
    from orchestrator.adapters.kube.seen import job_path, job_seen

    try:
        access = connect(_options(params), timeout_s=ANSWER_S)
        job = job_seen(access.get(job_path(access.namespace, str(params["job"]))))
        return [str(r) for r in range(job.ranks or 0) if str(r).startswith(incomplete)]
    except Exception:
        return []


def namespaces(params: Mapping[str, Any], incomplete: str) -> list[str]:
    """Namespaces of the cluster."""
    return _names(params, lambda _: "/api/v1/namespaces", incomplete)


def contexts(params: Mapping[str, Any], incomplete: str) -> list[str]:
    """Contexts of the kubeconfig; no server is asked."""
    try:
        return [name for name in contexts_of(_options(params)) if name.startswith(incomplete)]
    except Exception:  # a person who completes a word must not be shown it
        return []


def _names(params: Mapping[str, Any], path: Callable[[Access], str], incomplete: str) -> list[str]:
    try:
        access = connect(_options(params), timeout_s=ANSWER_S)
        found = access.get(path(access), query={"limit": NAMES_MAX})
        return sorted(name for o in found["items"] if (name := str(o["metadata"]["name"])).startswith(incomplete))
    except Exception:
        return []


def _options(params: Mapping[str, Any]) -> Options:
    said = {key: str(params.get(key) or "") for key in ("kubeconfig", "context", "namespace")}
    return Options(**said)
