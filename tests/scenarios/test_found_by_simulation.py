"""What the simulator found: each was a seed of `make sim` once."""

from __future__ import annotations

from orchestrator.core.job import Action
from orchestrator.core.plan.plan import PIPELINE
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.spec.policies import LOSSES, policies
from tests.scenarios.story import DEEP, Story, commit_of, make_job, only, running

WAIT_ONLY = policies(dict.fromkeys(LOSSES, (Action.WAIT,)))


def test_waiting_ends_when_a_spare_is_there_also_when_the_policy_does_not_say_swap() -> None:
    s = running(spares=0, policies=WAIT_ONLY)
    s.gone("j/w3")
    assert not only(RunEpoch, s.leave_all(3))
    assert s.state.phase == JobPhase.WAITING
    s.hello_all()
    assert [r.phase for r in [s.state]] == [JobPhase.FORMING]
    assert s.plan.size == 4


def test_a_job_that_was_scaled_down_does_not_wait_for_workers_that_nobody_asks_for() -> None:
    s = running(spares=0, more_nodes=0, policies=WAIT_ONLY)
    s.tell(ev.ScaleRequested(s.now, 2, (), "me"))
    s.gone("j/w3")
    runs = only(RunEpoch, s.leave_all(3))
    assert len(runs) == s.plan.size == 2, "full strength is two ranks, and three workers are there"


def test_a_job_that_is_scaled_to_one_rank_before_it_began_does_not_wait_for_a_peer() -> None:
    s = Story(make_job(spares=0))
    s.tell(ev.ScaleRequested(s.now, 1, (), "me"))
    assert len(s.launch(1)) == 1
    assert s.plan.copies == 0


def test_a_commit_that_only_a_survivor_without_a_seat_knows_of_counts() -> None:
    s = running(at=5, data=2, pipeline=2, spares=0, more_nodes=0, graph=DEEP)
    first, *_, last = s.workers
    s.gone(last)
    for rank in (0, 2):
        s.leave(s.workers[rank], s.held(rank, at=5, prepared=True, commit=commit_of(5)))
    s.leave(s.workers[1], s.held(1, at=6, commit=commit_of(6)))
    assert s.plan.axis(PIPELINE) == s.plan.size == 2
    assert "j/w1" not in s.workers
    assert first in s.workers
    assert s.state.resume is not None
    assert (s.state.resume.step, s.state.resume.commit) == (6, commit_of(6))
