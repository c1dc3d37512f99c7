"""Scripted conversations with the supervisor's core: facts in, commands out, with a small cast of workers.

A Story plays the world by hand: it starts the workers that the core asks for, and leaves every failure to the test.
"""

from __future__ import annotations

from typing import Any, TypeVar

from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Action, CheckpointSettings, DeviceKind, Job
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, Plan
from orchestrator.core.reshard.recovery import Commit, Held
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, RunEpoch, SpawnWorker
from orchestrator.core.supervisor.machine import initial, step
from orchestrator.core.supervisor.state import CheckpointRef, State, WorkerPhase
from orchestrator.spec.policies import LOSSES, policies
from orchestrator.testkit import jobs

C = TypeVar("C")

GRAPH = jobs.make_graph(8192)
WAIT = policies(dict.fromkeys(LOSSES, (Action.SWAP, Action.WAIT)))
DEEP = jobs.make_graph(2048, 2048, 2048, 2048)  # four layers of two blocks


def make_job(
    *,
    data: int = 4,
    nodes: int = 4,
    spares: int = 1,
    zero: int = 1,
    steps: int = 20,
    budget: int = 3,
    slots: int = 1,
    copies: int = 1,
    grow_after: int = 4,
    **more: Any,
) -> Job:
    """A small job; `more` are other fields of a Job or of its sections."""
    fields: dict[str, Any] = {
        "steps": steps,
        "digest_every": 5,
        "data": data,
        "zero_stage": zero,
        "copies": copies if zero and nodes > 1 else 0,
        "nodes": nodes,
        "spares": spares,
        "slots_per_node": slots,
        "checkpoint": CheckpointSettings("/c", 0, 3),
        "failure_budget": budget,
        "budget_refill_steps": 5,
        "grow_after_steps": grow_after,
    }
    return jobs.make_job(**fields | more)


def cluster(generation: int, nodes: int, dead: tuple[int, ...] = (), slots: int = 1) -> ClusterView:
    """Nodes n0..; those in `dead` are unhealthy."""
    return ClusterView(
        generation, tuple(NodeView(f"n{i}", "127.0.0.1", DeviceKind.CPU, slots, 1 << 30, i not in dead) for i in range(nodes))
    )


