"""The CRD on the real API server: it is structural, fills in defaults, refuses with the path, and takes what the loader takes.

What the API server gives back is read again as a job, and must be the job that was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.job import Job
from orchestrator.spec import crd, load
from orchestrator.spec.training_job import from_training_job, training_job
from tests.kube.agents import until
from tests.kube.control_plane import ControlPlane
from tests.unit.spec.test_training_job import FILES, made_of

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "manifests/crd/trainingjobs.yaml"
BARE = "name: a\nkubernetes: {image: registry/train:1}\n"


@pytest.fixture(scope="module")
def ready(plane: ControlPlane) -> ControlPlane:
    """The API server with the CRD, applied as a person does, and its schema published, which kubectl asks for."""
    plane.kubectl("apply", "-f", str(MANIFEST))
    until(
        lambda: plane.kubectl("explain", "trainingjob.spec.kubernetes", check=False),
        lambda said: "DESCRIPTION" in said,
        what="the kind is established and explained",
    )
    return plane


@pytest.fixture
def place(ready: ControlPlane) -> str:
    """A fresh namespace."""
    return ready.namespace()


def created(plane: ControlPlane, namespace: str, made: Mapping[str, Any], *flags: str) -> Any:
    said = plane.kubectl("create", "-n", namespace, "-o", "json", *flags, "-f", "-", input=json.dumps(made))
    return json.loads(said)


def refusal(plane: ControlPlane, namespace: str, made: Mapping[str, Any]) -> str:
    """What kubectl says when the API server refuses; kubectl's own checks are off."""
    said = plane.kubectl("create", "-n", namespace, "--validate=false", "-f", "-", input=json.dumps(made), check=False)
    assert "is invalid" in said, said
    return said


def changed(made: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(made))
    change(copied)
    return copied


def test_it_is_established_and_structural(ready: ControlPlane) -> None:
    made = json.loads(ready.kubectl("get", "crd", "trainingjobs.orchestrator.dev", "-o", "json"))
    conditions = {one["type"]: one["status"] for one in made["status"]["conditions"]}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions


def test_it_is_what_the_models_say_today() -> None:
    assert MANIFEST.read_text(encoding="utf-8") == crd.render()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_the_loader_takes_the_server_takes_and_it_stays_the_same_job(path: Path, ready: ControlPlane) -> None:
    sent = made_of(path)
    sent["metadata"].pop("namespace", None)
    stored = created(ready, "default", sent, "--dry-run=server")
    job, kubernetes, suspend = from_training_job(stored, base_dir=path.parent)
    assert same_but_for_whole_floats(job, load(path))
    assert (kubernetes, suspend) == from_training_job(sent)[1:]
    assert kept(sent["spec"], stored["spec"]), "something that was written is not there any more"


def same_but_for_whole_floats(job: Job, other: Job) -> bool:
    """Whether the jobs are equal; the API server writes the number 0.0 of an option as 0."""
    options, others = (json.loads(one.task.options_json) for one in (job, other))
    return bool(options == others) and replace(job, task=replace(job.task, options_json=other.task.options_json)) == other


def kept(written: Any, stored: Any) -> bool:
    """Whether everything written is stored; defaults may come on top."""
    if isinstance(written, dict):
        return isinstance(stored, dict) and all(key in stored and kept(value, stored[key]) for key, value in written.items())
    if isinstance(written, list):
        return len(written) == len(stored) and all(kept(a, b) for a, b in zip(written, stored, strict=True))
    return bool(written == stored)


def test_defaults_are_filled_in_but_for_what_the_planner_may_choose(ready: ControlPlane, place: str) -> None:
    spec = created(ready, place, training_job(BARE))["spec"]
    assert spec["cluster"] == {"nodes": 4, "spares": 1, "slots_per_node": 1, "device": "cpu"}
    assert spec["train"]["optimizer"]["betas"] == [0.9, 0.95]
    assert (spec["task"], spec["suspend"]) == ({"target": "gpt"}, False)
    assert spec["kubernetes"]["head"] == {"storage": "1Gi"}
    assert not {"parallel", "checkpoint"} & spec.keys()
    free = created(ready, place, training_job(BARE + "parallel: auto", name="b"))["spec"]
    assert free["parallel"] == {"plan": "auto"}


