"""The process group of one epoch: gates that ranks pass together, or break out of, or hang in.

A gate (forming, a reduction, the commit exchange, a barrier) opens when every member has come to it and is up and reachable;
the members then leave it one after the other, and a fault in between lets some out and not the others. Who waits for a
process that ended is told soon if it is its neighbour; everybody else hangs until a fence. A stopped or cut-off member is
noticed by nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.core.plan.plan import Plan

if TYPE_CHECKING:
    from orchestrator.testkit.sim.training import Training
    from orchestrator.testkit.sim.world import World

Passed = Callable[[dict[int, Any]], None]
EXIT_MS = 8.0  # within which members leave an open gate


@dataclass(slots=True)
class Gate:
    """One rendezvous."""

    kind: str
    step: int
    parts: dict[int, Any] = field(default_factory=dict)  # rank -> what it brought
    waiting: dict[int, Passed] = field(default_factory=dict)  # rank -> what to do when it is through
    open: bool = False


class Group:
    """Of one epoch. Ranks are those of its plan."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.epoch = plan.epoch
        self.members: dict[int, Training] = {}
        self.gates: dict[tuple[str, int], Gate] = {}
        self.broken: dict[int, str] = {}  # rank -> why its connections are of no use any more

    def join(self, member: Training, rank: int) -> None:
        """A member begins to form the group."""
        self.members[rank] = member
        self.world.joined(self, rank)

    def arrive(self, rank: int, kind: str, step: int, part: Any, passed: Passed) -> None:
        """A member comes to a gate; `passed` gets what everybody brought. Broken ranks are told so instead."""
        gate = self.gates.setdefault((kind, step), Gate(kind, step))
        gate.parts[rank] = part
        gate.waiting[rank] = passed
        if rank in self.broken:
            self._tell(rank)
        else:
            self._try(gate)

    def recheck(self) -> None:
        """A member is up or reachable again."""
        for gate in list(self.gates.values()):
            if gate.waiting:
                self._try(gate)

    def drop(self, rank: int, why: str) -> None:
        """This rank's connections are gone: it breaks out of whatever it waits in now or comes to later."""
        if rank not in self.broken:
            self.broken[rank] = why
            self._tell(rank)

    def lost(self, rank: int, why: str, *, everybody: bool) -> None:
        """The connections of a rank closed; its neighbours (or everybody) notice."""
        size = self.plan.size
        for other in range(size):
            near = other in ((rank - 1) % size, (rank + 1) % size)
            if other != rank and (near or everybody):
                self.world.timeline.after(self.world.rng.uniform(5, 25), lambda o=other: self.drop(o, why))  # type: ignore[misc]

    def _tell(self, rank: int) -> None:
        why = self.broken[rank]
        member = self.members.get(rank)
        for gate in self.gates.values():
            if gate.waiting.pop(rank, None) is not None and member is not None:
                member.broke(self, why)

    def _healthy(self) -> bool:
        return len(self.members) == self.plan.size and self.world.reachable([m.worker for m in self.members.values()])

    def _try(self, gate: Gate) -> None:
        if not self._healthy():
            return
        if not gate.open:
            if len(gate.parts) < self.plan.size or len(gate.waiting) < self.plan.size:
                return
            gate.open = True
            self.world.opened(self, gate)
        for rank in sorted(gate.waiting):
            self.members[rank].worker.later(self.world.rng.uniform(0.1, EXIT_MS), lambda r=rank: self._exit(gate, r))  # type: ignore[misc]

    def _exit(self, gate: Gate, rank: int) -> None:
        """A rank gets its last bytes, unless a peer that failed in the meantime still owed them."""
        if rank in gate.waiting and (self._healthy() or self.world.rng.random() < 0.5):
            gate.waiting.pop(rank)(gate.parts)
