"""Which shapes a strategy can have: factorisations of the cluster into replicas, pipeline ranks and tensor degrees.

A Mesh is what the first bound looks at: how many replicas of which pipeline, and how large a micro-batch. A Shape adds the
schedule, ZeRO and copies; cuts, recomputation and devices come later. Small clusters are enumerated in full; on large ones the
replicas are all there is room for, or fewer by halves, because a replica less out of a hundred is never worth a search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from orchestrator.core.cluster.resources import NodeResources, Resources
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.strategy import Problem, Strategy

SMALL = 32  # devices up to which every number of replicas, every tensor degree and every shard is looked at


@dataclass(frozen=True, slots=True)
class Mesh:
    """Replicas, tensor degree of each pipeline rank, units of a micro-batch and micro-batches of a step."""

    data: int
    tensors: tuple[int, ...]  # unlike degrees in at most two runs
    units: int
    micro_batches: int

    @property
    def degrees(self) -> tuple[int, ...]:
        """The different tensor degrees."""
        first, last = self.tensors[0], self.tensors[-1]
        return (first,) if first == last else (first, last)

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.data * sum(self.tensors)

    @property
    def even(self) -> tuple[int, ...]:
        """Micro-batches of each replica, as even as can be."""
        m, n = self.micro_batches, self.data
        return tuple(m * (r + 1) // n - m * r // n for r in range(n))


@dataclass(frozen=True, slots=True)
class Shape:
    """A mesh with all that is neither a cut nor a device."""

    mesh: Mesh
    schedule: PipelineSchedule
    stages_per_rank: int
    zero: int
    shard: int
    copies: int

    @property
    def stages(self) -> int:
        """Stages of the pipeline."""
        return len(self.mesh.tensors) * self.stages_per_rank


def shape_of(strategy: Strategy) -> Shape:
    """The shape of a strategy."""
    mesh = Mesh(strategy.data, strategy.tensors, strategy.units, strategy.micro_batches)
    return Shape(mesh, strategy.schedule, strategy.stages_per_rank, strategy.zero, strategy.shard, strategy.copies)


def strategy_of(
    shape: Shape,
    devices: tuple[int, ...],
    cuts: tuple[int, ...],
    recompute: tuple[bool, ...],
    shares: tuple[int, ...] = (),
) -> Strategy:
    """A strategy of a shape."""
    mesh = shape.mesh
    return Strategy(
        data=mesh.data,
        tensors=mesh.tensors,
        cuts=cuts,
        schedule=shape.schedule,
        units=mesh.units,
        micro_batches=mesh.micro_batches,
        zero=shape.zero,
        shard=shape.shard,
        copies=shape.copies,
        recompute=recompute,
        devices=devices,
        shares=shares,
    )


def usable(resources: Resources) -> tuple[NodeResources, ...]:
    """The nodes that a strategy may use."""
    return tuple(n for n in resources.nodes if n.healthy and n.devices)


def blocks_of(sizes: Mapping[int, int], degree: int) -> int:
    """Tensor groups of a degree that fit on nodes, so many of each size: inside them where one is as large, else over all."""
    inside = sum(devices // degree * nodes for devices, nodes in sizes.items())
    return inside or sum(devices * nodes for devices, nodes in sizes.items()) // degree


def meshes(problem: Problem) -> Iterator[Mesh]:
    """Every mesh to look at, in one order."""
    space, nodes = problem.space, usable(problem.resources)
    layers = len(problem.costs.order) if problem.costs.splits else 1
    units = sorted({u for u in space.units if u >= 1 and problem.batch % u == 0})
    sizes = Counter(n.devices for n in nodes)
    for degree in tensor_degrees(problem):
        blocks = _room(problem, sizes, degree)
        for pipeline in range(1, min(layers, blocks) + 1):
            if not _asked(space.pipelines, pipeline):
                continue
            if not space.uneven and layers % pipeline:
                continue
            for u in units:
                yield from _replicas(problem, (degree,) * pipeline, blocks // pipeline, u)
    if space.mixed_tensors:
        yield from _mixed(problem, nodes, layers, units)


def tensor_degrees(problem: Problem) -> tuple[int, ...]:
    """Degrees that the model, the space and the machines allow; beyond one node only on small clusters, or when asked for."""
    space, nodes = problem.space, usable(problem.resources)
    most = problem.costs.tensor_max
    devices = sum(n.devices for n in nodes)
    inside = max((n.devices for n in nodes), default=0)
    fits = [t for t in range(1, min(most, devices) + 1) if most % t == 0 and _asked(space.tensors, t)]
    near = [t for t in fits if t <= inside]
    return tuple(fits if devices <= SMALL or not near else near)


def shapes(problem: Problem, mesh: Mesh) -> Iterator[Shape]:
    """Every shape of a mesh, in one order."""
    pipeline, nodes = len(mesh.tensors), len(usable(problem.resources))
    for schedule, local in _schedules(problem, mesh):
        for zero, shard in _shards(problem, mesh):
            for c in copies(problem, nodes=nodes, data=mesh.data, shard=shard, ranks=mesh.ranks):
                yield Shape(mesh, schedule, local if pipeline > 1 else 1, zero, shard, c)


def copies(problem: Problem, *, nodes: int, data: int, shard: int, ranks: int) -> list[int]:
    """What the space allows of 0 and 1 on so many nodes: of use where one rank, or one machine, may hold some state alone."""
    alone = data == shard or problem.resources.machines_shared
    return [c for c in problem.space.copies if not c or (alone and nodes > 1 and ranks > 1)] or [0]


def _asked(axis: tuple[int, ...], value: int) -> bool:
    return not axis or value in axis


def _room(problem: Problem, sizes: Mapping[int, int], degree: int) -> int:
    """Tensor groups that fit, at most as many as the space has ranks for."""
    devices = sum(size * nodes for size, nodes in sizes.items())
    blocks = devices // degree if devices <= SMALL else blocks_of(sizes, degree)
    return min(blocks, problem.space.ranks_max // degree) if problem.space.ranks_max else blocks


def _replicas(problem: Problem, tensors: tuple[int, ...], most: int, units: int) -> Iterator[Mesh]:
    space, micro_batches, width = problem.space, problem.batch // units, sum(tensors)
    most = min(most, micro_batches)
    if space.datas:
        found: Iterable[int] = [d for d in sorted(set(space.datas)) if d <= most]
    elif most * width <= SMALL:
        found = range(1, most + 1)
    else:
        found = _halves(most, micro_batches)
    for data in found:
        if data * width >= space.ranks_min and (space.uneven or micro_batches % data == 0):
            yield Mesh(data, tensors, units, micro_batches)


@lru_cache(maxsize=4096)
def _halves(most: int, micro_batches: int) -> tuple[int, ...]:
    """`most` and its halves, each also as the fewest replicas with as few micro-batches, and as the next divisor below."""
    out: set[int] = set()
    while most:
        rounds = -(-micro_batches // most)
        out |= {most, -(-micro_batches // rounds)}
        out.add(next(d for d in range(most, 0, -1) if micro_batches % d == 0))
        most //= 2
    return tuple(sorted(out))


def _mixed(problem: Problem, nodes: Sequence[NodeResources], layers: int, units: Sequence[int]) -> Iterator[Mesh]:
    """Pipelines whose first ranks have one tensor degree and whose last have another, each on devices of one type."""
    types = sorted({n.device for n in nodes})
    degrees = tensor_degrees(problem)
    for a in types:
        for b in types:
            ours, theirs = (Counter(n.devices for n in nodes if n.device == kind) for kind in (a, b))
            for s in degrees:
                for t in degrees:
                    if a != b and s != t:
                        yield from _split(problem, (s, t), (blocks_of(ours, s), blocks_of(theirs, t)), layers, units)


def _split(
    problem: Problem, degrees: tuple[int, int], blocks: tuple[int, int], layers: int, units: Sequence[int]
) -> Iterator[Mesh]:
    room = min(blocks)
    datas: Iterable[int] = range(1, room + 1) if sum(blocks) <= SMALL else _halves(room, problem.batch)
    for data in datas if room else ():
        p, q = (min(b // data, layers - 1) for b in blocks)
        sizes = {(p, min(q, layers - p)), (min(p, layers - q), q)}
        if sum(blocks) <= SMALL:
            sizes = {(i, j) for i in range(1, p + 1) for j in range(1, min(q, layers - i) + 1)}
        for i, j in sorted(sizes):
            tensors = (degrees[0],) * i + (degrees[1],) * j
            ranks = data * sum(tensors)
            enough = not problem.space.ranks_max or ranks <= problem.space.ranks_max
            if i >= 1 and j >= 1 and enough and _asked(problem.space.pipelines, i + j) and _asked(problem.space.datas, data):
                for u in units:
                    if problem.batch // u >= data and ranks >= problem.space.ranks_min:
                        yield Mesh(data, tensors, u, problem.batch // u)


def _schedules(problem: Problem, mesh: Mesh) -> list[tuple[PipelineSchedule, int]]:
    """Schedules with their stages per rank; one rank has no use for any but the first."""
    space, pipeline = problem.space, len(mesh.tensors)
    plain: list[PipelineSchedule] = [s for s in space.schedules if s is not PipelineSchedule.INTERLEAVED]
    if pipeline == 1:
        return [((plain or list(space.schedules))[0], 1)] if space.schedules else []
    out: list[tuple[PipelineSchedule, int]] = [(s, 1) for s in plain]
    layers = len(problem.costs.order)
    if PipelineSchedule.INTERLEAVED in space.schedules and mesh.micro_batches % (mesh.data * pipeline) == 0:
        for local in range(2, space.stages_per_rank_max + 1):
            if pipeline * local <= layers and (space.uneven or layers % (pipeline * local) == 0):
                out.append((PipelineSchedule.INTERLEAVED, local))
    return out


def _shards(problem: Problem, mesh: Mesh) -> list[tuple[int, int]]:
    """Pairs of ZeRO stage and shard; with one replica all stages are the same, and the least stands for them."""
    space, data = problem.space, mesh.data
    zeros = sorted(z for z in set(space.zeros) if z < 3 or problem.costs.splits)
    if data == 1:
        return [(zeros[0], 1)] if zeros else []
    shards = _groups(problem, mesh) if space.groups else [data]
    return [(zero, shard) for zero in zeros for shard in (shards if zero else [1])]


def _groups(problem: Problem, mesh: Mesh) -> list[int]:
    """Sizes of a shard: every divisor of the replicas, on large clusters those of a node, of eight nodes, and all."""
    data, divisors = mesh.data, _divisors(mesh.data)
    if mesh.ranks <= SMALL:
        return list(divisors)
    inside = max(n.devices for n in usable(problem.resources)) // mesh.tensors[0]
    near = [max((s for s in divisors if s <= limit), default=data) for limit in (inside, 8 * inside)]
    return sorted({*near, data})


@lru_cache(maxsize=4096)
def _divisors(n: int) -> tuple[int, ...]:
    """Divisors of n from 2 on."""
    return tuple(s for s in range(2, n + 1) if n % s == 0)
