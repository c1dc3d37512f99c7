"""A job that leaves its plan to the planner: workers measure themselves, it chooses, and chooses again when workers change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.job import Action, FailureClass, Job
from orchestrator.core.plan.plan import PIPELINE
from orchestrator.core.planner.strategy import Space
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, ExpectEpoch, LeaveEpoch, MeasureWorker, RunEpoch
from orchestrator.core.supervisor.state import ChangeKind, WorkerPhase
from orchestrator.core.timeouts import derive
from orchestrator.spec.policies import policies
from orchestrator.testkit import jobs
from tests.scenarios.story import DEEP, Story, cluster, make_job, observe, only

COSTS = jobs.make_costs(DEEP)
LIMITS = derive(4000)


def auto_job(*, space: Space | None = None, **more: Any) -> Job:
    """Four nodes of one slot and no spare."""
    job = make_job(**{"spares": 0, "grow_after": 2, "copies": 1, **more})
    slots = job.cluster.nodes * job.cluster.slots_per_node
    wanted = replace(space or Space(), ranks_max=slots)
    return replace(job, planner=replace(job.planner, auto=True, space=wanted))


def measured(s: Story, *worker_ids: str, slow: dict[str, float] | None = None) -> list[Command]:
    """These workers answer; `slow`: how many times slower some are."""
    out: list[Command] = []
    for w in worker_ids:
        measure = jobs.make_measure(slowness=(slow or {}).get(w, 1.0))
        out += s.tell(ev.WorkerMeasured(s.now, w, measure, COSTS))
    return out


def spares(s: Story) -> list[str]:
    return [w.worker_id for w in s.state.workers.values() if w.phase is WorkerPhase.SPARE]


def begun(job: Job, *, slow: dict[str, float] | None = None) -> tuple[Story, list[Command]]:
    """Up to the first epoch; the commands that started it."""
    s = Story(job, graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, job.cluster.nodes)))
    asked = only(MeasureWorker, s.hello_all())
    assert {c.worker_id for c in asked} == set(spares(s))
    return s, measured(s, *spares(s), slow=slow)


def running(job: Job, *, at: int = 3, slow: dict[str, float] | None = None) -> Story:
    s, out = begun(job, slow=slow)
    assert only(RunEpoch, out)
    s.ready()
    s.train(at)
    return s


def test_workers_measure_together_before_anything_runs() -> None:
    job = auto_job()
    s = Story(job, graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 4)))
    out = s.hello_all()
    asked = only(MeasureWorker, out)
    assert len(asked) == 4
    assert not only(RunEpoch, out)
    assert {tuple(c.worker_id for c in a.workers) for a in asked} == {tuple(spares(s))}
    assert {a.number for a in asked} == {1}
    *first, last = spares(s)
    assert not only(RunEpoch, measured(s, *first))
    out = measured(s, last)
    (expected,) = only(ExpectEpoch, out)
    assert expected.epoch == 1
    assert expected.choice == s.state.choice
    assert expected.option == s.state.predicted
    assert expected.option.estimate.step_s > 0
    assert len(only(RunEpoch, out)) == s.plan.size
    assert "chosen by the planner" in s.plan.reason
    assert s.state.choice is not None
    best = s.state.choice.best.strategy
    assert (best.pipeline, best.data, best.zero) == (s.plan.axis(PIPELINE), s.plan.axis("data"), s.plan.zero_stage)
    assert [x.last - x.first for x in s.plan.stages] == list(best.cuts)


def test_who_does_not_answer_counts_as_one_of_the_others() -> None:
    s = Story(auto_job(), graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 4)))
    s.hello_all()
    measured(s, *spares(s)[:3])
    s.now += LIMITS.measure_ms - 1
    assert not only(RunEpoch, observe(s))
    s.now += 1
    out = observe(s)
    assert only(RunEpoch, out)
    assert only(ExpectEpoch, out)


def test_who_answers_late_counts_in_the_next_choice() -> None:
    space = Space(pipelines=(2,), tensors=(1,), datas=(1,), zeros=(0,), copies=(0,))
    s = Story(auto_job(space=space, nodes=2, data=2), graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 2)))
    s.hello_all()
    first, late = spares(s)
    measured(s, first)
    s.now += LIMITS.measure_ms
    assert only(RunEpoch, observe(s))
    assert [x.last - x.first for x in s.plan.stages] == [2, 2]
    s.ready()
    s.train(3)
    assert s.state.change is None
    out = measured(s, late, slow={late: 4.0})
    assert only(LeaveEpoch, out), "it has turned out to be slow"
    s.depart()
    assert [x.last - x.first for x in s.plan.stages][s.workers.index(late)] == 1


def test_who_is_lost_while_it_measures_is_replaced_and_not_waited_for() -> None:
    s = Story(auto_job(), graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 4)))
    s.hello_all()
    *others, lost = spares(s)
    measured(s, *others)
    s.gone(lost)
    s.now += LIMITS.measure_ms
    observe(s)
    (asked,) = only(MeasureWorker, s.hello_all())
    assert asked.number == 2
    assert only(RunEpoch, measured(s, asked.worker_id))
    assert lost not in s.workers


def test_costs_of_another_model_are_left_out() -> None:
    s = Story(auto_job(), graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 4)))
    s.hello_all()
    odd, *others = spares(s)
    s.tell(ev.WorkerMeasured(s.now, odd, jobs.make_measure(), replace(COSTS, kinds=COSTS.kinds[:1], order=(0, 0, 0, 0))))
    assert "other kinds of layers" in s.said[-1]
    assert only(RunEpoch, measured(s, *others))
    assert s.state.workers[odd].measure is not None


def test_a_node_that_nobody_measured_is_not_taken_for_one_that_never_fails() -> None:
    space = Space(pipelines=(1,), tensors=(1,), datas=(4,), zeros=(0,), copies=(0,))
    whole, _ = begun(auto_job(space=space))
    s = Story(auto_job(space=space), graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 4)))
    s.hello_all()
    measured(s, *spares(s)[:1])
    s.now += LIMITS.measure_ms
    observe(s)
    assert whole.state.predicted is not None
    assert s.state.predicted is not None
    lost, lost_whole = 1 - s.state.predicted.estimate.goodput, 1 - whole.state.predicted.estimate.goodput
    assert lost == pytest.approx(lost_whole, rel=1e-3)


def test_when_nobody_answers_it_begins_as_it_is_and_says_so() -> None:
    job = auto_job()
    s = Story(job, graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 4)))
    s.hello_all()
    s.now += LIMITS.measure_ms
    out = observe(s)
    assert len(only(RunEpoch, out)) == job.parallel.ranks
    assert not only(ExpectEpoch, out)
    assert "nobody measured in time" in s.plan.reason


def test_given_axes_are_kept() -> None:
    s = running(auto_job(space=Space(pipelines=(2,), tensors=(1,), zeros=(1,))))
    assert s.plan.axis(PIPELINE) == 2
    assert s.plan.axis("tensor") == 1
    assert s.plan.zero_stage in (0, 1)


def test_a_plan_that_fits_nowhere_is_said_once() -> None:
    job = auto_job(space=Space(ranks_min=4))
    s = Story(job, graph=DEEP, costs=replace(COSTS, kinds=tuple(replace(k, params=1 << 40) for k in COSTS.kinds)))
    s.tell(ev.ClusterChanged(s.now, cluster(1, 4)))
    s.hello_all()
    for w in spares(s):
        measure = jobs.make_measure()
        assert s.costs is not None
        s.tell(ev.WorkerMeasured(s.now, w, measure, s.costs))
    assert s.state.missing.startswith("no plan")
    said = len(s.said)
    observe(s)
    observe(s)
    assert len(s.said) == said


def test_the_checkpoint_interval_is_the_estimates() -> None:
    job = auto_job()
    job = replace(job, planner=replace(job.planner, checkpoint=True))
    s = running(job)
    assert s.state.choice is not None
    assert s.plan.checkpoint_every == s.state.choice.best.estimate.checkpoint_every
    assert s.plan.checkpoint_every > 0


def test_without_auto_the_interval_is_the_jobs() -> None:
    assert running(auto_job()).plan.checkpoint_every == 0


def lose(s: Story, node: int) -> list[Command]:
    """A node goes with its worker; the others leave."""
    gone = [w.worker_id for w in s.state.workers.values() if w.node_id == f"n{node}" and w.phase.alive]
    s.tell(ev.ClusterChanged(s.now, cluster(s.state.cluster.generation + 1 if s.state.cluster else 1, 4, dead=(node,))))
    return s.leave_all(s.state.committed_step, but=tuple(gone))


def test_after_a_loss_without_a_spare_the_planner_chooses_for_who_is_left() -> None:
    s = running(auto_job())
    before = s.plan
    out = lose(s, 3)
    assert only(RunEpoch, out)
    assert s.plan.size < before.size or s.plan.size <= 3
    (expected,) = only(ExpectEpoch, out)
    assert expected.epoch == s.plan.epoch == 2
    assert s.state.chosen is not None
    assert s.state.chosen.parallel.ranks == s.plan.size
    assert s.plan.axis("tensor") == before.axis("tensor")
    assert "chosen by the planner" in s.plan.reason


def test_a_node_that_returns_is_measured_and_then_used() -> None:
    s = running(auto_job(), at=3)
    full = s.plan.size
    lose(s, 3)
    s.ready()
    small = s.plan.size
    assert small < full
    s.tell(ev.ClusterChanged(s.now, cluster(9, 4)))
    asked = only(MeasureWorker, s.hello_all())
    assert len(asked) == 1
    assert len(asked[0].workers) == 1
    s.train(s.state.committed_step + 3)
    assert s.state.change is None, "not before it was measured"
    out = measured(s, asked[0].worker_id)
    assert only(LeaveEpoch, out)
    assert s.state.change is not None
    assert s.state.change.kind is ChangeKind.REPLAN
    out = s.depart()
    assert only(RunEpoch, out)
    assert s.plan.size == full
    assert s.state.committed_step == s.state.resume.step if s.state.resume else False


def test_what_was_weighed_is_not_weighed_again() -> None:
    s = running(auto_job(), at=8)
    state = s.state
    s.train(12)
    assert s.state.change is None
    assert s.state.weighed == state.weighed
    assert s.state.choice is state.choice


def test_a_slow_rank_is_spared_by_another_plan() -> None:
    chosen = policies({FailureClass.WORKER_SLOW: (Action.RECUT, Action.REPORT)})
    space = Space(pipelines=(2,), tensors=(1,), datas=(1,), zeros=(0,), copies=(0,))
    s = running(auto_job(policies=chosen, space=space, nodes=2, data=2))
    assert [x.last - x.first for x in s.plan.stages] == [2, 2]
    number = s.workers[0].split("/")[1]
    slow: dict[str, Any] = {number: {"micro_batch_ms": 200}}
    out: list[Command] = []
    for _ in range(2 * 4000 // 500 + 2):
        out += observe(s, **slow)
        s.now += 500
    assert only(LeaveEpoch, out)
    assert s.state.change is not None
    assert s.state.change.kind is ChangeKind.REPLAN
    s.depart()
    assert [x.last - x.first for x in s.plan.stages][s.workers.index(f"j/{number}")] == 1
    assert s.state.workers[f"j/{number}"].pace == 4.0
    s.ready()
    s.train(s.state.committed_step + 2)
    assert s.state.change is None, "it is spared as far as it can be"
    other = "w1" if number == "w0" else "w0"
    observe(s, **{number: {"micro_batch_ms": 25}, other: {"micro_batch_ms": 75}})
    assert s.state.workers[f"j/{number}"].pace == 1.0
    s.commit(s.state.committed_step + 1)
    assert s.state.change is not None, "and gets its layers back when it is as fast as the others"
    s.depart()
    assert [x.last - x.first for x in s.plan.stages] == [2, 2]


def test_a_spare_does_not_take_the_place_of_the_only_holder() -> None:
    chosen = policies({FailureClass.WORKER_SLOW: (Action.RECUT, Action.REPORT)})
    space = Space(pipelines=(2,), tensors=(1,), datas=(1,), zeros=(0,), copies=(0,))
    s = running(auto_job(policies=chosen, space=space))
    number = s.workers[0].split("/")[1]
    for _ in range(2 * 4000 // 500 + 2):
        observe(s, **{number: {"micro_batch_ms": 200}})
        s.now += 500
    assert s.state.change is not None
    s.depart()
    assert f"j/{number}" in s.workers
    assert s.state.steps_lost == 0


def test_a_restarted_supervisor_asks_again_who_had_not_answered() -> None:
    s = Story(auto_job(), graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 4)))
    s.hello_all()
    measured(s, spares(s)[0])
    s.tell(ev.SupervisorRestarted(s.now))
    out: list[Command] = []
    for w in spares(s):
        out += s.hello(w)
    asked = only(MeasureWorker, out)
    assert {a.worker_id for a in asked} == set(spares(s)[1:])
    assert {a.number for a in asked} == {2}
    measured(s, spares(s)[1])  # what it answered to the first question, as it says again after the hello
    measured(s, spares(s)[1], slow={spares(s)[1]: 1.1})
    out = measured(s, *spares(s)[2:])
    assert only(RunEpoch, out)


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_person_who_scales_the_job_fixes_it(nodes: int) -> None:
    s = running(auto_job(space=Space(zeros=(0, 1))))
    s.tell(ev.ScaleRequested(s.now, nodes, (), "somebody"))
    assert not s.state.planned
    s.depart()
    assert s.plan.size == nodes


def test_a_plan_with_copies_spans_two_nodes() -> None:
    space = Space(datas=(2,), pipelines=(1,), tensors=(1,), zeros=(1,), copies=(1,))
    job = auto_job(space=space, nodes=2, slots=2, data=4)
    s = Story(job, graph=DEEP, costs=COSTS)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 2, slots=2)))
    s.hello_all()
    measured(s, *spares(s))
    assert s.plan.copies == 1
    assert len({seat.node_id for seat in s.plan.seats}) == 2


@pytest.mark.parametrize(("copies", "nodes"), [(0, 1), (1, 2)])
def test_the_state_is_not_on_one_node_alone_where_it_is_wanted_twice(copies: int, nodes: int) -> None:
    heavy = jobs.make_costs(DEEP, bandwidth=1e12)  # so much goes from rank to rank that one alone is fastest
    job = auto_job(space=Space(pipelines=(1, 2), datas=(1,), tensors=(1,), zeros=(0,), copies=(copies,)))
    s = Story(job, graph=DEEP, costs=heavy)
    s.tell(ev.ClusterChanged(s.now, cluster(1, 4)))
    s.hello_all()
    for w in spares(s):
        s.tell(ev.WorkerMeasured(s.now, w, jobs.make_measure(), heavy))
    assert len({seat.node_id for seat in s.plan.seats}) == nodes
    assert s.plan.copies == copies
