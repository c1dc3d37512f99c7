"""The operator's share of a TrainingJob's status, kept apart from the agent's by server-side apply.

The agent, where there is one, says how training goes; the operator says how the pods are, and speaks about the phase only when
nobody else can. A field that the operator once wrote stays until it writes it otherwise or the agent takes it over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import Object
from orchestrator.adapters.kube.events import timestamp
from orchestrator.adapters.kube.objects.common import worker_selector
from orchestrator.adapters.kube.observed import PodFacts, conditions_of, moment, phase_managers
from orchestrator.adapters.kube.refusals import ACCOUNTS_FIX

TERMINAL: Final = ("Succeeded", "Failed", "Cancelled")
ACCEPTED: Final = "Accepted"
PODS_READY: Final = "PodsReady"
HEAD_READY: Final = "HeadReady"
SUSPENDED: Final = "Suspended"
PLACED: Final = "Placed"
APPLIED: Final = "SpecApplied"  # whether the job runs as its spec says now; there once the job was submitted
FAILED: Final = "Failed"  # the agent's, but for a deadline
CHECKPOINTED: Final = "Checkpointed"  # the agent's
DEADLINE: Final = "DeadlineExceeded"
INVALID: Final = "InvalidSpec"
HEAD_LOST: Final = "HeadLost"
GANG_TIMEOUT: Final = "GangTimeout"
OWN: Final = (ACCEPTED, PODS_READY, HEAD_READY, SUSPENDED, PLACED, APPLIED)
POD_SETTINGS: Final = "podSettings"
LAPSING: Final = ("startTime", "completionTime", POD_SETTINGS)  # fields that are taken away where a turn does not say them
MESSAGE_CHARS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class Past:
    """What the TrainingJob's status says so far."""

    phase: str
    reason: str
    message: str
    phase_is_agents: bool
    start: datetime | None
    completion: datetime | None
    conditions: dict[str, Object]
    nodes: int | None  # that the supervisor trains on, as the agent says
    nodes_refused: int | None  # that it was asked for and refused
    submitted: Object | None  # the spec that the agent submitted
    pod_settings: Object | None  # of the spec, as they could be read last; None: as submitted
    name: str  # the job's
    generation: int

    @classmethod
    def of(cls, obj: Object) -> Past:
        """Read it."""
        status = obj.get("status") or {}
        return cls(
            phase=status.get("phase", ""),
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            phase_is_agents=names.AGENT in phase_managers(obj),
            start=moment(status.get("startTime")),
            completion=moment(status.get("completionTime")),
            conditions=dict(conditions_of(obj)),
            nodes=status.get("nodes"),
            nodes_refused=status.get("nodesRefused"),
            submitted=status.get("submitted"),
            pod_settings=status.get(POD_SETTINGS),
            name=obj["metadata"]["name"],
            generation=int(obj["metadata"].get("generation") or 0),
        )

    def is_(self, condition: str, value: str, *reasons: str) -> bool:
        """Whether a condition has that value (and one of the reasons)."""
        found = self.conditions.get(condition, {})
        return found.get("status") == value and (not reasons or found.get("reason") in reasons)

    def is_phase(self, phase: str, reason: str) -> bool:
        """Whether the phase is this one, for this reason."""
        return (self.phase, self.reason) == (phase, reason)

    def since(self, condition: str) -> datetime | None:
        """When a condition got its value."""
        return moment(self.conditions.get(condition, {}).get("lastTransitionTime"))

    @property
    def deadline_passed(self) -> bool:
        """The operator ended the job for its deadline."""
        return self.is_(FAILED, "True", DEADLINE)

    @property
    def over(self) -> bool:
        """The job has ended. One that was refused has not: its spec may still be put right."""
        return self.deadline_passed or (self.phase in TERMINAL and self.reason != INVALID)

    @property
    def begun(self) -> bool:
        """The job was taken on, and may have something to lose."""
        return self.start is not None or self.phase_is_agents or SUSPENDED in self.conditions


