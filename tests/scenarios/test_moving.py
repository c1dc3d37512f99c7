"""Ranks move off drained nodes, off slow workers and off those that somebody wants replaced, and nothing is lost on the way."""

from __future__ import annotations

import pytest

from orchestrator.core.job import Action, FailureClass, FailurePolicy
from orchestrator.core.plan.layout import merge
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import OPTIMIZER
from orchestrator.core.reshard.recovery import Source
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, ExitWorker, LeaveEpoch, RunEpoch, SpawnWorker
from orchestrator.core.supervisor.state import ChangeKind, JobPhase, Outcome, WorkerPhase
from orchestrator.spec.policies import policies
from tests.scenarios.story import DEEP, WAIT, Story, cluster, observe, only, running


def drain(s: Story, node: str, why: str = "") -> list[Command]:
    """Somebody drains a node."""
    return s.tell(ev.DrainRequested(s.now, node, "me", why))


def settle(s: Story) -> list[ChangeKind]:
    """Carry planned changes out until there is none any more; their kinds."""
    kinds: list[ChangeKind] = []
    for _ in range(20):
        if s.state.change is None:
            return kinds
        kinds.append(s.state.change.kind)
        s.depart()
        assert s.state.resume is not None
        assert (s.state.resume.source, s.state.steps_lost) == (Source.MEMORY, 0)
        assert lint(s.plan) == ()
        s.ready()
    raise AssertionError(f"no end of changes: {kinds}")


def test_a_drain_moves_the_rank_to_a_spare_and_costs_no_budget() -> None:
    s = running(at=3)
    assert len(only(LeaveEpoch, drain(s, "n1", "spot reclaim in 120 s"))) == 4
    assert "says me (spot reclaim in 120 s)" in s.said[-1]
    out = s.depart()
    assert "j/w1" not in [r.worker_id for r in only(RunEpoch, out)]
    assert [c.worker_id for c in only(ExitWorker, out + s.ready())] == ["j/w1"]
    assert (s.state.budget, s.state.workers["j/w1"].phase) == (3, WorkerPhase.ENDED)
    assert s.state.recoveries[-1].failure is FailureClass.PLANNED
    assert not s.state.change


def test_a_drain_without_a_spare_waits_for_the_one_that_is_coming() -> None:
    s = running(at=3, spares=0)
    out = drain(s, "n1")
    assert len(only(SpawnWorker, out)) == 1
    assert s.state.change is None
    assert len(only(LeaveEpoch, s.hello_all())) == 4
    assert settle(s) == [ChangeKind.MOVE]
    assert "n1" not in {x.node_id for x in s.plan.seats}


def test_a_drain_without_any_spare_shrinks_away_from_the_node() -> None:
    s = running(at=3, spares=0, more_nodes=0)
    assert drain(s, "n1")
    assert settle(s) == [ChangeKind.MOVE]
    assert [x.node_id for x in s.plan.seats] == ["n0", "n2", "n3"]


def test_a_drain_waits_for_a_spare_when_the_policy_does_not_shrink() -> None:
    s = running(at=3, spares=0, more_nodes=0, policies=WAIT)
    assert not drain(s, "n1")
    assert not s.train(8)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 5)))
    assert len(only(LeaveEpoch, s.hello_all())) == 4


def test_what_only_the_drained_rank_holds_is_handed_over_first() -> None:
    s = running(at=3, copies=0)
    drain(s, "n1")
    assert s.state.change is not None
    assert s.state.change.kind is ChangeKind.HANDOVER
    s.depart()
    assert s.workers == ["j/w0", "j/w1", "j/w2", "j/w3"], "it still trains"
    mine = s.plan.layout(OPTIMIZER).holdings[1].primary
    others = [i for r, h in enumerate(s.plan.layout(OPTIMIZER).holdings) if r != 1 for i in h.extra]
    assert merge(others) == mine
    s.ready()
    assert settle(s) == [ChangeKind.MOVE]
    assert s.workers == ["j/w0", "j/w4", "j/w2", "j/w3"]


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_the_only_rank_of_a_job_can_be_drained_too(zero: int) -> None:
    s = running(at=3, data=1, nodes=1, zero=zero)
    drain(s, "n0")
    assert settle(s) == [ChangeKind.HANDOVER, ChangeKind.MOVE]
    assert [x.node_id for x in s.plan.seats] == ["n1"]
    assert s.state.workers["j/w0"].phase is WorkerPhase.ENDED


def test_the_only_rank_of_a_job_stays_where_it_is_without_a_spare() -> None:
    s = running(at=3, data=1, nodes=1, spares=0, more_nodes=0)
    assert not drain(s, "n0")
    assert s.state.phase is JobPhase.RUNNING


