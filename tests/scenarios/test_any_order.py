"""Drains, scales, replacements, losses and returning nodes in any order: nothing is lost, and in the end all is as it should be.

Losses are such that the others hold the whole state by the plan; everything else is drawn from a seed, named by the test.
"""

from __future__ import annotations

import random

import pytest

from orchestrator.core.plan.plan import Plan
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.handover import missing
from orchestrator.core.supervisor.state import JobPhase, WorkerPhase
from tests.scenarios.story import DEEP, Story, cluster, make_job

NODES = 6
CUTS = ((1, 3), (2, 2), (3, 1), (1, 1, 2), (4,))


class Life(Story):
    """A job in a world that does what it should, whatever is asked for and whoever dies."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        pick = self.dice.choice
        data, pipeline, zero = pick([1, 2, 3]), pick([1, 1, 2]), pick([0, 1, 2, 3])
        copies = pick([0, 1]) if data * pipeline > 1 else 0
        shape = {"data": data, "pipeline": pipeline, "zero": zero, "copies": copies, "nodes": data * pipeline}
        super().__init__(
            make_job(**shape, spares=pick([0, 1]), grow_after=pick([0, 2, 4]), budget=1000, steps=100_000), graph=DEEP
        )
        self.dead: set[int] = set()
        self.generation = 0
        self.see(NODES)
        self.go_on(2)

    def see(self, nodes: int) -> None:
        """The cluster as it is now."""
        self.generation += 1
        self.tell(ev.ClusterChanged(self.now, cluster(self.generation, nodes, dead=tuple(self.dead))))

    def go_on(self, steps: int) -> None:
        """Whatever is under way comes to its end, and so many steps are done without anything new."""
        for _ in range(300):
            self.hello_all(*(f"n{n}" for n in self.dead))
            match self.state.phase:
                case JobPhase.FENCING:
                    self.leave_all(self.state.committed_step)
                case JobPhase.FORMING:
                    self.ready()
                case JobPhase.RUNNING if self.state.change is not None:
                    self.depart()
                case JobPhase.RUNNING if steps:
                    self.commit(self.state.committed_step + 1)
                    steps -= 1
                case JobPhase.WAITING:
                    self.now += 5_000
                    self.tell(ev.Tick(self.now, ()))
                    if self.state.phase is JobPhase.WAITING:
                        return
                case _:
                    return
        raise AssertionError(f"no end of it: {self.said[-6:]}")

    def spared(self, gone: set[str]) -> bool:
        """Whether the job runs and the others hold the whole state when these die."""
        plan: Plan = self.plan
        ranks = [s.rank for s in plan.seats if s.worker_id in gone]
        return self.state.phase is JobPhase.RUNNING and not missing(plan, ranks)

    def something_happens(self) -> None:
        """One thing, to be or not to be coped with at once."""
        dice = self.dice
        node = dice.randrange(NODES)
        match dice.choice(["die", "node", "back", "drain", "scale", "replace", "break", "cut"]):
            case "die" if self.spared({w := dice.choice(self.workers)}):
                self.gone(w)
            case "node" if self.spared({w.worker_id for w in self.state.workers.values() if w.node_id == f"n{node}"}):
                self.dead.add(node)
                self.see(NODES)
            case "back":
                self.dead.discard(node)
                self.see(NODES)
            case "drain" if len(self.state.drained) < 2:
                self.tell(ev.DrainRequested(self.now, f"n{node}", "me", "maintenance"))
            case "scale":
                self.tell(ev.ScaleRequested(self.now, dice.randrange(5), (), "me"))
            case "cut":
                self.tell(ev.ScaleRequested(self.now, 0, dice.choice(CUTS), "me"))
            case "replace":
                self.tell(ev.ReplaceRequested(self.now, dice.choice(self.workers), "me"))
            case "break" if self.state.phase is JobPhase.RUNNING:
                self.leave(self.workers[0], self.held(0, at=self.state.committed_step, params=-1), fenced=False)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_lost_and_in_the_end_all_is_as_it_should_be(seed: int) -> None:
    life = Life(seed)
    for _ in range(25):
        life.something_happens()
        life.go_on(life.dice.choice([0, 1, 3]))
        assert not life.state.phase.terminal, life.state.last_word
        assert life.state.steps_lost == 0, life.said[-4:]
    life.dead.clear()
    life.see(12)
    for _ in range(4):
        life.go_on(60)
    state, plan = life.state, life.plan
    assert state.phase is JobPhase.RUNNING
    assert (plan.size, plan.copies) == (state.goal.ranks, state.goal.copies if plan.size > 1 else 0), life.said[-3:]
    assert not {s.node_id for s in plan.seats} & set(state.drained)
    assert not [w for w in state.workers.values() if w.phase is WorkerPhase.MEMBER and w.unwanted]
    if state.goal.layers_per_stage:
        assert tuple(s.last - s.first for s in plan.stages) == state.goal.layers_per_stage
