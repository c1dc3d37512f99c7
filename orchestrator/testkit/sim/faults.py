"""Carries a scenario's faults out, and ends them all when the calm begins.

Each action is something that happens to machines: processes end or stop, cables are pulled and plugged in again, disks are
slow, the supervisor is killed. Whoever is hit is drawn when it happens, members of the current group first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator.core.supervisor.events import (
    CancelRequested,
    CheckpointRequested,
    ContinueRequested,
    DrainRequested,
    Event,
    ReplaceRequested,
    ScaleRequested,
    SuspendRequested,
)
from orchestrator.testkit.sim.machines import Machines
from orchestrator.testkit.sim.scenario import LOSE_A_MACHINE, Fault, Kind

if TYPE_CHECKING:
    from orchestrator.testkit.sim.worker import Worker
    from orchestrator.testkit.sim.world import Node, World


class Faults:
    """Of one run. `kill_supervisor`, `pause_supervisor` and `ask` reach the supervisor."""

    def __init__(
        self,
        world: World,
        *,
        kill_supervisor: Callable[[], None],
        pause_supervisor: Callable[[float], None],
        ask: Callable[[Event], bool],
    ) -> None:
        self.world = world
        self.kill_supervisor = kill_supervisor
        self.pause_supervisor = pause_supervisor
        self.ask = ask
        self.rng = world.rng
        self.calm = False
        self.struck = 0
        self.disk_ms = 0.0  # what each write takes
        self._counts: dict[str, int] = {}
        self._points: dict[tuple[str, int], list[Fault]] = {}
        self._drained: set[str] = set()
        self._quiet_until_ms: dict[str, float] = {}
        self._ranks_max = world.job.parallel.ranks  # that anybody has asked for
        one_by_one = [f for f in world.scenario.faults if f.action == LOSE_A_MACHINE]
        self.machines = Machines(world, one_by_one, ask=ask, lose=self._lose_machine_node, over=lambda: self.calm)
        for fault in world.scenario.faults:
            if fault.action == LOSE_A_MACHINE:
                continue
            if fault.point:
                self._points.setdefault((fault.point, fault.nth), []).append(fault)
            else:
                world.timeline.after(fault.at_ms, lambda f=fault: self._strike(f, None))  # type: ignore[misc]
        if world.scenario.kind is Kind.USER:
            world.broken_user_code_at = self.rng.randint(1, world.job.train.steps)
        world.hooks = self.reached
        world.timeline.after(world.scenario.calm_after_ms, self.end)

    def reached(self, point: str, worker: Worker | None) -> None:
        """A point of the protocol."""
        count = self._counts[point] = self._counts.get(point, 0) + 1
        for fault in self._points.get((point, count), ()):
            if fault.delay_ms:
                self.world.timeline.after(fault.delay_ms, lambda f=fault: self._strike(f, worker))  # type: ignore[misc]
            else:
                self._strike(fault, worker)

    def end(self) -> None:
        """No more faults: cuts heal, the dead are known to be dead, and there is room for everybody."""
        world = self.world
        self.calm = True
        self.disk_ms = 0
        world.tell_story("the calm begins")
        world.spawn_modes.clear()
        for worker in world.living():
            worker.slowness = 1.0
        for node in list(world.nodes.values()):
            if node.cut_control or node.cut_data:
                self._heal(node.node_id)
            if not node.runs or node.silent:
                world.timeline.after(self.rng.uniform(500, 5000), lambda n=node.node_id: world.see_node(n, False))  # type: ignore[misc]
        need = self._ranks_max + world.job.cluster.spares
        world.timeline.after(6000, lambda: self._make_room(need))
        for at_ms in (0, 5000, 20_000):  # the wish to suspend may still be on its way
            world.timeline.after(at_ms, self._go_on)

    def _go_on(self) -> None:
        """Whoever suspended the job wants it to go on, and says so until it does."""
        state = self.world.checks.state
        if state is not None and state.suspended:
            self.ask(ContinueRequested(0, "the simulation"))
            self.world.timeline.after(1000, self._go_on)

    def _make_room(self, need: int) -> None:
        def usable() -> list[Node]:
            return [n for n in self.world.nodes.values() if n.runs and n.healthy and n.node_id not in self._drained]

        while (
            len({n.machine for n in usable()}) < 2
            or sum(n.slots for n in usable()) < need + self.world.job.cluster.slots_per_node
        ):
            self.world.add_node()

    def _strike(self, fault: Fault, here: Worker | None) -> None:
        if self.calm:
            return
        target = self._target(here)
        self.struck += 1
        self.world.tell_story(f"FAULT {fault.action} ({target.worker_id if target else '-'})")
        self._act(fault.action, target)

    def _target(self, here: Worker | None) -> Worker | None:
        living = [w for w in self.world.living() if not w.stopped]
        members = [w for w in living if w.inside]
        if here is not None and here.alive and self.rng.random() < 0.5:
            return here
        pool = members if members and self.rng.random() < 0.85 else living
        return self.rng.choice(pool) if pool else None

    def _act(self, action: str, target: Worker | None) -> None:
        world, rng, after = self.world, self.rng, self.world.timeline.after
        match action:
            case "supervisor":
                self.kill_supervisor()
            case "slow disk":
                self.disk_ms = rng.uniform(20, 300)
                after(rng.uniform(500, 3000), self._fast_disk)
            case "pause supervisor":
                self.pause_supervisor(rng.uniform(1000, 6000))
            case "bad spawns":
                world.spawn_modes += [
                    rng.choice(("refused", "dies", "slow", "slow", "nothing")) for _ in range(rng.randint(1, 3))
                ]
            case "add node":
                world.add_node()
            case "cancel":
                self.ask(CancelRequested(0, "the simulation"))
            case "scale" | "recut":
                self._scale(cut=action == "recut")
            case "checkpoint":
                self.ask(CheckpointRequested(0, "the simulation"))
            case "suspend":
                self.ask(SuspendRequested(0, "the simulation", ""))
                after(rng.choice((rng.uniform(0, 500), rng.uniform(0, 6000))), self._go_on)
            case _ if target is not None:
                self._hit(action, target)
            case _:
                pass

    def _hit(self, action: str, target: Worker) -> None:
        world, rng, after = self.world, self.rng, self.world.timeline.after
        node_id = target.node_id
        match action:
            case "kill":
                target.die("killed")
            case "kill two":
                target.die("killed")
                others = [w for w in world.living() if w.inside] or world.living()
                if others:
                    other = rng.choice(others)
                    after(rng.choice((0.0, rng.uniform(0, 400))), lambda: other.die("killed too"))
            case "node off" | "node killed":
                self._lose_node(node_id, silently=action == "node off")
            case "machine off" | "machine killed":
                for beside in self.machines.together(node_id):
                    self._lose_node(beside, silently=action == "machine off")
            case "evidence":
                self._drained.update(self.machines.doubtful(node_id))
            case "raylet":
                node = world.node(node_id)
                node.runs = node.tells = False
                for worker in world.living():
                    worker.orphaned = worker.orphaned or worker.node_id == node_id
                after(rng.uniform(1000, 14000), lambda: world.see_node(node_id, False))
            case "stop" | "stop and go" | "pause":
                self._stop(action, target)
            case "hang" | "hang and go":
                target.hangs_for_ms = rng.uniform(500, 12000) if action == "hang and go" else -1
            case "slow":
                target.slowness = rng.uniform(2, 6)
                after(rng.uniform(500, 6000), lambda: setattr(target, "slowness", 1.0))
            case "cut" | "cut control" | "cut for good":
                self._cut(action, node_id)
            case "break stream":
                self._break(target)
            case "break all streams":
                for worker in world.living():
                    self._break(worker)
            case "drain":
                self._drained.add(node_id)
                self.ask(DrainRequested(0, node_id, "the simulation", rng.choice(("", "spot reclaim"))))
            case "replace":
                self.ask(ReplaceRequested(0, target.worker_id, "the simulation"))
            case "lose and return":
                self._lose_node(node_id, silently=rng.random() < 0.3, returns=True)
            case "bad node":  # whoever is on it ends, again and again
                for n in range(rng.randint(2, 4)):
                    after(n * rng.uniform(300, 1500), lambda: self._kill_one_on(node_id))
            case "flip":
                target.training.flip = True
            case "slow for long":
                target.slowness = rng.uniform(3, 6)
            case _:
                raise AssertionError(action)

    def _fast_disk(self) -> None:
        self.disk_ms = 0

    def _stop(self, action: str, target: Worker) -> None:
        world, rng = self.world, self.rng
        if action == "pause":
            if world.now_ms < self._quiet_until_ms.get(target.worker_id, 0):
                return  # two pauses in a row make a longer one
            self._quiet_until_ms[target.worker_id] = world.now_ms + 4500
        target.stop()
        if action != "stop":
            ms = rng.uniform(500, 3000) if action == "pause" else rng.uniform(500, 12000)
            world.timeline.after(ms, target.go_on)
        lost_ms = world.limits.lost_ms  # a server that pings in vain for that long drops the stream
        stream = target.link.stream
        if stream is not None:
            world.timeline.after(3 * lost_ms, lambda: stream.hub_end("keepalive") if target.stopped else None)

    def _break(self, worker: Worker) -> None:
        stream = worker.link.stream
        if stream is not None:
            late = self.rng.random() < 0.2
            stream.break_now(
                "connection reset",
                hub_ms=self.rng.uniform(0, 3000 if late else 20),
                worker_ms=self.rng.uniform(0, 20),
            )

    def _kill_one_on(self, node_id: str) -> None:
        there = [w for w in self.world.living() if w.node_id == node_id and not w.stopped]
        if there and not self.calm:
            self.rng.choice(there).die("killed on a bad node")

    def _scale(self, *, cut: bool) -> None:
        job, rng = self.world.job, self.rng
        per_rank, layers = job.parallel.stages_per_rank, len(self.world.graph.layers)
        nodes = 0
        sizes: tuple[int, ...] = ()
        if cut:
            stages = (
                rng.randint(1, max(1, layers // per_rank)) * per_rank if rng.random() < 0.3 else job.parallel.pipeline * per_rank
            )
            ends = [0, *sorted(rng.sample(range(1, layers), stages - 1)), layers]
            sizes = tuple(b - a for a, b in pairwise(ends))
        else:
            nodes = rng.randint(1, self.world.scenario.nodes + 1)
            self._ranks_max = max(self._ranks_max, nodes * job.cluster.slots_per_node)
        self.ask(ScaleRequested(0, nodes, sizes, "the simulation"))

    def _lose_machine_node(self, node_id: str, silently: bool) -> None:
        """With it goes one of the few machines that there are: most come back, or others come."""
        self._lose_node(node_id, silently=silently, returns=self.rng.random() < 0.6)

    def _lose_node(self, node_id: str, *, silently: bool, returns: bool = False) -> None:
        world, rng = self.world, self.rng
        node = world.node(node_id)
        node.runs = node.tells = False
        node.silent = silently
        for worker in world.living():
            if worker.node_id == node_id:
                stream = worker.link.stream
                worker.die("its node is lost", silently=silently)
                if silently and stream is not None:
                    world.timeline.after(3 * world.limits.lost_ms, lambda s=stream: s.hub_end("keepalive"))  # type: ignore[misc]
        self.machines.watched(node_id)
        if rng.random() < 0.7:
            world.timeline.after(rng.uniform(300, 14000), lambda: world.see_node(node_id, False))
        if returns or rng.random() < 0.3:
            world.timeline.after(rng.uniform(500, 6000), lambda: world.bring_back(node_id))
        elif rng.random() < 0.3:
            world.timeline.after(rng.uniform(1000, 8000), world.add_node)

    def _cut(self, action: str, node_id: str) -> None:
        world, rng = self.world, self.rng
        node = world.node(node_id)
        if node.cut_control or node.silent:
            return
        node.cut_control = True
        node.cut_data = action != "cut control"
        lost_ms = world.limits.lost_ms
        for worker in world.living():
            stream = worker.link.stream
            if worker.node_id == node_id and stream is not None:
                self._give_up(stream.hub_end, 3 * lost_ms, node_id)
                self._give_up(lambda _why, s=stream, w=worker: w.run(s.worker_end), world.limits.suspect_ms + lost_ms, node_id)  # type: ignore[misc]
        if action != "cut for good":
            world.timeline.after(rng.uniform(300, 9000), lambda: self._heal(node_id))
        elif rng.random() < 0.5:
            world.timeline.after(rng.uniform(4000, 14000), lambda: self._forget(node_id))

    def _give_up(self, end: Callable[[str], None], after_ms: float, node_id: str) -> None:
        self.world.timeline.after(after_ms, lambda: end("keepalive") if self.world.control_cut(node_id) else None)

    def _forget(self, node_id: str) -> None:
        """The cluster declares a node dead that is only cut off; its daemon will not come back."""
        node = self.world.node(node_id)
        if node.cut_control:
            node.runs = node.tells = False
            self.world.see_node(node_id, False)

    def _heal(self, node_id: str) -> None:
        world = self.world
        node = world.node(node_id)
        if not node.cut_control:
            return
        node.cut_control = node.cut_data = False
        world.tell_story(f"the cable of {node_id} is plugged in again")
        for worker in world.living():
            if worker.node_id == node_id and worker.link.stream is not None:
                worker.link.stream.heal()
        hub = world.hub
        if hub is not None:
            for stream in list(hub.streams.values()):
                if stream.worker.node_id == node_id and stream is not stream.worker.link.stream:
                    stream.hub_end("reset by peer")
        world.recheck()
