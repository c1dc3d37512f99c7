"""A choice in one sentence."""

from __future__ import annotations

from orchestrator.core.planner.strategy import Option, Problem, Strategy


def describe(problem: Problem, option: Option, *, weighed: int, proven: bool, bound_s: float) -> str:
    """What was chosen, what it takes, and how sure that is."""
    s, e = option.strategy, option.estimate
    parts = [f"{name_of(s)} on {s.ranks} of {problem.resources.size} devices: {e.step_s:.4g} s a step, goodput {e.goodput:.2%}"]
    if option.move_s:
        parts.append(f"{option.move_s:.3g} s to move {option.moved_bytes / (1 << 30):.2f} GiB")
    if proven:
        parts.append(f"nothing in the space is better ({weighed} strategies weighed or bounded)")
    else:
        parts.append(f"best of {weighed} weighed or bounded; none takes less than {bound_s:.4g} s per step that counts")
    return "; ".join(parts)


def name_of(s: Strategy) -> str:
    """A strategy's axes in words, e.g. "2 replicas x pipeline 4 x tensor 8, 1f1b, ZeRO-1"."""
    tensors = "+".join(str(t) for t in dict.fromkeys(s.tensors))
    out = [f"{s.data} replica{'s' * (s.data > 1)} x pipeline {s.pipeline} x tensor {tensors}"]
    if s.pipeline > 1:
        out.append(f"{s.schedule}" + (f" of {s.stages_per_rank} stages per rank" if s.stages_per_rank > 1 else ""))
    groups = f" in groups of {s.shard}" if s.zero and s.shard < s.data else ""
    out.append(f"ZeRO-{s.zero}{groups}")
    if any(s.recompute):
        out.append("recomputing" if all(s.recompute) else f"{sum(s.recompute)} of {len(s.cuts)} stages recomputing")
    if s.copies and s.shard == s.data:  # beside replicas they are for what one machine holds alone, usually nothing
        out.append("with copies")
    return ", ".join(out)
