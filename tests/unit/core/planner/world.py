"""Workers, what they hold, and the counting that the planner's tests share."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.plan.layout import Interval, Intervals
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan
from orchestrator.core.reshard.recovery import Held

Workers = list[tuple[str, str]]


def workers_on(nodes: Sequence[str], *, first: int = 0) -> Workers:
    """One worker per entry."""
    return [(f"j/w{first + i}", node) for i, node in enumerate(nodes)]


def held_by(plan: Plan, worker_id: str, *, step: int = 5) -> Held:
    """What a worker of a plan holds when it left between two steps."""
    seat = plan.seat_of(worker_id)
    assert seat is not None
    optimizer, params = (plan.layout(name).holdings[seat.rank].everything for name in (OPTIMIZER, PARAMS))
    return Held(plan.epoch, seat.rank, plan.axis(TENSOR), step, step, step, optimizer, params, None)


def blocks(of: Intervals, block: int) -> set[int]:
    """The whole blocks in some intervals."""
    return {b for i in of for b in range(-(-i.start // block), i.stop // block)}


def from_blocks(of: Sequence[int] | set[int], block: int) -> Intervals:
    """Intervals of one block each."""
    return tuple(Interval(b * block, (b + 1) * block) for b in sorted(of))


def missing(plan: Plan, held: dict[str, Held]) -> int:
    """Blocks of optimizer state that the ranks of a plan need and their workers do not have."""
    out = 0
    for seat, holding in zip(plan.seats, plan.layout(OPTIMIZER).holdings, strict=True):
        have = blocks(held[seat.worker_id].optimizer, plan.block) if seat.worker_id in held else set()
        out += len(blocks(holding.everything, plan.block) - have)
    return out
