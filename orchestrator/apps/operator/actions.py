"""What the operator can do about a job, as values: decided by reconcile.py, carried out by execute.py.

Each may be carried out twice without harm, because names are the job's and what is there already, or gone already, is fine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import Object
from orchestrator.adapters.kube.objects.common import Target
from orchestrator.adapters.kube.resources import SECRETS, Resource
from orchestrator.apps.operator.status import Draft


@dataclass(frozen=True, slots=True)
class SetFinalizers:
    """Write the TrainingJob's list of finalizers, unless it has changed since it was looked at."""

    finalizers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MakeTokens:
    """Create the job's Secret with fresh tokens, unless it has one."""

    target: Target
    resource: ClassVar[Resource] = SECRETS

    @property
    def name(self) -> str:
        """Name of the Secret."""
        return names.token_secret(self.target.name)


@dataclass(frozen=True, slots=True)
class DropTokens:
    """Delete the job's Secret."""


@dataclass(frozen=True, slots=True)
class Create:
    """Make an object, unless one of its name is there."""

    resource: Resource
    obj: Object

    @property
    def name(self) -> str:
        """Name of the object."""
        return str(self.obj["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Apply:
    """Make an object, or make its fields what they should be."""

    resource: Resource
    obj: Object

    @property
    def name(self) -> str:
        """Name of the object."""
        return str(self.obj["metadata"]["name"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Ask an object to go; by force, where nobody is there who would end it in order."""

    resource: Resource
    name: str
    uid: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the TrainingJob itself: it was kept as long as it asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """An Event of the TrainingJob."""

    reason: str
    message: str
    warning: bool = False


@dataclass(slots=True, kw_only=True)
class Decision:
    """What a turn does: actions in their order, then the status; and when to look again though nothing happens."""

    actions: list[Action]
    draft: Draft | None
    again_s: float | None = None

    def look_again(self, after_s: float | None) -> None:
        """At the latest after this."""
        if after_s is not None:
            self.again_s = after_s if self.again_s is None else min(self.again_s, after_s)


Action: TypeAlias = SetFinalizers | MakeTokens | DropTokens | Create | Apply | Delete | DeleteJob | Say
