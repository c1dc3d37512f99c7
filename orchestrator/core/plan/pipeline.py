"""Which rank of a pipeline does what, in which order: a list of acts per rank, and a proof that the lists fit together.

A stage's forward pass of a micro-batch needs the stage before, its backward pass the stage after. Every rank follows a list
made by rule, without asking anybody; the lists are right if all ranks can execute them together, which `simulate` does in
virtual time. In all schedules a stage sees its micro-batches in ascending order, forward, backward and weights alike, so that
gradients are added in one order whatever the schedule.

One rule covers the three schedules. A rank starts with some forward passes (the warm-up, longer the further from the loss it is),
then goes on with one backward pass after each forward pass, and ends with the backward passes that are left. With several
stages per rank, micro-batches go through in rounds of about as many as there are ranks, stage by stage. With zero bubble the
backward pass is done in halves: the gradient of the input at once, because the stage before waits for it, the gradient of
the weights later by as many as the rank's place, when it would otherwise wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.core.plan.plan import PipelineSchedule

FORWARD, BACKWARD, INPUT, WEIGHT = "forward", "backward", "input", "weight"


@dataclass(frozen=True, slots=True)
class Act:
    """One piece of work of a rank: `kind` for a stage and the index-th micro-batch of the rank's replica."""

    kind: str
    stage: int
    index: int


def actions(schedule: PipelineSchedule, *, pipeline: int, stages: int, rank: int, micro_batches: int) -> tuple[Act, ...]:
    """What pipeline rank `rank` of `pipeline` does in a step, in order. Stage s is run by rank s modulo `pipeline`.

    1F1B: Narayanan et al., arXiv 2006.09503; interleaved: arXiv 2104.04473 section 2.2, here for any number of micro-batches;
    zero bubble: ZB-H1 of arXiv 2401.10241 section 2.2; one rank has no bubble and does its backward passes in one. Raises
    ValueError for stages that are no multiple of the ranks.
    """
    if stages % pipeline or not 0 <= rank < pipeline:
        raise ValueError(f"{stages} stages do not lie evenly on {pipeline} ranks, or there is no rank {rank}")
    local, total = stages // pipeline, stages // pipeline * micro_batches
    halves = schedule is PipelineSchedule.ZERO_BUBBLE and pipeline > 1
    rounds = _rounds(micro_batches, pipeline)
    ahead = [(c, i) for r in rounds for c in range(local) for i in r]
    back = [(c, i) for r in rounds for c in reversed(range(local)) for i in r]
    distance = pipeline - 1 - rank
    warm_up = distance if local == 1 else 2 * distance + (local - 1) * (len(rounds[0]) if rounds else 0)
    warm_up = min(warm_up, total)
    late = rank if halves else 0  # how many weights halves are put off

    def act(kind: str, place: tuple[int, int]) -> Act:
        return Act(kind, place[0] * pipeline + rank, place[1])

    out = [act(FORWARD, place) for place in ahead[:warm_up]]
    for k, place in enumerate(back):
        if warm_up + k < total:
            out.append(act(FORWARD, ahead[warm_up + k]))
        out.append(act(INPUT if halves else BACKWARD, place))
        if halves and k >= late:
            out.append(act(WEIGHT, back[k - late]))
    if halves:
        out += [act(WEIGHT, place) for place in back[max(0, total - late) :]]
    return tuple(out)


def _rounds(micro_batches: int, ranks: int) -> list[range]:
    """Runs of micro-batches, about even; none is shorter than `ranks`, unless there are fewer in all, nor longer than the first.

    The warm-up is as long as the first round, and a longer one would wait for its own end.
    """
    n = max(1, micro_batches // ranks)
    bounds = [-(-micro_batches * r // n) for r in range(n + 1)]
    return [range(a, b) for a, b in pairwise(bounds) if a < b]


def sends_max(pipeline: int) -> int:
    """Results of a rank that may be under way, not yet used, in any of the schedules without making anybody wait longer."""
    return 2 * pipeline


def consumer(act: Act, *, stages: int, halves: bool) -> Act | None:
    """The act that needs what this one makes; None where that is an act of the same stage or there is none."""
    if act.kind == FORWARD:
        return Act(FORWARD, act.stage + 1, act.index) if act.stage + 1 < stages else None
    if act.kind in (BACKWARD, INPUT) and act.stage > 0:
        return Act(INPUT if halves else BACKWARD, act.stage - 1, act.index)
    return None


@dataclass(frozen=True, slots=True)
class Simulation:
    """A schedule executed in units of time: a forward pass and each half of a backward pass take one, a whole backward two."""

    makespan: int
    busy: tuple[int, ...]  # of each rank
    live_max: tuple[int, ...]  # pairs of stage and micro-batch whose activations a rank keeps at once, at most

    @property
    def bubble(self) -> int:
        """Time that all ranks together spend waiting."""
        return sum(self.makespan - b for b in self.busy)


def simulate(orders: Sequence[Sequence[Act]], *, stages: int, sends_max: int) -> Simulation:
    """Execute the ranks' lists together, as far as each act has what it needs.

    A rank that has `sends_max` results under way, not yet used by another rank, waits for the oldest. Raises ValueError where the
    ranks wait for one another for ever.
    """
    halves = any(a.kind == INPUT for order in orders for a in order)
    ended: dict[Act, int] = {}
    clocks, at = [0] * len(orders), [0] * len(orders)
    sent: list[list[Act]] = [[] for _ in orders]  # the acts that use them
    progress = True
    while progress:
        progress = False
        for rank, order in enumerate(orders):
            while at[rank] < len(order):
                act = order[at[rank]]
                needs = [*_needs(act, stages=stages, halves=halves), *sent[rank][: max(0, len(sent[rank]) - sends_max)]]
                if any(n not in ended for n in needs):
                    break
                began = max([clocks[rank], *(ended[n] for n in needs)])
                clocks[rank] = ended[act] = began + (2 if act.kind == BACKWARD else 1)
                used_by = consumer(act, stages=stages, halves=halves)
                if used_by is not None and used_by.stage % len(orders) != rank:
                    sent[rank].append(used_by)
                at[rank] += 1
                progress = True
    stuck = [f"rank {r} at {order[at[r]]}" for r, order in enumerate(orders) if at[r] < len(order)]
    if stuck:
        raise ValueError(f"the schedule never ends: {', '.join(stuck)}")
    busy = tuple(sum(2 if a.kind == BACKWARD else 1 for a in order) for order in orders)
    return Simulation(max(clocks, default=0), busy, tuple(_live_max(order) for order in orders))


def _needs(act: Act, *, stages: int, halves: bool) -> list[Act]:
    if act.kind == FORWARD:
        return [Act(FORWARD, act.stage - 1, act.index)] if act.stage else []
    if act.kind == WEIGHT:
        return [Act(INPUT, act.stage, act.index)]
    after = [Act(act.kind, act.stage + 1, act.index)] if act.stage + 1 < stages else []
    return [Act(FORWARD, act.stage, act.index), *after]


def _live_max(order: Sequence[Act]) -> int:
    live, most = 0, 0
    for act in order:
        live += {FORWARD: 1, BACKWARD: -1, WEIGHT: -1}.get(act.kind, 0)
        most = max(most, live)
    return most
