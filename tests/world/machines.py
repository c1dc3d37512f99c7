"""The machines of a System: names only, or network namespaces with cables that can be pulled, cut and throttled.

What the cluster says of them comes late, as Ray's word does: a machine that is silent is declared dead after a while, and one
that comes back after that is another node. Until then whatever is asked of it waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import ClusterSettings, DeviceKind
from orchestrator.core.supervisor.commands import SpawnWorker
from tests.netlab.lab import Lab
from tests.netlab.namespaces import enter

LOOPBACK: Final = "127.0.0.1"
MEMORY_BYTES: Final = 1 << 33


@dataclass(slots=True)
class Machine:
    """One of them."""

    name: str
    address: str = LOOPBACK
    namespace: str = ""  # of its network; empty: this process's
    index: int = -1  # in the lab
    power: bool = True
    cable: bool = True
    declared_dead: bool = False
    lives: int = 1
    waiting: list[SpawnWorker] = field(default_factory=list)  # asked of it while it could not be reached
    ended: list[tuple[str, str]] = field(default_factory=list)  # (worker, evidence) that nobody could be told of

    @property
    def node_id(self) -> str:
        """Another one in each of its lives."""
        return self.name if self.lives == 1 else f"{self.name}.{self.lives}"

    @property
    def reachable(self) -> bool:
        """Whether anybody outside hears of it."""
        return self.power and self.cable


class Machines:
    """As many as a job asks for. With a lab its machine `first` is the first of them; the supervisor is on another one."""

    def __init__(self, lab: Lab | None = None, *, first: int = 1) -> None:
        self._lab = lab
        self._first = first
        self._generation = 0
        self._device, self._slots = DeviceKind.CPU, 1
        self.all: list[Machine] = []

    def make(self, wanted: ClusterSettings) -> None:
        """Once; harmless when repeated."""
        self._device, self._slots = wanted.device, wanted.slots_per_node
        for i in range(len(self.all), wanted.nodes + wanted.spares):
            machine = Machine(f"node-{i}")
            if self._lab is not None:
                node = self._lab.node(self._first + i)
                machine.address, machine.namespace, machine.index = node.address, node.namespace, node.index
            self.all.append(machine)

    def of(self, node_id: str) -> Machine:
        """By the id of any of its lives."""
        return next(m for m in self.all if m.name == node_id.partition(".")[0])

    def has(self, node_id: str) -> bool:
        """Whether this id is of a machine's present life."""
        return any(m.node_id == node_id and not m.declared_dead for m in self.all)

    def view(self) -> ClusterView:
        """What the cluster says now."""
        self._generation += 1
        c = self._device, self._slots, MEMORY_BYTES
        nodes = [NodeView(m.node_id, m.address, *c, not m.declared_dead) for m in self.all]
        return ClusterView(self._generation, tuple(sorted(nodes, key=lambda n: n.node_id)))

    def unplug(self, machine: Machine) -> None:
        """Pull its network cable."""
        machine.cable = False
        if self._lab is not None:
            self._lab.unplug(machine.index)

    def plug(self, machine: Machine) -> None:
        """Put it back; a machine that was declared dead meanwhile is a new node."""
        if self._lab is not None:
            self._lab.plug(machine.index)
        machine.cable = machine.power = True
        if machine.declared_dead:
            machine.declared_dead = False
            machine.lives += 1
            machine.waiting.clear()
            machine.ended.clear()

    def throttle(self, machine: Machine, mbit: float | None) -> None:
        """Limit its link, or lift the limit."""
        assert self._lab is not None, "a link needs a lab"
        self._lab.throttle(machine.index, mbit)

    def repair(self) -> None:
        """All cables are in and fast again: for whoever uses the lab next."""
        for machine in self.all:
            if self._lab is not None:
                self._lab.plug(machine.index)
                self._lab.throttle(machine.index, None)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The main thread is there meanwhile: whoever ends the namespace's processes must not find this one among them."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    enter(namespace)
    try:
        yield
    finally:
        enter(Path(f"/proc/self/fd/{before}"))
        os.close(before)
