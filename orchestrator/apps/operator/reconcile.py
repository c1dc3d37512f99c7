"""One turn of the operator for one job: from what is seen and the time to what is done and said, pure.

A job is being deleted, refused, over, suspended, late or running. What each needs is a function of what is there, whatever was
done before, so a turn may be missed, repeated or cut off at any point: the next one arrives at the same.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.desired import LOOK_S
from orchestrator.adapters.kube.events import timestamp
from orchestrator.adapters.kube.gang import is_volcano
from orchestrator.adapters.kube.objects.common import Target, pod_limits
from orchestrator.apps.operator import removal
from orchestrator.apps.operator import status as st
from orchestrator.apps.operator.actions import Decision, DeleteJob, DropTokens, Say, SetFinalizers
from orchestrator.apps.operator.edits import say_edits
from orchestrator.apps.operator.observation import Observed, Refusal, Served
from orchestrator.apps.operator.running import head_serves, run
from orchestrator.apps.operator.status import Draft, Past
from orchestrator.core.timeouts import DETECT_WITHIN_MS
from orchestrator.spec.kubernetes import Backend

REFUSED_S = 15 * DETECT_WITHIN_MS / 1000  # between two looks whether what is lacking has been installed
LEAVE_LIMIT_S = 90 * DETECT_WITHIN_MS / 1000  # a deleted job is let go after this, though something of it is still on its way


def decide(seen: Observed, now: datetime) -> Decision:
    """What to do about a job, and what to say of it."""
    past = Past.of(seen.obj)
    draft = Draft(past, now)
    decision = Decision(actions=[], draft=draft)
    target = seen.target
    if seen.leaving is not None:
        decision.draft = None
        _leave(seen, decision, now - seen.leaving)
        return decision
    draft.count(seen.pods)
    say_edits(seen, decision, draft)
    if past.over:
        _finish(seen, decision, draft, now)
        return decision
    if isinstance(target, Target) and not past.begun:
        target = _lacking(target, seen.served) or target
    if isinstance(target, Refusal):
        _refuse(decision, draft, target)
        return decision
    finalizers = tuple(seen.obj["metadata"].get("finalizers") or ())
    if names.FINALIZER not in finalizers:
        decision.actions.append(SetFinalizers((*finalizers, names.FINALIZER)))
    draft.condition(st.ACCEPTED, "True", "Accepted", "the operator has taken the job on")
    deadline_s = target.kubernetes.active_deadline_s
    late_s = None if deadline_s is None or past.start is None else (now - past.start).total_seconds() - deadline_s
    if seen.suspend:
        _suspend(seen, decision, draft, target, now)
    elif late_s is not None and late_s >= 0:
        _expire(seen, decision, draft, deadline_s or 0)
    else:
        run(seen, decision, draft, target, now)
        decision.look_again(deadline_s if late_s is None else -late_s)
    return decision


def _lacking(target: Target, served: Served) -> Refusal | None:
    """What the job asks for and this cluster does not have; nothing is made as if it had not asked."""
    kubernetes = target.kubernetes
    if kubernetes.backend is Backend.KUBERAY and not served.kuberay:
        return Refusal(
            "KubeRayMissing", "spec.kubernetes.backend is kuberay, and KubeRay is not installed; fix: install it, or write pods"
        )
    if kubernetes.queue is not None and not served.kueue:
        return Refusal(
            "KueueMissing", "spec.kubernetes.queue is set, and Kueue is not installed; fix: install it, or remove queue"
        )
    if is_volcano(target) and not served.volcano:
        return Refusal(
            "VolcanoMissing",
            "spec.kubernetes.scheduler is volcano, and Volcano is not installed; fix: install it, or remove scheduler",
        )
    return None


def _refuse(decision: Decision, draft: Draft, refusal: Refusal) -> None:
    """Say why. What was begun before the spec was changed stays as it is, and waits for a spec that can be read."""
    past = draft.past
    draft.condition(st.ACCEPTED, "False", refusal.reason, refusal.message)
    draft.keep_rest()
    if past.begun:
        draft.keep_phase()
    else:
        draft.phase("Failed" if refusal.reason == st.INVALID else "Pending", refusal.reason, refusal.message)
    decision.look_again(REFUSED_S)
    before = past.conditions.get(st.ACCEPTED, {})
    if before.get("status") != "False" or before.get("message") != draft.conditions[st.ACCEPTED]["message"]:
        decision.actions.append(Say(reason=refusal.reason, message=refusal.message, warning=True))


def _leave(seen: Observed, decision: Decision, since: timedelta) -> None:
    """Give everything back, then let the TrainingJob go."""
    finalizers = tuple(seen.obj["metadata"].get("finalizers") or ())
    if names.FINALIZER not in finalizers:
        return
    left = seen.pods or seen.services or seen.claims or seen.budgets or seen.pod_groups or seen.ray_cluster
    if left and since.total_seconds() < LEAVE_LIMIT_S:
        decision.actions += removal.everything(seen)
        decision.look_again(LOOK_S)
        return
    decision.actions += [DropTokens(), SetFinalizers(tuple(f for f in finalizers if f != names.FINALIZER))]


def _finish(seen: Observed, decision: Decision, draft: Draft, now: datetime) -> None:
    """Pods and services go, whatever has become of the spec; volume and tokens stay as long as the TrainingJob does."""
    past = draft.past
    completion = past.completion or now
    draft.started(past.start)
    draft.fields["completionTime"] = timestamp(completion)
    if st.ACCEPTED in past.conditions:
        draft.conditions[st.ACCEPTED] = past.conditions[st.ACCEPTED]
    for name in (st.PODS_READY, st.HEAD_READY):
        draft.condition(name, "False", "Finished", "the job is over")
    if past.deadline_passed:
        draft.conditions[st.FAILED] = past.conditions[st.FAILED]
    if past.deadline_passed and not any(pod.role == names.HEAD and not seen.inert(pod) for pod in seen.pods):
        draft.phase("Failed", st.DEADLINE, past.conditions[st.FAILED]["message"])  # nobody is left who would say otherwise
    else:
        draft.keep_phase()
    decision.actions += removal.all_that_runs(seen)
    if not all(seen.inert(pod) for pod in seen.pods):
        decision.look_again(LOOK_S)
    ttl_s = seen.target.kubernetes.ttl_after_finished_s if isinstance(seen.target, Target) else None
    if ttl_s is None:
        return
    left_s = ttl_s - (now - completion).total_seconds()
    if left_s > 0:
        decision.look_again(left_s)
    else:
        decision.actions.append(DeleteJob())


def _expire(seen: Observed, decision: Decision, draft: Draft, deadline_s: int) -> None:
    """The deadline: the pods go at once, and the phase is written when no agent is left that would write another."""
    message = f"the job was not done {deadline_s} s after its start (spec.kubernetes.activeDeadline)"
    draft.keep_rest()
    draft.keep_phase()
    draft.condition(st.FAILED, "True", st.DEADLINE, message)
    decision.actions += [*removal.pods(seen), Say(reason=st.DEADLINE, message=message, warning=True)]


def _suspend(seen: Observed, decision: Decision, draft: Draft, target: Target, now: datetime) -> None:
    """Pods go once the agent has the state saved, or after a limit; at once where no head came up that could hold any."""
    past = draft.past
    if seen.ray_cluster is None and all(seen.inert(pod) for pod in seen.pods):
        for name in (st.PODS_READY, st.HEAD_READY):
            draft.condition(name, "False", "Suspended", "the job is suspended")
        draft.condition(st.SUSPENDED, "True", "Suspended", "no pod is left; spec.suspend: false goes on from the saved state")
        draft.phase("Suspended", "Suspended", "spec.suspend is true")
        if not past.is_(st.SUSPENDED, "True"):
            decision.actions.append(Say(reason="Suspended", message="all pods are gone, as spec.suspend asks"))
        return
    began = past.is_(st.SUSPENDED, "False")
    since = past.since(st.SUSPENDED) if began else None
    left_s = pod_limits(target.job).suspend_s - (now - (since or now)).total_seconds()
    saved = past.conditions.get(st.CHECKPOINTED, {})
    checkpointed = saved.get("status") == "True" and int(saved.get("observedGeneration") or 0) >= past.generation
    nothing_to_save = past.is_(st.HEAD_READY, "False", "Starting") and not head_serves(seen)
    draft.keep_rest()
    draft.condition(st.SUSPENDED, "False", "Suspending", "spec.suspend is true: the state is saved, then the pods go")
    if began:
        draft.keep_phase()
    else:
        draft.phase("Suspending", "Suspending", "spec.suspend is true")
    if checkpointed or nothing_to_save or left_s <= 0 or any(p.role == names.HEAD and p.terminating for p in seen.pods):
        if left_s <= 0 and not checkpointed and not all(pod.terminating for pod in seen.pods):
            message = (
                "the agent did not report a saved state in time: the job goes on from its newest checkpoint when it is resumed"
            )
            decision.actions.append(Say(reason="NotCheckpointed", message=message, warning=True))
        decision.actions += removal.pods(seen, in_turn=checkpointed)
        decision.look_again(LOOK_S)
    else:
        decision.look_again(left_s)
