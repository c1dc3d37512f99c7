"""Kubernetes Events of a TrainingJob, so that `kubectl describe` tells its story.

An Event's name is made of what it says and of the spec's generation, so that the same thing said again about the same spec finds
the Event that is there, also after a restart of whoever says it.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from orchestrator.adapters.kube.api import Object
from orchestrator.adapters.kube.resources import EVENTS

MESSAGE_CHARS_MAX = 1024  # the API server's own limit


def timestamp(when: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes times."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def event(about: Object, *, reason: str, message: str, warning: bool, component: str, now: datetime) -> Object:
    """An Event about an object (which brings apiVersion, kind and metadata)."""
    meta = about["metadata"]
    said = message if len(message) <= MESSAGE_CHARS_MAX else message[: MESSAGE_CHARS_MAX - 3] + "..."
    kind = "Warning" if warning else "Normal"
    told = (meta["uid"], str(meta.get("generation", "")), kind, reason, said, component)
    digest = hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]
    return {
        "apiVersion": EVENTS.group_version,
        "kind": EVENTS.kind,
        "metadata": {"name": f"{meta['name']}.{digest}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
            "resourceVersion": meta.get("resourceVersion", ""),
        },
        "reason": reason,
        "message": said,
        "type": kind,
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": component,
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
    }