class Story:
    """One conversation; `said` holds every reason so far."""

    def __init__(
        self,
        job: Job,
        *,
        checkpoint: CheckpointRef | None = None,
        graph: GraphView = GRAPH,
        costs: ModelCosts | None = None,
    ) -> None:
        self.now = 0
        self.graph = graph
        self.costs = costs
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
        endpoint = f"127.0.0.1:{7000 + number}"
        return self.tell(
            ev.WorkerHello(self.now, worker_id, node, 100 + number, endpoint, self.graph, epoch, running, held, self.costs)
        )

    def hello_all(self, *but: str) -> list[Command]:
        """Every worker that was asked for says hello, except on the nodes `but`."""
        out: list[Command] = []
        for w in [w for w in self.state.workers.values() if w.phase is WorkerPhase.REQUESTED and w.node_id not in but]:
            out += self.hello(w.worker_id)
        return out

    def launch(self, nodes: int, *, slots: int = 1) -> list[RunEpoch]:
        """Cluster, workers, hellos: until the first epoch starts."""
        out: list[RunEpoch] = []
        for c in only(SpawnWorker, self.tell(ev.ClusterChanged(self.now, cluster(1, nodes, slots=slots)))):
            out += only(RunEpoch, self.hello(c.worker_id))
        return out

    def ready(self) -> list[Command]:
        """Every member has its state."""
        out: list[Command] = []
        for seat in self.plan.seats:
            out += self.tell(ev.EpochReady(self.now, seat.worker_id, self.state.epoch))
        return out

    def commit(self, n: int, worker_id: str | None = None, *, skipped: bool = False) -> list[Command]:
        """Step n is committed, says rank 0 (or that worker)."""
        who = worker_id or self.plan.seats[0].worker_id
        epoch = self.state.epoch
        return self.tell(ev.StepCommitted(self.now, who, epoch, n, 2.0, 1.0, 1.0, 1e-3, 100.0, 64, skipped, 2.0))

    def train(self, upto: int) -> list[Command]:
        """The steps up to that one are committed."""
        out: list[Command] = []
        for n in range(self.state.committed_step + 1, upto + 1):
            out += self.commit(n)
        return out

    def gone(self, *worker_ids: str) -> list[Command]:
        """These processes have ended."""
        return [c for w in worker_ids for c in self.tell(ev.WorkerGone(self.now, w, "refused"))]

    def leave(self, worker_id: str, held: Held | None, *, fenced: bool = True) -> list[Command]:
        """A member left the current epoch."""
        return self.tell(ev.LeftEpoch(self.now, worker_id, self.state.epoch, fenced, held, "test"))

    def held(
        self, rank: int, *, at: int, prepared: bool = False, commit: Commit | None = None, params: int | None = None
    ) -> Held:
        """What a member of the current plan holds."""
        return held_of(self.plan, rank, at=at, prepared=prepared, commit=commit, params=params)

    def leave_all(self, at: int, *, but: tuple[str, ...] = (), fenced: bool = True) -> list[Command]:
        """Every remaining member leaves, holding step `at`."""
        out: list[Command] = []
        for seat in self.plan.seats:
            if seat.worker_id not in but and self.state.workers[seat.worker_id].phase == "member":
                out += self.leave(seat.worker_id, self.held(seat.rank, at=at), fenced=fenced)
        return out

    def depart(self) -> list[Command]:
        """A planned change was asked for: one more step is committed, and every member leaves after it."""
        assert self.state.change is not None
        plan, at = self.plan, self.state.committed_step + 1
        out = self.commit(at)
        for seat in plan.seats:
            out += self.leave(seat.worker_id, held_of(plan, seat.rank, at=at), fenced=False)
        return out

    @property
    def plan(self) -> Plan:
        """The current plan."""
        assert self.state.plan is not None
        return self.state.plan

    @property
    def workers(self) -> list[str]:
        """Ids of the current plan's workers, by rank."""
        return [s.worker_id for s in self.plan.seats]


def held_of(
    plan: Plan, rank: int, *, at: int, prepared: bool = False, commit: Commit | None = None, params: int | None = None
) -> Held:
    """What a rank that had its state in place holds; `params`: the step of its complete params, -1 when torn."""
    return Held(
        plan_epoch=plan.epoch,
        rank=rank,
        tensor=plan.axis(TENSOR),
        applied_step=at,
        params_step=at if params is None else params,
        prepared_step=at + 1 if prepared else at,
        optimizer=plan.layout(OPTIMIZER).holdings[rank].everything,
        params=plan.layout(PARAMS).holdings[rank].everything,
        commit=commit,
    )


def commit_of(n: int) -> Commit:
    """A commit record."""
    return Commit(n, 2.0, 1.0, 1.0, False, 2.0)


def running(at: int = 3, *, more_nodes: int = 1, graph: GraphView = GRAPH, **kw: Any) -> Story:
    """A job that runs on as many nodes as it asks for and some more, with `at` steps done."""
    job = make_job(**kw)
    s = Story(job, graph=graph)
    assert len(s.launch(job.cluster.nodes + more_nodes, slots=job.cluster.slots_per_node)) == job.parallel.ranks
    s.ready()
    assert s.state.phase == "running"
    s.train(at)
    return s


def observe(s: Story, **of: dict[str, int | bool]) -> list[Command]:
    """A tick with one observation per live worker; overrides by worker number, e.g. w2={'silence_ms': 3600}."""
    base = {"silence_ms": 0, "stalled_ms": 0, "usual_ms": 100, "in_comm": False, "orphaned": False, "micro_batch_ms": 50}
    out = []
    for w in s.state.workers.values():
        if w.phase.alive:
            seen: dict[str, Any] = {**base, **of.get(w.worker_id.split("/")[1], {})}
            out.append(ev.Observation(worker_id=w.worker_id, **seen))
    return s.tell(ev.Tick(s.now, tuple(out)))


def only(kind: type[C], commands: list[Command]) -> list[C]:
    """The commands of one kind."""
    return [c for c in commands if isinstance(c, kind)]
