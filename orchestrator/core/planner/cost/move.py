"""What it takes to go from the plan that runs to another one: bytes to receive, and the seconds of the rank that waits longest.

What a rank needs lies in its stages' layers and its tensor coordinate's part of them, weights whole (until ZeRO-3) and optimizer
state by shards. Shards are dealt so that a rank keeps what it has (core/planner/layouts.py), so what stays is the smaller of what
it held and what it is to hold of the part that both have in common.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from orchestrator.core.planner.cost.stages import Tables
from orchestrator.core.planner.strategy import Parent, Problem, Strategy

_Seat = tuple[int, int]  # pipeline rank and tensor coordinate


@dataclass(frozen=True, slots=True)
class Move:
    """What goes over the network once."""

    total_bytes: float
    seconds: float


def move(problem: Problem, parent: Parent, strategy: Strategy, tables: Tables | None = None) -> Move:
    """From the parent's strategy to another. Ranks receive at the same time, each at `parent.move_bandwidth`."""
    tables = tables or Tables(problem.costs, problem.resources)
    before = {d: seat for d, seat in zip(parent.strategy.devices, _seats(parent.strategy), strict=True) if d >= 0}
    pairs = Counter((before.get(d), seat) for d, seat in zip(strategy.devices, _seats(strategy), strict=True))
    total, most = 0.0, 0.0
    for (old, new), ranks in pairs.items():
        numbytes = _received(problem, tables, parent.strategy, old, strategy, new)
        total += ranks * numbytes
        most = max(most, numbytes)
    return Move(total, most / parent.move_bandwidth)


def _seats(s: Strategy) -> list[_Seat]:
    return [(pipe, c) for pipe, t in enumerate(s.tensors) for _ in range(s.data) for c in range(t)]


def _received(problem: Problem, tables: Tables, a: Strategy, old: _Seat | None, b: Strategy, new: _Seat) -> float:
    """Bytes that a rank lacks."""
    program, pipe = problem.program, new[0]
    runs = tables.runs(b.tensors[pipe])
    mine = [b.bounds[k] for k in range(pipe, len(b.cuts), b.pipeline)]
    elements = sum(runs.elements(first, last) for first, last in mine)
    common = 0.0
    if old is not None:
        theirs = [a.bounds[k] for k in range(old[0], len(a.cuts), a.pipeline)]
        both = [(max(f, g), min(e, h)) for f, e in mine for g, h in theirs]
        share = _overlap(old[1], a.tensors[old[0]], new[1], b.tensors[pipe])
        common = share * sum(runs.elements(f, e) for f, e in both if f < e)
    need = elements / b.shard
    out = program.optimizer_bytes * (need - min(need, common / a.shard))
    if b.zero >= 3:
        return out + program.weight_bytes * (need - min(need, common / a.shard if a.zero >= 3 else common))
    return out + program.weight_bytes * (elements - (common / a.shard if a.zero >= 3 else common))


def _overlap(c: int, t: int, d: int, u: int) -> float:
    """How much of coordinate d of u is held by coordinate c of t; tensors that are not cut are taken for cut ones."""
    lo, hi = max(Fraction(c, t), Fraction(d, u)), min(Fraction(c + 1, t), Fraction(d + 1, u))
    return float(max(Fraction(0), hi - lo) * u)
