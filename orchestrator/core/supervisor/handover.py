"""A plan in which nothing depends on the ranks that are about to leave.

A drained worker may be the only holder of a region. So the ranks that stay take those regions over as extra copies, for an epoch
in which everybody trains on; after it the leaving can go and nothing of theirs is missing. No executor needs to know of it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from orchestrator.core.plan.layout import Holding, Interval, Intervals, StateLayout, merge, subtract, total
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan


def missing(plan: Plan, going: Collection[int]) -> Intervals:
    """Regions of optimizer state that only ranks in `going` hold; the params of any other region somebody else has as well."""
    layout = plan.layout(OPTIMIZER)
    stay = [i for r, h in enumerate(layout.holdings) if r not in going for i in h.everything]
    return subtract((Interval(0, layout.numel),), stay)


def handover(plan: Plan, going: Collection[int]) -> Plan:
    """The plan with every region that only `going` hold kept by another rank too, spread evenly; ValueError if all go."""
    heirs = [r for r in range(plan.size) if r not in going]
    if not heirs:
        raise ValueError("nobody stays who could take the state over")
    left = missing(plan, going)
    share = -(-total(left) // len(heirs) // plan.block) * plan.block or plan.block
    extra: dict[int, list[Interval]] = {r: [] for r in heirs}
    at, room = 0, share
    for region in left:
        lo = region.start
        while lo < region.stop:
            hi = min(region.stop, lo + room)
            extra[heirs[at]].append(Interval(lo, hi))
            room -= hi - lo
            lo = hi
            if room <= 0:
                at, room = min(at + 1, len(heirs) - 1), share
    return replace(plan, layouts=tuple(_with(plan.layout(name), extra) for name in (PARAMS, OPTIMIZER)))


def _with(layout: StateLayout, extra: dict[int, list[Interval]]) -> StateLayout:
    return replace(
        layout,
        holdings=tuple(
            Holding(h.primary, subtract(merge([*h.extra, *extra.get(r, ())]), h.primary)) for r, h in enumerate(layout.holdings)
        ),
    )
