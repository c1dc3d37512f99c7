"""Which pods and objects a job should have, beside those it has: pure, and the same answer however often it is asked.

An ordinal is one place of the job (worker 2, spare 0); the pods that hold it one after another are its incarnations. A place
whose newest pods are all going, finished or gone gets a new one at once, so that a dead node's pod, which nobody will ever end,
blocks nothing. Only a place whose pods keep ending soon after their start, or are deleted before they have a node, is waited
with; and one whose pod Kueue still counts, for it would delete the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.gang import counted_by_kueue
from orchestrator.adapters.kube.observed import PodFacts

SHORT_LIFE_S = 600.0  # a pod that ended within this is waited with before the next, each time longer
BACKOFF_FIRST_S = 2.0
BACKOFF_MAX_S = 300.0
KILL_MARGIN_S = 30.0  # a kubelet that answers has ended a pod this long after its grace
LOOK_S = 2.0  # between two looks at a pod that is waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The newest pod that a place ever had; it may be gone."""

    incarnation: int
    failures: int
    made: datetime
    excused: bool  # it had a node, or the operator itself removed it: that it is gone says nothing against the next


Highest: TypeAlias = Mapping[tuple[str, int], Newest]  # by role and ordinal


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPod:
    """A pod to make, with the pod whose place it takes."""

    role: str
    ordinal: int
    incarnation: int
    failures: int = 0  # pods of this place in a row that ended soon after their start, or never had a node
    after: PodFacts | None = None
    unplaced: bool = False  # the incarnation before it was deleted by others before it had a node


@dataclass(frozen=True, slots=True, kw_only=True)
class Staffing:
    """What to do about the pods of a role."""

    make: tuple[NewPod, ...] = ()
    remove: tuple[PodFacts, ...] = ()  # whose place another has
    surplus: tuple[PodFacts, ...] = ()  # that the job has become too small for
    later: tuple[NewPod, ...] = ()  # to make after a pause, since those before them never had a node
    counted: tuple[PodFacts, ...] = ()  # that Kueue lets nobody take the place of yet
    again_s: float | None = None  # look again after this, for a pod that is waited with


def staff(pods: Sequence[PodFacts], *, role: str, count: int, highest: Highest, now: datetime) -> Staffing:
    """One live pod for each ordinal below `count`, none for the others. `highest` knows incarnations that are gone."""
    make: list[NewPod] = []
    remove: list[PodFacts] = []
    surplus: list[PodFacts] = []
    later: list[NewPod] = []
    counted: list[PodFacts] = []
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
            continue
        if blocking := [pod for pod in mine if counted_by_kueue(pod)]:
            counted.append(blocking[-1])
            waits.append(_ends_in_s(blocking[-1], now))
            continue
        end = _last_end(mine[-1] if mine else None, highest.get((role, ordinal)), now)
        new = NewPod(
            role=role,
            ordinal=ordinal,
            incarnation=1 + end.incarnation,
            failures=1 + end.failures if end.early else 0,
            after=mine[-1] if mine else None,
            unplaced=end.early and end.unplaced,
        )
        wait_s = backoff_s(end, now)
        if wait_s <= 0:
            make.append(new)
            remove += old
        else:
            waits.append(wait_s)
            later += [new] if new.unplaced else []
    for ordinal in sorted(held):
        if ordinal >= count:
            surplus += [pod for pod in held[ordinal] if not pod.terminating]
    return Staffing(
        make=tuple(make),
        remove=tuple(remove),
        surplus=tuple(surplus),
        later=tuple(later),
        counted=tuple(counted),
        again_s=min(waits, default=None),
    )


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


def _ends_in_s(pod: PodFacts, now: datetime) -> float:
    """When to look again at a pod that has to end first, should nobody say that it has."""
    left_s = 0.0 if pod.gone_by is None else (pod.gone_by - now).total_seconds()
    return max(0.0, left_s) + KILL_MARGIN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How the last pod of a place went."""

    incarnation: int
    failures: int
    when: datetime
    early: bool  # by itself soon after its start, or by others' hand before it had a node
    unplaced: bool


def _last_end(last: PodFacts | None, newest: Newest | None, now: datetime) -> End:
    """Of the newest pod, which may be gone, or of the last that is still there; of a place that never had one all is well."""
    if newest is not None and (last is None or newest.incarnation > last.incarnation):
        early = not newest.excused and _soon(newest.made, now)
        return End(incarnation=newest.incarnation, failures=newest.failures, when=newest.made, early=early, unplaced=True)
    if last is None:
        return End(incarnation=0, failures=0, when=now, early=False, unplaced=True)
    when = last.finished_at or last.deleting_since or last.created
    unplaced = last.terminating and not last.node
    by_itself = last.finished and not last.terminating
    early = (by_itself or (unplaced and not (newest is not None and newest.excused))) and _soon(last.created, when)
    return End(incarnation=last.incarnation, failures=last.failures, when=when, early=early, unplaced=unplaced)


def backoff_s(end: End, now: datetime) -> float:
    """Seconds to wait before a place gets its next pod: none after the first early end, or after a long life, or a deletion."""
    if not end.early or end.failures < 1:
        return 0.0
    wait_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(end.failures - 1, 16))
    return max(0.0, wait_s - (now - end.when).total_seconds())


def _soon(begin: datetime, end: datetime) -> bool:
    return (end - begin).total_seconds() <= SHORT_LIFE_S
