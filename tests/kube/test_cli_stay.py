"""`launch --wait`, `status -w`, `events -f` on a real API server: they end with the job, and outlive an absence of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.kube.agents import until
from tests.kube.cli import BARE, Place, at, lease_held
from tests.kube.control_plane import ControlPlane


@pytest.mark.parametrize(
    ("phase", "reason", "code"),
    [
        ("Succeeded", "Completed", 0),
        ("Failed", "UserError", 1),
        ("Failed", "InvalidSpec", 2),
        ("Failed", "BudgetSpent", 3),
        ("Failed", "DeadlineExceeded", 3),
        ("Cancelled", "Cancelled", 130),
    ],
)
def test_waiting_ends_with_the_code_of_run(place: Place, phase: str, reason: str, code: int) -> None:
    place.launched("gpt")
    place.operator_says("gpt")
    place.agent_says("gpt", phase="Running", step=1, steps=40)
    with place.started("launch", place.file("gpt"), "--wait", "--json") as waiting:
        waiting.until("step 1/40")
        place.agent_says("gpt", phase=phase, reason=reason, message="the last word", step=40, steps=40, digest="abc")
        assert waiting.end() == code
    told = json.loads(waiting.out)
    assert told["exit_code"] == code
    assert told["digest"] == "abc"
    assert (told["status"]["phase"], told["status"]["message"]) == (phase, "the last word")
    assert (told["why"] == "") == (code == 0)


def test_waiting_shows_state_steps_and_reasons_in_order(place: Place) -> None:
    slow = BARE + "resilience: {{detect_within: 10s}}\n"  # for half of this it waits for the last events
    with place.started("launch", place.file("gpt", text=slow), "--wait") as waiting:
        waiting.until("Pending")
        place.operator_says("gpt", phase="Pending", reason="Unschedulable", message="0/3 nodes are available", replicas=2)
        waiting.until("Pending (Unschedulable), 0 of 2 nodes ready: 0/3 nodes are available")
        place.operator_says("gpt", replicas=2, readyReplicas=2)
        place.agent_says("gpt", phase="Running", reason="Running", step=0, steps=40, epoch=1, ranks=2, spares=1)
        waiting.until("Running, step 0/40, 2 ranks + 1 spare")
        place.decided("gpt", 7, reason="WorkerGone", message="rank 1 is given to j/w2", at=at(1), warning=True)
        waiting.until("WARNING WorkerGone: rank 1 is given to j/w2")
        place.agent_says("gpt", phase="Recovering", reason="Forming", message="epoch 2 forms", step=4, steps=40, epoch=2)
        waiting.until("Recovering (Forming), step 4/40, 2 of 2 nodes ready: epoch 2 forms")
        place.agent_says("gpt", phase="Succeeded", reason="Completed", message="done", step=40, steps=40, digest="abc")
        place.decided("gpt", 9, reason="JobSucceeded", message="all steps are done", at=at(2))  # a moment after the end
        assert waiting.end() == 0
    assert "#9  " in waiting.talk
    assert "digest" in waiting.out


def test_an_api_server_that_is_away_is_outlived(place: Place) -> None:
    path = place.file("gpt")
    place.launched("gpt")
    with place.started("launch", path, "--wait") as waiting, place.started("events", "gpt", "-f") as events:
        waiting.until("Pending")
        place.operator_says("gpt")
        place.agent_says("gpt", phase="Running", step=1, steps=40)
        place.decided("gpt", 1, reason="JobSubmitted", message="taken", at=at(0))
        waiting.until("step 1/40")
        events.until("#1  ")
        place.plane.stop_api()
        try:
            waiting.until("trying again")
            events.until("trying again")
        finally:
            place.plane.start_api()
        waiting.until("the API server answers again")
        events.until("the API server answers again")
        place.decided("gpt", 2, reason="JobSucceeded", message="all steps are done", at=at(1))
        place.agent_says("gpt", phase="Succeeded", reason="Completed", step=40, steps=40)
        assert waiting.end() == 0
        assert events.end() == 0
    assert waiting.talk.count("trying again") == 1
    assert [line.split("  ")[0] for line in events.out.splitlines()] == ["#1", "#2"]


def test_ctrl_c_leaves_the_job_and_says_how_to_end_it(place: Place) -> None:
    with place.started("launch", place.file("gpt"), "--wait") as waiting:
        waiting.until("Pending")
        waiting.interrupt()
        assert waiting.end() == 130
    assert "not waiting any longer; the job goes on" in waiting.talk
    assert f"end it: orchestrator down gpt --on kubernetes -n {place.namespace}" in waiting.talk
    assert "deletionTimestamp" not in place.job("gpt")["metadata"]
    with place.started("events", "gpt", "-f") as events:
        until(lambda: events.running, bool, what="events -f runs")
        place.decided("gpt", 1, reason="JobSubmitted", message="taken", at=at(0))
        events.until("#1  ")
        events.interrupt()
        assert events.end() == 130
    assert "Traceback" not in events.talk + waiting.talk


def test_who_waits_is_told_that_no_operator_looks_and_that_a_job_was_deleted(place: Place) -> None:
    short = place.file("gpt").read_text() + "resilience: {detect_within: 1s}\n"
    path = place.folder / "short.yaml"
    path.write_text(short)
    with place.started("launch", path, "--wait") as waiting:
        waiting.until("the operator has not looked at it: no operator is installed")
        place.plane.kubectl("-n", place.namespace, "delete", "tj", "gpt")
        assert waiting.end() == 130
    assert "job gpt was deleted before it was over" in waiting.talk


def test_status_w_follows_in_lines_of_json(place: Place) -> None:
    place.launched("gpt")
    with place.started("status", "gpt", "-w", "--json") as watching:
        watching.until('"Pending"')
        place.agent_says("gpt", phase="Running", step=1, steps=40)
        watching.until('"Running"')
        place.agent_says("gpt", phase="Failed", reason="UserError", message="ValueError: no", step=1, steps=40)
        assert watching.end() == 1
    assert [json.loads(line)["phase"] for line in watching.out.splitlines()] == ["Pending", "Running", "Failed"]


def test_events_come_in_the_journals_order_beside_the_operators(place: Place) -> None:
    place.launched("gpt")
    place.operator_tells("gpt", reason="PodsMade", message="3 pods are asked for", at=at(0))
    place.decided("gpt", 3, reason="NodeGone", message="third", at=at(4), warning=True)
    place.decided("gpt", 12, reason="StepCommitted", message="fourth", at=at(3))  # its clock was behind
    place.decided("gpt", 2, reason="JobSubmitted", message="second", at=at(1))
    lines = place.cli("events", "gpt").stdout.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["-", "#2", "#3", "#12"]
    assert lines[0].endswith("PodsMade: 3 pods are asked for [orchestrator-operator]")
    assert "WARNING NodeGone: third" in lines[2]
    told = [json.loads(line) for line in place.cli("events", "gpt", "--json", "--after", "2").stdout.splitlines()]
    assert [(e["seq"], e["reason"]) for e in told] == [(3, "NodeGone"), (12, "StepCommitted")]
    place.plane.kubectl("-n", place.namespace, "delete", "tj", "gpt")
    left = place.cli("events", "gpt")
    assert left.exit_code == 0, left.output
    assert left.stdout.splitlines() == lines
    assert "is gone; what is left of its events" in left.stderr


def test_with_the_operator_itself_a_job_is_refused_suspended_and_deleted(place: Place, plane: ControlPlane) -> None:
    """No pod ever runs here, but all that operator and command line say to each other is real."""
    with lease_held(plane):  # makes the namespace
        pass
    env = {**os.environ, "KUBECONFIG": str(plane.kubeconfig), "POD_NAME": "operator-of-a-test"}
    said = (place.folder / "operator.log").open("wb")
    argv = [sys.executable, "-m", "orchestrator.apps.operator", "--namespace", place.namespace, "--healthz", "0"]
    operator = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        path = place.file("gpt")
        path.write_text(path.read_text() + "resilience: {detect_within: 1s}\n")
        place.launch(path)
        with place.started("launch", path, "--wait") as waiting:
            waiting.until("Pending (")
            told = {c["name"]: c for c in json.loads(place.cli("doctor", "--json").stdout)["checks"]}
            assert told["operator"]["value"].startswith("operator-of-a-test, lease renewed"), told
            done = place.started("suspend", "gpt", "--wait")
            with done:
                assert done.end() == 0, done.talk
            assert "job gpt is suspended; nothing of it runs" in done.talk
            waiting.until("Suspended")
            assert place.cli("resume", "gpt").exit_code == 0
            with place.started("down", "gpt", "--wait") as down:
                assert down.end() == 0, down.talk
            assert waiting.end() == 130
        assert "was deleted before it was over" in waiting.talk
        events = place.cli("events", "gpt").stdout
        assert "[orchestrator-operator]" in events
    finally:
        operator.terminate()
        operator.wait(30)
        said.close()
