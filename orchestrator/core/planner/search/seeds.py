"""Strategies that are weighed whatever the bounds say: those that people write down, and those near to the plan that runs.

The rule of thumb is tensor parallelism inside a node, the pipeline across nodes, data parallelism outside, equal cuts, and as
short a pipeline as has room. After a failure the nearest plans are the same one with other devices in the place of the lost
ones, and the same one with fewer replicas; both keep what need not move.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from orchestrator.core.planner.search.arrange import Ground
from orchestrator.core.planner.search.cuts import even_cut
from orchestrator.core.planner.search.shapes import Mesh, copies, shapes, strategy_of
from orchestrator.core.planner.search.sketch import Sketches
from orchestrator.core.planner.strategy import Parent, Problem, Strategy


def rules(problem: Problem, listed: Sequence[Mesh], ground: Ground, sketches: Sketches) -> Iterator[Strategy]:
    """For each tensor degree within a node the strategies of the shortest pipeline that seems to have room."""
    inside = max((problem.resources.nodes[n].devices for n in ground.usable), default=1)
    found: dict[tuple[int, int], Mesh] = {}
    for mesh in listed:
        key = mesh.tensors[0], len(mesh.tensors)
        if len(mesh.degrees) == 1 and key[0] <= inside:
            known = found.get(key)
            if known is None or (mesh.ranks, -mesh.units) > (known.ranks, -known.units):
                found[key] = mesh
    for tensor in sorted({t for t, _ in found}, reverse=True):
        lengths = [mesh for (t, _), mesh in sorted(found.items()) if t == tensor]
        yield from _rule(problem, ground, next((m for m in lengths if sketches.has_room(m)), lengths[-1]))


def _rule(problem: Problem, ground: Ground, mesh: Mesh) -> Iterator[Strategy]:
    layers = len(problem.costs.order)
    plain = [s for s in shapes(problem, mesh) if s.stages_per_rank == 1]
    for shape in plain[:1]:
        for devices in ground.arrangements(mesh)[:2]:
            again = False not in problem.space.recompute
            yield strategy_of(shape, devices, even_cut(layers, shape.stages), (again,) * shape.stages)


def near(problem: Problem, parent: Parent, ground: Ground) -> list[Strategy]:
    """The parent's strategy on the devices that are left: with as many replicas as they suffice for, and with fewer."""
    old, out = parent.strategy, []
    usable = {d for n in ground.usable for d in ground.devices_of(n)}
    if problem.batch != old.units * old.micro_batches:
        old = replace(old, micro_batches=problem.batch // old.units, shares=())
    whole = [_blocks(old, pipe, usable) for pipe in range(old.pipeline)]
    used = {d for blocks in whole for block in blocks.values() for d in block}
    spare = _spare_blocks(problem, ground, sorted(usable - used), old)
    most = next((d for d in range(old.data, 0, -1) if sum(max(0, d - len(b)) for b in whole) <= len(spare)), 0)
    fewest = min(len(b) for b in whole)
    for data in sorted({most, fewest, *_dividing(most, old.micro_batches)}, reverse=True):
        if data:
            devices = _fill(whole, spare, data)
            out += _with_replicas(old, data, devices)
    return [_with_copies(problem, s, nodes=len(ground.usable)) for s in out]


def _with_copies(problem: Problem, s: Strategy, *, nodes: int) -> Strategy:
    """A plan that did without copies because there was one node has them again, where the space leaves no choice."""
    return replace(s, copies=max(s.copies, min(copies(problem, nodes=nodes, data=s.data, shard=s.shard, ranks=s.ranks))))


def _blocks(old: Strategy, pipe: int, usable: set[int]) -> dict[int, tuple[int, ...]]:
    """Devices of each replica of a pipeline rank that has all of them left."""
    first, t = old.first_rank[pipe], old.tensors[pipe]
    blocks = {r: old.devices[first + r * t : first + (r + 1) * t] for r in range(old.data)}
    return {r: b for r, b in blocks.items() if usable.issuperset(b)}


def _spare_blocks(problem: Problem, ground: Ground, free: list[int], old: Strategy) -> list[tuple[int, ...]]:
    """Blocks of one node each that can take the place of lost ones; none where tensor degrees differ."""
    if len(set(old.tensors)) > 1:
        return []
    by_node: dict[int, list[int]] = {}
    for d in free:
        by_node.setdefault(problem.resources.node_of[d], []).append(d)
    t = old.tensor
    order = sorted(by_node, key=lambda n: (-ground.speeds[n], n))
    return [tuple(by_node[n][k : k + t]) for n in order for k in range(0, len(by_node[n]) - t + 1, t)]


def _dividing(most: int, micro_batches: int) -> list[int]:
    return [next(d for d in range(most, 0, -1) if micro_batches % d == 0)] if most else []


def _fill(whole: list[dict[int, tuple[int, ...]]], spare: list[tuple[int, ...]], data: int) -> tuple[int, ...]:
    """Devices by rank of `data` replicas: those that are whole everywhere first, lost blocks taken from the spare ones."""
    replicas = sorted({r for blocks in whole for r in blocks}, key=lambda r: (-sum(r in b for b in whole), r))
    left, rows = list(spare), []
    for blocks in whole:
        mine = [blocks.get(r) for r in replicas[:data]]
        mine += [None] * (data - len(mine))
        others = [blocks[r] for r in replicas[data:] if r in blocks]
        rows.append([b if b is not None else (others or left).pop(0) for b in mine])
    return tuple(d for row in rows for b in row for d in b)


def _with_replicas(old: Strategy, data: int, devices: tuple[int, ...]) -> list[Strategy]:
    if data == old.data:
        return [replace(old, devices=devices)]
    if old.zero == 0 or data == 1:
        return [replace(old, data=data, shard=1, devices=devices, shares=())]
    full = old.shard == old.data
    shards = {data} if full else {next(s for s in range(min(old.shard, data), 0, -1) if data % s == 0), data}
    return [replace(old, data=data, shard=shard, devices=devices, shares=()) for shard in sorted(shards)]


def outside(problem: Problem, s: Strategy) -> str:
    """Why a strategy does not belong to the problem's space; empty when it does."""
    space = problem.space
    found = [
        ("tensor", space.tensors and any(t not in space.tensors for t in s.tensors)),
        ("tensor", any(problem.costs.tensor_max % t for t in s.tensors)),
        ("tensor", len(set(s.tensors)) > 1 and not space.mixed_tensors),
        ("pipeline", space.pipelines and s.pipeline not in space.pipelines),
        ("data", space.datas and s.data not in space.datas),
        ("batch", s.units not in space.units or s.units * s.micro_batches != problem.batch or s.data > s.micro_batches),
        ("zero", s.zero not in space.zeros),
        ("shard", s.data % s.shard or (s.zero == 0 and s.shard != 1) or (not space.groups and s.zero and s.shard != s.data)),
        ("schedule", s.pipeline > 1 and s.schedule not in space.schedules),
        ("stages", len(s.cuts) % s.pipeline or s.stages_per_rank > space.stages_per_rank_max),
        ("layers", sum(s.cuts) != len(problem.costs.order) or min(s.cuts) < 1),
        ("cuts", not space.uneven and (bool(s.shares) or max(s.cuts) != min(s.cuts))),
        ("recompute", any(again not in space.recompute for again in s.recompute)),
        ("ranks", s.ranks < space.ranks_min or (space.ranks_max and s.ranks > space.ranks_max)),
        ("devices", len(set(s.devices)) != s.ranks),
    ]
    return ", ".join(dict.fromkeys(name for name, wrong in found if wrong))
