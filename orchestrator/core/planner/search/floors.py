"""A quick lower bound for one strategy: a pipeline is no faster than any of its ranks with the way there and back.

Before rank k can begin, the ranks before it have done one forward pass each; after its last backward pass they do one backward
pass each. In between it computes all of its micro-batches. What is sent is left out, so that the bound holds for any links.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.estimate import Costing
from orchestrator.core.planner.search.shapes import Mesh, Shape, usable
from orchestrator.core.planner.strategy import Problem

_ROUNDING = 1.0 - 1e-9  # sums in another order
Speed = tuple[str, float]  # device type, pace


class Floors:
    """Prefix sums of computing, by device type, tensor degree and units, and the bounds that follow."""

    def __init__(self, problem: Problem, costing: Costing) -> None:
        self._problem, self._costing = problem, costing
        nodes, node_of = problem.resources.nodes, problem.resources.node_of
        by_node = [(n.device, n.pace) for n in nodes]
        self._speeds = [by_node[n] for n in node_of]
        self._sums: dict[tuple[str, float, int, int], tuple[list[float], list[float]]] = {}
        self.layers = len(problem.costs.order)
        here = sorted({(n.device, n.pace) for n in usable(problem.resources)})
        self._here = here
        self.memory_max = max(problem.resources.by_name[name].memory_bytes for name, _ in here)
        self._rows: dict[object, tuple[tuple[tuple[Speed, ...], ...], ...]] = {}
        self._whole: dict[tuple[tuple[int, ...], int], float] = {}

    def sums(self, speed: Speed, tensor: int, units: int) -> tuple[list[float], list[float]]:
        """Seconds of the first n layers, n = 0 .. layers, for one micro-batch: forward, backward."""
        key = (*speed, tensor, units)
        if key not in self._sums:
            passes = self._costing.tables.speeds(speed[0], tensor).sums(units)
            self._sums[key] = [speed[1] * forward for forward, _ in passes], [speed[1] * backward for _, backward in passes]
        return self._sums[key]

    def mesh_s(self, mesh: Mesh) -> float:
        """Seconds of a step at least of any strategy of a mesh: its fullest replica, each layer on the device best for it."""
        key = mesh.degrees, mesh.units
        once = self._whole.get(key)
        if once is None:
            both = [self.sums(speed, t, mesh.units) for speed in self._here for t in mesh.degrees]
            layers = range(self.layers)
            once = sum(min(f[n + 1] - f[n] + b[n + 1] - b[n] for f, b in both) for n in layers) * _ROUNDING
            self._whole[key] = once
        program = self._problem.program
        rounds = -(-mesh.micro_batches // mesh.data)
        return rounds * once / len(mesh.tensors) + program.step_s

    def rows(self, shape: Shape, devices: tuple[int, ...]) -> tuple[tuple[tuple[Speed, ...], ...], ...]:
        """For each replica the different speeds within each of its tensor groups, by pipeline rank."""
        mesh, speeds = shape.mesh, self._speeds
        if len(self._here) == 1:
            return ((tuple(self._here),) * len(mesh.tensors),) * mesh.data
        key = mesh.data, mesh.tensors, devices
        if key not in self._rows:
            columns, at = [], 0
            for t in mesh.tensors:
                columns.append([tuple(sorted({speeds[d] for d in devices[k : k + t]})) for k in range(at, at + t * mesh.data, t)])
                at += t * mesh.data
            self._rows[key] = tuple(zip(*columns, strict=True))
        return self._rows[key]

    def stage_s(self, shape: Shape, speeds: Sequence[Speed], pipe: int, first: int, last: int) -> tuple[float, float]:
        """Seconds of the passes of a stage for one micro-batch: forward, backward; of the slowest device."""
        mesh, act = shape.mesh, self._problem.program.act_s
        forward = backward = 0.0
        for speed in speeds:
            f, b = self.sums(speed, mesh.tensors[pipe], mesh.units)
            forward, backward = max(forward, f[last] - f[first]), max(backward, b[last] - b[first])
        return forward + act, backward + act

    def replica_s(self, shape: Shape, row: Sequence[Sequence[Speed]], cuts: Sequence[int], micro_batches: int) -> float:
        """Seconds of a step of a replica at least."""
        pipeline = len(shape.mesh.tensors)
        times, at = [], 0
        for s, size in enumerate(cuts):
            times.append(self.stage_s(shape, row[s % pipeline], s % pipeline, at, at + size))
            at += size
        back = shape.schedule is not PipelineSchedule.ZERO_BUBBLE
        most = ahead = after = 0.0
        for pipe in range(pipeline):
            work = sum(f + b for f, b in times[pipe::pipeline])
            most = max(most, ahead + micro_batches * work + after)
            ahead += times[pipe][0]
            after += times[pipe][1] if back else 0.0
        return most
