"""Says an Event, or counts it up."""

from __future__ import annotations

from orchestrator.adapters.kube.api import KubeApi, KubeError, Object
from orchestrator.adapters.kube.resources import EVENTS


def emit(api: KubeApi, said: Object) -> None:
    """Say it, or count up where it was said before. Raises KubeError."""
    if api.create(EVENTS, said):
        return
    meta = said["metadata"]
    before = api.get(EVENTS, meta["name"], namespace=meta["namespace"])
    count = 1 + int((before or {}).get("count") or 1)
    patch = {"count": count, "lastTimestamp": said["lastTimestamp"]}
    try:
        api.merge(EVENTS, meta["name"], patch, namespace=meta["namespace"])
    except KubeError as error:
        if error.status != 404:  # expired in between: it was said, which is enough
            raise
