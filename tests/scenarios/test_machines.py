"""Nodes that share machines (pods on Kubernetes): the state is on two machines wherever it can be, and none takes it along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.cluster.machines import machine_of
from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import Action, DeviceKind, FailureClass
from orchestrator.core.plan.lint import lint
from orchestrator.core.planner.strategy import Space
from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import SpawnWorker
from orchestrator.core.supervisor.errors import LOSSES
from orchestrator.core.supervisor.state import ChangeKind, JobPhase
from orchestrator.spec.policies import policies
from orchestrator.testkit import jobs
from tests.scenarios.story import DEEP, WAIT, Story, make_job, observe, only
from tests.scenarios.test_moving import slow_for

COSTS = jobs.make_costs(DEEP)


class Pods:
    """A story whose nodes are pods of one slot, `POD@MACHINE`."""

    def __init__(self, *pods: str, slots: int = 1, **job: Any) -> None:
        self.s = Story(make_job(**{"nodes": 2, "data": 2, "spares": 0, "slots": slots, **job}))
        self.pods = dict.fromkeys(pods, True)
        self.slots, self.generation = slots, 0
        self.look()

    def look(self) -> list[SpawnWorker]:
        """The cluster as it is now; the workers that are asked for then."""
        self.generation += 1
        nodes = tuple(
            NodeView(pod, "127.0.0.1", DeviceKind.CPU, self.slots, 1 << 30, up) for pod, up in sorted(self.pods.items())
        )
        return only(SpawnWorker, self.s.tell(ev.ClusterChanged(self.s.now, ClusterView(self.generation, nodes))))

    def asked(self, *pods: str) -> list[SpawnWorker]:
        """These pods are new; the workers that are asked for then."""
        self.pods.update(dict.fromkeys(pods, True))
        return self.look()

    def add(self, *pods: str) -> None:
        """These pods are new, and their workers come up."""
        self.asked(*pods)
        self.s.hello_all()

    def lose(self, *pods: str) -> None:
        """These are gone; who is left goes on."""
        at = self.s.state.committed_step
        self.pods.update(dict.fromkeys(pods, False))
        self.look()
        self.s.leave_all(at)
        self.s.ready()

    def begin(self, at: int = 3) -> Pods:
        """All workers come up, and some steps are done."""
        self.s.hello_all()
        self.s.ready()
        self.s.train(at)
        return self

    def settle(self, upto: int = 30) -> list[ChangeKind]:
        """Train on and carry planned changes out; their kinds. Nothing is lost by them, and they come to an end."""
        kinds: list[ChangeKind] = []
        while self.s.state.committed_step < upto:
            self.s.hello_all()
            if self.s.state.change is None:
                self.s.commit(self.s.state.committed_step + 1)
                continue
            kinds.append(self.s.state.change.kind)
            assert len(kinds) < 6, kinds
            self.s.depart()
            assert self.s.state.resume is not None
            assert (self.s.state.resume.source, self.s.state.steps_lost) == (Source.MEMORY, 0)
            assert lint(self.s.plan) == ()
            self.s.ready()
        return kinds

    @property
    def nodes(self) -> list[str]:
        """Of each rank."""
        return [x.node_id for x in self.s.plan.seats]

    @property
    def machines(self) -> set[str]:
        """That ranks are on."""
        return set(map(machine_of, self.nodes))


def on(pods: Sequence[SpawnWorker]) -> list[str]:
    """Where workers are asked for."""
    return [c.node_id for c in pods]


def test_workers_are_asked_for_machine_by_machine() -> None:
    p = Pods("a@x", "b@x", "c@y", slots=2, nodes=1)
    assert sorted(w.node_id for w in p.s.state.workers.values()) == ["a@x", "c@y"]


def test_the_first_epoch_waits_for_a_worker_on_another_machine() -> None:
    p = Pods("a@x", "b@x", "c@y", spares=1)
    assert not p.s.hello_all("c@y"), "two are ready, but on one machine"
    assert p.s.hello_all()
    assert p.machines == {"x", "y"}


def test_a_worker_elsewhere_is_asked_for_when_all_are_on_one_machine() -> None:
    p = Pods("a@x", "b@x").begin()
    assert p.nodes == ["a@x", "b@x"], "better than not to start"
    assert on(p.asked("c@x", "d@y")) == ["d@y"]


@pytest.mark.parametrize(("zero", "copies"), [(1, 1), (0, 0)])
def test_a_lost_rank_goes_to_a_spare_on_another_machine_than_the_survivors(zero: int, copies: int) -> None:
    p = Pods("a@x", "b@y", zero=zero, copies=copies, spares=2).begin()
    p.add("c@x", "d@z")
    p.lose("b@y")
    assert p.nodes == ["a@x", "d@z"]


@pytest.mark.parametrize(("zero", "copies"), [(1, 1), (0, 0)])
def test_ranks_that_are_all_on_one_machine_leave_it_when_a_spare_is_on_another(zero: int, copies: int) -> None:
    p = Pods("a@x", "b@y", zero=zero, copies=copies, spares=1, steps=60).begin()
    p.add("c@x")
    p.lose("b@y")
    assert p.nodes == ["a@x", "c@x"], "better than to wait"
    assert p.s.plan.copies == copies
    assert p.settle(10) == []
    p.add("d@z")
    assert p.settle(40) == [ChangeKind.MOVE]
    assert p.machines == {"x", "z"}
    assert any("all state is on one machine" in words for words in p.s.said)


def test_a_drained_rank_keeps_the_second_machine_where_a_spare_is_on_one() -> None:
    p = Pods("a@x", "b@y", spares=2, steps=40).begin()
    p.add("c@x", "d@y")
    p.s.tell(ev.DrainRequested(p.s.now, "b@y", "me", ""))
    assert p.settle(8) == [ChangeKind.MOVE]
    assert p.nodes == ["a@x", "d@y"]
    p.s.tell(ev.DrainRequested(p.s.now, "d@y", "me", ""))
    assert p.settle(20) == [ChangeKind.MOVE]
    assert p.nodes == ["a@x", "c@x"], "there is no other machine"


def test_a_whole_machine_is_drained() -> None:
    p = Pods("a@x", "b@x", "c@y", "d@y", nodes=4, data=4, spares=2, steps=40).begin()
    p.add("e@z", "f@z")
    for pod in ("c@y", "d@y"):
        p.s.tell(ev.DrainRequested(p.s.now, pod, "me", ""))
    assert ChangeKind.MOVE in p.settle(12)
    assert p.machines == {"x", "z"}
    assert len(p.nodes) == 4


def test_a_machine_with_two_of_three_ranks_dies_and_no_state_is_lost() -> None:
    p = Pods("a@x", "b@x", "c@y", nodes=3, data=3, policies=WAIT).begin()
    assert sorted(p.nodes) == ["a@x", "b@x", "c@y"]
    p.lose("a@x", "b@x")
    p.add("d@z", "e@z")
    assert p.s.state.resume is not None
    assert (p.s.state.resume.source, p.s.state.resume.step) == (Source.MEMORY, 3)
    assert p.machines == {"y", "z"}


@pytest.mark.parametrize("scaled_down", [False, True])
def test_survivors_do_not_wait_for_a_worker_that_will_not_come_when_there_is_a_checkpoint(scaled_down: bool) -> None:
    p = Pods("a@x", "b@x", "c@y", "d@x", nodes=4, data=2, tensor=2).begin(5)
    p.s.tell(ev.CheckpointReported(p.s.now, p.s.workers[0], 1, 3, "/c/3", True, "digest"))
    if scaled_down:
        p.s.tell(ev.ScaleRequested(p.s.now, 2, (), "me"))
    p.lose("c@y")
    assert p.s.state.phase is JobPhase.RUNNING, p.s.said[-1]
    assert p.s.state.resume is not None
    assert (p.s.state.resume.source, p.s.state.resume.step, p.s.plan.size) == (Source.CHECKPOINT, 3, 2)


def test_a_slow_rank_does_not_go_to_another_node_of_its_machine() -> None:
    slow = policies({FailureClass.WORKER_SLOW: (Action.SWAP,)})
    p = Pods("a@x", "b@y", "c@z", nodes=3, data=3, spares=2, policies=slow, steps=60).begin()
    p.add("d@y")
    slow_for(p.s, 10_000)
    assert p.s.state.change is None, "what is slow may be the machine"
    p.add("e@z")
    slow_for(p.s, 0)
    assert p.settle(10) == [ChangeKind.MOVE]
    assert p.nodes == ["a@x", "e@z", "c@z"]


def test_scaled_down_the_ranks_that_stay_are_on_two_machines() -> None:
    p = Pods("a@x", "b@y", "c@z", nodes=3, data=3, spares=1, steps=60).begin()
    p.add("d@x")
    p.lose("b@y")
    assert p.nodes == ["a@x", "d@x", "c@z"]
    p.s.tell(ev.ScaleRequested(p.s.now, 2, (), "me"))
    assert p.settle(20) == [ChangeKind.MOVE]
    assert p.nodes == ["a@x", "c@z"]


def test_a_smaller_job_keeps_a_spare_elsewhere_until_its_ranks_are_apart() -> None:
    p = Pods("a@x", "b@x", "c@x", nodes=3, data=3, grow_after=6, steps=60).begin()
    p.s.tell(ev.ScaleRequested(p.s.now, 2, (), "me"))
    assert p.settle(6) == [ChangeKind.MOVE]
    assert on(p.asked("d@y")) == ["d@y"]
    assert ChangeKind.MOVE in p.settle(30)
    assert p.machines == {"x", "y"}
    alive = [w for w in p.s.state.workers.values() if w.phase.alive]
    assert len(alive) == 2, "nobody more is kept now, nor asked for"


def test_a_failing_node_is_not_drained_when_the_others_are_on_one_machine() -> None:
    p = Pods("a@x", "b@x", "c@y", spares=1, steps=60).begin()
    for _ in range(LOSSES):
        (victim,) = [w.worker_id for w in p.s.state.workers.values() if w.node_id == "b@x" and w.phase.alive]
        p.s.gone(victim)
        p.s.now += 100_000
        observe(p.s)
        p.s.hello_all()
    assert p.s.state.drained == ("b@x",), "the others are on two machines"
    q = Pods("a@x", "b@y", "c@x", spares=1, steps=60).begin()
    for _ in range(LOSSES):
        (victim,) = [w.worker_id for w in q.s.state.workers.values() if w.node_id == "b@y" and w.phase.alive]
        q.s.gone(victim)
        if q.s.state.phase is JobPhase.FENCING:
            q.s.leave_all(q.s.state.committed_step)
            q.s.ready()
        q.s.now += 100_000
        observe(q.s)
        q.s.hello_all()
    assert (q.s.state.failing, q.s.state.drained) == (("b@y",), ())


def planned(*pods: str, spares: int = 0) -> Pods:
    """Two ranks in one data axis, seated by the planner."""
    p = Pods(*pods, spares=spares, steps=60)
    space = Space(datas=(2,), pipelines=(1,), tensors=(1,), copies=(1,), ranks_max=2)
    job = p.s.state.job
    p.s = Story(replace(job, planner=replace(job.planner, auto=True, space=space)), graph=DEEP, costs=COSTS)
    p.look()
    return p


def measured(p: Pods) -> None:
    """Every worker comes up and measures itself."""
    p.s.hello_all()
    for w in [w.worker_id for w in p.s.state.workers.values() if w.phase.alive and w.measure is None]:
        p.s.tell(ev.WorkerMeasured(p.s.now, w, jobs.make_measure(), COSTS))


def test_the_planner_puts_ranks_on_two_machines() -> None:
    p = planned("a@x", "b@x", "c@y", spares=1)
    measured(p)
    assert p.machines == {"x", "y"}
    assert p.s.plan.copies == 1


def test_ranks_that_the_planner_seated_leave_a_machine_that_all_are_on() -> None:
    p = planned("a@x", "b@y", "c@x", spares=1)
    measured(p)
    p.s.ready()
    p.s.train(3)
    assert "b@y" in p.nodes
    p.lose("b@y")
    assert sorted(p.nodes) == ["a@x", "c@x"]
    p.asked("d@z")
    measured(p)
    assert ChangeKind.MOVE in p.settle(30)
    assert p.machines == {"x", "z"}


def test_a_spare_that_a_smaller_job_of_replicas_does_not_want_ends() -> None:
    p = Pods("a@x", "b@y", "c@z", "d@z", nodes=4, data=4, zero=0, steps=60, policies=policies()).begin()
    p.lose("d@z")
    assert len(p.nodes) == 3
    assert on(p.asked("e@z")) == ["e@z"]
    p.s.tell(ev.ScaleRequested(p.s.now, 3, (), "me"))
    p.settle(10)
    assert [w.node_id for w in p.s.state.workers.values() if w.phase.alive] == ["a@x", "b@y", "c@z"]