def test_an_unknown_key_is_told_by_kubectl_and_pruned_by_the_server(ready: ControlPlane, place: str) -> None:
    misspelt = changed(training_job(BARE), lambda made: made["spec"].update(trian={"steps": 1}))
    said = ready.kubectl("create", "-n", place, "-f", "-", input=json.dumps(misspelt), check=False)
    assert 'unknown field "trian"' in said or 'unknown field "spec.trian"' in said
    assert "trian" not in created(ready, place, misspelt, "--validate=false")["spec"]


REFUSED: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("spec.train.steps", lambda s: s.update(train={"steps": 0})),
    ("spec.train.optimizer.lr", lambda s: s.update(train={"optimizer": {"lr": 0}})),
    ("spec.train.optimizer.betas", lambda s: s.update(train={"optimizer": {"betas": [0.9]}})),
    ("spec.train.precision", lambda s: s.update(train={"precision": "fp16"})),
    ("spec.task", lambda s: s.update(task="gpt")),
    ("spec.task.target", lambda s: s.update(task={"target": "gtp"})),
    ("spec.parallel", lambda s: s.update(parallel="auto")),
    ("spec.parallel.recompute", lambda s: s.update(parallel={"recompute": True})),
    ("spec.checkpoint.uri", lambda s: s.update(checkpoint={})),
    ("spec.checkpoint.every", lambda s: s.update(checkpoint={"uri": "s3://b/r", "every": "often"})),
    ("spec.checkpoint.every", lambda s: s.update(checkpoint={"uri": "s3://b/r", "every": -1})),
    ("spec.resilience.detect_within", lambda s: s.update(resilience={"detect_within": "4"})),
    ("spec.resilience.policy.worker-slow", lambda s: s.update(resilience={"policy": {"worker-slow": ["rollback"]}})),
    ("spec.cluster.nodes", lambda s: s.update(cluster={"nodes": 10_001})),
    ("spec.kubernetes", lambda s: s.pop("kubernetes")),
    ("spec.kubernetes.image", lambda s: s["kubernetes"].pop("image")),
    ("spec.kubernetes.backend", lambda s: s["kubernetes"].update(backend="ray")),
    ("spec.kubernetes.worker.cpu", lambda s: s["kubernetes"].update(worker={"cpu": "four"})),
    ("spec.kubernetes.worker.memory", lambda s: s["kubernetes"].update(worker={"memory": "16GB"})),
    (
        "spec.kubernetes.worker.tolerations.operator",
        lambda s: s["kubernetes"].update(worker={"tolerations": [{"operator": "=="}]}),
    ),
    ("spec.kubernetes.volumes.path", lambda s: s["kubernetes"].update(volumes=[{"claim": "a"}])),
    ("spec.kubernetes.env.A", lambda s: s["kubernetes"].update(env={"A": 1})),
    ("spec.suspend", lambda s: s.update(suspend="no")),
]


@pytest.mark.parametrize(("path", "change"), REFUSED, ids=[f"{n}-{path}" for n, (path, _) in enumerate(REFUSED)])
def test_a_wrong_value_is_refused_with_its_path(
    path: str, change: Callable[[dict[str, Any]], object], ready: ControlPlane
) -> None:
    said = refusal(ready, "default", changed(training_job(BARE), lambda made: change(made["spec"])))
    told = re.sub(r"\[[0-9]+\]", "", said)
    assert re.search(rf"{re.escape(path)}(: | in body)", told), said


@pytest.mark.parametrize("name", ["a" * 45, "7b", "a.b"])
def test_a_name_that_pods_cannot_have_is_refused(name: str, ready: ControlPlane) -> None:
    made = changed(training_job(BARE), lambda made: made["metadata"].update(name=name))
    assert "metadata.name" in refusal(ready, "default", made)
    fits = changed(training_job(BARE), lambda made: made["metadata"].update(name="a" * 44))
    assert created(ready, "default", fits, "--dry-run=server")


