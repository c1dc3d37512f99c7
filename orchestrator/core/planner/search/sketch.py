"""A quick guess of what a shape takes, so that likely shapes are looked at first; what is chosen was estimated in full.

Layers are dealt out evenly, devices are as fast as they are on average, tensor groups lie in nodes, and the replicas of a stage
side by side; the rest follows the cost model's formulas in their closed forms.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.core.cluster.resources import Link
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.collectives import ALONE, Ring, all_gather, all_reduce, layer_by_layer, reduce_scatter, send
from orchestrator.core.planner.search.floors import Floors
from orchestrator.core.planner.search.leaves import Leaves
from orchestrator.core.planner.search.shapes import Mesh, Shape
from orchestrator.core.planner.search.weigh import Scale

_NO_ROOM = 8.0  # times slower


@dataclass(frozen=True, slots=True)
class _Whole:
    """Of the whole model and one micro-batch, for one tensor degree and size of micro-batches."""

    forward: float
    backward: float
    traffic: float  # of the tensor axis, for one pass
    heavy: float  # as many of the heaviest layers as take the same time
    elements: float
    kept: float
    kept_again: float  # under recomputation
    crossing: float  # sending one activation and its gradient over the network


class Sketches:
    """Sketches shapes of one problem."""

    def __init__(self, scale: Scale, floors: Floors, leaves: Leaves) -> None:
        self._problem, self._costing, self._floors, self._leaves = scale.problem, scale.costing, floors, leaves
        nodes = [n for n in self._problem.resources.nodes if n.healthy and n.devices]
        self._speeds: Counter[tuple[str, float]] = Counter()  # devices of each speed
        for n in nodes:
            self._speeds[n.device, n.pace] += n.devices
        self._devices = max(n.devices for n in nodes)
        self._inside = Link(min(n.inside.bandwidth for n in nodes), max(n.inside.latency_s for n in nodes))
        self._network = Link(min(n.network.bandwidth for n in nodes), max(n.network.latency_s for n in nodes))
        self._total = min(n.network_total for n in nodes)
        self._known: dict[tuple[int, int], _Whole] = {}
        self._rings: dict[tuple[int, int], Ring] = {}
        space = self._problem.space
        self._likely_zero = next((z for z in (1, 2, 3, 0) if z in space.zeros), 0)
        likely = (PipelineSchedule.ZERO_BUBBLE, PipelineSchedule.ONE_F_ONE_B)
        self._likely_schedule = next((s for s in likely if s in space.schedules), PipelineSchedule.ONE_F_ONE_B)

    def mesh_s(self, mesh: Mesh) -> float:
        """Of its likeliest shape."""
        return self.shape_s(self._likely(mesh))

    def _likely(self, mesh: Mesh) -> Shape:
        """Optimizer state is sharded where there are replicas."""
        zero = self._likely_zero if mesh.data > 1 else 0
        return Shape(mesh, self._likely_schedule, 1, zero, mesh.data if zero else 1, 0)

    def has_room(self, mesh: Mesh) -> bool:
        """Whether that has room, with recomputation where it is allowed."""
        return self._sketch(self._likely(mesh))[1]

    def shape_s(self, shape: Shape) -> float:
        """Seconds of a step; those without room seem slow, so that they come last."""
        seconds, room = self._sketch(shape)
        return seconds if room else _NO_ROOM * seconds

    def _sketch(self, shape: Shape) -> tuple[float, bool]:
        """(seconds of a step, whether there seems to be room)."""
        program, mesh, local = self._problem.program, shape.mesh, shape.stages_per_rank
        t, pipeline, units = mesh.tensors[0], len(mesh.tensors), mesh.units
        whole = self._whole(t, units)
        m = -(-mesh.micro_batches // mesh.data)
        part = local * -(-whole.heavy // (pipeline * local)) / whole.heavy  # of the model, on the fullest rank
        forward, backward = part * (whole.forward + whole.traffic), part * (whole.backward + whole.traffic)
        room = self._floors.memory_max - self._leaves.element_bytes(shape) * part * whole.elements - program.rank_bytes
        in_flight = min(m, pipeline + (local > 1) * pipeline)
        fits = in_flight * part * whole.kept <= room
        if not fits and True in self._problem.space.recompute:
            backward += forward
            fits = in_flight * part * whole.kept_again <= room
        crossing = local * whole.crossing if pipeline > 1 else 0.0
        data, gathers = self._ring(mesh.data, t), self._ring(shape.shard, t)
        numbytes = program.exchanged_bytes * part * whole.elements
        held = program.gathered_bytes * part * whole.elements
        busy = forward + backward + crossing + 2 * local * program.act_s
        streamed = layer_by_layer if program.straight else all_gather
        if shape.zero >= 2:
            busy += (1 - program.overlap) * streamed(data, numbytes, round(part * self._floors.layers))
        if shape.zero >= 3:
            busy += 2 * (1 - program.overlap) * streamed(gathers, held, round(part * self._floors.layers))
        lead = forward if shape.schedule is PipelineSchedule.ZERO_BUBBLE else busy / local
        step = m * busy + (pipeline - 1) * lead
        if shape.zero < 2:
            step += (1 - program.overlap) * (reduce_scatter if shape.zero else all_reduce)(data, numbytes)
        if shape.zero in (1, 2):
            step += all_gather(gathers, held)
        return step + program.step_s, fits

    def _ring(self, size: int, tensor: int) -> Ring:
        """Replicas side by side: a node's links carry one ring for each tensor coordinate."""
        if size == 1:
            return ALONE
        found = self._rings.get((size, tensor))
        if found is None:
            if size * tensor <= self._devices:
                found = Ring(size, self._inside.latency_s, self._inside.bandwidth)
            else:
                found = Ring(size, self._network.latency_s, min(self._network.bandwidth, self._total / tensor))
            self._rings[size, tensor] = found
        return found

    def _whole(self, tensor: int, units: int) -> _Whole:
        key = tensor, units
        if key not in self._known:
            layers, runs = self._floors.layers, self._costing.tables.runs(tensor)
            found = [(self._floors.sums(speed, tensor, units), count) for speed, count in sorted(self._speeds.items())]
            devices = sum(count for _, count in found)
            pace = [f[-1] + b[-1] for (f, b), _ in found]
            even = devices / sum(count / p for p, (_, count) in zip(pace, found, strict=True))
            f, b = found[0][0]
            scale = even / pace[0]
            heaviest = max(f[n + 1] - f[n] + b[n + 1] - b[n] for n in range(layers))
            inside = self._inside if tensor <= self._devices else self._network
            reduced, calls = runs.reduced(0, layers)
            ring = Ring(tensor, inside.latency_s, inside.bandwidth) if tensor > 1 else ALONE
            network = Ring(2, self._network.latency_s, self._network.bandwidth)
            self._known[key] = _Whole(
                forward=scale * f[-1],
                backward=scale * b[-1],
                traffic=all_reduce(ring, units * reduced, calls) + calls * self._problem.call_s,
                heavy=pace[0] / heaviest,
                elements=runs.elements(0, layers),
                kept=units * runs.kept_bytes(0, layers, recompute=False),
                kept_again=units * runs.kept_bytes(0, layers, recompute=True),
                crossing=2 * send(network, units * runs.boundary_bytes(layers // 2 or 1)),
            )
        return self._known[key]
