"""The simulated cluster: nodes, wires, processes, and what is known about them.

Only the world knows the truth; supervisor and workers see it through delays, silence and lies by omission (a node whose death
nobody reports). All randomness of a run comes from one generator that is drawn from in the order of events, so a seed is a
run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import DeviceKind
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.core.reshard.recovery import Commit
from orchestrator.core.supervisor.events import Event, WorkerGone
from orchestrator.core.supervisor.state import SAVES_MAX
from orchestrator.core.timeouts import derive
from orchestrator.testkit.jobs import make_costs, make_graph
from orchestrator.testkit.sim import content
from orchestrator.testkit.sim.checks import Checks
from orchestrator.testkit.sim.group import Gate, Group
from orchestrator.testkit.sim.hub import Fleet, Hub
from orchestrator.testkit.sim.memory import Saved
from orchestrator.testkit.sim.scenario import Scenario
from orchestrator.testkit.sim.training import Training
from orchestrator.testkit.sim.worker import Worker
from orchestrator.testkit.virtual_time import Timeline

if TYPE_CHECKING:
    from orchestrator.core.plan.plan import Seat

FULL_DISK = 0.15  # of the checkpoints that the ranks wait for are not written


@dataclass(slots=True)
class Node:
    """One place for workers. `healthy` is what the cluster says, the rest is the truth."""

    node_id: str
    machine: str  # what it fails with
    slots: int
    healthy: bool = True
    runs: bool = True  # workers can be started and ended there
    tells: bool = True  # the fleet hears of processes that end there
    silent: bool = False  # no packet comes back
    cut_control: bool = False
    cut_data: bool = False


class World:
    """One run's. `hub` and `fleet` are those of the present supervisor process, None while there is none."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.job = scenario.job
        self.limits = derive(self.job.resilience.detect_within_ms)
        self.rng = random.Random(f"world {scenario.seed}")
        self.timeline = Timeline()
        self.graph: GraphView = make_graph(*(n * content.BLOCK for n in scenario.layers), block=content.BLOCK)
        self.costs: ModelCosts | None = make_costs(self.graph) if self.job.planner.auto else None
        self.cells = content.cells_of(self.graph, self.job.parallel.tensor)
        train = self.job.train
        self.serial = content.Serial(
            cells=self.cells, micro_batches=train.micro_batches, steps=train.steps, bad=scenario.bad_steps
        )
        self.moved = 0  # blocks that travelled in reshards
        self.flips = 0
        self._lacks: dict[int, bool] = {}
        self._full_disks = 0  # in a row
        self.nodes: dict[str, Node] = {}
        for number in range(scenario.nodes):
            self._new_node(f"m{scenario.machines[number]}" if scenario.machines else "")
        self.workers: dict[str, Worker] = {}
        self.groups: dict[int, Group] = {}
        self.checkpoints: dict[str, Saved] = {}
        self.everybody_sees = self.rng.random() < 0.3  # a closed connection is seen by all ranks, or by neighbours only
        self.cascades = self.rng.random() < 0.5  # who leaves a group closes its connections
        self.slow_wires = self.rng.random() < 0.25
        self.base_mb_ms = self.rng.uniform(*scenario.micro_batch_ms)
        self.address = 0  # of the supervisor; a number that changes when it moves
        self.hub: Hub | None = None
        self.fleet: Fleet | None = None
        self.spawn_modes: list[str] = []  # what becomes of the next workers that are started
        self.hooks: Callable[[str, Worker | None], None] = lambda _name, _worker: None
        self.broken_user_code_at = 0  # step
        self.violations: list[str] = []
        self.story: list[tuple[int, str]] = []
        self.checks = Checks(self)

    # ---- telling

    @property
    def now_ms(self) -> int:
        """Virtual time."""
        return self.timeline.now_us // 1000

    def tell_story(self, text: str) -> None:
        """Note something for the story of the run."""
        self.story.append((self.now_ms, text))

    def violation(self, text: str) -> None:
        """Something is wrong that must never be."""
        self.violations.append(f"at {self.now_ms} ms: {text}")
        self.tell_story(f"VIOLATION {text}")

    def hook(self, name: str, worker: Worker | None = None) -> None:
        """A point of the protocol at which faults may strike."""
        self.hooks(name, worker)

    # ---- time and luck

    def wire_ms(self) -> float:
        """How long a message takes."""
        if self.rng.random() < (0.3 if self.slow_wires else 0.02):
            return self.rng.uniform(5, 120)
        return self.rng.uniform(0.2, 2)

    def mb_ms(self) -> float:
        """How long a micro-batch takes."""
        return self.base_mb_ms * self.rng.uniform(0.8, 1.3)

    # ---- nodes and wires

    def node(self, node_id: str) -> Node:
        """KeyError when there never was one."""
        return self.nodes[node_id]

    def control_cut(self, node_id: str) -> bool:
        """Whether nothing passes between the node and the supervisor."""
        node = self.nodes[node_id]
        return node.cut_control or node.silent

    def reachable(self, workers: Iterable[Worker]) -> bool:
        """Whether all of these processes are up and can talk to each other."""
        nodes = set()
        cut = False
        for w in workers:
            if not w.alive or w.stopped:
                return False
            nodes.add(w.node_id)
            cut = cut or self.nodes[w.node_id].cut_data
        return not cut or len(nodes) == 1

    def recheck(self) -> None:
        """Somebody is up or reachable again."""
        for group in list(self.groups.values()):
            group.recheck()

    def can_kill(self, worker: Worker) -> bool:
        """Whether the fleet's kill gets through."""
        node = self.nodes[worker.node_id]
        return node.runs and not self.control_cut(worker.node_id)

    def cluster_view(self, generation: int) -> ClusterView:
        """What the cluster says."""
        nodes = tuple(NodeView(n.node_id, "10.0.0.1", DeviceKind.CPU, n.slots, 1 << 30, n.healthy) for n in self.nodes.values())
        return ClusterView(generation, nodes)

    def cluster_changed(self) -> None:
        """The cluster says something new."""
        if self.fleet is not None:
            self.fleet.cluster_changed()

    def fleet_says(self, event: Event) -> None:
        """The fleet says it, if there is one."""
        if self.fleet is not None:
            self.fleet.tell(event)

    def see_node(self, node_id: str, healthy: bool) -> None:
        """The cluster notices."""
        node = self.nodes[node_id]
        if node.healthy != healthy:
            node.healthy = healthy
            self.tell_story(f"the cluster says that {node_id} is {'healthy' if healthy else 'dead'}")
            self.cluster_changed()

    def bring_back(self, node_id: str) -> None:
        """What was lost is up again, with nothing on it; of a machine with several nodes a new one takes its place."""
        node = self.nodes[node_id]
        if node.runs or node.cut_control or any(w.node_id == node_id for w in self.living()):
            return
        if self.scenario.machines:
            self.add_node(node.machine)
            return
        self.see_node(node_id, False)  # else nobody would know that its workers are gone
        node.runs, node.tells, node.silent = True, True, False
        self.tell_story(f"node {node_id} comes back")
        self.timeline.after(self.rng.uniform(100, 1000), lambda: self.see_node(node_id, node.runs))

    def add_node(self, machine: str = "") -> None:
        """A node joins: on this machine, else on a new one."""
        node = self._new_node(machine or (f"m{len({n.machine for n in self.nodes.values()})}" if self.scenario.machines else ""))
        self.tell_story(f"node {node.node_id} joins")
        self.cluster_changed()

    def _new_node(self, machine: str) -> Node:
        """Its id says which machine it shares, as that of a pod does; "": it is one by itself."""
        number = f"n{len(self.nodes)}"
        node = Node(f"{number}@{machine}" if machine else number, machine or number, self.job.cluster.slots_per_node)
        self.nodes[node.node_id] = node
        return node

    def machines_of(self, plan: Plan) -> set[str]:
        """The machines that its ranks are on."""
        return {self.nodes[s.node_id].machine for s in plan.seats}

    # ---- processes

    def spawn(self, worker_id: str, node_id: str) -> None:
        """Start a process, as well as the run's luck has it. Raises RuntimeError when the cluster refuses."""
        known = self.workers.get(worker_id)
        if known is not None:
            if not known.alive:
                self.fleet_says(WorkerGone(0, worker_id, "it has ended already"))
            return
        node = self.nodes[node_id]
        mode = self.spawn_modes.pop() if self.spawn_modes else ""
        if mode == "refused":
            raise RuntimeError("the cluster has no room")
        if not node.runs or node.silent or mode == "nothing":
            self.tell_story(f"{worker_id} never starts on {node_id}")
            return
        worker = self.workers[worker_id] = Worker(self, worker_id, node_id)
        self.tell_story(f"{worker_id} starts on {node_id}")
        if mode == "dies":
            worker.later(self.rng.uniform(50, 1500), lambda: worker.die("it broke while it warmed up"))
        else:
            worker.boot(self.rng.uniform(3000, 9000) if mode == "slow" else self.rng.uniform(200, 1200))

    def by_endpoint(self, endpoint: str) -> Worker | None:
        """Who listens, or listened, there."""
        return next((w for w in self.workers.values() if w.endpoint == endpoint), None)

    def living(self) -> list[Worker]:
        """Processes that exist."""
        return [w for w in self.workers.values() if w.alive]

    # ---- what engines do

    def group(self, plan: Plan) -> Group:
        """The group of an epoch."""
        group = self.groups.get(plan.epoch)
        if group is None:
            group = self.groups[plan.epoch] = Group(self, plan)
        return group

    def left(self, group: Group, rank: int) -> None:
        """A member threw its group away."""
        if self.cascades:
            group.lost(rank, f"rank {rank} left the group", everybody=self.everybody_sees)

    def joined(self, group: Group, rank: int) -> None:
        """A member forms a group."""
        seat: Seat = group.plan.seats[rank]
        self.checks.seated(group, seat.worker_id)
        self.hook("join", self.workers[seat.worker_id])

    def opened(self, group: Group, gate: Gate) -> None:
        """All members came to a gate."""
        self.checks.opened(group, gate)
        self.hook(f"open {gate.kind}")

    def passed(self, training: Training, kind: str, step: int) -> None:
        """A member is through a gate."""
        self.hook(f"pass {kind}", training.worker)

    def committed(self, training: Training, commit: Commit) -> None:
        """A member is through the commit exchange of a step."""
        self.checks.committed(training, commit)

    def lacks(self, plan: Plan) -> bool:
        """Whether somebody keeps params that others update."""
        if plan.epoch not in self._lacks:
            held = zip(plan.layout(PARAMS).holdings, plan.layout(OPTIMIZER).holdings, strict=True)
            self._lacks[plan.epoch] = any(p.everything != o.everything for p, o in held)
        return self._lacks[plan.epoch]

    def ready(self, worker_id: str, epoch: int) -> None:
        """A member has its state in place."""
        self.checks.ready.add((worker_id, epoch))

    def finished(self, worker_id: str, epoch: int, digest: str) -> None:
        """A member is through with everything."""
        self.checks.finished[worker_id, epoch] = digest
        self.hook("finished", self.workers[worker_id])

    def user_error(self, training: Training, step: int) -> str:
        """What the user's code raises, or nothing."""
        if self.broken_user_code_at and step == self.broken_user_code_at and training.new_rank == 0:
            return "Traceback (most recent call last):\nValueError: bad batch"
        return ""

    def initial(self) -> Saved:
        """The state that the seed makes."""
        return Saved(0, self.serial.params[0], self.serial.optim[0], 0.0)

    def fills_up(self) -> bool:
        """Whether a checkpoint that the ranks wait for is not written; never as often in a row as they are asked to try."""
        full = self._full_disks < SAVES_MAX - 1 and self.rng.random() < FULL_DISK
        self._full_disks = self._full_disks + 1 if full else 0
        return full

    def checkpoint(self, uri: str) -> Saved | None:
        """What was saved there."""
        return self.checkpoints.get(uri)
