"""Rising error counts: a node that loses one worker after another is emptied, when the job can do without it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.state import ChangeKind, State, WorkerPhase
from tests.scenarios.story import Story, cluster, observe, running

WHY = "3 workers were lost on it within 5 steps: rising error counts"


def on(s: Story, node: str) -> list[str]:
    """The workers that live there."""
    return [w.worker_id for w in s.state.workers.values() if w.node_id == node and w.phase.alive]


def lose_spare(s: Story, node: str, times: int = 1) -> None:
    """The only worker of a node, which has no rank, comes up and dies, so many times."""
    for _ in range(times):
        s.hello_all()
        (victim,) = on(s, node)
        assert s.state.workers[victim].phase is WorkerPhase.SPARE
        s.gone(victim)
        s.now += 100_000  # whatever pause there is before the next one is asked for
        observe(s)


def marks(s: Story) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The nodes that are drained, and those that are failing."""
    return s.state.drained, s.state.failing


def told(s: Story) -> int:
    """How often the rule spoke of rising error counts."""
    return sum(WHY in words for words in s.said)


def with_loss(state: State, node: str, number: int) -> State:
    """As if one worker more had been lost there, at the present step."""
    some = next(w for w in state.workers.values() if w.node_id == node)
    lost = replace(some, worker_id=f"j/w{number}", phase=WorkerPhase.LOST, fault_step=state.committed_step)
    return replace(state, workers={**state.workers, lost.worker_id: lost})


def test_the_third_loss_within_the_window_drains_the_node() -> None:
    s = running(at=3, nodes=4, more_nodes=1)
    s.gone("j/w1")
    s.leave_all(3)
    s.ready()
    s.now += 100_000
    observe(s)
    lose_spare(s, "n1")
    assert marks(s) == ((), ())
    lose_spare(s, "n1")
    assert marks(s) == (("n1",), ("n1",))
    assert f"node n1 is to be drained ({WHY})" in "; ".join(s.said)
    s.hello_all()
    assert on(s, "n1") == [], "nothing new starts there"
    assert told(s) == 1


def test_a_rank_on_a_failing_node_moves_away_and_nothing_is_lost() -> None:
    s = running(at=3, data=2, nodes=2, slots=2, spares=1, more_nodes=1, budget=9)
    rank = next(x.rank for x in s.plan.seats if x.node_id == "n1")
    for n in range(3):
        s.state = with_loss(s.state, "n1", 90 + n)
    s.commit(4)
    assert s.state.drained == ("n1",)
    s.hello_all()
    assert s.state.change is not None
    assert s.state.change.kind is ChangeKind.MOVE
    s.depart()
    s.ready()
    assert s.plan.seats[rank].node_id != "n1"
    assert (s.state.budget, s.state.steps_lost) == (9, 0)


def test_losses_that_are_far_apart_drain_nothing() -> None:
    s = running(at=3, nodes=4, more_nodes=1)
    lose_spare(s, "n4", 2)
    s.train(8)
    lose_spare(s, "n4", 2)
    assert (s.state.drained, s.state.failing) == ((), ())
    lose_spare(s, "n4")
    assert s.state.drained == ("n4",)


@pytest.mark.parametrize("kind", ["hang", "unreachable", "never up"])
def test_which_losses_count(kind: str) -> None:
    s = running(at=3, nodes=4, more_nodes=1)
    for _ in range(3):
        if kind != "never up":
            s.hello_all()
        (victim,) = on(s, "n4")
        if kind == "unreachable":
            s.tell(ev.WorkerDisconnected(s.now, victim, "EOF"))
        if kind == "never up":
            s.gone(victim)
        else:
            observe(s, **{victim.split("/")[1]: {"silence_ms": 3500}})
        s.now += 100_000
        observe(s)
    assert s.state.drained == (("n4",) if kind == "hang" else ())


def test_a_node_that_cannot_be_spared_is_only_spoken_of_once_until_another_one_joins() -> None:
    s = running(at=3, data=2, nodes=2, slots=2, spares=1, more_nodes=0)
    node = next(w.node_id for w in s.state.workers.values() if w.phase is WorkerPhase.SPARE)
    for n in range(4):
        s.state = with_loss(s.state, node, 90 + n)
        s.commit(4 + n)
    assert (s.state.drained, s.state.failing, told(s)) == ((), (node,), 1)
    assert "the other nodes have no room for the ranks" in "; ".join(s.said)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 3, slots=2)))
    assert s.state.drained == (node,)


def test_the_only_node_is_never_drained() -> None:
    s = running(at=3, data=2, nodes=1, slots=4, spares=1, more_nodes=0, copies=0)
    for n in range(5):
        s.state = with_loss(s.state, "n0", 90 + n)
        s.commit(4 + n)
    assert (s.state.drained, told(s)) == ((), 1)
    s.train(14)
    assert s.state.failing == ()
    assert "node n0 is well" in "; ".join(s.said)


def test_a_failing_node_is_used_again_when_the_others_have_no_room_any_more() -> None:
    s = running(at=3, nodes=4, more_nodes=1)
    lose_spare(s, "n4", 3)
    assert marks(s) == (("n4",), ("n4",))
    s.tell(ev.ClusterChanged(s.now, cluster(2, 5, dead=(2,))))
    assert marks(s) == ((), ("n4",))
    assert f"node n4 is used again though {WHY}" in "; ".join(s.said)
    assert on(s, "n4"), "better than to wait for ever"
    s.tell(ev.ClusterChanged(s.now, cluster(3, 5)))
    assert marks(s) == (("n4",), ("n4",))


def test_a_node_that_somebody_drains_as_well_stays_drained() -> None:
    s = running(at=3, nodes=4, more_nodes=1)
    lose_spare(s, "n4", 3)
    s.tell(ev.DrainRequested(s.now, "n4", "ray", "Ray drains it, deadline in 90 s"))
    assert "stays so, says ray" in s.said[-1]
    s.tell(ev.ClusterChanged(s.now, cluster(2, 5, dead=(2,))))
    assert (s.state.drained, on(s, "n4")) == (("n4",), [])


def test_a_failing_node_that_is_gone_is_forgotten() -> None:
    s = running(at=3, nodes=4, more_nodes=1)
    lose_spare(s, "n4", 3)
    s.tell(ev.ClusterChanged(s.now, cluster(2, 4)))
    assert (s.state.drained, s.state.failing) == ((), ())
