"""A plan in words, for its reason: what people read in the status."""

from __future__ import annotations

from orchestrator.core.cluster.machines import machine_of
from orchestrator.core.plan.plan import DATA, PIPELINE, TENSOR, Plan, homes

_ZERO = {
    0: "",
    1: " with sharded optimizer state (ZeRO-1)",
    2: " with sharded optimizer state and gradients (ZeRO-2)",
    3: " with sharded parameters, gradients and optimizer state (ZeRO-3)",
}


def describe(plan: Plan) -> str:
    """E.g. "pipeline 2 x data parallel 2 with sharded optimizer state (ZeRO-1) over 4 ranks on 4 nodes"."""
    data = plan.axis(DATA)
    axes = [
        f"{words} {size}"
        for words, size in (("pipeline", plan.axis(PIPELINE)), ("data parallel", data), ("tensor parallel", plan.axis(TENSOR)))
        if size > 1
    ]
    what = " x ".join(axes)
    if len(axes) == 1 or not axes:
        what = what.rstrip(" 0123456789") or "everything"
    zero = _ZERO[plan.zero_stage] if data > 1 else ""
    if zero and plan.shard < data:
        zero += f" in groups of {plan.shard}"
    nodes, machines = {s.node_id for s in plan.seats}, {machine_of(s.node_id) for s in plan.seats}
    where = f"over {plan.size} ranks on {len(nodes)} node{'s' * (len(nodes) > 1)}" if plan.size > 1 else "on one rank"
    if machines != nodes and plan.size > 1:
        where += f" of {len(machines)} machine{'s' * (len(machines) > 1)}"
    return f"{what}{zero} {where}{_copies(plan)}"


def _copies(plan: Plan) -> str:
    if not plan.copies:
        return ""
    home = "node" if homes(plan.seats) == [s.node_id for s in plan.seats] else "machine"
    if plan.axis(DATA) == 1:
        return f" and a copy of its state on another {home}"
    if plan.zero_stage and plan.shard == plan.axis(DATA):
        return f" and a copy of each shard on another {home}"
    return ""
