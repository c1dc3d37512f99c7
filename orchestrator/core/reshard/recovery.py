"""From what each survivor says it holds to the step to go on from and the transfers that get everybody there.

A training step commits in two phases. *Prepared*: a rank has the reduced gradient for every region whose state it holds, so it
can apply the update with no further help. *Commit*: a small exchange (losses and norms) that a rank enters only when prepared;
whoever leaves it knows that everybody was prepared. So when one survivor is past the commit of step n, all survivors roll forward
to n on their own, given the commit record; otherwise nobody has applied n and all are at n-1. No copy of the step before is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.plan.layout import Interval, Intervals, intersect, subtract, total
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan


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
class Transfer:
    """One region of one state tensor from one rank's memory to another's; ranks are those of the new plan."""

    tensor: str  # PARAMS or OPTIMIZER (then every elementwise tensor of the optimizer travels)
    src: int
    dst: int
    start: int  # in the new plan's vector
    stop: int
    src_start: int  # where `start` lies in the sender's vector: another place only when the tensor degree changes
    round: int  # rounds are carried out one after the other, the transfers of one round together
    others: tuple[int, ...]  # further ranks that hold the region (at src_start too), for when what `src` sends arrives changed


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

    @property
    def elements_moved(self) -> int:
        """fp32 elements that travel (the optimizer counts once per moment at execution)."""
        return sum(t.stop - t.start for t in self.transfers)


class Unrecoverable(ValueError):
    """No set of survivors holds the whole state; the message names what is missing."""


def resolve(*, plans: Mapping[int, Plan], new: Plan, held: Mapping[int, Held], known: Commit | None) -> Resume:
    """The newest step whose every region has a live holder, and the transfers to it.

    `held` maps ranks of `new` that survivors fill to what they hold, `plans` the epochs that these name to their plans, `known`
    is the newest commit that the supervisor was told of: whoever told it may be gone, but the prepared can roll forward by it.
    Raises Unrecoverable when no step has a holder for every region.
    """
    if not held:
        raise Unrecoverable("no survivor holds any state")
    commits = {h.commit.step: h.commit for h in held.values() if h.commit is not None}
    if known is not None:
        commits.setdefault(known.step, known)
    steps = sorted({h.applied_step for h in held.values()} | set(commits), reverse=True)
    why: list[str] = []
    for step in steps:
        try:
            return _resume_at(step, commit=commits.get(step), plans=plans, new=new, held=held)
        except Unrecoverable as e:
            why.append(str(e))
    raise Unrecoverable("; ".join(why))


def _resume_at(step: int, *, commit: Commit | None, plans: Mapping[int, Plan], new: Plan, held: Mapping[int, Held]) -> Resume:
    holders = {
        rank: h
        for rank, h in sorted(held.items())
        if h.applied_step == step or (commit is not None and h.applied_step == step - 1 and h.prepared_step == step)
    }
    # Regions at `step`: the optimizer regions of every holder, whose params the same update made; all params where complete.
    whole: Intervals = (Interval(0, new.layout(PARAMS).numel),)
    optim = {r: plans[h.plan_epoch].layout(OPTIMIZER).holdings[h.rank].everything for r, h in holders.items()}
    params = {r: whole if h.params_step == step else optim[r] for r, h in holders.items()}
    load: dict[int, int] = dict.fromkeys(holders, 0)
    transfers: list[Transfer] = []
    for tensor, have in ((PARAMS, params), (OPTIMIZER, optim)):
        for rank in range(new.size):
            missing = subtract(new.layout(tensor).holdings[rank].everything, have.get(rank, ()))
            transfers.extend(_fetch(tensor=tensor, dst=rank, missing=missing, have=have, load=load, step=step, block=new.block))
    fresh = tuple(r for r in range(new.size) if r not in holders)
    return Resume(Source.MEMORY, step, commit, tuple(transfers), fresh, "")


def _fetch(
    *,
    tensor: str,
    dst: int,
    missing: Intervals,
    have: Mapping[int, Intervals],
    load: dict[int, int],
    step: int,
    block: int,
) -> list[Transfer]:
    """Transfers that fill `missing`, spread over the holders so that the busiest sender sends least."""
    out: list[Transfer] = []
    for region in missing:
        for piece, holders in _pieces(region, have):
            if not holders:
                raise Unrecoverable(f"{tensor} [{piece.start}, {piece.stop}) of rank {dst} at step {step} has no live holder")
            lo = piece.start
            share = max(block, -(-piece.numel // len(holders) // block) * block)
            while lo < piece.stop:
                hi = min(piece.stop, lo + share)
                src = min(holders, key=lambda r: (load[r], r))
                load[src] += hi - lo
                out.append(Transfer(tensor, src, dst, lo, hi))
                lo = hi
    return out


def _pieces(region: Interval, have: Mapping[int, Intervals]) -> list[tuple[Interval, tuple[int, ...]]]:
    """The region cut where the set of its holders changes."""
    cuts = {region.start, region.stop}
    inside = {r: intersect(h, (region,)) for r, h in have.items()}
    for intervals in inside.values():
        for i in intervals:
            cuts.update((i.start, i.stop))
    edges = sorted(cuts)
    out = []
    for lo, hi in itertools.pairwise(edges):
        piece = Interval(lo, hi)
        out.append((piece, tuple(r for r, h in inside.items() if total(intersect(h, (piece,))) == piece.numel)))
    return out
