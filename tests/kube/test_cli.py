"""`--on kubernetes` against a real API server: launch and its refusals, status, list, suspend, resume, scale, down, doctor."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from orchestrator.adapters.kube.resources import TRAINING_JOBS
from orchestrator.spec import crd
from tests.kube.agents import until
from tests.kube.cli import BARE, Place, condition, installed
from tests.kube.control_plane import ControlPlane

CRD_NAME = "trainingjobs.orchestrator.dev"
ENVELOPE = """\
apiVersion: orchestrator.dev/v1alpha1
kind: TrainingJob
metadata:
  name: {name}
  annotations:
    "no/such/key": x
spec:
  kubernetes: {{image: "registry.example/train@sha256:{digest}"}}
"""


# ---- launch


def test_launch_makes_the_object_of_a_bare_file(place: Place, operator_lease: None) -> None:
    done = place.cli("launch", place.file("gpt"))
    assert done.exit_code == 0, done.output
    assert done.stdout == "gpt\n"
    assert f"in namespace {place.namespace}" in done.stderr
    assert "status -w gpt --on kubernetes" in done.stderr
    assert "warning" not in done.stderr
    made = place.job("gpt")
    assert made["spec"]["train"]["steps"] == 40
    assert made["spec"]["task"] == {"target": "gpt"}
    assert [m["manager"] for m in made["metadata"]["managedFields"]] == ["orchestrator"]


def test_launch_says_that_no_operator_is_there(place: Place, ready: ControlPlane) -> None:
    done = place.cli("launch", place.file("gpt"), "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == {
        "job": "gpt",
        "namespace": place.namespace,
        "uid": place.job("gpt")["metadata"]["uid"],
        "server": ready.server,
    }
    assert "no operator is installed" in done.stderr


def test_launching_the_same_again_changes_nothing_and_something_else_is_refused(place: Place) -> None:
    before = place.launched("gpt")
    again = place.cli("launch", place.file("gpt"))
    assert again.exit_code == 0, again.output
    assert "with the same content" in again.stderr
    other = place.cli("launch", place.file("gpt", text=BARE.replace("steps: 40", "steps: 41")))
    assert other.exit_code == 2
    assert "there already" in other.stderr
    assert "--name" in other.stderr
    after = place.job("gpt")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert after["spec"] == before["spec"]


def test_a_job_made_by_kubectl_is_not_taken_over(place: Place) -> None:
    shown = place.cli("launch", place.file("gpt"), "--dry-run=client").stdout
    place.plane.kubectl("apply", "-n", place.namespace, "-f", "-", input=shown.replace("steps: 40", "steps: 50"))
    done = place.cli("launch", place.file("gpt"))
    assert done.exit_code == 2, done.output
    assert "with another content" in done.stderr
    assert place.job("gpt")["spec"]["train"]["steps"] == 50


def test_a_job_that_is_over_keeps_its_name(place: Place) -> None:
    place.launched("gpt")
    place.agent_says("gpt", phase="Succeeded", reason="Completed")
    done = place.cli("launch", place.file("gpt"))
    assert done.exit_code == 2
    assert "Succeeded" in done.stderr
    assert f"orchestrator down gpt --on kubernetes -n {place.namespace} --wait" in done.stderr


def test_a_dry_run_shows_what_would_be_stored_and_stores_nothing(place: Place) -> None:
    done = place.cli("launch", place.file("gpt"), "--dry-run")
    assert done.exit_code == 0, done.output
    shown = yaml.safe_load(done.stdout)
    assert shown["metadata"]["namespace"] == place.namespace
    assert "managedFields" not in shown["metadata"]
    assert shown["spec"]["train"] | {"steps": 40, "micro_batches": 8} == shown["spec"]["train"]  # with the server's defaults
    assert place.api.list(TRAINING_JOBS, namespace=place.namespace) == []
    assert json.loads(place.cli("launch", place.file("gpt"), "--dry-run=server", "--json").stdout)["spec"] == shown["spec"]


def test_what_a_dry_run_shows_kubectl_takes(place: Place) -> None:
    shown = place.cli("launch", place.file("gpt"), "--dry-run=client", "--name", "other").stdout
    place.plane.kubectl("apply", "-f", "-", input=shown)
    assert place.job("other")["spec"]["train"]["steps"] == 40


def test_a_file_that_is_wrong_needs_no_cluster(place: Place, tmp_path: Path) -> None:
    path = place.file("gpt", text=BARE.replace("steps: 40", "steps: 0"))
    done = place.cli("launch", path, kubeconfig=tmp_path / "none")
    assert done.exit_code == 2
    assert f"{path}:4:10: train.steps" in done.stderr


def test_what_only_the_server_refuses_is_shown_at_its_place(place: Place) -> None:
    path = place.file("gpt", text=ENVELOPE)
    done = place.cli("launch", path)
    assert done.exit_code == 2
    assert f"{path}:6:5: metadata.annotations" in done.stderr
    assert "no/such/key" in done.stderr
    assert "kubectl explain tj.metadata.annotations" in done.stderr


def test_an_older_kind_refuses_at_the_line_and_the_doctor_sees_it(place: Place) -> None:
    older = crd.definition()
    schema = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["train"]["properties"]["steps"]["maximum"] = 20
    schema["properties"]["spec"]["properties"]["train"]["properties"]["steps"]["default"] = 20
    path = place.file("gpt")
    try:
        place.plane.kubectl("apply", "-f", "-", input=json.dumps(older))
        done = until(
            lambda: place.cli("launch", path, "--dry-run"), lambda seen: seen.exit_code == 2, what="the older kind is at work"
        )
        assert f"{path}:4:10: spec.train.steps: " in done.stderr
        assert "less than or equal to 20" in done.stderr
        assert "kubectl explain tj.spec.train.steps" in done.stderr
        told = {c["name"]: c for c in json.loads(place.cli("doctor", "--json").stdout)["checks"]}
        assert told["CRD"]["level"] == "fail"
        assert "spec.train.steps.default" in told["CRD"]["value"]
        del schema["properties"]["spec"]["properties"]["train"]["properties"]["steps"]
        place.plane.kubectl("apply", "-f", "-", input=json.dumps(older))
        until(
            lambda: place.cli("launch", path, "--dry-run").stderr,
            lambda seen: f"{path}:4:10: spec.train.steps: field not declared in schema" in seen,
            what="an even older kind is at work",
        )
    finally:
        installed(place.plane)
        until(lambda: place.cli("launch", path, "--dry-run"), lambda seen: seen.exit_code == 0, what="today's kind is back")


def test_a_cluster_without_the_kind_says_how_to_install_it(place: Place) -> None:
    place.plane.kubectl("delete", "crd", CRD_NAME)
    try:
        until(lambda: place.cli("list").exit_code, lambda code: code == 2, what="the kind is served no more")
        for command in (("launch", place.file("gpt")), ("list",), ("status", "gpt"), ("events", "gpt"), ("down", "gpt")):
            done = place.cli(*command)
            assert done.exit_code == 2, done.output
            assert "does not know the kind TrainingJob; fix: kubectl apply" in done.stderr, command
    finally:
        installed(place.plane)


def test_a_namespace_that_is_not_there_says_how_to_make_it(place: Place) -> None:
    of_a_job = [(verb, "gpt") for verb in ("status", "logs", "events", "down", "suspend")]
    for command in (("launch", place.file("gpt")), ("list",), *of_a_job, ("scale", "gpt", "--nodes", "3")):
        done = place.cli(*command, namespace="nowhere")
        assert done.exit_code == 2, done.output
        assert "there is no namespace nowhere; fix: make it as examples/kubernetes/team-namespace does" in done.stderr


def test_missing_accounts_stop_a_launch_before_anything_is_made(ready: ControlPlane, tmp_path: Path) -> None:
    place = Place(ready, ready.namespace(), folder=tmp_path)
    done = place.cli("launch", place.file("gpt"))
    assert done.exit_code == 2
    assert "lacks the service account(s) orchestrator-agent and orchestrator-worker; fix: kubectl apply" in done.stderr
    assert place.api.list(TRAINING_JOBS, namespace=place.namespace) == []
    assert place.cli("launch", place.file("gpt"), "--dry-run").exit_code == 0


def test_who_may_not_is_told_what_is_missing(place: Place, ready: ControlPlane) -> None:
    nobody = f"system:serviceaccount:{place.namespace}:default"
    theirs = place.kubeconfig_of("default", ready.kubeconfig_for)
    done = place.cli("list", kubeconfig=theirs)
    assert done.exit_code == 3
    assert f"{nobody} may not list trainingjobs.orchestrator.dev in namespace {place.namespace}; fix:" in done.stderr
    assert "create rolebinding" in done.stderr
    doctor = place.cli("doctor", "--json", kubeconfig=theirs)
    assert doctor.exit_code == 3
    told = {c["name"]: c for c in json.loads(doctor.stdout)["checks"]}
    assert "create/patch/delete trainingjobs" in told["rights"]["value"]
    assert {n: told[n]["level"] for n in ("rights", "operator", "CRD", "service accounts", "storage class")} == {
        "rights": "fail",
        **dict.fromkeys(("operator", "CRD", "service accounts", "storage class"), "warn"),
    }


# ---- status and list


def test_status_and_list_show_what_agent_and_operator_wrote(place: Place) -> None:
    place.launched("gpt")
    assert "Pending" in place.cli("status", "gpt").stdout
    generation = 1
    place.operator_says("gpt", replicas=2, readyReplicas=2)
    place.agent_says(
        "gpt",
        phase="Running",
        reason="Running",
        message="every rank has its state",
        step=17,
        steps=40,
        progress="42%",
        loss=2.5,
        etaSeconds=65,
        goodput="0.98",
        recoveries=1,
        stepsLost=0,
        epoch=2,
        ranks=2,
        spares=1,
        seats=["gpt-worker-1-1", "gpt-spare-0-1"],
        lastDecision="#31 rank 1 is given to j/w2",
        conditions=[condition("Training", true=True, reason="Running", message="step 17 of 40", generation=generation)],
    )
    shown = place.cli("status")  # the only job there is
    assert shown.exit_code == 0, shown.output
    for words in ("step 17 of 40 (42%), epoch 2", "2.5", "1:05", "1 recovery, 0 steps lost, goodput 0.98", "2 ranks, 1 spare"):
        assert words in shown.stdout
    assert "#31 rank 1 is given to j/w2" in shown.stdout
    assert "0: gpt-worker-1-1, 1: gpt-spare-0-1" in shown.stdout
    assert "Training   True" in shown.stdout
    told = json.loads(place.cli("status", "gpt", "--json").stdout)
    assert (told["phase"], told["step"], told["recoveries"], told["conditions"][0]["type"]) == ("Running", 17, 1, "Training")
    place.launched("other")
    rows = place.cli("list").stdout.splitlines()
    assert rows[1].split()[:6] == ["gpt", "Running", "17/40", "42%", "2.5000", "0.98"]
    assert rows[2].split()[:2] == ["other", "Pending"]
    assert [j["name"] for j in json.loads(place.cli("list", "--json").stdout)] == ["gpt", "other"]
    which = place.cli("status")
    assert which.exit_code == 2
    assert "has gpt, other" in which.stderr


def test_a_job_that_is_not_there(place: Place) -> None:
    for verb in ("status", "logs", "events", "down", "suspend", "resume"):
        done = place.cli(verb, "none")
        assert done.exit_code == 2, done.output
        assert "there is no TrainingJob none here; `orchestrator list --on kubernetes`" in done.stderr
    assert "there is no job in namespace" in place.cli("status").stderr


def test_the_shell_completes_what_the_server_knows(place: Place) -> None:
    from orchestrator.apps.cli.kube import complete

    place.launched("gpt-a")
    place.agent_says("gpt-a", phase="Running", ranks=3)
    way = {"kubeconfig": str(place.plane.kubeconfig), "namespace": place.namespace}
    until(lambda: complete.jobs(way, "gp"), lambda seen: seen == ["gpt-a"], what="jobs")  # a server that is slow offers nothing
    assert complete.jobs(way, "x") == []
    until(lambda: complete.namespaces(way, place.namespace[:4]), lambda seen: place.namespace in seen, what="namespaces")
    assert complete.contexts(way, "") == ["lab"]
    until(lambda: complete.ranks({**way, "job": "gpt-a"}, ""), lambda seen: seen == ["0", "1", "2"], what="ranks")
    assert complete.jobs({**way, "kubeconfig": "/none"}, "") == []