def test_status_is_written_apart_from_the_spec(ready: ControlPlane, place: str) -> None:
    made = changed(training_job(BARE), lambda made: made.update(status={"phase": "Running"}))
    assert "status" not in created(ready, place, made), "a status that comes with the object is dropped"
    both = json.dumps({"spec": {"cluster": {"nodes": 2}}, "status": {"phase": "Running", "step": 7}})
    ready.kubectl("patch", "tj", "a", "-n", place, "--type=merge", "--subresource=status", "-p", both)
    after = json.loads(ready.kubectl("get", "tj", "a", "-n", place, "-o", "json"))
    assert after["status"] == {"phase": "Running", "step": 7}
    assert (after["spec"]["cluster"]["nodes"], after["metadata"]["generation"]) == (4, 1), "the spec is as it was"
    said = ready.kubectl(
        *("patch", "tj", "a", "-n", place, "--type=merge", "--subresource=status", "-p", '{"status": {"phase": "Odd"}}'),
        check=False,
    )
    assert "status.phase" in said


def test_kubectl_scale_sets_the_nodes_and_sees_the_replicas(ready: ControlPlane, place: str) -> None:
    created(ready, place, training_job(BARE))
    ready.kubectl("scale", "tj/a", "-n", place, "--replicas=3")
    status = {"status": {"replicas": 4, "selector": "orchestrator.dev/job=a"}}
    ready.kubectl("patch", "tj", "a", "-n", place, "--type=merge", "--subresource=status", "-p", json.dumps(status))
    after = json.loads(ready.kubectl("get", "tj", "a", "-n", place, "-o", "json"))
    assert after["spec"]["cluster"]["nodes"] == 3
    raw = f"/apis/orchestrator.dev/v1alpha1/namespaces/{place}/trainingjobs/a/scale"
    scale = json.loads(ready.kubectl("get", "--raw", raw))
    assert (scale["spec"]["replicas"], scale["status"]) == (3, {"replicas": 4, "selector": "orchestrator.dev/job=a"})
    refused = ready.kubectl("scale", "tj/a", "-n", place, "--replicas=0", check=False)
    assert "spec.cluster.nodes" in refused


def test_columns_short_name_and_category(ready: ControlPlane, place: str) -> None:
    created(ready, place, training_job(BARE))
    status = {"phase": "Running", "step": 42, "progress": "21%", "goodput": "0.98", "recoveries": 2, "spares": 1}
    status |= {"loss": 2.5, "etaSeconds": 90, "epoch": 3, "reason": "Swapped"}
    ready.kubectl("patch", "tj", "a", "-n", place, "--type=merge", "--subresource=status", "-p", json.dumps({"status": status}))
    header, row = ready.kubectl("get", "tj", "-n", place).splitlines()
    assert header.split() == ["NAME", "STATE", "STEP", "PROGRESS", "GOODPUT", "RECOVERIES", "SPARES", "AGE"]
    assert row.split()[:-1] == ["a", "Running", "42", "21%", "0.98", "2", "1"]
    header, row = ready.kubectl("get", "tj", "-n", place, "-o", "wide").splitlines()
    assert header.split()[8:] == ["LOSS", "ETA", "EPOCH", "REASON"]
    assert row.split()[8:] == ["2.5", "90", "3", "Swapped"]
    assert "trainingjob.orchestrator.dev/a" in ready.kubectl("get", "all", "-n", place, "-o", "name")


def test_two_managers_share_the_conditions(ready: ControlPlane, place: str) -> None:
    created(ready, place, training_job(BARE))

    def apply(manager: str, kind: str, status: str, **more: Any) -> None:
        condition = {
            "type": kind,
            "status": status,
            "reason": "Said",
            "message": "",
            "lastTransitionTime": "2026-11-29T03:00:00Z",
        }
        head = {"apiVersion": "orchestrator.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "a"}}
        body = json.dumps({**head, "status": {"conditions": [condition], **more}})
        flags = ("--validate=false", "--server-side", f"--field-manager={manager}", "--subresource=status", "-n", place)
        ready.kubectl("apply", *flags, "-f", "-", input=body)

    apply("orchestrator-operator", "PodsReady", "False", replicas=5)
    apply("orchestrator-agent", "Training", "True", step=9)
    apply("orchestrator-operator", "PodsReady", "True", replicas=5)
    status = json.loads(ready.kubectl("get", "tj", "a", "-n", place, "-o", "json"))["status"]
    assert {one["type"]: one["status"] for one in status["conditions"]} == {"PodsReady": "True", "Training": "True"}
    assert (status["replicas"], status["step"]) == (5, 9)


def test_people_can_ask_what_a_key_means(ready: ControlPlane) -> None:
    said = ready.kubectl("explain", "trainingjob.spec.kubernetes.worker.cpu")
    assert "CPUs of a pod" in said
