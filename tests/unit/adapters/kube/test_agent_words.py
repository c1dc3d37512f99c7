"""The status and the Events that the agent writes, as tables: which phase, which conditions, which word for which decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.adapters.kube.recorder import event_of, is_warning, reason_of
from orchestrator.adapters.kube.status import Scaling, job_fields, last_told, parked, phase_of
from orchestrator.adapters.kube.status import reason_of as status_reason
from orchestrator.apps.operator.status import POD_SETTINGS
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import Command, EndJob, FenceEpoch, KillWorker
from orchestrator.core.supervisor.state import ChangeKind, CheckpointRef, JobPhase, Outcome, WorkerPhase
from orchestrator.runtime.ports import Record
from orchestrator.runtime.status_types import ChangeStatus, DecisionStatus, JobStatus, NodeStatus, PlanStatus
from tests.unit.apps.world import plain_status

PLAN = PlanStatus(epoch=1, mesh=(), ranks=2, zero_stage=1, copies=1, micro_batches=8, layers_per_stage=(4,), reason="first plan")
STATUS = plain_status(
    on=("n0",),
    spares=("n1",),
    step=42,
    steps=100,
    loss=2.5,
    eta_s=58.4,
    goodput=0.983,
    recoveries=1,
    nodes=(),
    decision=DecisionStatus(seq=9, wall_s=0.0, event="Tick", reason="all is well"),
    checkpoint=CheckpointRef(40, "/c/40", "d"),
    plan=PLAN,
    target=(),
)
WORKER = STATUS.workers[0]
WORDS = "x" * 9000
CHANGE = ChangeStatus(kind=ChangeKind.MOVE, why="drained")
ENDED = replace(WORKER, phase=WorkerPhase.ENDED)


@pytest.mark.parametrize(
    ("changes", "phase"),
    [
        ({}, "Running"),
        ({"phase": JobPhase.WAITING, "plan": None}, "Starting"),
        ({"phase": JobPhase.FORMING}, "Starting"),
        ({"phase": JobPhase.FENCING}, "Recovering"),
        ({"phase": JobPhase.FENCING, "change": CHANGE}, "Running"),
        ({"phase": JobPhase.WAITING}, "Recovering"),
        ({"phase": JobPhase.FORMING, "plan": replace(PLAN, epoch=2, reason="epoch 1 broke: rank 1 to j/w4")}, "Recovering"),
        ({"phase": JobPhase.FORMING, "plan": replace(PLAN, epoch=2, reason="move: rank 1 moved")}, "Running"),
        ({"suspended": "me"}, "Suspending"),
        ({"phase": JobPhase.SUCCEEDED, "outcome": Outcome.COMPLETED}, "Succeeded"),
        ({"phase": JobPhase.FAILED, "outcome": Outcome.BUDGET_SPENT}, "Failed"),
        ({"phase": JobPhase.CANCELLED, "outcome": Outcome.CANCELLED, "suspended": "me"}, "Cancelled"),
    ],
)
def test_phases(changes: dict[str, Any], phase: str) -> None:
    assert phase_of(replace(STATUS, **changes)) == phase


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (Outcome.COMPLETED, "Completed"),
        (Outcome.USER_ERROR, "UserError"),
        (Outcome.BUDGET_SPENT, "BudgetSpent"),
        (Outcome.CORRUPT_STATE, "CorruptState"),
        (Outcome.UNRECOVERABLE, "Unrecoverable"),
    ],
)
def test_an_end_has_the_outcomes_word(outcome: Outcome, word: str) -> None:
    assert status_reason(replace(STATUS, phase=JobPhase.FAILED, outcome=outcome)) == word


def fields(status: JobStatus = STATUS, **more: Any) -> dict[str, Any]:
    """`.status` of it."""
    given: dict[str, Any] = {"decision": (9, "all is well"), "digest": "", "generation": 3, "before": ()}
    return job_fields(status, **{**given, "now": "NOW", "pods": {}, **more})


def test_the_fields_are_those_of_the_crd() -> None:
    made = fields()
    del made["conditions"]
    assert made == {
        "phase": "Running",
        "reason": "Running",
        "message": "all is well",
        "step": 42,
        "steps": 100,
        "progress": "42%",
        "loss": 2.5,
        "etaSeconds": 58,
        "goodput": "0.98",
        "recoveries": 1,
        "failures": 0,
        "stepsLost": 0,
        "epoch": 1,
        "ranks": 2,
        "spares": 1,
        "seats": ["?", "?"],
        "checkpoint": 40,
        "lastDecision": "#9 all is well",
    }
    assert last_told(made) == (9, "all is well")
    assert last_told({}) == (0, "")


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_json_cannot_hold_is_left_out(loss: float) -> None:
    assert "loss" not in fields(replace(STATUS, loss=loss))


def test_each_rank_has_the_pod_that_has_its_nodes_address() -> None:
    node = NodeStatus(node_id="n0", address="10.0.0.7", slots=1, healthy=True, schedulable=True, workers=1)
    seated = replace(STATUS, nodes=(node,), workers=(replace(WORKER, rank=1),))
    assert fields(seated, pods={"10.0.0.7": "j-worker-0-1"})["seats"] == ["?", "j-worker-0-1"]
    assert "seats" not in fields(replace(seated, phase=JobPhase.SUCCEEDED, outcome=Outcome.COMPLETED))
    assert "seats" not in fields(replace(seated, plan=replace(PLAN, ranks=5_000)))


def test_a_scale_that_is_refused_is_a_condition_until_the_job_is_over() -> None:
    refused = Scaling(nodes=2, refused=9, why="scale refused: why")
    made = fields(scaling=refused)
    assert (made["nodes"], made["nodesRefused"]) == (2, 9)
    (said,) = [c for c in made["conditions"] if c["type"] == "Scaled"]
    assert (said["status"], said["reason"], said["observedGeneration"]) == ("False", "Refused", 3)
    assert said["message"] == "scale refused: why; the job goes on as before; fix: ask for another number of nodes"
    over = replace(STATUS, phase=JobPhase.SUCCEEDED, outcome=Outcome.COMPLETED)
    for without in (fields(), fields(scaling=Scaling(nodes=2)), fields(over, scaling=refused)):
        assert "Scaled" not in {c["type"] for c in without["conditions"]}


def test_the_crd_knows_every_field_that_is_written() -> None:
    import yaml

    from tests.world.jobs import ROOT

    crd = yaml.safe_load((ROOT / "manifests" / "crd" / "trainingjobs.yaml").read_text())
    known = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert {*fields(digest="d", scaling=Scaling(nodes=2, refused=9)), "lastReport", "submitted", POD_SETTINGS} <= known.keys()


def test_conditions_keep_the_time_of_their_last_change() -> None:
    first = fields(now="T1")["conditions"]
    again = fields(now="T2", before=first)["conditions"]
    assert [c["lastTransitionTime"] for c in again] == ["T1", "T1"]
    broken = fields(replace(STATUS, phase=JobPhase.WAITING), now="T3", before=again)["conditions"]
    assert {c["type"]: (c["status"], c["lastTransitionTime"]) for c in broken} == {
        "Training": ("False", "T3"),
        "Degraded": ("True", "T3"),
    }
    assert {c["observedGeneration"] for c in first} == {3}


@pytest.mark.parametrize(
    ("changes", "degraded"),
    [
        ({}, False),
        ({"shrunk": True}, True),
        ({"workers": (replace(WORKER, suspect="silent for 2000 ms"),)}, True),
        ({"workers": (replace(ENDED, suspect="silent"),)}, False),
        ({"phase": JobPhase.SUCCEEDED, "outcome": Outcome.COMPLETED, "shrunk": True}, False),
    ],
)
def test_degraded(changes: dict[str, Any], degraded: bool) -> None:
    made = {c["type"]: c["status"] for c in fields(replace(STATUS, **changes))["conditions"]}
    assert made["Degraded"] == ("True" if degraded else "False")


def test_a_suspended_job_has_given_its_machines_back_only_when_no_worker_is_alive() -> None:
    asked = replace(STATUS, suspended="me")
    leaving = replace(asked, phase=JobPhase.WAITING)
    gone = replace(leaving, workers=(ENDED,))
    assert [parked(s) for s in (STATUS, asked, leaving, gone, replace(gone, suspended=""))] == [False, False, False, True, False]
    made = {c["type"]: c for c in fields(gone)["conditions"]}["Checkpointed"]
    assert (made["status"], made["reason"]) == ("True", "ParkedUnsaved")
    assert "2 step(s) are in no checkpoint" in made["message"]
    saved = replace(gone, checkpoint=CheckpointRef(gone.step, "/c/1", "d"))
    made = {c["type"]: c for c in fields(saved)["conditions"]}["Checkpointed"]
    assert (made["status"], made["reason"]) == ("True", "Parked")
    assert "Checkpointed" not in {c["type"] for c in fields()["conditions"]}


def test_a_failed_job_says_why() -> None:
    failed = replace(
        STATUS, phase=JobPhase.FAILED, outcome=Outcome.USER_ERROR, last_word="x" * 9000 + "\nValueError: no", eta_s=None
    )
    made = fields(failed, digest="")
    assert made["message"].endswith("ValueError: no")
    assert len(made["message"]) == 8000
    conditions = {c["type"]: c for c in made["conditions"]}
    assert (conditions["Failed"]["status"], conditions["Failed"]["reason"]) == ("True", "UserError")
    assert "etaSeconds" not in made


def record(event: ev.Event, *commands: Command, phase: str = "running", reason: str = "because") -> Record:
    """One decision."""
    return Record(
        seq=7, at_ms=1, wall_s=0.0, event=event, commands=commands, reason=reason, phase=phase, epoch=1, committed_step=1
    )


KILL = KillWorker("j/w0", "gone")


@pytest.mark.parametrize(
    ("made", "reason", "warning"),
    [
        (record(ev.Tick(1, ())), "Observed", False),
        (record(ev.Tick(1, ()), KILL), "WorkerLost", True),
        (record(ev.WorkerGone(1, "j/w0", "x"), KILL), "WorkerGone", True),
        (record(ev.NodeGone(1, "n0", "a", "x"), KILL), "NodeGone", True),
        (record(ev.DrainRequested(1, "n0", "a", "x")), "DrainRequested", False),
        (record(ev.SupervisorRestarted(1), KILL), "SupervisorRestarted", False),
        (record(ev.LeftEpoch(1, "j/w0", 1, False, None, "x")), "LeftEpoch", False),
        (record(ev.LeftEpoch(1, "j/w0", 1, False, None, "x"), FenceEpoch("j/w1", 1)), "LeftEpoch", True),
        (record(ev.CheckpointReported(1, "j/w0", 1, 5, "/c", False, "full")), "CheckpointReported", True),
        (record(ev.CheckpointReported(1, "j/w0", 1, 5, "/c", True, "d")), "CheckpointReported", False),
        (record(ev.RankFinished(1, "j/w0", 1, 5, "d"), EndJob("x"), phase="succeeded"), "JobSucceeded", False),
        (record(ev.TaskFailed(1, "j/w0", 1, 5, False, "x"), EndJob("x"), phase="failed"), "JobFailed", True),
    ],
)
def test_events(made: Record, reason: str, warning: bool) -> None:
    assert (reason_of(made), is_warning(made)) == (reason, warning)


def test_an_events_name_is_the_same_for_the_same_decision_and_another_for_another_object() -> None:
    about = {"apiVersion": "v", "kind": "TrainingJob", "metadata": {"name": "j", "namespace": "n", "uid": "0123456789"}}
    other = {**about, "metadata": {**about["metadata"], "uid": "9876543210"}}  # type: ignore[dict-item]
    made = event_of(record(ev.Tick(1, ())), about, pod="j-head-1")
    assert made["metadata"]["name"] == "j.01234567.000007"
    assert made["firstTimestamp"] == "1970-01-01T00:00:00Z"
    assert (made["reportingComponent"], made["reportingInstance"]) == ("orchestrator-agent", "j-head-1")
    assert event_of(record(ev.Tick(1, ())), other, pod="j-head-2")["metadata"]["name"] != made["metadata"]["name"]
