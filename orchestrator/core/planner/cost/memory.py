"""What the fullest rank of a pipeline rank needs at its peak.

The state is there throughout: weights whole (sharded under ZeRO-3), optimizer state sharded from ZeRO-1 on, gradients whole until
ZeRO-2 (Rajbhandari et al., arXiv 1910.02054, section 3 and 5). To it come the activations of all micro-batches in flight (as
many as the schedule has: Narayanan et al., arXiv 2104.04473, section 2.2), and what a layer needs while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.stages import Runs
from orchestrator.core.planner.cost.sums import streamed_sums, tree_sums
from orchestrator.core.planner.cost.timeline import live
from orchestrator.core.planner.strategy import Memory, Program, Strategy

STREAMED = 4  # layers' worth of gradients under way from ZeRO-2 on: one made, one sent, their parts (engine/weights.py)
PIECE_BYTES = float(4 << 20)  # engine/reduce.py _CHUNK_NUMEL_MAX
ARRIVED = 0.55  # of what a layer keeps: gradients that wait for the second half of a backward pass (engine/halves.py _Joint)
LIVE_MAX = 1e9  # elements that programs which gather tensor by tensor hold at most (DeepSpeed's stage3_max_live_parameters)


@dataclass(frozen=True, slots=True)
class Sums:
    """How many gradients per parameter a rank keeps: whole ones and of its own part."""

    whole: int
    own: int
    sent: int  # partial sums that go into the reduction
    spare: int = 0  # memory for whole ones that is taken beforehand and not needed for sums


def sums_of(
    program: Program,
    *,
    zero: int,
    micro_batches: int,
    shares: Sequence[int],
    pipeline: int,
    tensor: int,
    stages_per_rank: int = 1,
) -> Sums:
    """For replicas with so many micro-batches each, in order.

    Our ranks take memory for some sums beforehand, the reduced gradient's included, where they run the whole model
    (engine/rank_state.py prefault); those with several stages were measured to keep one more of each stage's size.
    """
    if not program.straight:
        return Sums(1, 0, 1) if zero < 2 else Sums(0, 1, 1)
    if zero >= 2:
        return Sums(0, streamed_sums(micro_batches, len(shares)), 1)
    alive, sent = 1, 1
    if program.sums_kept:
        alive, sent = tree_sums(tuple(pairwise(accumulate(shares, initial=0))), micro_batches)
    if stages_per_rank > 1:
        return Sums(alive, 0, sent, 1)
    taken = max(shares).bit_length() + (1 if zero else 0) if pipeline * tensor == 1 else 0
    return Sums(alive, 0, sent, max(0, taken - alive))


@dataclass(frozen=True, slots=True)
class StateBytes:
    """The lasting part."""

    weights: float
    gradients: float
    optimizer: float


def state_bytes(program: Program, elements: float, *, zero: int, shard: int, data: int, sums: Sums) -> StateBytes:
    """Of a rank whose stages have so many elements. Sums in tree order go into memory of their own (engine/optim.py Reduced)."""
    held = elements / shard
    gradients = (sums.whole + sums.spare) * elements + sums.own * elements / (data if program.straight else shard)
    if program.straight:
        gradients += held
    return StateBytes(
        weights=program.weight_bytes * (held if zero >= 3 else elements),
        gradients=program.gradient_bytes * gradients,
        optimizer=program.optimizer_bytes * held,
    )


def passing_bytes(program: Program, runs: Runs, first: int, last: int, *, zero: int, units: int, recompute: bool) -> float:
    """What lives for a while when a stage runs, beyond what is kept between its passes."""
    work = units * runs.work_bytes(first, last, recompute=recompute)
    if zero < 2:
        return work
    layer = runs.layer_elements(first, last)
    if program.straight:  # free buffers are kept by size (engine/buffers.py)
        sizes = runs.distinct_elements(first, last)
        work += program.gradient_bytes * max(STREAMED * layer, 2 * sizes)
        return work + (program.weight_bytes * sizes if zero >= 3 else 0.0)
    work += program.gradient_bytes * min(layer, LIVE_MAX)
    return work + (program.weight_bytes * min(2 * layer, LIVE_MAX) if zero >= 3 else 0.0)  # they fetch ahead


@dataclass(frozen=True, slots=True)
class Copied:
    """What a rank keeps for others: elements, and whether it has their weights anyway."""

    elements: float
    weights: bool


def rank_memory(
    s: Strategy,
    program: Program,
    runs: Runs,
    pipe: int,
    bounds: Sequence[tuple[int, int]],
    *,
    sums: Sums,
    copied: Copied,
    limit: int,
    micro_batches: int,
) -> Memory:
    """Of one pipeline rank; `bounds` are the strategy's, `micro_batches` those of the replica that has most."""
    mine = range(pipe, len(bounds), s.pipeline)
    elements, kept, passing, crossing = 0.0, [], 0.0, 0.0
    for k in mine:
        (a, b), again = bounds[k], s.recompute[k]
        elements += runs.elements(a, b)
        kept.append(s.units * runs.kept_bytes(a, b, recompute=again))
        passing = max(passing, passing_bytes(program, runs, a, b, zero=s.zero, units=s.units, recompute=again))
        if a:
            crossing = max(crossing, runs.boundary_bytes(a))
        if b < runs.layers:
            crossing = max(crossing, runs.boundary_bytes(b))
    state = state_bytes(program, elements, zero=s.zero, shard=s.shard, data=s.data, sums=sums)
    sets = live(s.schedule, s.pipeline, len(bounds), micro_batches)[pipe]
    per_copy = program.optimizer_bytes + (0 if copied.weights else program.weight_bytes)
    per_copy += program.gradient_bytes if program.straight else 0
    if len(kept) == 1:
        activations = sets[0][0] * kept[0]
    else:
        activations = max(sum(n * k for n, k in zip(counts, kept, strict=True)) for counts in sets)
    if program.straight and pipe and s.schedule is PipelineSchedule.ZERO_BUBBLE:
        (a, b), again = bounds[pipe], s.recompute[pipe]
        whole = s.units * runs.kept_bytes(a, b, recompute=False)
        activations += min(micro_batches, pipe + 1) * (ARRIVED * whole + (whole if again else 0.0))
    buffers = _reduction_bytes(s, program, elements=elements, sums=sums)
    if s.pipeline > 1:  # what comes over a boundary in either direction
        buffers += 2.0 * s.units * crossing
    return Memory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        copies=copied.elements * per_copy,
        activations=activations,
        work=passing,
        buffers=buffers,
        other=float(program.rank_bytes),
        limit=limit,
    )


def _reduction_bytes(s: Strategy, program: Program, *, elements: float, sums: Sums) -> float:
    """Buffers of the reduction: a bucket; or two rounds of everybody's pieces, beyond memory that is there for sums anyway."""
    if s.data == 1 or (s.zero >= 2 and program.straight):  # streamed gradients are counted as work
        return 0.0
    if not program.straight:
        return min(float(program.bucket_bytes), program.exchanged_bytes * elements)
    piece = min(PIECE_BYTES, program.exchanged_bytes * elements / s.data)
    scratch = min(float(program.bucket_bytes), 2 * sums.sent * (s.data - 1) * piece)
    return max(0.0, scratch - program.gradient_bytes * sums.spare * elements)
