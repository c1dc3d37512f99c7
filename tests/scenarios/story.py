"""Scripted conversations with the supervisor's core: facts in, commands out, with a small cast of workers.

A Story plays the world by hand: it starts the workers that the core asks for, and leaves every failure to the test.
"""

from __future__ import annotations

from typing import TypeVar

from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import DeviceKind, Job
from orchestrator.core.reshard.recovery import Commit, Held
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, FenceEpoch, RunEpoch, SpawnWorker
from orchestrator.core.supervisor.machine import initial, step
from orchestrator.core.supervisor.state import CheckpointRef, State
from orchestrator.testkit import jobs

C = TypeVar("C")

GRAPH = jobs.make_graph(8192)


def make_job(
    *, data: int = 4, nodes: int = 4, spares: int = 1, zero: int = 1, steps: int = 20, budget: int = 3, slots: int = 1
) -> Job:
    """A small job."""
    return jobs.make_job(
        steps=steps,
        digest_every=5,
        data=data,
        zero_stage=zero,
        copies=1 if zero and nodes > 1 else 0,
        nodes=nodes,
        spares=spares,
        slots_per_node=slots,
        keep=3,
        failure_budget=budget,
        budget_refill_steps=5,
    )


def cluster(generation: int, nodes: int, dead: tuple[int, ...] = (), slots: int = 1) -> ClusterView:
    """Nodes n0..; those in `dead` are unhealthy."""
    return ClusterView(
        generation, tuple(NodeView(f"n{i}", "127.0.0.1", DeviceKind.CPU, slots, 1 << 30, i not in dead) for i in range(nodes))
    )


class Story:
    """One conversation; `said` holds every reason so far."""

    def __init__(self, job: Job, *, checkpoint: CheckpointRef | None = None) -> None:
        self.now = 0
        self.state: State = initial(job, checkpoint=checkpoint, now_ms=0)
        self.said: list[str] = []

    def tell(self, event: ev.Event) -> list[Command]:
        """One event; returns the commands."""
        decision = step(self.state, event)
        assert bool(decision.reason) or decision.state == self.state or not decision.commands, "commands without a reason"
        self.state = decision.state
        if decision.reason:
            self.said.append(decision.reason)
        return list(decision.commands)

    def hello(self, worker_id: str, *, epoch: int = 0, running: bool = False, held: Held | None = None) -> list[Command]:
        """A worker says hello."""
        number = int(worker_id.split("/w")[1])
        node = self.state.workers[worker_id].node_id
        return self.tell(
            ev.WorkerHello(self.now, worker_id, node, 100 + number, f"127.0.0.1:{7000 + number}", GRAPH, epoch, running, held)
        )

    def launch(self, nodes: int, *, slots: int = 1) -> list[RunEpoch]:
        """Cluster, workers, hellos: until the first epoch starts."""
        out: list[RunEpoch] = []
        for c in only(SpawnWorker, self.tell(ev.ClusterChanged(self.now, cluster(1, nodes, slots=slots)))):
            out += only(RunEpoch, self.hello(c.worker_id))
        return out

    def ready(self) -> None:
        """Every member has its state."""
        for seat in self.plan.seats:
            self.tell(ev.EpochReady(self.now, seat.worker_id, self.state.epoch))

    def commit(self, n: int, worker_id: str | None = None) -> list[Command]:
        """Step n is committed, says rank 0 (or that worker)."""
        who = worker_id or self.plan.seats[0].worker_id
        return self.tell(ev.StepCommitted(self.now, who, self.state.epoch, n, 2.0, 1.0, 1.0, 1e-3, 100.0, 64))

    def leave(self, worker_id: str, held: Held, *, fenced: bool = True) -> list[Command]:
        """A member left the current epoch."""
        return self.tell(ev.LeftEpoch(self.now, worker_id, self.state.epoch, fenced, held, "test"))

    def held(
        self, rank: int, *, at: int, prepared: bool = False, commit: Commit | None = None, params: int | None = None
    ) -> Held:
        """What a member of the current plan holds."""
        return Held(self.state.epoch, rank, at, at if params is None else params, at + 1 if prepared else at, commit)

    def leave_all(self, at: int, *, but: tuple[str, ...] = ()) -> list[Command]:
        """Every remaining member leaves, holding step `at`."""
        out: list[Command] = []
        for seat in self.plan.seats:
            if seat.worker_id not in but and self.state.workers[seat.worker_id].phase == "member":
                out += self.leave(seat.worker_id, self.held(seat.rank, at=at))
        return out

    @property
    def plan(self):  # type: ignore[no-untyped-def]
        """The current plan."""
        assert self.state.plan is not None
        return self.state.plan


def only(kind: type[C], commands: list[Command]) -> list[C]:
    """The commands of one kind."""
    return [c for c in commands if isinstance(c, kind)]


__all__ = ["GRAPH", "FenceEpoch", "Story", "cluster", "make_job", "only"]
