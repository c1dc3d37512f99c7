"""From what each survivor says it holds to the step to go on from and the transfers that get everybody there.

A training step commits in two phases. *Prepared*: a rank has the reduced gradient for every region whose state it holds, so it
can apply the update with no further help. *Commit*: a small exchange (losses and norms) that a rank enters only when prepared;
whoever leaves it knows that everybody was prepared. So when one survivor is past the commit of step n, all survivors roll forward
to n on their own, given the commit record; otherwise nobody has applied n and all are at n-1. No copy of the step before is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.graph.space import runs
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.layout import Intervals, merge
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan, Seat
from orchestrator.core.reshard.regions import Regions, in_place, once, translated
from orchestrator.core.reshard.schedule import DEFAULT_LINKS, ELEMENT_BYTES, ROUND_BYTES, Links, Party, Transfer
from orchestrator.core.reshard.senders import NoHolder, make_schedule

__all__ = ["Commit", "Held", "Resume", "Source", "Transfer", "Unrecoverable", "resolve"]


@dataclass(frozen=True, slots=True)
class Commit:
    """What the commit exchange of a step settled: enough to apply the update anywhere."""

    step: int
    loss: float  # mean over micro-batches, nats
    grad_norm: float  # global L2 norm before clipping
    scale: float  # factor that clipping puts on the gradient (1.0 when it does not clip)
    skipped: bool  # the step counts and changes nothing: its update is not applied
    usual_loss: float  # moving average of the losses of steps that were not skipped, up to this one; what a spike is held against


@dataclass(frozen=True, slots=True)
class Held:
    """What a worker that left an epoch holds, as intervals of the flat vector of `tensor` degree.

    It says what it holds, not which plan gave it that: a worker that broke out of a reshard holds what it had and what it has
    received, and both count.
    """

    plan_epoch: int  # the newest plan whose state it had in place
    rank: int  # its rank in that plan
    tensor: int  # degree of tensor parallelism of the vector that the intervals are in
    applied_step: int  # `optimizer` (moments, and the params of the same regions) is the state after this step
    params_step: int  # `params` is complete after this step; -1 when a broken collective left them in between
    prepared_step: int  # applied_step, or applied_step + 1 when the reduced gradient of all of `optimizer` is here
    optimizer: Intervals
    params: Intervals  # includes `optimizer`
    commit: Commit | None  # newest commit that it knows


class Source(StrEnum):
    """Where an epoch's state comes from."""

    INIT = "init"
    MEMORY = "memory"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class Resume:
    """How the ranks of an epoch come by their state, and the step they then are at."""

    source: Source
    step: int
    commit: Commit | None  # ranks that are prepared but have not applied `step` apply it with this
    transfers: tuple[Transfer, ...]  # by round, in one global order that every rank follows
    fresh: tuple[int, ...]  # ranks that hold nothing and receive all of their state
    checkpoint_uri: str  # of the one checkpoint, when source is CHECKPOINT
    predicted_ms: int  # how long the transfers should take
    skip_steps: tuple[int, ...]  # steps that are committed without an update when they come (again)


class Unrecoverable(ValueError):
    """No set of survivors holds the whole state; the message names what is missing."""


