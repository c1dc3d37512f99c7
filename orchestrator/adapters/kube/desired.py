"""Which pods and objects a job should have, beside those it has: pure, and the same answer however often it is asked.

An ordinal is one place of the job (worker 2, spare 0); the pods that hold it one after another are its incarnations. A place
whose newest pods are all going, finished or gone gets a new one at once, so that a dead node's pod, which nobody will ever end,
blocks nothing. Only a place whose pods keep ending soon after their start is waited with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.observed import PodFacts

SHORT_LIFE_S = 600.0  # a pod that ended within this is waited with before the next, each time longer
BACKOFF_FIRST_S = 2.0
BACKOFF_MAX_S = 300.0
KILL_MARGIN_S = 30.0  # a kubelet that answers has ended a pod this long after its grace
LOOK_S = 2.0  # between two looks at a pod that is waited for


Highest: TypeAlias = Mapping[tuple[str, int], int]  # (role, ordinal) -> the newest incarnation that was ever seen


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPod:
    """A pod to make, with the pod whose place it takes."""

    role: str
    ordinal: int
    incarnation: int
    failures: int = 0  # pods of this place in a row that ended soon after their start
    after: PodFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Staffing:
    """What to do about the pods of a role."""

    make: tuple[NewPod, ...] = ()
    remove: tuple[PodFacts, ...] = ()  # whose place another has
    surplus: tuple[PodFacts, ...] = ()  # that the job has become too small for
    again_s: float | None = None  # look again after this, for a pod that is waited with


def staff(pods: Sequence[PodFacts], *, role: str, count: int, highest: Highest, now: datetime) -> Staffing:
    """One live pod for each ordinal below `count`, none for the others. `highest` knows incarnations that are gone."""
    make: list[NewPod] = []
    remove: list[PodFacts] = []
    surplus: list[PodFacts] = []
    waits: list[float] = []
    held: dict[int, list[PodFacts]] = {}
    for pod in sorted(pods, key=lambda pod: pod.incarnation):
        if pod.role == role:
            held.setdefault(pod.ordinal, []).append(pod)
    for ordinal in range(count):
        mine = held.get(ordinal, [])
        live = [pod for pod in mine if pod.live]
        old = [pod for pod in mine if pod.finished and not pod.terminating]
        if live:
            remove += [*live[:-1], *old]  # the newest holds the place
        elif not mine:
            make.append(NewPod(role=role, ordinal=ordinal, incarnation=1 + highest.get((role, ordinal), 0)))
        else:
            wait_s = backoff_s(mine[-1], now)
            if wait_s > 0:
                waits.append(wait_s)
            else:
                last = mine[-1]
                newest = max(last.incarnation, highest.get((role, ordinal), 0))
                failures = 1 + last.failures if _ended_soon(last) else 0
                make.append(NewPod(role=role, ordinal=ordinal, incarnation=1 + newest, failures=failures, after=last))
                remove += old
    for ordinal in sorted(held):
        if ordinal >= count:
            surplus += [pod for pod in held[ordinal] if not pod.terminating]
    return Staffing(make=tuple(make), remove=tuple(remove), surplus=tuple(surplus), again_s=min(waits, default=None))


def staff_head(pods: Sequence[PodFacts], *, answering: frozenset[str], highest: Highest, now: datetime) -> Staffing:
    """One live head. A second one never starts beside a head that may still write to the same volume.

    `answering` are the nodes whose kubelet will end a pod that was asked to go; on a node that is gone nothing is waited for.
    """
    heads = [pod for pod in pods if pod.role == names.HEAD]
    if not any(pod.live for pod in heads) and any(_still_ending(pod, answering, now) for pod in heads):
        return Staffing(again_s=LOOK_S)
    return staff(heads, role=names.HEAD, count=1, highest=highest, now=now)


def _still_ending(pod: PodFacts, answering: frozenset[str], now: datetime) -> bool:
    due = None if pod.gone_by is None else pod.gone_by + timedelta(seconds=KILL_MARGIN_S)
    return due is not None and pod.node in answering and not pod.finished and now < due


def backoff_s(ended: PodFacts, now: datetime) -> float:
    """Seconds to wait before a place gets its next pod: none after the first end, or after a long life, or after a deletion."""
    if not _ended_soon(ended) or ended.failures < 1:
        return 0.0
    wait_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(ended.failures - 1, 16))
    return max(0.0, wait_s - (now - _end(ended)).total_seconds())


def _ended_soon(pod: PodFacts) -> bool:
    """By itself, and soon after its start."""
    return pod.finished and not pod.terminating and (_end(pod) - pod.created).total_seconds() <= SHORT_LIFE_S


def _end(pod: PodFacts) -> datetime:
    return pod.finished_at or pod.created
