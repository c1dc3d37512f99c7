"""What is done about each class of failure when the job file does not say, and what may be asked for at all.

Only classes with a choice have a policy. A list is ordered: the first action that is possible is taken. One that is always
possible (wait, fail, report) can only come last, and is put there where the file leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from orchestrator.core.job import Action, FailureClass, FailurePolicy
from orchestrator.spec.values import refused

LOSSES = (FailureClass.WORKER_EXITED, FailureClass.NODE_LOST, FailureClass.WORKER_HUNG)
_ABOUT_LOSSES = (Action.SWAP, Action.SHRINK, Action.WAIT)

DEFAULT_ACTIONS: Mapping[FailureClass, tuple[Action, ...]] = MappingProxyType(
    {
        **dict.fromkeys(LOSSES, _ABOUT_LOSSES),
        FailureClass.WORKER_SLOW: (Action.REPORT,),
        FailureClass.CORRUPT_STATE: (Action.SWAP, Action.SHRINK, Action.FAIL),
    }
)
ALLOWED_ACTIONS: Mapping[FailureClass, tuple[Action, ...]] = MappingProxyType(
    {
        **dict.fromkeys(LOSSES, (*_ABOUT_LOSSES, Action.FAIL)),
        FailureClass.WORKER_SLOW: (Action.REPORT, Action.SWAP, Action.SHRINK, Action.RECUT, Action.FAIL),
        FailureClass.CORRUPT_STATE: (*_ABOUT_LOSSES, Action.ROLLBACK, Action.FAIL),
    }
)
_ALWAYS_POSSIBLE = frozenset({Action.WAIT, Action.FAIL, Action.REPORT})
_NONE: Mapping[FailureClass, tuple[Action, ...]] = MappingProxyType({})


def policies(asked: Mapping[FailureClass, Sequence[Action]] = _NONE) -> tuple[FailurePolicy, ...]:
    """The complete policy of every class that has a choice, with the defaults of those that are not asked for."""
    out = []
    for failure, default in DEFAULT_ACTIONS.items():
        actions = tuple(asked.get(failure, default))
        if actions[-1] not in _ALWAYS_POSSIBLE:
            actions += (Action.REPORT if failure is FailureClass.WORKER_SLOW else Action.FAIL,)
        out.append(FailurePolicy(failure, actions))
    return tuple(out)


def checked_actions(failure: FailureClass) -> Callable[[tuple[Action, ...]], tuple[Action, ...]]:
    """A validator of the actions for a class: each makes sense, none twice, none behind one that is always possible."""

    def check(actions: tuple[Action, ...]) -> tuple[Action, ...]:
        if not actions:
            raise refused("must not be empty", fix="list an action, or remove the key to take the default")
        allowed = ALLOWED_ACTIONS[failure]
        for n, action in enumerate(actions):
            if action not in allowed:
                raise refused(f"{action} makes no sense here", fix=f"remove {action}", allowed=allowed)
            if action in actions[:n]:
                raise refused(f"{action} is listed twice", fix="remove one of the two")
            if action in _ALWAYS_POSSIBLE and n < len(actions) - 1:
                raise refused(f"{action} is always possible, so {actions[n + 1]} is never reached", fix=f"put {action} last")
        return actions

    return check