@dataclass(slots=True)
class Draft:
    """The status that a turn of the operator arrives at."""

    past: Past
    now: datetime
    fields: Object = field(default_factory=dict)
    conditions: dict[str, Object] = field(default_factory=dict)

    def condition(self, name: str, value: str, reason: str, message: str = "") -> None:
        """Set a condition; its time of transition stays while its value does."""
        before = self.past.conditions.get(name, {})
        since = before.get("lastTransitionTime") if before.get("status") == value else None
        self.conditions[name] = {
            "type": name,
            "status": value,
            "reason": reason,
            "message": _short(message),
            "observedGeneration": self.past.generation,
            "lastTransitionTime": since or timestamp(self.now),
        }

    def phase(self, phase: str, reason: str, message: str) -> None:
        """Say how the job is."""
        self.fields |= {"phase": phase, "reason": reason, "message": _short(message)}

    def keep_phase(self) -> None:
        """Go on saying what was said; where the agent says it, leave it to the agent."""
        if self.past.phase and not self.past.phase_is_agents:
            self.fields |= {"phase": self.past.phase, "reason": self.past.reason, "message": self.past.message}

    def keep_edits(self) -> None:
        """Go on saying what was edited since the job was submitted."""
        if APPLIED in self.past.conditions:
            self.conditions[APPLIED] = self.past.conditions[APPLIED]
        self.keep_settings()

    def keep_settings(self) -> None:
        """Go on saying which settings of pods are in force."""
        self.fields.pop(POD_SETTINGS, None)
        if self.past.pod_settings is not None:
            self.fields[POD_SETTINGS] = self.past.pod_settings

    def keep_rest(self) -> None:
        """Go on saying all that this turn says nothing about."""
        for name in OWN:
            if name in self.past.conditions:
                self.conditions.setdefault(name, self.past.conditions[name])
        self.started(self.past.start)
        if self.past.completion is not None:
            self.fields["completionTime"] = timestamp(self.past.completion)

    def count(self, pods: Iterable[PodFacts]) -> None:
        """Say how many workers there are; the scale subresource shows it."""
        workers = [pod for pod in pods if pod.live and pod.role == names.WORKER]
        self.fields |= {"replicas": len(workers), "readyReplicas": sum(pod.ready for pod in workers)}
        self.fields["selector"] = worker_selector(self.past.name)

    def started(self, when: datetime | None) -> None:
        """Since when the job may run."""
        if when is not None:
            self.fields["startTime"] = timestamp(when)

    def refused(self, *, what: str, reason: str, message: str) -> None:
        """The API server did not take an object of the job."""
        if "serviceaccount" in message.lower() and "not found" in message.lower():
            reason, fix = "ServiceAccountMissing", f"; fix: {ACCOUNTS_FIX}"
        elif "exceeded quota" in message:
            reason, fix = "QuotaExceeded", "; fix: a larger ResourceQuota, or a smaller job"
        else:
            fix = ""
        words = f"{what} is refused: {message}{fix}"
        self.condition(PODS_READY, "False", reason or "Refused", words)
        if self.fields.get("phase") in ("Pending", "Starting"):
            self.phase("Pending", reason or "Refused", words)

    def content(self) -> Object:
        """The status as it is applied."""
        made = {"observedGeneration": self.past.generation, **self.fields}
        return {**made, "conditions": [self.conditions[name] for name in sorted(self.conditions)]}

    def differs(self, obj: Object) -> bool:
        """Whether the TrainingJob's status is not yet this."""
        status = obj.get("status") or {}
        content = self.content()
        del content["conditions"]
        if any(status.get(key) != value for key, value in content.items()):
            return True
        if any(key in status and key not in content for key in LAPSING):
            return True
        there = conditions_of(obj)
        return any(there.get(name) != condition for name, condition in self.conditions.items()) or any(
            name in there and name not in self.conditions for name in OWN
        )


def _short(message: str) -> str:
    return message if len(message) <= MESSAGE_CHARS_MAX else message[: MESSAGE_CHARS_MAX - 3] + "..."
