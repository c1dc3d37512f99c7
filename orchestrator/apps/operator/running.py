"""What a job that runs needs: what surrounds its pods, the pods, and words on how they are.

The first pods of a job are placed all or none: while they have never all had a node, they are given back after `gangTimeout`, and
asked for again after a pause. Later losses are the supervisor's: what is lost is replaced, and the rest trains on. What a place
waits for before it gets its next pod is said in `PodsReady`, and with an Event where somebody has to do something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import Object
from orchestrator.adapters.kube.desired import NewPod, Staffing, staff, staff_head
from orchestrator.adapters.kube.gang import gang_elsewhere, is_volcano, pod_group
from orchestrator.adapters.kube.kuberay import ray_cluster, sizes
from orchestrator.adapters.kube.objects import support
from orchestrator.adapters.kube.objects.common import Target
from orchestrator.adapters.kube.objects.pods import head_pod, training_pod
from orchestrator.adapters.kube.observed import KUEUE_MANAGED, PodFacts
from orchestrator.adapters.kube.resources import CLAIMS, POD_GROUPS, PODS, RAY_CLUSTERS, SERVICES
from orchestrator.apps.operator import removal
from orchestrator.apps.operator import status as st
from orchestrator.apps.operator.actions import Action, Apply, Create, Decision, Delete, MakeTokens, Say
from orchestrator.apps.operator.observation import Observed
from orchestrator.apps.operator.status import Draft, Past

MAKE_MAX = 200  # pods in one turn, so that it ends soon enough to see that a large job was suspended or deleted meanwhile
GANG_PAUSE_MAX_S = 300.0  # between giving the pods back and asking again; less where gangTimeout is less


def run(seen: Observed, decision: Decision, draft: Draft, target: Target, now: datetime) -> None:
    """Have all that the job needs, and say how it is."""
    past = draft.past
    resumed = past.is_(st.SUSPENDED, "True")
    draft.started(now if resumed else past.start or now)
    if resumed:
        decision.actions.append(Say(reason="Resumed", message="spec.suspend is false: the pods are made again"))
    elif not past.begun:
        cluster = target.job.cluster
        message = f"a head, {cluster.nodes} worker and {cluster.spares} spare pods are asked for"
        decision.actions.append(Say(reason="Accepted", message=message))
    waits: list[str] = []
    if _gang(seen, decision, draft, target, now, anew=resumed):
        if seen.by_kuberay:
            renew = draft.fields.get(st.POD_SETTINGS) != past.pod_settings
            decision.actions += [*_surroundings(seen, target, head=None), *_by_kuberay(seen, target, past, renew=renew)]
        else:
            waits = _pods(seen, decision, draft, target, now)
    _say_how_it_is(seen, decision, draft, target, waits)


def head_serves(seen: Observed) -> bool:
    """Whether there is a head, with a supervisor in it."""
    return any(pod.role == names.HEAD and pod.live and pod.serving for pod in seen.pods)


# ---- objects


def _surroundings(seen: Observed, target: Target, *, head: int | None) -> Iterator[Action]:
    """In this order, for whatever is named later needs what is before: pods the tokens, their environment the services.

    `head` is the incarnation that the head's address leads to.
    """
    if names.head_claim(target.name) not in seen.claims or not any(pod.role == names.HEAD for pod in seen.pods):
        yield MakeTokens(target)
    if names.head_claim(target.name) not in seen.claims:
        yield Create(CLAIMS, support.head_claim(target))
    if seen.services.get(names.head_service(target.name)) != (head or 0):
        yield Apply(SERVICES, support.head_service(target, incarnation=head))
    if names.pods_service(target.name) not in seen.services:
        yield Create(SERVICES, support.pods_service(target))
    budget = support.disruption_budget(target, seen.served.budgets)
    if seen.budgets.get(target.name) != budget["spec"]["minAvailable"]:
        yield Apply(seen.served.budgets, budget)
    if is_volcano(target):
        group = pod_group(target)
        if seen.pod_groups.get(target.name) != group["spec"]["minMember"]:
            yield Apply(POD_GROUPS, group)


def _pods(seen: Observed, decision: Decision, draft: Draft, target: Target, now: datetime) -> list[str]:
    """The head, workers, and then spares: a spare goes where it is not beside a worker, as far as there is such a place.

    Workers that the job has become too small for go when the supervisor has agreed to do without them. Returns what places
    without a pod wait for.
    """
    cluster = target.job.cluster
    head = staff_head(seen.pods, answering=seen.answering, highest=seen.highest, now=now)
    heads = [new.incarnation for new in head.make] or [p.incarnation for p in seen.pods if p.role == names.HEAD]
    decision.actions += _surroundings(seen, target, head=max(heads or [seen.highest[names.HEAD, 0].incarnation]))
    staffings: list[Staffing] = [
        head,
        staff(seen.pods, role=names.WORKER, count=cluster.nodes, highest=seen.highest, now=now),
        staff(seen.pods, role=names.SPARE, count=cluster.spares, highest=seen.highest, now=now),
    ]
    for staffing in staffings:  # first, for a quota may have no room for others beside them
        if staffing.surplus and not _waits_for_fewer(target, draft.past):
            gone = ", ".join(pod.name for pod in staffing.surplus)
            decision.actions += [_delete(pod) for pod in staffing.surplus]
            decision.actions.append(Say(reason="ScaledDown", message=f"the job has become smaller: {gone} can go"))
        decision.look_again(staffing.again_s)
    wanted = [new for staffing in staffings for new in staffing.make]
    for new in wanted[:MAKE_MAX]:
        pod = _made(target, new)
        decision.actions.append(Create(PODS, pod))
        if new.unplaced:
            message = f"{pod['metadata']['name']} takes the place of {_unplaced(target, new)}"
            decision.actions.append(Say(reason="PodReplaced", message=message, warning=True))
        elif new.after is not None:
            message = f"{pod['metadata']['name']} takes the place of {new.after.name}: {_why(new.after)}"
            failed = new.after.finished and not new.after.terminating
            decision.actions.append(Say(reason="PodReplaced", message=message, warning=failed))
    if len(wanted) > MAKE_MAX:
        decision.look_again(0.0)
    else:
        decision.actions += [_delete(pod) for staffing in staffings for pod in staffing.remove]
    kept = [_counted(seen, target, pod) for staffing in staffings for pod in staffing.counted]
    kept.sort(key=lambda told: not told[1])  # first what somebody has to mend
    for words, fix in kept[:1]:
        if fix and words not in draft.past.conditions.get(st.PODS_READY, {}).get("message", ""):
            decision.actions.append(Say(reason="ReplacementWaits", message=words + fix, warning=True))
    later = [f"{_unplaced(target, new)}: the next is made after a pause" for staffing in staffings for new in staffing.later]
    return [*(words + fix for words, fix in kept), *later]


def _why(pod: PodFacts) -> str:
    """Why another takes its place."""
    if pod.terminating:
        return "it is being deleted" + (f" ({pod.end})" if pod.end else "")
    return pod.end or "it ended"


def _unplaced(target: Target, new: NewPod) -> str:
    """The pod before it, which others deleted before it had a node."""
    name = names.pod_name(target.name, role=new.role, ordinal=new.ordinal, incarnation=new.incarnation - 1)
    words = f"{name}, which was deleted before it had a node"
    words += f" ({new.failures} times in a row)" if new.failures > 1 else ""
    if target.kubernetes.queue is not None:
        words += ", as Kueue does with more pods than the job was admitted with (then suspend and resume it)"
    return words


def _counted(seen: Observed, target: Target, pod: PodFacts) -> tuple[str, str]:
    """Why Kueue keeps a pod's place, and what to do about it; nothing while the pod is about to end."""
    if pod.finished:
        fix = f"kubectl -n {target.namespace} delete pod {pod.name} --wait=false, and remove its finalizer {KUEUE_MANAGED}"
        return f"{pod.name} ended without an error, and Kueue gives its place to no other", f"; fix: {fix}"
    words = f"{pod.name} is being deleted, and Kueue keeps its place until it has failed"
    if not seen.stuck(pod):
        return words, ""
    fix = f"kubectl taint node {pod.node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, once its machine is off"
    return f"{words}, but its node {pod.node} does not answer", f"; fix: {fix}, or delete the Node"


