"""A Plan: who does what in one epoch, with nothing left to choose.

A plan is immutable, has an epoch (the fencing token that every command and every write carries) and a parent. A swap makes a
new plan with the same layout and another seat; stale executors are refused by the epoch alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.plan.layout import StateLayout

PARAMS = "params"
OPTIMIZER = "optimizer"


@dataclass(frozen=True, slots=True)
class MeshAxis:
    """One axis of the device mesh, e.g. ("data", 4)."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Seat:
    """A rank's place: which worker fills it, on which node."""

    rank: int
    worker_id: str
    node_id: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How one epoch runs. `layouts` holds one entry per kind of state tensor."""

    job: str
    epoch: int
    parent: int  # epoch of the plan it was made from; 0 for the first
    mesh: tuple[MeshAxis, ...]
    zero_stage: int
    copies: int
    micro_batches: int
    block: int
    seats: tuple[Seat, ...]  # by rank
    layouts: tuple[StateLayout, ...]
    reason: str

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.seats)

    def layout(self, name: str) -> StateLayout:
        """The layout of one kind of state tensor; KeyError when the plan has none."""
        for layout in self.layouts:
            if layout.name == name:
                return layout
        raise KeyError(name)

    def seat_of(self, worker_id: str) -> Seat | None:
        """The seat of a worker, or None."""
        return next((s for s in self.seats if s.worker_id == worker_id), None)

    def micro_batch_range(self, rank: int) -> range:
        """The contiguous micro-batches that a rank computes each step."""
        m, n = self.micro_batches, self.size
        return range(m * rank // n, m * (rank + 1) // n)
