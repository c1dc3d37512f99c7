"""What a job that runs needs: what surrounds its pods, the pods, and words on how they are.

The first pods of a job are placed all or none: while they have never all had a node, they are given back after `gangTimeout`, and
asked for again after a pause. Later losses are the supervisor's: what is lost is replaced, and the rest trains on.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import Object
from orchestrator.adapters.kube.desired import NewPod, Staffing, staff, staff_head
from orchestrator.adapters.kube.gang import gang_elsewhere, is_volcano, pod_group
from orchestrator.adapters.kube.kuberay import ray_cluster, sizes
from orchestrator.adapters.kube.objects import support
from orchestrator.adapters.kube.objects.common import Target
from orchestrator.adapters.kube.objects.pods import head_pod, training_pod
from orchestrator.adapters.kube.observed import PodFacts
from orchestrator.adapters.kube.resources import CLAIMS, POD_GROUPS, PODS, RAY_CLUSTERS, SERVICES
from orchestrator.apps.operator import removal
from orchestrator.apps.operator import status as st
from orchestrator.apps.operator.actions import Action, Apply, Create, Decision, Delete, MakeTokens, Say
from orchestrator.apps.operator.observation import Observed
from orchestrator.apps.operator.status import Draft

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
    if _gang(seen, decision, draft, target, now, anew=resumed):
        if seen.by_kuberay:
            decision.actions += [*_surroundings(seen, target, head=None), *_by_kuberay(seen, target)]
        else:
            _pods(seen, decision, target, now)
    _say_how_it_is(seen, decision, draft, target)


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


def _pods(seen: Observed, decision: Decision, target: Target, now: datetime) -> None:
    """The head, workers, and then spares: a spare goes where it is not beside a worker, as far as there is such a place."""
    cluster = target.job.cluster
    head = staff_head(seen.pods, answering=seen.answering, highest=seen.highest, now=now)
    heads = [new.incarnation for new in head.make] or [p.incarnation for p in seen.pods if p.role == names.HEAD]
    decision.actions += _surroundings(seen, target, head=max(heads))
    staffings: list[Staffing] = [
        head,
        staff(seen.pods, role=names.WORKER, count=cluster.nodes, highest=seen.highest, now=now),
        staff(seen.pods, role=names.SPARE, count=cluster.spares, highest=seen.highest, now=now),
    ]
    for staffing in staffings:  # first, for a quota may have no room for others beside them
        if staffing.surplus:
            gone = ", ".join(pod.name for pod in staffing.surplus)
            decision.actions += [_delete(pod) for pod in staffing.surplus]
            decision.actions.append(Say(reason="ScaledDown", message=f"the job has become smaller: {gone} can go"))
        decision.look_again(staffing.again_s)
    wanted = [new for staffing in staffings for new in staffing.make]
    for new in wanted[:MAKE_MAX]:
        pod = _made(target, new)
        decision.actions.append(Create(PODS, pod))
        if new.after is not None:
            why = new.after.end or ("it is being deleted" if new.after.terminating else "it ended")
            message = f"{pod['metadata']['name']} takes the place of {new.after.name}: {why}"
            decision.actions.append(Say(reason="PodReplaced", message=message, warning=new.after.finished))
    if len(wanted) > MAKE_MAX:
        decision.look_again(0.0)
    else:
        decision.actions += [_delete(pod) for staffing in staffings for pod in staffing.remove]


def _delete(pod: PodFacts) -> Delete:
    return Delete(resource=PODS, name=pod.name, uid=pod.uid)


def _made(target: Target, new: NewPod) -> Object:
    if new.role == names.HEAD:
        return head_pod(target, incarnation=new.incarnation, failures=new.failures)
    return training_pod(target, role=new.role, ordinal=new.ordinal, incarnation=new.incarnation, failures=new.failures)


def _by_kuberay(seen: Observed, target: Target) -> Iterator[Action]:
    cluster = target.job.cluster
    if seen.ray_cluster is None:
        if all(seen.inert(pod) for pod in seen.pods):  # else a second head beside one that may still write to the volume
            yield Apply(RAY_CLUSTERS, ray_cluster(target))
    elif sizes(seen.ray_cluster) != {names.WORKER: cluster.nodes, names.SPARE: cluster.spares}:
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


def _say_how_it_is(seen: Observed, decision: Decision, draft: Draft, target: Target) -> None:
    past, cluster = draft.past, target.job.cluster
    live = [pod for pod in seen.pods if pod.live]
    ready = sum(pod.ready for pod in live)
    ended = [f"{pod.name}: {pod.end}" for pod in seen.pods if pod.finished and not pod.terminating and pod.end]
    trouble = next((f"{pod.name}: {pod.trouble}" for pod in live if pod.trouble), "") or next(iter(ended), "")
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
