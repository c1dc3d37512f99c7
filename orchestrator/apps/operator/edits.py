"""What the operator says of a spec that was edited since its job was submitted: condition `SpecApplied`, and an Event per edit.

Both follow from what the agent wrote down when it submitted the job, so they are the same after any restart, and an edit that is
undone leaves nothing.
"""

from __future__ import annotations

from orchestrator.apps.operator.actions import Decision, Say
from orchestrator.apps.operator.observation import Observed
from orchestrator.apps.operator.status import APPLIED, INVALID, POD_SETTINGS, Draft
from orchestrator.spec.edits import Edited, listed

AS_SUBMITTED, UNCHANGED = "AsSubmitted", "the job runs as the spec says"
FIX = "fix: undo the edit, or delete the job and make it anew"


def say_edits(seen: Observed, decision: Decision, draft: Draft) -> None:
    """Say how the spec stands to the job that runs, and remember the settings of pods that are in force."""
    edits, past = seen.edited, draft.past
    if edits is None or past.submitted is None or past.over:
        draft.keep_edits()
        return
    if (section := dict(edits.section)) != past.submitted.get("kubernetes"):
        draft.fields[POD_SETTINGS] = section
    value, reason, message = _words(edits)
    before = past.conditions.get(APPLIED, {"reason": AS_SUBMITTED, "message": UNCHANGED})
    draft.condition(APPLIED, value, reason, message)
    if any(before.get(key) != draft.conditions[APPLIED][key] for key in ("reason", "message")):
        decision.actions.append(Say(reason=reason, message=message, warning=value == "False"))


def _words(edits: Edited) -> tuple[str, str, str]:
    """Value, reason and message of the condition."""
    parts = []
    if edits.invalid:
        parts.append(f"the spec as it is now cannot be run, and the job goes on without it: {' '.join(edits.invalid.split())}")
    if edits.ignored:
        parts.append(f"{listed(edits.ignored)}: the job goes on as it was submitted; {FIX}")
    if edits.for_new_pods:
        parts.append(f"{listed(edits.for_new_pods)}: for pods that are made from now on")
    if edits.invalid or edits.ignored:
        return "False", INVALID if edits.invalid else "EditIgnored", "; ".join(parts)
    return "True", "ForNewPods" if parts else AS_SUBMITTED, "; ".join(parts) or UNCHANGED
