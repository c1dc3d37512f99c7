"""How what a job has is given back: its pods only, or all that runs, or everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.adapters.kube.desired import Newest
from orchestrator.adapters.kube.names import HEAD
from orchestrator.adapters.kube.resources import CLAIMS, POD_GROUPS, PODS, RAY_CLUSTERS, SERVICES
from orchestrator.apps.operator.actions import Action, Delete
from orchestrator.apps.operator.observation import Observed, remember


def pods(seen: Observed, *, force: bool = False, in_turn: bool = False) -> Iterator[Action]:
    """All pods, and the RayCluster that would make them again; `force`: also those whose node will never end them.

    `in_turn`: the head when the others are gone. A pod that is to go asks its supervisor first whether there is something to
    hand over; where nothing is, it hears so at once, and without a head it waits for one.
    """
    if seen.ray_cluster is not None and "deletionTimestamp" not in seen.ray_cluster["metadata"]:
        meta = seen.ray_cluster["metadata"]
        yield Delete(resource=RAY_CLUSTERS, name=meta["name"], uid=meta["uid"])
    head_stays = in_turn and _others(seen)
    for pod in seen.pods:
        if not pod.terminating and not (head_stays and pod.role == HEAD):
            yield Delete(resource=PODS, name=pod.name, uid=pod.uid)
        elif force and seen.stuck(pod):
            yield Delete(resource=PODS, name=pod.name, uid=pod.uid, force=True)


def all_that_runs(seen: Observed) -> Iterator[Action]:
    """What a job that is over has no use for. Its volume stays, with journal and logs, and so do its tokens."""
    yield from pods(seen, in_turn=True)
    if not _others(seen):
        yield from _around(seen)


def _others(seen: Observed) -> bool:
    """Whether pods beside the head are there that will end by themselves."""
    return any(pod.role != HEAD and not seen.inert(pod) for pod in seen.pods)


def _around(seen: Observed) -> Iterator[Action]:
    """What pods were reached and held together by."""
    yield from (Delete(resource=SERVICES, name=name) for name in seen.services)
    yield from (Delete(resource=seen.served.budgets, name=name) for name in seen.budgets)
    yield from (Delete(resource=POD_GROUPS, name=name) for name in seen.pod_groups)


def everything(seen: Observed) -> Iterator[Action]:
    """Of a job that is being deleted."""
    yield from pods(seen, force=True)
    yield from _around(seen)
    yield from (Delete(resource=CLAIMS, name=name) for name, going in seen.claims.items() if not going)


def excuse(highest: dict[tuple[str, int], Newest], seen: Observed, actions: Iterable[Action]) -> None:
    """Note which pods go because we ask it: that they are gone is no reason to be slow with the next ones."""
    going = {action.name for action in actions if isinstance(action, Delete) and action.resource is PODS}
    for pod in seen.pods:
        if pod.name in going:
            remember(highest, pod, excused=True)