def _delete(pod: PodFacts) -> Delete:
    return Delete(resource=PODS, name=pod.name, uid=pod.uid)


def _made(target: Target, new: NewPod) -> Object:
    if new.role == names.HEAD:
        return head_pod(target, incarnation=new.incarnation, failures=new.failures)
    return training_pod(target, role=new.role, ordinal=new.ordinal, incarnation=new.incarnation, failures=new.failures)


def _waits_for_fewer(target: Target, past: Past) -> bool:
    """Whether the supervisor trains on more nodes than are asked for, and has not agreed to fewer yet."""
    return past.nodes is not None and past.nodes > target.job.cluster.nodes


def _by_kuberay(seen: Observed, target: Target, past: Past, *, renew: bool) -> Iterator[Action]:
    """The RayCluster; `renew`: what it makes pods of has changed."""
    if seen.ray_cluster is not None and past.nodes is not None and _waits_for_fewer(target, past):
        target = replace(target, job=replace(target.job, cluster=replace(target.job.cluster, nodes=past.nodes)))
    cluster = target.job.cluster
    if seen.ray_cluster is None:
        if all(seen.inert(pod) for pod in seen.pods):  # else a second head beside one that may still write to the volume
            yield Apply(RAY_CLUSTERS, ray_cluster(target))
    elif renew or sizes(seen.ray_cluster) != {names.WORKER: cluster.nodes, names.SPARE: cluster.spares}:
        yield Apply(RAY_CLUSTERS, ray_cluster(target))
    for pod in seen.pods:
        if seen.stuck(pod):  # KubeRay would wait for it for ever
            yield Delete(resource=PODS, name=pod.name, uid=pod.uid, force=True)


