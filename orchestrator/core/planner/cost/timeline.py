"""How long a pipeline takes, by executing the lists of acts of core/plan/pipeline.py in virtual time.

A rank does its acts in the order of its list, each as soon as it is free and has what it needs. Most can be run
through in waves without making the lists (waves.py, held to the lists by its tests); the general way works out once in which
order the acts of all ranks can be executed, which does not depend on how long they take.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from orchestrator.core.plan.pipeline import BACKWARD, FORWARD, INPUT, WEIGHT, Act, actions
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.waves import one_stage_each, several_each

_LIVE_ROUNDS = 4  # more do not add to what a rank keeps


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of each stage for one micro-batch, what it waits for while it receives included."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]  # the whole backward pass, or its first half
    weight: tuple[float, ...] = ()  # the second half; empty: there are no halves


@dataclass(frozen=True, slots=True)
class Timed:
    """An act of a rank in a replica's step, in seconds."""

    rank: int  # of the pipeline
    act: Act
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class _Order:
    """Acts of all ranks in an order in which they can be executed: whose, after which one, of what kind, and its number."""

    ranks: list[int]
    needs: list[int]  # number of an act; 0: none
    kinds: list[int]  # index into forward + backward + weight
    numbers: list[int]  # 1 + kind * micro-batches + index


@lru_cache(maxsize=1 << 12)
def ends(schedule: PipelineSchedule, times: StageTimes, *, pipeline: int, micro_batches: int) -> tuple[float, ...]:
    """When each pipeline rank has done its last act. Raises ValueError where stages do not lie evenly on the ranks."""
    stages, m = len(times.forward), micro_batches
    if pipeline == 1:
        return (m * sum((*times.forward, *times.backward, *times.weight)),)
    if stages == pipeline:
        return tuple(one_stage_each([*times.forward], [*times.backward], [*times.weight], m))
    if m % pipeline == 0 and not times.weight:
        return tuple(several_each([*times.forward], [*times.backward], pipeline, m))
    clocks = [0.0] * pipeline
    for timed in trace(schedule, times, pipeline=pipeline, micro_batches=m):
        clocks[timed.rank] = timed.end_s
    return tuple(clocks)


def trace(schedule: PipelineSchedule, times: StageTimes, *, pipeline: int, micro_batches: int) -> tuple[Timed, ...]:
    """Every act of a replica's step, those of one rank in order. Raises ValueError as `ends` does."""
    stages, m = len(times.forward), micro_batches
    durations = [*times.forward, *times.backward, *times.weight]
    order = _order(schedule, pipeline, stages, m)
    ended, clocks = [0.0] * (1 + 3 * stages * m), [0.0] * pipeline
    names = (FORWARD, INPUT if times.weight else BACKWARD, WEIGHT)
    out = []
    for rank, need, kind, number in zip(order.ranks, order.needs, order.kinds, order.numbers, strict=True):
        start = max(clocks[rank], ended[need])
        clocks[rank] = ended[number] = start + durations[kind]
        out.append(Timed(rank, Act(names[kind // stages], kind % stages, (number - 1) % m), start, ended[number]))
    return tuple(out)


@lru_cache(maxsize=64)
def _order(schedule: PipelineSchedule, pipeline: int, stages: int, micro_batches: int) -> _Order:
    m = micro_batches
    kinds = {FORWARD: 0, BACKWARD: 1, INPUT: 1, WEIGHT: 2}
    lists = [
        actions(schedule, pipeline=pipeline, stages=stages, rank=rank, micro_batches=micro_batches) for rank in range(pipeline)
    ]
    order = _Order([], [], [], [])
    done = bytearray(1 + 3 * stages * m)
    done[0] = 1
    at, todo = [0] * pipeline, list(range(pipeline))
    while todo:
        for rank in todo:
            acts = lists[rank]
            while at[rank] < len(acts):
                act = acts[at[rank]]
                kind, need = kinds[act.kind], 0
                if kind == 0 and act.stage:
                    need = 1 + (act.stage - 1) * m + act.index
                elif kind == 1 and act.stage + 1 < stages:
                    need = 1 + (stages + act.stage + 1) * m + act.index
                if not done[need]:
                    break
                number = 1 + (kind * stages + act.stage) * m + act.index
                done[number] = 1
                order.ranks.append(rank)
                order.needs.append(need)
                order.kinds.append(kind * stages + act.stage)
                order.numbers.append(number)
                at[rank] += 1
        todo = [rank for rank in todo if at[rank] < len(lists[rank])]
    return order


@lru_cache(maxsize=4096)
def live(schedule: PipelineSchedule, pipeline: int, stages: int, micro_batches: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """For each rank the largest sets of activations that it keeps at once: how many micro-batches of each of its stages.

    None of a rank's sets is contained in another. Kept is what lies between a forward pass and the end of the backward pass.
    """
    m = micro_batches
    if stages == pipeline:  # as many as its distance from the end of the pipeline; all with halves, the second ones being late
        halves = schedule is PipelineSchedule.ZERO_BUBBLE
        return tuple(((min(m, pipeline if halves else pipeline - rank),),) for rank in range(pipeline))
    if m % pipeline == 0:
        m = min(m, _LIVE_ROUNDS * pipeline)
    out = []
    for rank in range(pipeline):
        counts = [0] * (stages // pipeline)
        seen: set[tuple[int, ...]] = set()
        grown = False
        for act in actions(schedule, pipeline=pipeline, stages=stages, rank=rank, micro_batches=m):
            if act.kind == FORWARD:
                counts[act.stage // pipeline] += 1
                grown = True
            elif act.kind in (BACKWARD, WEIGHT):
                if grown:
                    seen.add(tuple(counts))
                grown = False
                counts[act.stage // pipeline] -= 1
        out.append(tuple(sorted(a for a in seen if not any(a != b and _within(a, b) for b in seen))))
    return tuple(out)


def _within(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True))