@pytest.mark.parametrize("copies", [0, 1])
def test_both_holders_of_a_shard_are_drained(copies: int) -> None:
    s = running(at=3, spares=2, copies=copies, more_nodes=4)
    drain(s, "n1")
    drain(s, "n2")
    s.hello_all()
    kinds = settle(s)
    assert not {"n1", "n2"} & {x.node_id for x in s.plan.seats}, kinds


def test_every_node_of_a_job_is_drained_one_rank_stays_until_the_others_have_moved() -> None:
    s = running(at=3, data=2, nodes=2, spares=2, more_nodes=2, copies=0)
    drain(s, "n0")
    drain(s, "n1")
    s.hello_all()
    assert settle(s)[-1] is ChangeKind.MOVE
    assert {x.node_id for x in s.plan.seats} == {"n2", "n3"}


def test_a_stage_of_a_pipeline_that_nobody_else_holds_is_handed_over() -> None:
    s = running(at=3, data=1, pipeline=2, nodes=2, zero=0, graph=DEEP)
    drain(s, "n1")
    assert settle(s) == [ChangeKind.HANDOVER, ChangeKind.MOVE]
    assert {x.node_id for x in s.plan.seats} == {"n0", "n2"}


def test_a_rank_that_the_smaller_shape_has_no_place_for_hands_its_state_over_too() -> None:
    s = running(at=3, data=3, pipeline=2, nodes=6, spares=0, more_nodes=0, copies=0, graph=DEEP)
    drain(s, "n2")
    assert settle(s) == [ChangeKind.HANDOVER, ChangeKind.MOVE]
    assert s.plan.size == 4
    spares = [w for w in s.state.workers.values() if w.phase is WorkerPhase.SPARE]
    assert len(spares) == 1, "five are left, and 2 x 2 of them train"


def test_a_drained_rank_keeps_its_seat_when_its_spare_is_needed_elsewhere() -> None:
    s = running(at=3, nodes=4, policies=WAIT)
    s.gone("j/w2")
    s.tell(ev.ClusterChanged(s.now, cluster(2, 5, dead=(2,))))
    drain(s, "n1")
    runs = only(RunEpoch, s.leave_all(3))
    assert [r.worker_id for r in runs] == ["j/w0", "j/w1", "j/w4", "j/w3"], "no seat is left empty for a drain"


def test_a_drain_goes_to_a_spare_on_another_node_than_the_copys_if_it_can() -> None:
    s = running(data=2, nodes=2, spares=1, slots=2, more_nodes=0, policies=WAIT)
    s.hello_all()
    assert [w.node_id for w in s.state.workers.values() if w.phase is WorkerPhase.SPARE] == ["n0"]
    assert not drain(s, "n1"), "with both ranks on n0 there would be no copy elsewhere"
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(s.now, cluster(2, 3, slots=2))))
    assert [c.node_id for c in asked] == ["n2"]
    assert len(only(LeaveEpoch, s.hello(asked[0].worker_id))) == 2
    settle(s)
    assert [x.node_id for x in s.plan.seats] == ["n0", "n2"]


def test_a_drained_spare_just_ends_and_a_strange_node_is_nothing_to_do() -> None:
    s = running(at=3)
    assert [c.worker_id for c in only(ExitWorker, drain(s, "n4"))] == ["j/w4"]
    for node in ("n4", "n77"):
        before = s.state
        assert not drain(s, node)
        assert s.state == before
        assert "nothing to do" in s.said[-1]


def test_a_worker_dies_while_its_state_is_handed_over() -> None:
    s = running(at=3, copies=0)
    drain(s, "n1")
    s.depart()
    assert s.state.phase is JobPhase.FORMING
    s.ready()
    s.commit(5)
    s.gone("j/w1")
    s.leave_all(5)
    assert s.state.resume is not None
    assert (s.state.resume.source, s.state.resume.step) == (Source.MEMORY, 5), "what was handed over is enough"


# ---- replace


def test_a_replacement_waits_for_a_spare_and_then_moves_the_rank() -> None:
    s = running(at=3, spares=0, more_nodes=0)
    assert not s.tell(ev.ReplaceRequested(s.now, "j/w2", "me"))
    assert "moves as soon as a spare is ready" in s.said[-1]
    s.tell(ev.ClusterChanged(s.now, cluster(2, 5)))
    assert len(only(LeaveEpoch, s.hello_all())) == 4
    s.depart()
    assert s.workers == ["j/w0", "j/w1", "j/w4", "j/w3"]
    s.ready()
    assert "me asked for its replacement" in s.state.workers["j/w2"].cause


