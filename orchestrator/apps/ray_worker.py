"""The main of a worker's Ray actor, named by dotted path to the Ray adapter."""

from __future__ import annotations

from orchestrator.adapters.ray.supervisor_actor import EndpointResolver, bind_host
from orchestrator.apps.worker_main import live

RESOLVE_MS = 1_000


def work(settings: dict[str, str]) -> None:
    """A worker's actor; does not return."""
    resolver = EndpointResolver()
    host = bind_host(loopback=settings["loopback"] == "1")
    live({**settings, "bind_host": host}, lambda: resolver.resolve(RESOLVE_MS))
