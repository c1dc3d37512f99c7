"""What makes a plan valid, as a list of checks with words.

The supervisor refuses to execute a plan with findings; tests and the simulator run the same checks on every plan they meet.
"""

from __future__ import annotations

from orchestrator.core.plan.layout import Interval, StateLayout, intersect, merge, subtract, total
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan


def lint(plan: Plan) -> tuple[str, ...]:
    """Every reason why the plan must not run; empty when it may."""
    out: list[str] = []
    size = 1
    for axis in plan.mesh:
        size *= axis.size
    if size != plan.size:
        out.append(f"the mesh has {size} places and the plan {plan.size} seats")
    if plan.epoch <= plan.parent:
        out.append(f"epoch {plan.epoch} does not follow its parent {plan.parent}")
    if [s.rank for s in plan.seats] != list(range(plan.size)):
        out.append("seats are not numbered 0..n-1 in order")
    workers = [s.worker_id for s in plan.seats]
    if len(set(workers)) != len(workers):
        out.append("one worker has two seats")
    if plan.micro_batches < plan.size:
        out.append(f"{plan.micro_batches} micro-batches cannot feed {plan.size} ranks")
    for name in (PARAMS, OPTIMIZER):
        try:
            layout = plan.layout(name)
        except KeyError:
            out.append(f"no layout for {name}")
            continue
        out.extend(_lint_layout(plan, layout))
    return tuple(out)


def _lint_layout(plan: Plan, layout: StateLayout) -> list[str]:
    out: list[str] = []
    if len(layout.holdings) != plan.size:
        return [f"{layout.name}: {len(layout.holdings)} holdings for {plan.size} ranks"]
    primaries = [i for h in layout.holdings for i in h.primary]
    if merge(primaries) != (Interval(0, layout.numel),) or sum(i.numel for i in primaries) != layout.numel:
        out.append(f"{layout.name}: primary regions do not cover [0, {layout.numel}) exactly once")
    for i in primaries:
        if i.start % plan.block or (i.stop % plan.block and i.stop != layout.numel):
            out.append(f"{layout.name}: [{i.start}, {i.stop}) is not aligned to blocks of {plan.block}")
    if plan.copies and plan.size > 1:
        for rank, h in enumerate(layout.holdings):
            node = plan.seats[rank].node_id
            elsewhere = merge(i for r, o in enumerate(layout.holdings) if plan.seats[r].node_id != node for i in o.everything)
            missing = subtract(h.primary, elsewhere)
            if missing:
                out.append(f"{layout.name}: {total(missing)} elements of rank {rank} have no copy on another node than {node}")
    for rank, h in enumerate(layout.holdings):
        if intersect(h.primary, h.extra):
            out.append(f"{layout.name}: rank {rank} lists a region as primary and as extra")
    return out
