"""Machines that carry several nodes and fail as one, and what somebody who watches them (Kubernetes) says about it.

Evidence that a node is gone comes before its workers are missed, after they were replaced, twice, never, or of a node that is
alive or that nobody knows. Where a run loses one machine after the other, the next one waits until the job has recovered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.core.job import FailureClass
from orchestrator.core.supervisor.events import Event, NodeGone
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.testkit.sim.scenario import Fault, Kind

if TYPE_CHECKING:
    from orchestrator.testkit.sim.world import World

LOOK_MS = 60.0  # virtual, between looks whether the job has recovered
CHANGE_LOOK_MS = 5.0  # virtual, between looks whether a planned change is under way
LOOKS_MAX = 800  # for one
NO_SUPERVISOR_MS = 500.0  # after which somebody whom no supervisor heard says it again
LOST_IN_WRITE = 0.2  # of what is told: whether it was heard is not known, so it is told again


class Machines:
    """Of one run. `lose` takes a node away, `ask` reaches the supervisor and says whether there was one."""

    def __init__(
        self,
        world: World,
        losses: Sequence[Fault],
        *,
        ask: Callable[[Event], bool],
        lose: Callable[[str, bool], None],
        over: Callable[[], bool],
    ) -> None:
        self.world = world
        self.rng = world.rng
        self.ask = ask
        self.lose = lose
        self.over = over
        self.lost = 0
        self._losses = list(losses)
        self._next()

    # ---- evidence

    def watched(self, node_id: str) -> None:
        """A node was lost: somebody may notice, sooner or later than its silence is noticed."""
        rng, lost_ms = self.rng, self.world.limits.lost_ms
        if not self.world.scenario.machines or rng.random() < 0.3:
            return
        after_ms = rng.choice((rng.uniform(0, 1500), rng.uniform(0.7, 1.5) * lost_ms, rng.uniform(1.5, 4) * lost_ms))
        self.world.timeline.after(after_ms, lambda: self.tell(node_id, "its machine is gone"))

    def tell(self, node_id: str, evidence: str) -> None:
        """Say it until a supervisor was there to hear it, and sometimes once more."""
        heard = self.ask(NodeGone(0, node_id, "the simulation", evidence))
        if not heard or self.rng.random() < LOST_IN_WRITE:
            self.world.timeline.after(self.rng.uniform(0.5, 2) * NO_SUPERVISOR_MS, lambda: self.tell(node_id, evidence))

    def doubtful(self, node_id: str) -> list[str]:
        """Say that some node is gone: this one, which is alive, one that was lost long ago, or none at all. Who is alive."""
        dead = [n.node_id for n in self.world.nodes.values() if not n.runs]
        of = self.rng.choice((node_id, node_id, *dead[:1], *dead[-1:], "n999@m0", "n999"))
        self.tell(of, "so somebody believes")
        return [of] if of in self.world.nodes else []

    # ---- losses

    def together(self, node_id: str) -> list[str]:
        """The nodes that fail with this one.

        Where no step may be lost: this one alone, if all ranks are on its machine.
        """
        state = self.world.checks.state
        plan = state.plan if state is not None else None
        if self.world.scenario.kind is Kind.SINGLE and (plan is None or len(self.world.machines_of(plan)) < 2):
            return [node_id]
        return self.on(self.world.node(node_id).machine)

    def on(self, machine: str) -> list[str]:
        """The nodes of a machine that are up."""
        return [n.node_id for n in self.world.nodes.values() if n.runs and n.machine == machine]

    def _next(self) -> None:
        if self._losses:
            fault = self._losses.pop(0)
            self.world.timeline.after(0 if fault.point else fault.at_ms, lambda: self._when_recovered(fault, fault.point))

    def _when_recovered(self, fault: Fault, point: str, waits: int = LOOKS_MAX) -> None:
        if self.over():
            return
        state = self.world.checks.state
        there = not point or (state is not None and state.phase is JobPhase.FORMING) or not waits
        if there and self._recovered():
            self.world.timeline.after(fault.delay_ms, lambda: self._lose_one(fault))
        else:
            look_ms = CHANGE_LOOK_MS if point else LOOK_MS
            self.world.timeline.after(look_ms, lambda: self._when_recovered(fault, point, max(0, waits - 1)))

    def _lose_one(self, fault: Fault) -> None:
        """A machine that ranks are on, with all its nodes, in one instant."""
        if self.over() or not self._recovered():  # it was for another moment
            self._when_recovered(fault, "")
            return
        state = self.world.checks.state
        assert state is not None
        assert state.plan is not None
        machine = self.rng.choice(sorted(self.world.machines_of(state.plan)))
        self.lost += 1
        self.world.tell_story(f"FAULT {fault.action} ({machine} with {', '.join(self.on(machine))})")
        silently, there = self.rng.random() < 0.6, self.on(machine)

        def lose() -> None:
            for node_id in there:
                self.lose(node_id, silently)

        if self.rng.random() < 0.2:  # it is known before it happens
            for node_id in there:
                self.tell(node_id, "its machine is about to go")
            self.world.timeline.after(self.rng.uniform(0, 800), lose)
        else:
            lose()
        self._next()

    def _recovered(self) -> bool:
        """Whether the job is on two machines or more, and nothing is lost: its epoch runs, or a planned change is under way."""
        state = self.world.checks.state
        if state is None or state.plan is None or len(self.world.machines_of(state.plan)) < 2:
            return False
        members = [self.world.workers[s.worker_id] for s in state.plan.seats]
        if any(not w.alive or w.stopped or w.hung for w in members) or self.world.checks.alone_with_state(state):
            return False
        if state.phase is JobPhase.RUNNING:
            return all(w.inside and w.epoch == state.epoch for w in members)
        changes = state.phase in (JobPhase.FENCING, JobPhase.FORMING) and bool(state.recoveries)
        return changes and state.recoveries[-1].failure is FailureClass.PLANNED and self.world.checks.was_safe
