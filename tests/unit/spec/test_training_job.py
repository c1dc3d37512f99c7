"""A job file and the TrainingJob made of it are the same job, whichever form the file has and whatever the API server filled in.

What the file leaves out stays out of the object; what a person sees when something is wrong lies in `bad/`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from orchestrator.adapters.kube import names
from orchestrator.spec import SpecError, crd, envelope, kube_values, load, load_text, parse
from orchestrator.spec.kubernetes import Backend, KubernetesSpec
from orchestrator.spec.training_job import WORKDIR, from_training_job, refused_by_server, training_job

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FILES = sorted([*HERE.glob("good/*.yaml"), *ROOT.glob("examples/*/job.yaml")])
IMAGE = "registry/train:1"
BARE = f"name: a\nkubernetes: {{image: {IMAGE}}}\n"


def made_of(path: Path) -> dict[str, Any]:
    """The object of a good file; checkpoints of a relative place go to a volume."""
    text = path.read_text(encoding="utf-8")
    if "kubernetes:" not in text:
        text += "\nkubernetes: {volumes: [{claim: all, path: /workspace}]}\n"
    return training_job(text, file=path.name, image=IMAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_job_comes_back_from_the_object(path: Path) -> None:
    expected = load(path)
    job, kubernetes, suspend = from_training_job(made_of(path), base_dir=path.parent)
    assert job == expected
    assert kubernetes.image == IMAGE
    assert suspend == ("suspend: true" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_object_is_an_envelope_that_loads(path: Path) -> None:
    text = json.dumps(made_of(path))
    assert load_text(text, base_dir=path.parent) == load(path)
    assert training_job(text) == made_of(path)


def test_what_the_file_leaves_out_is_left_out() -> None:
    assert training_job(BARE) == {
        "apiVersion": "orchestrator.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "a"},
        "spec": {"kubernetes": {"image": IMAGE}},
    }


def test_short_forms_are_written_out() -> None:
    spec = training_job(f"{BARE}task: gpt\nparallel: auto")["spec"]
    assert (spec["task"], spec["parallel"]) == ({"target": "gpt"}, {"plan": "auto"})
    assert training_job(f"{BARE}parallel: {{recompute: true}}")["spec"]["parallel"] == {"recompute": [True]}


def test_name_namespace_and_image_replace_what_the_file_says() -> None:
    for text in (BARE, json.dumps(training_job(BARE, namespace="old"))):
        made = training_job(text, name="b", namespace="new", image="other:2")
        assert made["metadata"] == {"name": "b", "namespace": "new"}
        assert made["spec"]["kubernetes"] == {"image": "other:2"}


def test_of_the_metadata_only_what_a_person_writes_is_kept() -> None:
    made = training_job((HERE / "good/envelope-of-the-server.yaml").read_text(encoding="utf-8"))
    assert made["metadata"] == {"name": "gpt", "namespace": "ml", "labels": {"team": "nlp"}, "annotations": {"note": "by hand"}}
    assert "status" not in made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a", ["kubernetes.image"]),
        ("name: 1a\nkubernetes: {image: i}", ["name"]),
        (f"name: {'a' * 45}\nkubernetes: {{image: i}}", ["name"]),
        ("name: a\ncheckpoint: {uri: ~/ck}\nkubernetes: {image: i}", ["checkpoint.uri"]),
        ("name: 1a\ntrain: {steps: 0}", ["name", "kubernetes.image", "train.steps"]),
    ],
)
def test_a_bare_file_that_is_fine_elsewhere(text: str, expected: list[str]) -> None:
    if "steps: 0" not in text:
        load_text(text)
    with pytest.raises(SpecError) as caught:
        training_job(text)
    assert sorted(problem.path for problem in caught.value.problems) == sorted(expected)


def test_a_name_that_is_good_nowhere_is_said_once() -> None:
    with pytest.raises(SpecError) as caught:
        training_job("name: jöb\nkubernetes: {image: i}")
    assert [problem.path for problem in caught.value.problems] == ["name"]


def test_a_name_of_the_longest_length_is_taken() -> None:
    name = "a" * kube_values.JOB_NAME_CHARS_MAX
    assert training_job(BARE, name=name)["metadata"]["name"] == name
    assert len(names.pod_name(name, role=names.WORKER, ordinal=9_999, incarnation=999_999)) == 63


def test_problems_of_an_object_have_paths_and_no_lines() -> None:
    with pytest.raises(SpecError) as caught:
        from_training_job({"metadata": {"name": "a"}, "spec": {"train": {"stepz": 1}, "kubernetes": {"image": "i"}}})
    (problem,) = caught.value.problems
    assert (problem.path, problem.line, problem.nearest) == ("spec.train.stepz", 0, "steps")
    assert problem.render().startswith("trainingjob/a: spec.train.stepz: unknown key")


@pytest.mark.parametrize("obj", [{}, {"metadata": {"name": None}, "spec": None}, {"metadata": {}, "spec": {"task": "gpt"}}])
def test_an_object_that_lacks_everything_is_refused(obj: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        from_training_job(obj)
    assert {"metadata.name", "spec.kubernetes.image"} <= {problem.path for problem in caught.value.problems}


def test_a_job_that_has_begun_may_have_been_scaled_below_its_ranks() -> None:
    made = training_job(f"name: a\nparallel: {{data: 4}}\ncluster: {{nodes: 4}}\nkubernetes: {{image: {IMAGE}}}\n")
    began, _, _ = from_training_job(made)
    made["spec"]["cluster"]["nodes"] = 2
    with pytest.raises(SpecError, match=r"spec\.parallel\.data"):
        from_training_job(made)
    assert from_training_job(made, begun=True)[0] == began
    made["spec"]["cluster"]["nodes"] = 6
    assert from_training_job(made, begun=True)[0].cluster.nodes == 6


def test_an_object_is_read_through_any_mapping_and_left_alone() -> None:
    obj = training_job(f"{BARE}train: {{steps: 7}}")
    frozen = MappingProxyType({**obj, "spec": MappingProxyType(obj["spec"])})
    assert from_training_job(frozen)[0] == replace(load_text(f"{BARE}train: {{steps: 7}}", base_dir=WORKDIR))
    wrong = {"metadata": {"name": "a"}, "spec": {"train": {"steps": 0, "seed": 3}}}
    before = json.dumps(wrong)
    with pytest.raises(SpecError):
        from_training_job(wrong)
    assert json.dumps(wrong) == before


def test_what_the_server_refuses_is_placed_in_either_form() -> None:
    bare = "name: a\ntrain:\n  steps: 1\nkubernetes: {image: i}\n"
    said = refused_by_server(bare, file="job.yaml", field="spec.train.steps", message="no")
    assert said.render() == "job.yaml:3:10: spec.train.steps: no"
    assert refused_by_server(bare, file="f", field="spec.train.seed", message="no").line == 3, "the section above it"
    assert refused_by_server(bare, file="f", field="metadata.name", message="no").column == 7
    enveloped = json.dumps(training_job(bare), indent=1)
    at = refused_by_server(enveloped, file="f", field="spec.train.steps", message="no").line
    assert enveloped.splitlines()[at - 1].strip() == '"steps": 1'


def test_every_key_of_the_kubernetes_section_is_heard() -> None:
    spec = parse((HERE / "good/kubernetes.yaml").read_text(encoding="utf-8")).kubernetes
    assert spec is not None
    assert (spec.backend, spec.worker.cpu, spec.head.cpu, spec.head.memory) == (Backend.KUBERAY, "8", "0.5", "1.5G")
    assert spec.worker.resources == {"nvidia.com/gpu": "2", "ephemeral-storage": "50Gi", "hugepages-2Mi": "1Gi"}
    assert [one.manifest() for one in spec.worker.tolerations] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "pool", "operator": "Equal", "value": "train"},
        {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
    ]
    assert (spec.active_deadline_s, spec.ttl_after_finished_s, spec.gang_timeout_s) == (72 * 3600, 0, 90)
    assert [(v.claim, v.path, v.read_only) for v in spec.volumes] == [
        ("runs", "/workspace/runs", False),
        ("corpus", "/data/corpus", True),
    ]
    dumped = spec.model_dump(mode="json", exclude_none=True)
    assert KubernetesSpec.model_validate_json(json.dumps(dumped)) == spec
    absent = KubernetesSpec()
    assert (absent.active_deadline_s, absent.ttl_after_finished_s, absent.gang_timeout_s) == (None, None, 600)


def test_spec_and_adapter_agree_on_names_and_paths() -> None:
    assert (envelope.GROUP, envelope.VERSION, envelope.API_VERSION) == (names.GROUP, names.VERSION, names.API_VERSION)
    assert (envelope.KIND, crd.PLURAL) == (names.KIND, names.PLURAL)
    for path in (names.HOME_PATH, names.TOKEN_PATH):
        assert any(f"{path}/".startswith(f"{own}/") for own in kube_values.OWN_PATHS)
    for env in (names.ENV_POD, names.ENV_POD_IP, names.ENV_NODE):
        assert env in kube_values.OWN_ENV
    for env in (names.ENV_JOB, names.ENV_NAMESPACE, names.ENV_SLOTS, names.ENV_DEVICE, names.ENV_GRACE_S):
        assert env.startswith(kube_values.OWN_ENV_PREFIX)