# ---- all or none


def _gang(seen: Observed, decision: Decision, draft: Draft, target: Target, now: datetime, *, anew: bool) -> bool:
    """Whether the pods may be made; says in `Placed` how far they are. Spares are not waited for: a job trains without them."""
    past = draft.past
    timeout_s = target.kubernetes.gang_timeout_s
    since = None if anew else past.since(st.PLACED)
    waited_s = (now - since).total_seconds() if since is not None else 0.0
    if past.is_(st.PLACED, "Unknown") and not anew:
        pause_s = min(GANG_PAUSE_MAX_S, timeout_s)
        if waited_s < pause_s:
            draft.condition(st.PLACED, "Unknown", st.GANG_TIMEOUT, past.conditions[st.PLACED]["message"])
            decision.actions += removal.pods(seen)
            decision.look_again(pause_s - waited_s)
            return False
        waited_s, anew = 0.0, True
    placed, wanted = _placed(seen), 1 + target.job.cluster.nodes
    if placed >= wanted or (past.is_(st.PLACED, "True") and not anew):
        draft.condition(st.PLACED, "True", "Placed", "all pods that the job needs had a node")
        return True
    message = f"{placed} of {wanted} pods have a node"
    if waited_s < timeout_s or gang_elsewhere(target):
        draft.condition(st.PLACED, "False", "Waiting", message)
        if not gang_elsewhere(target):
            decision.look_again(timeout_s - waited_s)
        return True
    asked = since.strftime("%H:%M:%S") if since is not None else ""
    message = f"{message}, {timeout_s} s after they were asked for at {asked} UTC: all are given back, and asked for again later"
    draft.condition(st.PLACED, "Unknown", st.GANG_TIMEOUT, message)
    decision.actions += [*removal.pods(seen), Say(reason=st.GANG_TIMEOUT, message=message, warning=True)]
    decision.look_again(min(GANG_PAUSE_MAX_S, timeout_s))
    return False


