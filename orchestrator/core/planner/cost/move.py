"""What it takes to go from the plan that runs to another one: bytes to receive, and the seconds of the rank that waits longest.

What a rank needs lies in its stages' layers and its tensor coordinate's part of them, weights whole (until ZeRO-3) and optimizer
state by shards. Shards are dealt so that a rank keeps what it has (core/planner/layouts.py), so what stays is the smaller of what
it held and what it is to hold of the part that both have in common.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.core.planner.cost.stages import Tables
from orchestrator.core.planner.strategy import Parent, Problem, Program, Strategy

_Seat = tuple[int, int]  # pipeline rank and tensor coordinate


@dataclass(frozen=True, slots=True)
class Move:
    """What goes over the network once."""

    total_bytes: float
    seconds: float


def move(problem: Problem, parent: Parent, strategy: Strategy, tables: Tables | None = None) -> Move:
    """From the parent's strategy to another. Ranks receive at the same time, each at `parent.move_bandwidth`."""
    tables = tables or Tables(problem.costs, problem.resources)
    old, new = parent.strategy, strategy
    before = dict(zip(old.devices, _seats(old), strict=True))
    before.pop(-1, None)  # lost
    pairs = Counter(zip(map(before.get, new.devices), _seats(new), strict=True))
    had, gets = _layers(old), _layers(new)
    whole = [sum(tables.runs(t).elements(*run) for run in runs) for t, runs in zip(new.tensors, gets, strict=True)]
    common: dict[tuple[int, int], float] = {}
    total, most = 0.0, 0.0
    for (seat, (pipe, coordinate)), ranks in pairs.items():
        both = 0.0
        if seat is not None:
            key = seat[0], pipe
            if key not in common:
                common[key] = _common(tables, new.tensors[pipe], had[seat[0]], gets[pipe])
            both = common[key] and common[key] * _overlap(seat[1], old.tensors[seat[0]], coordinate, new.tensors[pipe])
        numbytes = _received(problem.program, old, new, elements=whole[pipe], common=both)
        total += ranks * numbytes
        most = max(most, numbytes)
    return Move(total, most / parent.move_bandwidth)


def _seats(s: Strategy) -> list[_Seat]:
    return [seat for pipe, t in enumerate(s.tensors) for seat in [(pipe, c) for c in range(t)] * s.data]


def _layers(s: Strategy) -> list[list[tuple[int, int]]]:
    """[first, last) of the stages of each pipeline rank."""
    bounds = s.bounds
    return [list(bounds[pipe :: s.pipeline]) for pipe in range(s.pipeline)]


def _common(tables: Tables, tensor: int, had: list[tuple[int, int]], gets: list[tuple[int, int]]) -> float:
    """Elements of the layers that are in both."""
    both = [(max(a, c), min(b, d)) for a, b in had for c, d in gets]
    return sum(tables.runs(tensor).elements(first, last) for first, last in both if first < last)


def _received(program: Program, old: Strategy, new: Strategy, *, elements: float, common: float) -> float:
    """Bytes that a rank lacks of so many elements, `common` of which lie in what it worked on before."""
    need = elements / new.shard
    out = program.optimizer_bytes * (need - min(need, common / old.shard))
    held = common / old.shard if old.zero >= 3 else common
    return out + program.weight_bytes * (need - min(need, held) if new.zero >= 3 else elements - held)


def _overlap(c: int, t: int, d: int, u: int) -> float:
    """How much of coordinate d of u is held by coordinate c of t; tensors that are not cut are taken for cut ones."""
    return max(0, min((c + 1) * u, (d + 1) * t) - max(c * u, d * t)) / t