def test_a_spare_is_replaced_at_once_and_a_dead_worker_not_at_all() -> None:
    s = running(at=3)
    out = s.tell(ev.ReplaceRequested(s.now, "j/w4", "me"))
    assert (len(only(ExitWorker, out)), len(only(SpawnWorker, out))) == (1, 1)
    assert not s.tell(ev.ReplaceRequested(s.now, "j/w4", "me"))
    assert "no such worker" in s.said[-1]


# ---- slow workers


def slow_for(s: Story, ms: int, *, worker: str = "w1", pace: int = 500) -> list[Command]:
    """One worker is slow at every tick of that time; the commands of the last tick."""
    out: list[Command] = []
    for _ in range(ms // 1000 + 1):
        out = observe(s, **{worker: {"micro_batch_ms": pace}})
        s.now += 1000
    return out


def of_slow(*actions: Action) -> tuple[FailurePolicy, ...]:
    return policies({FailureClass.WORKER_SLOW: actions})


def test_slow_is_shown_at_once_confirmed_later_and_reported_once() -> None:
    s = running()
    slow_for(s, 0)
    assert "is slow, worker-slow: 500 ms per micro-batch, its peers 50 ms" in s.said[-1]
    slow_for(s, 20_000)
    assert [x for x in s.said if "has been slow for 8 s, the policy for worker-slow: report" in x]
    assert len([x for x in s.said if "has been slow" in x]) == 1
    observe(s)
    assert "no longer slow" in s.said[-1]
    assert s.state.change is None


def test_slow_with_breaks_is_never_confirmed() -> None:
    s = running(policies=of_slow(Action.SWAP, Action.REPORT))
    for _ in range(5):
        slow_for(s, 6_000)
        observe(s)
    assert s.state.change is None
    assert not [x for x in s.said if "has been slow" in x]


def test_a_slow_worker_gives_its_rank_to_a_spare() -> None:
    s = running(policies=of_slow(Action.SWAP, Action.REPORT))
    assert not only(LeaveEpoch, slow_for(s, 7_000))
    assert len(only(LeaveEpoch, slow_for(s, 0))) == 4
    assert settle(s) == [ChangeKind.MOVE]
    assert s.workers == ["j/w0", "j/w4", "j/w2", "j/w3"]
    assert "it is slow, 500 ms per micro-batch" in s.state.workers["j/w1"].cause
    assert s.state.budget == 3


def test_without_a_spare_the_next_action_counts_and_a_later_spare_is_taken() -> None:
    s = running(policies=of_slow(Action.SWAP, Action.REPORT), more_nodes=0)
    slow_for(s, 10_000)
    assert s.state.change is None
    assert "the policy for worker-slow: report" in " ".join(s.said)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 5)))
    s.hello_all()
    assert len(only(LeaveEpoch, slow_for(s, 0))) == 4
    assert "the policy for worker-slow: swap" in s.said[-1]


def test_slow_may_mean_fewer_ranks_or_the_end() -> None:
    s = running(policies=of_slow(Action.SWAP, Action.SHRINK), spares=0, more_nodes=0)
    slow_for(s, 8_000)
    settle(s)
    assert s.workers == ["j/w0", "j/w2", "j/w3"]
    s = running(policies=of_slow(Action.FAIL))
    slow_for(s, 8_000)
    assert (s.state.phase, s.state.outcome) == (JobPhase.FAILED, Outcome.UNRECOVERABLE)
    assert "has been slow for 8 s, the policy for worker-slow: fail" in s.state.last_word


def test_layers_move_away_from_a_slow_rank_and_come_back_when_it_recovers() -> None:
    s = running(data=1, pipeline=2, nodes=2, zero=0, spares=0, more_nodes=0, graph=DEEP, policies=of_slow(Action.RECUT))
    slow_for(s, 8_000, pace=150)
    assert s.state.change is not None
    assert (s.state.change.kind, s.state.change.layers_per_stage) == (ChangeKind.RECUT, (3, 1))
    assert "2-2 becomes 3-1" in s.state.change.why
    settle(s)
    assert [st.last - st.first for st in s.plan.stages] == [3, 1]
    slow = {"w0": {"micro_batch_ms": 75}, "w1": {"micro_batch_ms": 75}}  # balanced, so each layer of w1 is still slow
    for _ in range(20):
        s.commit(s.state.committed_step + 1)
        observe(s, **slow)
        s.now += 1000
        if s.state.committed_step > 17:
            break
    assert s.state.change is None, "the cut is as good as can be"
    even = {"w0": {"micro_batch_ms": 75}, "w1": {"micro_batch_ms": 25}}
    observe(s, **even)
    assert s.state.change is not None
    assert s.state.change.layers_per_stage == (2, 2)
    settle(s)
    assert ([st.last - st.first for st in s.plan.stages], s.state.recut) == ([2, 2], ())