def _placed(seen: Observed) -> int:
    """Places of the head and of workers that have a node."""
    if seen.by_kuberay:
        return sum(pod.live and pod.scheduled and pod.role != names.SPARE for pod in seen.pods)
    return len({(pod.role, pod.ordinal) for pod in seen.pods if pod.live and pod.scheduled and pod.role != names.SPARE})


# ---- words


def _say_how_it_is(seen: Observed, decision: Decision, draft: Draft, target: Target, awaited: list[str]) -> None:
    past, cluster = draft.past, target.job.cluster
    live = [pod for pod in seen.pods if pod.live]
    ready = sum(pod.ready for pod in live)
    ended = [f"{pod.name}: {pod.end}" for pod in seen.pods if pod.finished and not pod.terminating and pod.end]
    awaited = [f"{awaited[0]} (and {len(awaited) - 1} more wait)"] if len(awaited) > 1 else awaited
    trouble = next(iter([*awaited, *(f"{pod.name}: {pod.trouble}" for pod in live if pod.trouble), *ended]), "")
    message = f"{ready} of {1 + cluster.nodes + cluster.spares} pods are ready" + (f"; {trouble}" if trouble else "")
    all_ready = ready >= 1 + cluster.nodes + cluster.spares
    draft.condition(st.PODS_READY, "True" if all_ready else "False", "Ready" if all_ready else "Waiting", message)
    lost = _head(seen, decision, draft)
    waits = draft.conditions[st.PLACED]
    heads = any(pod.role == names.HEAD and not seen.inert(pod) for pod in seen.pods)
    if lost:
        draft.phase("Recovering", st.HEAD_LOST, draft.conditions[st.HEAD_READY]["message"])
    elif (waits["status"] != "Unknown" or heads) and (past.phase_is_agents or past.is_phase("Recovering", st.HEAD_LOST)):
        draft.keep_phase()  # until the agent speaks again; of pods that were given back none does
    elif waits["status"] == "True":
        draft.phase("Starting", "Starting", message)
    else:
        draft.phase("Pending", waits["reason"], f"{waits['message']}; {trouble}" if trouble else waits["message"])


def _head(seen: Observed, decision: Decision, draft: Draft) -> bool:
    """Says in `HeadReady` how the head is; whether it was lost just now."""
    past = draft.past
    if head_serves(seen):
        draft.condition(st.HEAD_READY, "True", "Ready", "the supervisor answers")
        return False
    given_back = draft.conditions[st.PLACED]["status"] == "Unknown"
    lost_now = past.is_(st.HEAD_READY, "True") and not given_back
    if given_back or not (lost_now or past.is_(st.HEAD_READY, "False", st.HEAD_LOST)):
        draft.condition(st.HEAD_READY, "False", "Starting", "the head is not ready yet")
        return False
    heads = [pod for pod in seen.pods if pod.role == names.HEAD]
    words = "; ".join(f"{pod.name}: {pod.end or pod.trouble or ('going' if pod.terminating else 'not ready')}" for pod in heads)
    message = f"the head is away ({words or 'it has no pod'}): workers train on, and it comes back around its volume"
    draft.condition(st.HEAD_READY, "False", st.HEAD_LOST, message)
    if lost_now:
        ready = past.since(st.HEAD_READY)  # makes it another Event than that of the loss before
        message = f"{message}; it had been ready since {ready:%H:%M:%S} UTC" if ready is not None else message
        decision.actions.append(Say(reason=st.HEAD_LOST, message=message, warning=True))
    return lost_now
