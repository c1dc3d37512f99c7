"""A Plan: who does what in one epoch, with nothing left to choose.

A plan is immutable, has an epoch (the fencing token that every command and every write carries) and a parent. A swap makes a
new plan with the same layout and another seat; stale executors are refused by the epoch alone.

Ranks are numbered pipeline-major, tensor innermost: rank = (pipe * data + replica) * tensor + coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.cluster import machines
from orchestrator.core.plan.layout import Interval, Intervals, StateLayout, merge

PARAMS = "params"
OPTIMIZER = "optimizer"
PIPELINE, DATA, TENSOR = "pipeline", "data", "tensor"


class PipelineSchedule(StrEnum):
    """The order of forward and backward passes on the ranks of a pipeline."""

    ONE_F_ONE_B = "1f1b"  # Narayanan et al., arXiv 2006.09503
    INTERLEAVED = "interleaved"  # several stages per rank, arXiv 2104.04473 section 2.2
    ZERO_BUBBLE = "zero-bubble"  # ZB-H1: the backward pass in two halves, arXiv 2401.10241


@dataclass(frozen=True, slots=True)
class MeshAxis:
    """One axis of the device mesh, e.g. ("data", 4)."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers [first, last) of the model: stage s of the pipeline is run by pipeline rank s modulo their number.

    [start, stop) is where they lie in the section of tensor coordinate 0.
    """

    first: int
    last: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank's place: which worker fills it, on which node."""

    rank: int
    worker_id: str
    node_id: str


def homes(seats: Sequence[Seat]) -> list[str]:
    """What fails as one, for each seat: its machine; its node, where all seats are on one machine or every node is one."""
    return machines.homes([s.node_id for s in seats])


@dataclass(frozen=True, slots=True)
class Plan:
    """How one epoch runs. `layouts` holds one entry per kind of state tensor."""

    job: str
    epoch: int
    parent: int  # epoch of the plan it was made from; 0 for the first
    mesh: tuple[MeshAxis, ...]  # (pipeline, data, tensor), sizes of 1 included
    zero_stage: int  # 0: all replicated; 1: optimizer state sharded over the data axis; 2: gradients too; 3: parameters too
    shard: int  # ranks that a sharded state is spread over; a divisor of the data axis (less than it: group-sharded)
    copies: int
    micro_batches: int
    shares: tuple[int, ...]  # of them, for each replica; empty: as even as can be
    block: int
    section: int  # elements of one tensor coordinate's section of the flat vector
    stages: tuple[Stage, ...]  # in forward order, one or more per pipeline rank
    schedule: PipelineSchedule
    recompute: tuple[bool, ...]  # of each stage: activations inside a layer are computed again in the backward pass
    checkpoint_every: int  # steps between durable checkpoints; 0: only at the end
    seats: tuple[Seat, ...]  # by rank
    layouts: tuple[StateLayout, ...]
    reason: str

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.seats)

    def axis(self, name: str) -> int:
        """Size of a mesh axis; 1 when the plan does not name it."""
        return next((a.size for a in self.mesh if a.name == name), 1)

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(pipe, replica, tensor coordinate) of a rank."""
        data, tensor = self.axis(DATA), self.axis(TENSOR)
        return rank // (data * tensor), rank // tensor % data, rank % tensor

    def rank_at(self, pipe: int, replica: int, coordinate: int) -> int:
        """The rank at a place of the mesh."""
        return (pipe * self.axis(DATA) + replica) * self.axis(TENSOR) + coordinate

    def replicas(self, rank: int) -> tuple[int, ...]:
        """The ranks that run the same stages on other micro-batches, itself included, in order of the data axis."""
        data, tensor = self.axis(DATA), self.axis(TENSOR)
        first = rank // (data * tensor) * data * tensor + rank % tensor
        return tuple(range(first, first + data * tensor, tensor))

    def shard_group(self, rank: int) -> tuple[int, ...]:
        """The replicas, itself included, that hold one whole of their section's sharded state between them."""
        mine = self.replicas(rank)
        first = self.coordinates(rank)[1] // self.shard * self.shard
        return mine[first : first + self.shard]

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Indices of the stages that a rank runs, in forward order."""
        pipe = self.coordinates(rank)[0]
        return tuple(range(pipe, len(self.stages), self.axis(PIPELINE)))

    def section_of(self, rank: int) -> Intervals:
        """The part of the flat vector that a rank computes with: its stages' parameters and buffers."""
        base = self.coordinates(rank)[2] * self.section
        mine = (self.stages[s] for s in self.stages_of(rank))
        return merge(Interval(base + s.start, base + s.stop) for s in mine)

    def layout(self, name: str) -> StateLayout:
        """The layout of one kind of state tensor; KeyError when the plan has none."""
        for layout in self.layouts:
            if layout.name == name:
                return layout
        raise KeyError(name)

    def seat_of(self, worker_id: str) -> Seat | None:
        """The seat of a worker, or None."""
        return next((s for s in self.seats if s.worker_id == worker_id), None)

    def micro_batches_of(self, rank: int) -> tuple[int, ...]:
        """The micro-batches that a rank computes each step, ascending.

        A contiguous run where gradients are kept until the end of the step; dealt out in rounds where each micro-batch's
        gradient is sent to its owners at once (ZeRO-2 and 3), so that they can add in order and keep little.
        """
        m, n, d = self.micro_batches, self.axis(DATA), self.coordinates(rank)[1]
        if self.shares:
            first = sum(self.shares[:d])
            return tuple(range(first, first + self.shares[d]))
        if self.zero_stage >= 2:
            return tuple(range(d, m, n))
        return tuple(range(m * d // n, m * (d + 1) // n))
