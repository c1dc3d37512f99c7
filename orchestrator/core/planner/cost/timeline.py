"""How long a pipeline takes, by executing the lists of acts of core/plan/pipeline.py in virtual time.

The order in which acts can be executed does not depend on how long they take, so it is worked out once for a schedule and then
only run through. With many micro-batches a shorter run is enough: once every act of a round comes later than that of the round
before by the same time, so will all that follow, since each begins at the latest of a few others' ends (a max-plus linear
system: Baccelli, Cohen, Olsder and Quadrat 1992, section 3.7), and the rest is added in whole rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from orchestrator.core.plan.pipeline import BACKWARD, FORWARD, INPUT, WEIGHT, Act, actions
from orchestrator.core.plan.plan import PipelineSchedule

_SAME = 1e-9  # relative: rounding of sums
_ROUNDS_FIRST = 4  # that are simulated before it is seen whether they have become alike; twice as many each time
_LIVE_ROUNDS = 4  # more do not add to what a rank keeps


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of each stage for one micro-batch, what it waits for while it receives included."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]  # the whole backward pass, or its first half
    weight: tuple[float, ...] = ()  # the second half; empty: there are no halves


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each pipeline rank has done its last act."""

    ends: tuple[float, ...]
    simulated: int  # micro-batches

    @property
    def makespan(self) -> float:
        """When all have."""
        return max(self.ends)


@dataclass(frozen=True, slots=True)
class _Order:
    """Acts of all ranks in an order in which they can be executed: who, after which act's end, what kind, and its number."""

    ranks: list[int]
    needs: list[int]  # number of an act; 0: none
    kinds: list[int]  # index into forward + backward + weight
    numbers: list[int]  # 1 + (passes of one direction * micro-batches ...): see _number
    size: int


def simulate(schedule: PipelineSchedule, times: StageTimes, *, pipeline: int, micro_batches: int) -> Timeline:
    """The timeline of a replica. Raises ValueError where stages do not lie evenly on the ranks."""
    return _simulate(schedule, times.forward, times.backward, times.weight, pipeline, micro_batches)


@lru_cache(maxsize=4096)
def _simulate(
    schedule: PipelineSchedule,
    forward: tuple[float, ...],
    backward: tuple[float, ...],
    weight: tuple[float, ...],
    pipeline: int,
    micro_batches: int,
) -> Timeline:
    durations = [*forward, *backward, *weight]
    stages, m = len(forward), micro_batches
    if pipeline == 1:
        return Timeline((m * sum(durations),), 0)
    whole_rounds = stages == pipeline or m % pipeline == 0
    rounds = _ROUNDS_FIRST * (1 if stages == pipeline else 2)
    while whole_rounds and m % pipeline + rounds * pipeline < m:
        short = m % pipeline + rounds * pipeline
        ends, ended = _run(_order(schedule, pipeline, stages, short), durations)
        period = _period(ended, stages=stages, pipeline=pipeline, micro_batches=short)
        if period is not None:
            more = (m - short) // pipeline * period
            return Timeline(tuple(e + more for e in ends), short)
        rounds *= 2
    ends, _ = _run(_order(schedule, pipeline, stages, m), durations)
    return Timeline(tuple(ends), m)


def _run(order: _Order, durations: list[float]) -> tuple[list[float], list[float]]:
    """(end of each rank's last act, end of each act by number)."""
    ended = [0.0] * order.size
    clocks = [0.0] * (max(order.ranks) + 1)
    for rank, need, kind, number in zip(order.ranks, order.needs, order.kinds, order.numbers, strict=True):
        began, ready = clocks[rank], ended[need]
        clocks[rank] = ended[number] = (began if began > ready else ready) + durations[kind]
    return clocks, ended


def _period(ended: list[float], *, stages: int, pipeline: int, micro_batches: int) -> float | None:
    """By how much each act comes later than that of the round before, where that is the same for all acts that matter later.

    What is to come depends on acts of the last round (two where ranks have several stages) and of none before.
    """
    depth = pipeline * (1 if stages == pipeline else 2)
    begin = micro_batches - pipeline - 2 * depth  # the last `depth` are drained, not in the steady state
    found: float | None = None
    margin = _SAME * max(ended)
    for passed in range(2):
        for s in range(stages):
            at = _number(passed, s, begin, stages=stages, micro_batches=micro_batches)
            for k in range(at, at + depth):
                shift = ended[k + pipeline] - ended[k]
                if found is None:
                    found = shift
                if abs(shift - found) > margin:
                    return None
    return found


def _number(passed: int, stage: int, index: int, *, stages: int, micro_batches: int) -> int:
    """The number of an act: forward passes (0), backward passes (1), weights (2), of each stage in turn."""
    return 1 + (passed * stages + stage) * micro_batches + index


@lru_cache(maxsize=512)
def _order(schedule: PipelineSchedule, pipeline: int, stages: int, micro_batches: int) -> _Order:
    m = micro_batches
    passed = {FORWARD: 0, BACKWARD: 1, INPUT: 1, WEIGHT: 2}
    lists = [
        [
            (passed[a.kind], a.stage, a.index)
            for a in actions(schedule, pipeline=pipeline, stages=stages, rank=rank, micro_batches=m)
        ]
        for rank in range(pipeline)
    ]
    order = _Order([], [], [], [], 1 + 3 * stages * m)
    done = bytearray(order.size)
    done[0] = 1
    at, todo = [0] * pipeline, list(range(pipeline))
    while todo:
        following = []
        for rank in todo:
            acts, k = lists[rank], at[rank]
            while k < len(acts):
                kind, stage, index = acts[k]
                need = 0
                if kind == 0 and stage:
                    need = 1 + (stage - 1) * m + index
                elif kind == 1 and stage + 1 < stages:
                    need = 1 + (stages + stage + 1) * m + index
                if not done[need]:
                    break
                number = 1 + (kind * stages + stage) * m + index
                done[number] = 1
                order.ranks.append(rank)
                order.needs.append(need)
                order.kinds.append(kind * stages + stage)
                order.numbers.append(number)
                k += 1
            at[rank] = k
            if k < len(acts):
                following.append(rank)
        todo = following
    return order


@lru_cache(maxsize=4096)
def live(schedule: PipelineSchedule, pipeline: int, stages: int, micro_batches: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """For each rank the largest sets of activations that it keeps at once: how many micro-batches of each of its stages.

    None of a rank's sets is contained in another. Kept is what lies between a forward pass and the end of the backward pass.
    """
    m = micro_batches
    if stages == pipeline or m % pipeline == 0:
        m = min(m, m % pipeline + _LIVE_ROUNDS * pipeline)
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


def trace(
    schedule: PipelineSchedule, times: StageTimes, *, pipeline: int, micro_batches: int
) -> tuple[tuple[int, Act, float, float], ...]:
    """(pipeline rank, act, start, end) of every act of a replica's step, in seconds, in an order of execution."""
    stages, m = len(times.forward), micro_batches
    durations = [*times.forward, *times.backward, *times.weight]
    order = _order(schedule, pipeline, stages, m)
    _, ended = _run(order, durations)
    halves = schedule is PipelineSchedule.ZERO_BUBBLE and pipeline > 1
    names = (FORWARD, INPUT, WEIGHT) if halves else (FORWARD, BACKWARD, WEIGHT)
    return tuple(
        (rank, Act(names[kind // stages], kind % stages, (number - 1) % m), ended[number] - durations[kind], ended[number])
        for rank, kind, number in zip(order.ranks, order.kinds, order.numbers, strict=True)
    )
