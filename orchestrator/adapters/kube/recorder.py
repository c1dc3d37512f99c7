"""The supervisor's decisions as Kubernetes Events of the TrainingJob: each that has a reason, once, in the journal's order.

An Event is named by the job, the object and the number of the decision in the journal, so an agent that is started again can tell
nothing twice: the API server already has an object of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.events import event
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import EndJob, FenceEpoch, KillWorker
from orchestrator.runtime.ports import Record

Object = dict[str, Any]

# Facts that are bad news whatever comes of them.
BAD_NEWS: Final = (
    ev.WorkerGone,
    ev.SpawnFailed,
    ev.WorkerDisconnected,
    ev.NodeGone,
    ev.TaskFailed,
    ev.CorruptionFound,
    ev.BadStepFound,
)


def reason_of(record: Record) -> str:
    """One CamelCase word: what was learned, or of the supervisor's own clock what it found."""
    if any(isinstance(c, EndJob) for c in record.commands):
        return f"Job{record.phase.capitalize()}"
    if isinstance(record.event, ev.Tick):
        return "WorkerLost" if any(isinstance(c, KillWorker) for c in record.commands) else "Observed"
    return type(record.event).__name__


def is_warning(record: Record) -> bool:
    """Whether something went wrong; what somebody asked for did not."""
    if record.phase == "failed":
        return True
    if isinstance(record.event, ev.CheckpointReported):
        return not record.event.ok
    if isinstance(record.event, ev.LeftEpoch):
        return any(isinstance(c, FenceEpoch) for c in record.commands)  # its groups broke: nobody had asked it to
    lost = any(isinstance(c, KillWorker) for c in record.commands) and not isinstance(record.event, ev.SupervisorRestarted)
    return lost or isinstance(record.event, BAD_NEWS)


def event_of(record: Record, about: Mapping[str, Any], *, pod: str) -> Object:
    """The Event of a decision about a TrainingJob (which brings apiVersion, kind and metadata); `pod` is who tells it."""
    made = event(
        dict(about),
        reason=reason_of(record),
        message=record.reason,
        warning=is_warning(record),
        component=names.AGENT,
        now=datetime.fromtimestamp(record.wall_s, UTC),
    )
    made["metadata"]["name"] = event_name(about, record.seq)
    made["reportingInstance"] = pod
    return made


def event_name(about: Mapping[str, Any], seq: int) -> str:
    """`{job}.{beginning of the object's uid}.{seq}`: another job of the same name, later, has Events of its own."""
    meta = about["metadata"]
    return f"{meta['name']}.{meta['uid'][:8]}.{seq:06d}"