def resolve(
    *,
    new: Plan,
    held: Mapping[int, Held],
    known: Commit | None,
    graph: GraphView | None = None,
    skip_steps: Sequence[int] = (),
    leaving: Sequence[Seat] = (),
    moments: int = 2,
    bytes_per_round: int = ROUND_BYTES,
    links: Links = DEFAULT_LINKS,
) -> Resume:
    """The newest step whose every region has a live holder, and the transfers to it.

    `held` maps ranks of `new` that survivors fill to what they hold, `known` is the newest commit that the supervisor was told
    of: whoever told it may be gone, but the prepared can roll forward by it. `leaving` are seats numbered from new.size on:
    members of the epoch's group that send what they hold, need nothing and go (a drain where there are no copies). `graph` is
    needed when somebody holds a vector of another tensor degree than the plan's; `moments` counts the elementwise tensors of the
    optimizer. Raises Unrecoverable when no step has a holder for every region.
    """
    if [s.rank for s in leaving] != list(range(new.size, new.size + len(leaving))):
        raise ValueError(f"those who leave are numbered from {new.size} on")
    if not held.keys() <= set(range(new.size + len(leaving))):
        raise ValueError(f"rank {max(held)} holds state and has no seat")
    if not held:
        raise Unrecoverable("no survivor holds any state")
    common, seats = _Common(new, held, graph), (*new.seats, *leaving)
    commits = {h.commit.step: h.commit for h in held.values() if h.commit is not None}
    if known is not None:
        commits.setdefault(known.step, known)
    why: list[str] = []
    for step in sorted({h.applied_step for h in held.values()} | set(commits), reverse=True):
        commit = commits.get(step)
        holders = {rank: h for rank, h in held.items() if _reaches(h, step, commit)}
        try:
            schedule = make_schedule(
                [_party(s, new, holders.get(s.rank), step=step, commit=commit, common=common) for s in seats],
                element_bytes={PARAMS: ELEMENT_BYTES, OPTIMIZER: ELEMENT_BYTES * moments},
                bytes_per_round=bytes_per_round,
                links=links,
            )
        except NoHolder as e:
            why.append(f"{e.tensor} [{e.start}, {e.stop}) of rank {e.rank} at step {step} has no live holder")
            continue
        return Resume(
            source=Source.MEMORY,
            step=step,
            commit=commit,
            transfers=schedule.transfers,
            fresh=tuple(r for r in range(new.size) if r not in holders),
            checkpoint_uri="",
            predicted_ms=schedule.predicted_ms,
            skip_steps=tuple(skip_steps),
        )
    raise Unrecoverable("; ".join(why))


def _reaches(h: Held, step: int, commit: Commit | None) -> bool:
    """Whether it is at a step, or can go there by itself."""
    return h.applied_step == step or (commit is not None and h.applied_step == step - 1 and h.prepared_step == step)


def _party(seat: Seat, new: Plan, h: Held | None, *, step: int, commit: Commit | None, common: _Common) -> Party:
    """What a seat needs, and what it has at `step` once it has rolled forward: regions of optimizer state, and their params.

    All of its params are at that step only when they were gathered, or when the step changed nothing.
    """
    needs: dict[str, Regions] = {}
    if seat.rank < new.size:
        needs = {
            name: common.regions(new.layout(name).holdings[seat.rank].everything, common.degree) for name in (PARAMS, OPTIMIZER)
        }
    if h is None:
        return Party(seat.rank, seat.node_id, needs, {}, stays=True)
    unchanged = commit is not None and commit.skipped and h.params_step == step - 1
    params = h.params if h.params_step == step or unchanged else h.optimizer
    has = {PARAMS: once(common.regions(params, h.tensor)), OPTIMIZER: once(common.regions(h.optimizer, h.tensor))}
    return Party(seat.rank, seat.node_id, needs, has, stays=h.tensor == common.degree)


class _Common:
    """The vector that all ranks' regions are compared in: the plan's own, or the uncut model's when tensor degrees differ."""

    def __init__(self, new: Plan, held: Mapping[int, Held], graph: GraphView | None) -> None:
        self.degree = new.axis(TENSOR)
        degrees = {self.degree, *(h.tensor for h in held.values())}
        self._runs: dict[int, tuple[tuple[int, int, int], ...]] = {}
        if len(degrees) > 1:
            if graph is None:
                raise ValueError(f"a state cut for tensor degrees {sorted(degrees)} cannot be moved without the graph")
            self._runs = {d: runs(graph, d) for d in degrees}

    def regions(self, intervals: Intervals, degree: int) -> Regions:
        """Intervals of a vector of some degree."""
        return translated(merge(intervals), self._runs[degree]) if self._runs else in_place(merge(intervals))
