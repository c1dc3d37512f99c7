"""What ranks send each other in a step of a strategy, and which of them should not be lost together.

Activations are summed over the tensor axis in a ring and go from stage to stage between equal coordinates; on the data axis every
replica owns a part of what is reduced and gathered, and exchanges it with all others, as the engine does (`engine/reduce.py`); a
ring has the same total. Only for the sizes that `placement.place` takes: there is a flow for each pair of replicas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from orchestrator.core.planner.cost.memory import sums_of
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.placement import RANKS_MAX, Traffic, place
from orchestrator.core.planner.strategy import Problem, Strategy

Flow = tuple[int, int, float]


def traffic_of(problem: Problem, strategy: Strategy) -> Traffic:
    """Bytes between ranks in one step; where the strategy puts them does not matter. Raises PlanError beyond RANKS_MAX ranks."""
    if strategy.ranks > RANKS_MAX:
        raise PlanError(f"placement weighs pairs of at most {RANKS_MAX} ranks, not of {strategy.ranks}")
    flows = [*_tensor(problem, strategy), *_boundaries(problem, strategy), *_data(problem, strategy)]
    if strategy.copies and strategy.data == strategy.shard and problem.program.peer_reads:
        flows += _copies(problem, strategy)
    return Traffic(strategy.ranks, tuple(f for f in flows if f[2] > 0))


def placed(problem: Problem, strategy: Strategy, devices: Sequence[int] = ()) -> Strategy:
    """The strategy with its ranks put anew on these devices (none: those it uses) by traffic; what must be apart is on two nodes.

    Whether it is any quicker is for the cost model to say: speeds of devices and what runs at once are not looked at. Raises
    PlanError beyond RANKS_MAX ranks, or for fewer devices than ranks.
    """
    traffic = traffic_of(problem, strategy)
    return replace(strategy, devices=place(traffic, problem.resources, devices or strategy.devices, apart=apart_of(strategy)))


def apart_of(strategy: Strategy) -> tuple[tuple[int, int], ...]:
    """Pairs of ranks that should be on different nodes, so that each part of the state is on two.

    Of the replicas that hold the same part, the first and one half way along the data axis; where there is only one holder and
    copies are kept, it and its keeper.
    """
    groups = strategy.data // strategy.shard
    if groups == 1:
        return tuple({(min(r, k), max(r, k)): None for r, k in enumerate(_keepers(strategy))}) if strategy.copies else ()
    half = groups // 2 * strategy.shard
    return tuple(
        (strategy.rank_at(pipe, part, c), strategy.rank_at(pipe, part + half, c))
        for pipe, tensor in enumerate(strategy.tensors)
        for part in range(strategy.shard)
        for c in range(tensor)
    )


def _keepers(s: Strategy) -> list[int]:
    """Who keeps the copy of each rank: the replica half way along the data axis, or the rank half way along all of them."""
    if s.data == 1:
        return [(r + s.ranks // 2) % s.ranks for r in range(s.ranks)] if s.ranks > 1 else []
    half = s.data // 2
    return [
        s.rank_at(pipe, (replica + half) % s.data, c)
        for pipe, tensor in enumerate(s.tensors)
        for replica in range(s.data)
        for c in range(tensor)
    ]


def _params(problem: Problem, s: Strategy, pipe: int) -> float:
    """Elements that a rank of a pipeline rank computes with."""
    layers = (layer for stage in range(pipe, len(s.cuts), s.pipeline) for layer in range(*s.bounds[stage]))
    costs = problem.costs.layers
    return sum(costs[i].params - costs[i].cut_params * (1 - 1 / s.tensors[pipe]) for i in layers)


def _tensor(problem: Problem, s: Strategy) -> list[Flow]:
    """Ring all-reduce: everyone sends 2 (t - 1) / t of the sum to its neighbour, Thakur et al., IJHPCA 19 (2005), section 4.4."""
    out: list[Flow] = []
    costs = problem.costs.layers
    for pipe, t in enumerate(s.tensors):
        if t == 1:
            continue
        volume = 0.0
        for stage in range(pipe, len(s.cuts), s.pipeline):
            passes = 3 if s.recompute[stage] else 2
            volume += passes * sum(costs[i].reduced_bytes for i in range(*s.bounds[stage])) * s.units
        for replica in range(s.data):
            sent = volume * s.share(replica) * 2 * (t - 1) / t
            ring = [s.rank_at(pipe, replica, c) for c in range(t)]
            out += [(ring[c], ring[(c + 1) % t], sent) for c in range(t)]
    return out


def _boundaries(problem: Problem, s: Strategy) -> list[Flow]:
    """Activations and as many bytes of gradients, from each coordinate to the next stage's."""
    out: list[Flow] = []
    for stage, (_, last) in enumerate(s.bounds[:-1]):
        a, b = stage % s.pipeline, (stage + 1) % s.pipeline
        if a == b:
            continue
        size = 2 * problem.costs.layers[last - 1].boundary_bytes * s.units
        wide = max(s.tensors[a], s.tensors[b])
        for replica in range(s.data):
            for c in range(wide):
                here, there = (s.rank_at(p, replica, c * s.tensors[p] // wide) for p in (a, b))
                out.append((here, there, size * s.share(replica)))
    return out


def _data(problem: Problem, s: Strategy) -> list[Flow]:
    """Partial sums to their owners once a step (each round under ZeRO-2 and 3), then the sums or, under ZeRO, new weights back.

    Under ZeRO-3 weights are gathered twice a round instead, inside a shard group.
    """
    out: list[Flow] = []
    program = problem.program
    shares = [s.share(replica) for replica in range(s.data)]
    rounds = max(shares)
    sums = sums_of(program, zero=s.zero, micro_batches=s.micro_batches, shares=shares, pipeline=s.pipeline, tensor=s.tensor).sent
    for pipe, t in enumerate(s.tensors):
        part = _params(problem, s, pipe) / s.data
        for i, j in combinations(range(s.data), 2):
            sent = program.exchanged_bytes * part * (rounds if s.zero >= 2 else sums)
            if s.zero < 3:
                sent += (program.gathered_bytes if s.zero else program.exchanged_bytes) * part
            elif i // s.shard == j // s.shard:
                sent += program.gathered_bytes * part * s.data / s.shard * 2 * rounds
            out += [(s.rank_at(pipe, i, c), s.rank_at(pipe, j, c), 2 * sent) for c in range(t)]
    return out


def _copies(problem: Problem, s: Strategy) -> list[Flow]:
    """Reduced gradients of what only one rank holds, to the keeper of its copy."""
    sizes = [
        _params(problem, s, pipe) / s.data for pipe, t in enumerate(s.tensors) for _ in range(s.data * t)
    ]  # by rank, which count pipeline-major
    return [(r, k, problem.program.exchanged_bytes * sizes[r]) for r, k in enumerate(_keepers(s))]
