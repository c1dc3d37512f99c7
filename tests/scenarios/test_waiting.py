"""Policy `wait`: no spare, so the job stands still, visibly, until one comes."""

from __future__ import annotations

from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import (
    RunEpoch,
    SpawnWorker,
)
from orchestrator.core.supervisor.state import JobPhase
from tests.scenarios.story import WAIT, cluster, only, running


def test_no_spare_waits_visibly_and_goes_on_when_one_comes() -> None:
    s = running(spares=0, policies=WAIT)
    s.tell(ev.WorkerGone(s.now, "j/w3", "refused"))
    assert not only(RunEpoch, s.leave_all(3))
    assert s.state.phase is JobPhase.WAITING
    assert "1 spare(s) are missing" in s.said[-1]
    new = max(s.state.workers, key=lambda w: int(w.split("/w")[1]))
    assert only(RunEpoch, s.hello(new))


def test_workers_on_one_node_only_ask_for_one_elsewhere_when_copies_need_it() -> None:
    s = running(data=2, nodes=2, spares=0, slots=2, policies=WAIT)
    assert {seat.node_id for seat in s.plan.seats} == {"n0", "n1"}
    s.tell(ev.ClusterChanged(s.now, cluster(2, 2, dead=(1,), slots=2)))
    assert not s.hello_all(), "its replacement sits beside the survivor"
    s.leave_all(3)
    assert not s.hello_all()
    assert s.state.phase is JobPhase.WAITING
    asked = only(SpawnWorker, s.tell(ev.ClusterChanged(s.now, cluster(3, 3, dead=(1,), slots=2))))
    assert [c.node_id for c in asked] == ["n2"]
    assert len(s.hello_all()) == 2
    assert s.plan.seats[1].node_id == "n2"
