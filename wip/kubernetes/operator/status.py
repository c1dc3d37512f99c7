"""The operator's share of a TrainingJob's status, kept apart from the agent's by server-side apply.

The agent, where there is one, says how training goes; the operator says how the pods are, and speaks about the phase only when nobody
else can. A field that the operator once wrote stays until it writes it otherwise or the agent takes it over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import Object
from orchestrator.adapters.kube.events import timestamp
from orchestrator.adapters.kube.observed import conditions_of, moment, phase_manager

TERMINAL: Final = ("Succeeded", "Failed", "Cancelled")
ACCEPTED: Final = "Accepted"
PODS_READY: Final = "PodsReady"
HEAD_READY: Final = "HeadReady"
SUSPENDED: Final = "Suspended"
PLACED: Final = "Placed"
FAILED: Final = "Failed"  # the agent's, but for a deadline
CHECKPOINTED: Final = "Checkpointed"  # the agent's
DEADLINE: Final = "DeadlineExceeded"
OWN: Final = (ACCEPTED, PODS_READY, HEAD_READY, SUSPENDED, PLACED)
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
    generation: int

    @classmethod
    def of(cls, obj: Object) -> Past:
        """Read it."""
        status = obj.get("status") or {}
        return cls(
            phase=status.get("phase", ""),
            reason=status.get("reason", ""),
            message=status.get("message", ""),
            phase_is_agents=phase_manager(obj) == names.AGENT,
            start=moment(status.get("startTime")),
            completion=moment(status.get("completionTime")),
            conditions=dict(conditions_of(obj)),
            generation=int(obj["metadata"].get("generation") or 0),
        )

    def is_(self, condition: str, value: str, *reasons: str) -> bool:
        """Whether a condition has that value (and one of the reasons)."""
        found = self.conditions.get(condition, {})
        return found.get("status") == value and (not reasons or found.get("reason") in reasons)

    def since(self, condition: str) -> datetime | None:
        """When a condition got its value."""
        return moment(self.conditions.get(condition, {}).get("lastTransitionTime"))

    @property
    def deadline_passed(self) -> bool:
        """The operator ended the job for its deadline."""
        return self.is_(FAILED, "True", DEADLINE)


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

    def started(self, when: datetime | None) -> None:
        """Since when the job may run."""
        if when is not None:
            self.fields["startTime"] = timestamp(when)

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
        if any(key in status and key not in content for key in ("startTime", "completionTime")):
            return True
        there = conditions_of(obj)
        return any(there.get(name) != condition for name, condition in self.conditions.items()) or any(
            name in there and name not in self.conditions for name in OWN
        )


def _short(message: str) -> str:
    return message if len(message) <= MESSAGE_CHARS_MAX else message[: MESSAGE_CHARS_MAX - 3] + "..."
