"""When chaos is handed in, and how a status is followed through a supervisor's restart."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.apps.cli.faults import Schedule
from orchestrator.apps.cli.follow import Follower
from orchestrator.core.supervisor.events import Fault
from orchestrator.core.supervisor.state import JobPhase, Outcome, WorkerPhase
from orchestrator.runtime.control import NotFoundError, UnreachableError
from orchestrator.runtime.status_types import JobStatus
from tests.unit.apps.world import FakeClient, ended, plain_status, running_status, statuses

FAULT = Fault("kill-worker", 1, "", 10, 1, 0)


def at(step: int, *, phase: JobPhase = JobPhase.RUNNING, worker: str = "") -> JobStatus:
    """The running job at a step, with rank 1 held by a certain worker."""
    status = running_status()
    workers = tuple(replace(w, worker_id=worker or w.worker_id) if w.rank == 1 else w for w in status.workers)
    return replace(status, step=step, phase=phase, workers=workers)


def test_a_fault_is_handed_in_once() -> None:
    schedule = Schedule([FAULT])
    assert schedule.due(at(1)) == ([FAULT], [])
    assert schedule.due(at(2)) == ([], [])
    assert schedule.due(at(10)) == ([], [])


def test_it_waits_until_somebody_holds_the_rank() -> None:
    schedule = Schedule([FAULT])
    nobody = replace(at(1), workers=())
    assert schedule.due(nobody) == ([], [])
    assert schedule.due(at(1, phase=JobPhase.FENCING)) == ([], [])
    left = replace(at(1), workers=tuple(replace(w, phase=WorkerPhase.LEFT) for w in at(1).workers))
    assert schedule.due(left) == ([], [])
    assert schedule.due(at(1, phase=JobPhase.FORMING)) == ([FAULT], [])


def test_it_follows_its_rank_to_another_worker() -> None:
    schedule = Schedule([FAULT])
    schedule.due(at(1, worker="j/w1"))
    assert schedule.due(at(5, worker="j/w5")) == ([FAULT], [])


def test_it_never_strikes_twice() -> None:
    schedule = Schedule([FAULT])
    schedule.due(at(1, worker="j/w1"))
    assert schedule.due(at(9, worker="j/w5")) == ([], [])  # it killed w1 in step 10, which is done again now
    assert schedule.due(at(9, worker="j/w6")) == ([], [])


def test_one_that_is_too_late_is_told() -> None:
    give, late = Schedule([FAULT]).due(at(10))
    assert give == []
    assert "step was over" in late[0]


def follow(client: FakeClient, *, tries: int = 3, reconnect: FakeClient | None = None) -> Follower:
    """A follower that has come to its end."""
    follower = Follower(
        client,  # type: ignore[arg-type]
        "j",
        reconnect=lambda: reconnect or client,  # type: ignore[arg-type, return-value]
        tries_max=tries,
        pause_s=0.0,
    ).start()
    assert follower.wait(after=10**9, timeout_s=30)
    assert follower.over
    return follower


def test_following_ends_with_the_job() -> None:
    follower = follow(FakeClient(statuses(running_status(), ended(Outcome.COMPLETED))))
    assert follower.newest == ended(Outcome.COMPLETED)
    assert (follower.version, follower.error) == (2, None)


def test_how_large_a_worker_grew_is_kept_by_epoch_and_only_while_it_trained() -> None:
    def at(rss: int, *, epoch: int = 1, phase: JobPhase = JobPhase.RUNNING) -> JobStatus:
        return plain_status(on=("n0",), spares=(), epoch=epoch, phase=phase, rss=rss)

    follower = follow(
        FakeClient(
            statuses(at(5), at(9), at(99, phase=JobPhase.FORMING), at(7), at(3, epoch=2), ended(Outcome.COMPLETED)),
        )
    )
    assert follower.peak_rss_bytes == {1: {"j/w0": 9}, 2: {"j/w0": 3}}


def test_following_goes_on_at_the_new_address() -> None:
    new = FakeClient(statuses(ended(Outcome.COMPLETED)))
    follower = follow(FakeClient(fails=UnreachableError("gone")), reconnect=new)
    assert follower.newest == ended(Outcome.COMPLETED)
    assert follower.client is new  # type: ignore[comparison-overlap]
    assert follower.trouble == ""


def test_following_gives_up_after_its_tries() -> None:
    follower = follow(FakeClient(fails=UnreachableError("gone")), tries=4)
    assert isinstance(follower.error, UnreachableError)
    assert follower.newest is None


def test_other_errors_end_it_at_once() -> None:
    follower = follow(FakeClient(fails=NotFoundError("no such job")))
    assert isinstance(follower.error, NotFoundError)


def test_a_supervisor_that_says_it_stopped_is_an_end() -> None:
    ill = replace(running_status(), last_word="the journal cannot be written")
    follower = follow(FakeClient(statuses(ill)))
    assert follower.newest == ill
    assert follower.error is None
