"""`--on kubernetes` against a real API server: suspend, resume, scale, down, and doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.adapters.kube import names
from orchestrator.apps.cli.kube import launch
from tests.kube.agents import until
from tests.kube.cli import BARE, Place, at, condition
from tests.kube.control_plane import ControlPlane
from tests.world.jobs import ROOT

# ---- changes


def test_suspend_and_resume_change_one_field(place: Place) -> None:
    place.launched("gpt")
    done = place.cli("suspend", "gpt", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"job": "gpt", "namespace": place.namespace, "generation": 2, "done": ""}
    assert place.job("gpt")["spec"]["suspend"] is True
    assert "already to wait" in place.cli("suspend", "gpt").stderr
    assert place.cli("resume", "gpt").exit_code == 0
    assert place.job("gpt")["spec"]["suspend"] is False
    assert place.job("gpt")["metadata"]["generation"] == 3


def test_suspend_and_resume_wait_for_what_was_asked(place: Place) -> None:
    place.launched("gpt")
    place.operator_says("gpt")
    place.agent_says("gpt", phase="Running", step=3, steps=40)
    with place.started("suspend", "gpt", "--wait") as waiting:
        waiting.until("gives its pods back")
        place.agent_says("gpt", phase="Suspending", reason="Suspended", message="the job saves its state")
        waiting.until("Suspending (Suspended)")
        place.agent_says("gpt")
        place.operator_says("gpt", phase="Suspended", reason="Suspended", message="checkpoint at step 3")
        assert waiting.end() == 0
    assert "job gpt is suspended; nothing of it runs" in waiting.talk
    with place.started("resume", "gpt", "--wait") as waiting:
        waiting.until("asks for its pods again")
        place.operator_says("gpt", phase="Starting", reason="Pods", message="2 of 3 pods are scheduled")
        waiting.until("Starting (Pods)")
        place.operator_says("gpt")
        place.agent_says("gpt", phase="Running", step=4, steps=40)
        assert waiting.end() == 0
    assert "job gpt runs again" in waiting.talk


def test_scale_waits_until_it_trains_so(place: Place) -> None:
    place.launched("gpt")
    held = [condition("Training", true=True, reason="Running", message="x", generation=1)]
    place.operator_says("gpt", replicas=2, readyReplicas=2)
    place.agent_says("gpt", phase="Running", step=3, steps=40, epoch=1, ranks=2, conditions=held)
    with place.started("scale", "gpt", "--nodes", "3", "--wait") as waiting:
        waiting.until("from 2 to 3 nodes")
        place.operator_says("gpt", replicas=3, readyReplicas=3)
        newer = [condition("Training", true=True, reason="Running", message="x", generation=2)]
        place.agent_says("gpt", phase="Running", step=5, steps=40, epoch=1, ranks=2, conditions=newer)  # not yet re-formed
        place.agent_says("gpt", phase="Running", step=6, steps=40, epoch=2, ranks=3, conditions=newer)
        assert waiting.end() == 0
    assert "job gpt trains on 3 nodes, 3 ranks" in waiting.talk
    assert place.job("gpt")["spec"]["cluster"] == {**place.job("gpt")["spec"]["cluster"], "nodes": 3, "spares": 1}
    assert "already to train on 3 nodes" in place.cli("scale", "gpt", "--nodes", "3").stderr


def test_a_scale_that_the_supervisor_refuses_ends_the_wait_with_its_words(place: Place) -> None:
    place.launched("gpt")
    why = "scale by the agent refused: 8 micro-batches per step cannot feed 9 data-parallel ranks"
    place.operator_says("gpt", replicas=2, readyReplicas=2)
    with place.started("scale", "gpt", "--nodes", "9", "--wait") as waiting:
        waiting.until("from 2 to 9 nodes")
        older = [condition("Scaled", true=False, reason="Refused", message="of another wish", generation=1)]
        place.agent_says("gpt", phase="Running", step=3, steps=40, epoch=1, ranks=2, conditions=older)
        waiting.until("step 3/40")
        newer = [condition("Scaled", true=False, reason="Refused", message=why, generation=2)]
        place.agent_says("gpt", phase="Running", step=4, steps=40, epoch=1, ranks=2, conditions=newer)
        assert waiting.end() == 2
    assert f"job gpt does not train on 9 nodes: {why}" in waiting.talk
    again = place.cli("scale", "gpt", "--nodes", "9", "--wait")
    assert (again.exit_code, why in again.stderr) == (2, True)
    assert why in place.cli("status", "gpt").stdout


@pytest.mark.parametrize(("steps", "code", "words"), [(40, 0, "with the same content"), (41, 2, "with another content")])
def test_of_two_launches_at_once_one_makes_the_job_and_the_other_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, steps: int, code: int, words: str
) -> None:
    """The other one comes when this one has looked and found none."""
    looked = launch._applied_dry

    def beaten(*given: Any, **more: Any) -> Any:
        monkeypatch.setattr(launch, "_applied_dry", looked)
        seen = looked(*given, **more)
        place.launch(place.file("other", text=BARE.replace("{name}", "gpt").replace("steps: 40", f"steps: {steps}")))
        return seen

    monkeypatch.setattr(launch, "_applied_dry", beaten)
    done = place.cli("launch", place.file("gpt"))
    assert (done.exit_code, words in done.stderr) == (code, True), done.output
    job = place.job("gpt")
    assert (job["spec"]["train"]["steps"], job["metadata"]["generation"]) == (steps, 1)


def test_the_clusters_own_role_edit_suffices_for_every_command(place: Place, ready: ControlPlane) -> None:
    ready.kubectl("apply", "-f", str(ROOT / "manifests/base/user-roles.yaml"))
    ready.kubectl(
        "-n",
        place.namespace,
        "create",
        "rolebinding",
        "edit",
        "--clusterrole=edit",
        f"--serviceaccount={place.namespace}:default",
    )
    theirs = place.kubeconfig_of("default", ready.kubeconfig_for)

    def ok(*typed: str | Path) -> str:
        done = until(
            lambda: place.cli(*typed, kubeconfig=theirs),
            lambda seen: " may not " not in seen.stderr.partition("warning")[0],  # rights are aggregated by a controller
            what=f"{typed} is allowed",
        )
        assert done.exit_code == 0, done.output
        return done.stdout

    ok("launch", place.file("gpt"), "--dry-run")
    ok("launch", place.file("gpt"))
    place.operator_tells("gpt", reason="PodsMade", message="3 pods are asked for", at=at(0))
    assert "Pending" in ok("status", "gpt")
    assert "PodsMade" in ok("events", "gpt")
    ok("list")
    ok("scale", "gpt", "--nodes", "3")
    ok("suspend", "gpt")
    ok("resume", "gpt")
    told = {c["name"]: c["level"] for c in json.loads(place.cli("doctor", "--json", kubeconfig=theirs).stdout)["checks"]}
    assert told["rights"] == told["namespace"] == told["service accounts"] == "ok"
    ok("down", "gpt", "--wait")


def test_who_may_only_look_is_warned_of_what_would_not_work(place: Place, ready: ControlPlane) -> None:
    ready.kubectl("apply", "-f", str(ROOT / "manifests/base/user-roles.yaml"))
    ready.kubectl("-n", place.namespace, "create", "serviceaccount", "looker")
    bound = ("rolebinding", "view", "--clusterrole=view", f"--serviceaccount={place.namespace}:looker")
    ready.kubectl("-n", place.namespace, "create", *bound)
    theirs = place.kubeconfig_of("looker", ready.kubeconfig_for)

    def rights() -> dict[str, Any]:
        told = json.loads(place.cli("doctor", "--json", kubeconfig=theirs).stdout)["checks"]
        return next(c for c in told if c["name"] == "rights")

    found = until(rights, lambda c: c["level"] == "warn", what="rights are aggregated by a controller")
    assert found["value"] == "you may not create/patch/delete trainingjobs"
    assert "without it these do not work: launch, scale, suspend, down" in found["fix"]


def test_what_is_over_is_not_changed(place: Place) -> None:
    place.launched("gpt")
    place.agent_says("gpt", phase="Failed", reason="BudgetSpent")
    for command in (("suspend", "gpt"), ("resume", "gpt"), ("scale", "gpt", "--nodes", "3")):
        done = place.cli(*command)
        assert done.exit_code == 2
        assert "Failed (BudgetSpent)" in done.stderr
    assert place.job("gpt")["metadata"]["generation"] == 1


def test_down_deletes_and_waits_for_the_finalizer_and_the_pods(place: Place) -> None:
    made = place.launched("gpt")
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": "gpt",
        "uid": made["metadata"]["uid"],
        "controller": True,
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "gpt-worker-0-1",
            "labels": {names.LABEL_JOB: "gpt"},
            "ownerReferences": [owner],
            "finalizers": ["example.org/hold"],
        },
        "spec": {"containers": [{"name": "c", "image": "example.org/x"}]},
    }
    place.plane.kubectl("-n", place.namespace, "create", "-f", "-", input=json.dumps(pod))
    finalizers = json.dumps({"metadata": {"finalizers": [names.FINALIZER]}})
    place.plane.kubectl("-n", place.namespace, "patch", "tj", "gpt", "--type", "merge", "-p", finalizers)
    release = json.dumps({"metadata": {"finalizers": None}})
    with place.started("down", "gpt", "--wait", "--json") as waiting:
        waiting.until("is being deleted")
        assert waiting.running
        assert "being deleted" in place.cli("status", "gpt").stdout
        place.plane.kubectl("-n", place.namespace, "patch", "tj", "gpt", "--type", "merge", "-p", release)
        until(lambda: place.plane.kubectl("-n", place.namespace, "get", "tj", "-o", "name"), lambda seen: not seen, what="no job")
        assert waiting.running  # the pod is still there
        place.plane.kubectl("-n", place.namespace, "patch", "pod", "gpt-worker-0-1", "--type", "merge", "-p", release)
        assert waiting.end() == 0
    assert json.loads(waiting.out) == {"job": "gpt", "namespace": place.namespace, "gone": True}
    assert "nothing of job gpt is left" in waiting.talk


# ---- doctor


def test_doctor_finds_a_cluster_that_is_ready(place: Place, operator_lease: None) -> None:
    done = place.cli("doctor", "--json")
    told = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert done.exit_code == 0, done.output
    assert "v1.20" in told["API server"]["value"]
    assert told["CRD"]["level"] == "ok"
    assert "schema as in this program" in told["CRD"]["value"]
    assert told["operator"]["value"].startswith("pod-1, lease renewed")
    for name in ("namespace", "service accounts", "rights", "KubeRay", "Kueue", "Volcano"):
        assert told[name]["level"] == "ok", told[name]
    assert told["disruption budgets"]["value"] == "policy/v1beta1"
    assert told["storage class"]["level"] == "warn"
    assert "time-outs for detect_within" in place.cli("doctor").stdout


def test_doctor_names_what_is_missing(ready: ControlPlane, tmp_path: Path) -> None:
    place = Place(ready, ready.namespace(), folder=tmp_path)
    done = place.cli("doctor")
    assert done.exit_code == 3
    assert "operator: kubectl apply" in done.stdout
    assert "service accounts: kubectl apply" in done.stdout
    assert "2 check(s) failed: operator, service accounts" in done.stderr
    nowhere = place.cli("doctor", namespace="nowhere")
    assert "nowhere does not exist" in nowhere.stdout
    theirs = tmp_path / "other.kubeconfig"
    theirs.write_text(ready.kubeconfig_for("x", server="https://127.0.0.1:1"))
    away = place.cli("doctor", kubeconfig=theirs)
    assert away.exit_code == 3
    assert "does not answer" in away.stdout
