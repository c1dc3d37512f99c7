"""What the API server holds about a job, as frozen values for people: the TrainingJob, its Events, and where each is found.

The JSON of the server ends here. A field that nobody wrote yet is a None or an empty text, never an invented number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from orchestrator.adapters.kube.names import AGENT, LABEL_JOB
from orchestrator.adapters.kube.resources import EVENTS, PODS, TRAINING_JOBS
from orchestrator.core.timeouts import DETECT_WITHIN_MS, derive


class Phase(StrEnum):
    """Where a TrainingJob is."""

    PENDING = "Pending"
    STARTING = "Starting"
    RUNNING = "Running"
    RECOVERING = "Recovering"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the job is over."""
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition of a TrainingJob."""

    type: str
    status: str  # True, False, Unknown
    reason: str
    message: str
    since_s: float  # seconds since the Unix epoch
    generation: int  # of the spec that it is about; 0: nobody said


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSeen:
    """A TrainingJob as it was last seen. Times in seconds, losses in nats."""

    name: str
    namespace: str
    uid: str
    generation: int
    created_s: float
    leaving: bool  # it is being deleted
    detect_within_ms: int
    suspend: bool
    nodes: int  # that should train
    observed_generation: int
    phase: Phase
    reason: str
    message: str
    step: int | None
    steps: int | None
    progress: str
    loss: float | None
    goodput: str
    eta_s: int | None
    recoveries: int
    failures: int  # that count against the budget now
    steps_lost: int
    epoch: int | None
    ranks: int | None
    spares: int | None
    seats: tuple[str, ...]  # the pod of each rank; empty where nobody said
    checkpoint: int | None
    digest: str
    last_decision: str
    replicas: int | None
    ready: int | None
    conditions: tuple[Condition, ...]

    def holds(self, condition: str, *, generation: int = 0) -> bool:
        """Whether a condition is True, and about the spec of this generation or a later one."""
        return any(c.type == condition and c.status == "True" and c.generation >= generation for c in self.conditions)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSeen:
    """One Event about a TrainingJob."""

    name: str
    seq: int  # of the record in the supervisor's journal; 0: it comes from elsewhere
    wall_s: float  # seconds since the Unix epoch, of the newest time it was said
    warning: bool
    reason: str
    message: str
    source: str
    count: int


def job_path(namespace: str, name: str = "", *, subresource: str = "") -> str:
    """Of a TrainingJob, or of all in a namespace."""
    return TRAINING_JOBS.path(namespace=namespace, name=name, subresource=subresource)


def one(name: str) -> dict[str, str]:
    """The query that selects one object by its name."""
    return {"fieldSelector": f"metadata.name={name}"}


def events_path(namespace: str) -> str:
    """Of the Events of a namespace."""
    return EVENTS.path(namespace=namespace)


def about(name: str, uid: str = "") -> dict[str, str]:
    """The query that selects the Events about a job; with `uid` only of this one of the name."""
    fields = f"involvedObject.kind={TRAINING_JOBS.kind},involvedObject.name={name}"
    return {"fieldSelector": f"{fields},involvedObject.uid={uid}" if uid else fields}


def pods_path(namespace: str) -> str:
    """Of the pods of a namespace."""
    return PODS.path(namespace=namespace)


def of_job(name: str, **labels: str) -> dict[str, str]:
    """The query that selects what belongs to a job."""
    wanted = {LABEL_JOB: name, **labels}
    return {"labelSelector": ",".join(f"{key}={value}" for key, value in wanted.items())}


def job_seen(found: Mapping[str, Any]) -> JobSeen:
    """A TrainingJob of the API server as a value."""
    meta, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    cluster = spec.get("cluster") or {}
    return JobSeen(
        name=str(meta["name"]),
        namespace=str(meta.get("namespace", "")),
        uid=str(meta.get("uid", "")),
        generation=int(meta.get("generation", 0)),
        created_s=seconds(meta.get("creationTimestamp")),
        leaving="deletionTimestamp" in meta,
        detect_within_ms=_detect_within_ms(spec),
        suspend=bool(spec.get("suspend", False)),
        nodes=int(cluster.get("nodes", 0)),
        observed_generation=int(status.get("observedGeneration") or 0),
        phase=Phase(status["phase"]) if status.get("phase") in set(Phase) else Phase.PENDING,
        reason=str(status.get("reason") or ""),
        message=str(status.get("message") or ""),
        step=_number(status, "step"),
        steps=_number(status, "steps"),
        progress=str(status.get("progress") or ""),
        loss=None if status.get("loss") is None else float(status["loss"]),
        goodput=str(status.get("goodput") or ""),
        eta_s=_number(status, "etaSeconds"),
        recoveries=int(status.get("recoveries") or 0),
        failures=int(status.get("failures") or 0),
        steps_lost=int(status.get("stepsLost") or 0),
        epoch=_number(status, "epoch"),
        ranks=_number(status, "ranks"),
        spares=_number(status, "spares"),
        seats=tuple(str(pod) for pod in status.get("seats") or ()),
        checkpoint=_number(status, "checkpoint"),
        digest=str(status.get("digest") or ""),
        last_decision=str(status.get("lastDecision") or ""),
        replicas=_number(status, "replicas"),
        ready=_number(status, "readyReplicas"),
        conditions=tuple(_condition(c) for c in status.get("conditions") or ()),
    )


def event_seen(found: Mapping[str, Any]) -> EventSeen:
    """An Event of the API server as a value."""
    name = str(found["metadata"]["name"])
    source = str((found.get("source") or {}).get("component") or found.get("reportingComponent") or "")
    last = name.rpartition(".")[2]
    times = (found.get("lastTimestamp"), found.get("eventTime"), found.get("firstTimestamp"))
    told = next((t for t in (*times, found["metadata"].get("creationTimestamp")) if t), None)
    return EventSeen(
        name=name,
        seq=int(last) if source == AGENT and last.isascii() and last.isdigit() else 0,
        wall_s=seconds(told),
        warning=found.get("type") == "Warning",
        reason=str(found.get("reason", "")),
        message=str(found.get("message", "")),
        source=source,
        count=int(found.get("count") or 1),
    )


def in_order(events: Iterable[EventSeen]) -> list[EventSeen]:
    """By time; those of the journal in its own order, whatever the clocks of their writers said."""
    every = list(events)
    journal = sorted((e for e in every if e.seq), key=lambda e: e.seq)
    latest, at = 0.0, {}
    for event in journal:
        latest = max(latest, event.wall_s)
        at[event.name] = latest
    return sorted(every, key=lambda e: (at.get(e.name, e.wall_s), e.seq, e.name))


def seconds(text: Any) -> float:
    """An RFC 3339 time as seconds since the Unix epoch; 0 where there is none."""
    if not text:
        return 0.0
    moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _condition(found: Mapping[str, Any]) -> Condition:
    return Condition(
        type=str(found.get("type", "")),
        status=str(found.get("status", "")),
        reason=str(found.get("reason", "")),
        message=str(found.get("message") or ""),
        since_s=seconds(found.get("lastTransitionTime")),
        generation=int(found.get("observedGeneration") or 0),
    )


def _number(status: Mapping[str, Any], key: str) -> int | None:
    return None if status.get(key) is None else int(status[key])


def _detect_within_ms(spec: Mapping[str, Any]) -> int:
    from orchestrator.spec.values import duration_ms

    try:
        derive(found := duration_ms(str(spec["resilience"]["detect_within"])))
    except (KeyError, TypeError, ValueError):  # not written; or wrong: the operator refuses the job, and says so
        return DETECT_WITHIN_MS
    return found
