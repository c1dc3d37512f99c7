"""What is done about each class of failure when the job file does not say, and what may be asked for at all.

Only classes with a choice have a policy. A list is ordered: the first action that is possible is taken, so one that is always
possible (wait, fail, report) ends it.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.job import Action, FailureClass, FailurePolicy

_LOSS = (Action.SWAP, Action.SHRINK, Action.WAIT)
LOSSES = (FailureClass.WORKER_EXITED, FailureClass.NODE_LOST, FailureClass.WORKER_HUNG)

DEFAULT_ACTIONS: Mapping[FailureClass, tuple[Action, ...]] = {
    **dict.fromkeys(LOSSES, _LOSS),
    FailureClass.WORKER_SLOW: (Action.REPORT,),
    FailureClass.CORRUPT_STATE: (Action.SWAP, Action.SHRINK, Action.FAIL),
}

_LOSS_ALLOWED = frozenset({Action.SWAP, Action.SHRINK, Action.WAIT, Action.ROLLBACK, Action.FAIL})
ALLOWED_ACTIONS: Mapping[FailureClass, frozenset[Action]] = {
    **dict.fromkeys(LOSSES, _LOSS_ALLOWED),
    FailureClass.WORKER_SLOW: frozenset({Action.REPORT, Action.SWAP, Action.SHRINK, Action.RECUT, Action.FAIL}),
    FailureClass.CORRUPT_STATE: _LOSS_ALLOWED,
}
ALWAYS_POSSIBLE = frozenset({Action.WAIT, Action.FAIL, Action.REPORT})  # nothing behind one of them is ever reached


def policies(overrides: Mapping[FailureClass, tuple[Action, ...]] | None = None) -> tuple[FailurePolicy, ...]:
    """The policy of every class that has a choice, `overrides` in the place of the defaults."""
    return tuple(FailurePolicy(failure, actions) for failure, actions in {**DEFAULT_ACTIONS, **(overrides or {})}.items())
