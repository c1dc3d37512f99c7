"""What a strategy is predicted to do: the step time split into its terms, memory, goodput.

Each replica's pipeline is simulated with its own stage times; then gradients are reduced, the norm is agreed on by all, states
are updated and new weights gathered. The terms are those of the pipeline rank that is ready last; what it waits for others is its
bubble. A Costing keeps what estimates of one problem share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import le

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.bound import Bounds
from orchestrator.core.planner.cost.collectives import all_gather, all_reduce, layer_by_layer, reduce_scatter, send
from orchestrator.core.planner.cost.goodput import Losses, all_lost_per_s, checkpoint_every, goodput
from orchestrator.core.planner.cost.memory import Copied, Sums, rank_memory, state_bytes, sums_of
from orchestrator.core.planner.cost.mesh import Holders, Meshes, MeshOnDevices, Place
from orchestrator.core.planner.cost.programs import SUM_BYTES
from orchestrator.core.planner.cost.stages import Tables
from orchestrator.core.planner.cost.timeline import StageTimes, ends
from orchestrator.core.planner.strategy import Estimate, Memory, Problem, Strategy, Term


def estimate(problem: Problem, strategy: Strategy) -> Estimate:
    """What a strategy is predicted to do. For more than one of a problem keep a Costing.

    Raises IndexError for a device that the resources do not have.
    """
    return Costing(problem).estimate(strategy)


_PARTS = ("forward", "backward", "recompute", "tensor", "boundary", "gradients", "weights", "overhead")
_REMEMBERED_MAX = 1 << 13  # memories of strategies
_Parts = tuple[float, ...]  # seconds of one micro-batch, in this order


@dataclass(frozen=True, slots=True)
class _Traffic:
    """Of one stage and micro-batch, the same on all replicas."""

    tensor: float  # of one pass
    received: float  # the activation
    returned: float  # its gradient
    scattered: float  # gradients, from ZeRO-2 on
    gathered: float  # weights, under ZeRO-3, for one pass
    added: float  # gradients to the sums of their micro-batches


@dataclass(frozen=True, slots=True)
class _Replica:
    """The slowest replica on places of one kind."""

    micro_batches: int
    times: StageTimes
    parts: list[_Parts]  # by stage
    ends: tuple[float, ...]  # by pipeline rank

    def rank(self, pipe: int, pipeline: int) -> list[float]:
        """The parts of all stages of a pipeline rank."""
        return [sum(column) for column in zip(*self.parts[pipe::pipeline], strict=True)]


class Costing:
    """Estimates of one problem, with the tables that they share."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.tables = Tables(problem.costs, problem.resources)
        self.bound = Bounds(problem, self.tables).effective_s
        self._memories: dict[tuple[object, ...], tuple[Memory, ...]] = {}
        self._meshes = Meshes(problem.resources, straight=problem.program.straight)

    # -------------------------------------------------------------------------------------------------------- questions

    def estimate(self, s: Strategy) -> Estimate:
        """Of a strategy. Raises IndexError for a device that the resources do not have."""
        mesh, holders, program = self._meshes.of(s), self._meshes.holders(s), self.problem.program
        shares = [s.share(r) for r in range(s.data)]
        sums = self._sums(s, shares)
        elements = self._elements(s)
        copied = self._copied(s, mesh, holders, elements)
        replicas = self._replicas(s, mesh, holders, shares)
        pipes = range(s.pipeline)
        slowest = [max(replicas, key=lambda r: r.ends[p]) for p in pipes]
        reductions = [self._reduction(s, mesh, p, elements[p], sums, slowest[p]) for p in pipes]
        copies = [self._copies_s(mesh, copied[p]) for p in pipes]
        last = max(pipes, key=lambda p: slowest[p].ends[p] + reductions[p] + copies[p])
        m = slowest[last].micro_batches
        parts = [m * part for part in slowest[last].rank(last, s.pipeline)]
        update = max(program.update_bytes * (elements[p] / s.shard + copied[p].elements) / mesh.bandwidths[p] for p in pipes)
        gathering = 0.0
        if s.zero in (1, 2):
            gathering = max(all_gather(holders.gathers[p], program.gathered_bytes * elements[p]) for p in pipes)
        seconds = dict(zip(_PARTS, parts, strict=True))
        seconds["gradients"] += reductions[last]
        seconds["weights"] += gathering
        seconds["overhead"] += program.step_s
        seconds["bubble"] = max(0.0, slowest[last].ends[last] - sum(parts))
        seconds["update"] = update
        seconds["copies"] = copies[last]
        terms = tuple(Term(name, value) for name, value in seconds.items())
        step_s = math.fsum(seconds.values())
        share, every, loss_s = self._reliability(s, mesh, holders, elements, copied, step_s)
        return Estimate(
            step_s=step_s,
            terms=terms,
            memory=self._memory(s, mesh, sums, copied, max(shares)),
            goodput=share,
            checkpoint_every=every,
            loss_s=loss_s,
        )

    def memory(self, s: Strategy) -> tuple[Memory, ...]:
        """Of a strategy, by pipeline rank."""
        mesh, holders = self._meshes.of(s), self._meshes.holders(s)
        shares = [s.share(r) for r in range(s.data)]
        sums = self._sums(s, shares)
        return self._memory(s, mesh, sums, self._copied(s, mesh, holders, self._elements(s)), max(shares))

    def stage_times(self, s: Strategy) -> StageTimes:
        """Of the replica that is done last: what a picture of a step is drawn of (`timeline.trace`)."""
        shares = [s.share(r) for r in range(s.data)]
        return max(self._replicas(s, self._meshes.of(s), self._meshes.holders(s), shares), key=lambda r: max(r.ends)).times

    def element_bytes(self, *, pipeline: int, tensor: int, zero: int, shard: int, shares: Sequence[int]) -> float:
        """Bytes of lasting state per element of a rank's stages, one stage on each pipeline rank: weights, gradients, optimizer.

        `shares`: micro-batches of each replica.
        """
        program, m = self.problem.program, sum(shares)
        sums = sums_of(program, zero=zero, micro_batches=m, shares=shares, pipeline=pipeline, tensor=tensor)
        state = state_bytes(program, 1.0, zero=zero, shard=shard, data=len(shares), sums=sums)
        return state.weights + state.gradients + state.optimizer

    # --------------------------------------------------------------------------------------------------------- pipeline

    def _sums(self, s: Strategy, shares: Sequence[int]) -> Sums:
        return sums_of(
            self.problem.program,
            zero=s.zero,
            micro_batches=s.micro_batches,
            shares=shares,
            pipeline=s.pipeline,
            tensor=s.tensor,
            stages_per_rank=s.stages_per_rank,
        )

    def _elements(self, s: Strategy) -> list[float]:
        """Of each pipeline rank's stages, on one tensor coordinate."""
        out = [0.0] * s.pipeline
        for k, (a, b) in enumerate(s.bounds):
            pipe = k % s.pipeline
            out[pipe] += self.tables.runs(s.tensors[pipe]).elements(a, b)
        return out

    def _replicas(self, s: Strategy, mesh: MeshOnDevices, holders: Holders, shares: Sequence[int]) -> list[_Replica]:
        """Of each kind of places the replica with most micro-batches."""
        bounds = s.bounds
        traffic = [self._traffic(s, mesh, holders, k, bounds) for k in range(len(bounds))]
        rows = [
            (max([shares[r] for r in members]), *self._stage_times(s, row, bounds, traffic))
            for row, members in zip(mesh.places, mesh.replicas, strict=True)
        ]
        return [
            _Replica(m, times, parts, ends(s.schedule, times, pipeline=s.pipeline, micro_batches=m))
            for m, times, parts in (rows if len(rows) == 1 else _undominated(rows))
        ]

    def _traffic(
        self, s: Strategy, mesh: MeshOnDevices, holders: Holders, stage: int, bounds: Sequence[tuple[int, int]]
    ) -> _Traffic:
        program, (a, b), pipe = self.problem.program, bounds[stage], stage % s.pipeline
        runs = self.tables.runs(s.tensors[pipe])
        elements, layers = runs.elements(a, b), b - a
        numbytes, calls = runs.reduced(a, b)
        streamed = layer_by_layer if program.straight else all_gather
        return _Traffic(
            tensor=all_reduce(mesh.tensors[pipe], s.units * numbytes, calls) + calls * self.problem.call_s,
            received=self._crossing(s, mesh, pipe, pipe - 1, s.units * runs.boundary_bytes(a)) if stage else 0.0,
            returned=self._crossing(s, mesh, pipe, pipe, s.units * runs.boundary_bytes(b)) if b < runs.layers else 0.0,
            scattered=streamed(mesh.datas[pipe], program.exchanged_bytes * elements, layers) if s.zero >= 2 else 0.0,
            gathered=streamed(holders.gathers[pipe], program.gathered_bytes * elements, layers) if s.zero >= 3 else 0.0,
            added=SUM_BYTES * elements / mesh.bandwidths[pipe] if program.adds_in_tree(s.zero) else 0.0,
        )

    def _crossing(self, s: Strategy, mesh: MeshOnDevices, receiver: int, boundary: int, numbytes: float) -> float:
        """Seconds that a rank waits for what comes over the boundary after pipeline rank `boundary`, in either direction."""
        link = mesh.boundaries[boundary]
        if link.size == 1 or s.tensor == 1 or not self.problem.program.scattered:
            return send(link, numbytes)
        ring = mesh.tensors[receiver]
        return min(send(link, numbytes), send(link, numbytes / ring.size) + all_gather(ring, numbytes))

    def _stage_times(
        self, s: Strategy, row: Sequence[Place], bounds: Sequence[tuple[int, int]], traffic: Sequence[_Traffic]
    ) -> tuple[StageTimes, list[_Parts]]:
        """Of a replica on such places: the times of its stages, and the parts of them."""
        program, pipeline, overlap = self.problem.program, s.pipeline, self.problem.program.overlap
        halves = s.schedule is PipelineSchedule.ZERO_BUBBLE and pipeline > 1
        forwards, backwards, weights = [], [], []
        parts: list[_Parts] = []
        for k, (a, b) in enumerate(bounds):
            pipe, t, again = k % pipeline, traffic[k], s.recompute[k]
            forward, backward, pace = 0.0, 0.0, 0.0
            for name, slow in row[pipe]:
                passes = self.tables.speeds(name, s.tensors[pipe]).passes(a, b, s.units)
                forward, backward = max(forward, slow * passes.forward_s), max(backward, slow * passes.backward_s)
                pace = max(pace, slow)
            act = pace * program.act_s
            fetched, fetched_back = _exposed(overlap, t.gathered, forward), _exposed(overlap, t.gathered, backward)
            gradients = _exposed(overlap, t.scattered, backward) + t.added
            repeated, tensor = (forward, 2 * t.tensor) if again else (0.0, t.tensor)
            forwards.append(forward + t.tensor + t.received + fetched + act)
            first = repeated + tensor + t.returned + fetched_back + act
            if halves:
                backwards.append(first + backward / 2)
                weights.append(backward / 2 + gradients + fetched_back + act)
            else:
                backwards.append(first + backward + gradients)
            gathers = fetched + fetched_back * (2 if halves else 1)
            crossing, acts = t.received + t.returned, act * (3 if halves else 2)
            parts.append((forward, backward, repeated, t.tensor + tensor, crossing, gradients, gathers, acts))
        return StageTimes(tuple(forwards), tuple(backwards), tuple(weights)), parts

    # ------------------------------------------------------------------------------------------------- end of the step

    def _reduction(self, s: Strategy, mesh: MeshOnDevices, pipe: int, elements: float, sums: Sums, replica: _Replica) -> float:
        """Seconds of reducing gradients after the last micro-batch, and of handing them to further holders of a part."""
        program, ring = self.problem.program, mesh.datas[pipe]
        numbytes = program.exchanged_bytes * elements
        traffic = 0.0
        if s.zero == 0 and not program.straight:
            traffic = all_reduce(ring, numbytes)
        elif s.zero < 2:
            traffic = reduce_scatter(ring, sums.sent * numbytes) + (all_gather(ring, numbytes) if s.zero == 0 else 0.0)
        handed = numbytes / s.shard - numbytes / s.data if s.zero else 0.0
        if program.overlap:
            traffic = _exposed(program.overlap, traffic, replica.rank(pipe, s.pipeline)[1])
        return traffic + (send(ring, handed) if handed > 0.0 else 0.0)

    def _copied(self, s: Strategy, mesh: MeshOnDevices, holders: Holders, elements: Sequence[float]) -> list[Copied]:
        """What each rank keeps for others: parts that are on one node only, shared out to ranks on other nodes."""
        if not s.copies or math.isinf(mesh.crowding):
            return [Copied(0.0, False)] * s.pipeline
        crowded, most = max(1.0, mesh.crowding), max(elements)
        return [
            Copied(crowded * (e if mesh.spans else most) / s.data if lonely else 0.0, mesh.spans and s.zero < 3)
            for e, lonely in zip(elements, holders.lonely, strict=True)
        ]

    def _copies_s(self, mesh: MeshOnDevices, copied: Copied) -> float:
        """Seconds of refreshing copies."""
        program = self.problem.program
        if not copied.elements:
            return 0.0
        per_element = program.exchanged_bytes if program.peer_reads else program.weight_bytes + program.optimizer_bytes
        return send(mesh.network, per_element * copied.elements)

    def _memory(
        self, s: Strategy, mesh: MeshOnDevices, sums: Sums, copied: Sequence[Copied], micro_batches: int
    ) -> tuple[Memory, ...]:
        kept = tuple(copied)
        key = s.cuts, s.recompute, s.tensors, s.schedule, s.units, s.zero, s.shard, s.data, sums, kept, mesh.limits, micro_batches
        found = self._memories.get(key)
        if found is None:
            if len(self._memories) >= _REMEMBERED_MAX:
                self._memories.clear()
            bounds = s.bounds
            found = self._memories[key] = tuple(
                rank_memory(
                    s,
                    self.problem.program,
                    self.tables.runs(t),
                    p,
                    bounds,
                    sums=sums,
                    copied=copied[p],
                    limit=mesh.limits[p],
                    micro_batches=micro_batches,
                )
                for p, t in enumerate(s.tensors)
            )
        return found

    def _reliability(
        self,
        s: Strategy,
        mesh: MeshOnDevices,
        holders: Holders,
        elements: Sequence[float],
        copied: Sequence[Copied],
        step_s: float,
    ) -> tuple[float, int, float]:
        """(goodput, steps between checkpoints, what one node's loss costs in seconds).

        A loss costs detection, forming groups, the fullest rank's state over the network, and half a step. With a spare the new
        ranks receive it; without one the survivors share it out among them, which is taken to last as long. That the run then
        goes on with fewer ranks, until the node is back, is not counted.
        """
        r, program, nodes = self.problem.reliability, self.problem.program, len(mesh.nodes)
        held = max(elements)
        numbytes = (program.weight_bytes if s.zero < 3 else program.weight_bytes / s.shard) * held
        numbytes += program.optimizer_bytes * held / s.shard
        recovery_s = r.detect_s + r.restart_s + send(mesh.network, numbytes)
        count = holders.nodes
        if count == 1 and any(c.elements for c in copied):
            count = 2
        rate = mesh.failures_per_s
        lost = all_lost_per_s(node_per_s=rate / nodes, nodes=nodes, holders=count, window_s=recovery_s)
        losses = Losses(rate - lost, recovery_s + step_s / 2, lost, r.detect_s + r.load_s)
        every = checkpoint_every(r.checkpoint_s, lost, step_s)
        interval = every * step_s if every else math.inf
        share = goodput(losses, checkpoint_s=r.checkpoint_s, interval_s=interval)
        if count > 1:
            return share, every, losses.mended_s
        return share, every, losses.lost_s + (interval / 2 if every else step_s / 2)


def _undominated(rows: list[tuple[int, StageTimes, list[_Parts]]]) -> list[tuple[int, StageTimes, list[_Parts]]]:
    """Without rows that have no more micro-batches and no slower stage than another one: they are never done later."""
    kept: list[tuple[tuple[float, ...], tuple[int, StageTimes, list[_Parts]]]] = []
    for row in sorted(rows, key=lambda r: (-r[0] * sum((*r[1].forward, *r[1].backward, *r[1].weight)), r[0])):
        mine = (row[0], *row[1].forward, *row[1].backward, *row[1].weight)
        if not any(all(map(le, mine, other)) for other, _ in kept):
            kept.append((mine, row))
    return [row for _, row in kept]


def _exposed(overlap: float, traffic: float, behind: float) -> float:
    """What is left of a transfer when as much as may be is hidden behind something."""
    return traffic - min(overlap * traffic, behind)
