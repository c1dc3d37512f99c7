"""The exported schema, the template and the models tell one story.

The schema is compared with the file in docs/ and with what the loader accepts and refuses; the template with the
defaults that its comments claim.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec import SpecError, load_text
from orchestrator.spec.document import read
from orchestrator.spec.kubernetes import KubernetesSpec
from orchestrator.spec.schema_export import DIALECT, render, schema
from orchestrator.spec.template import render as render_template
from orchestrator.spec.training_job import training_job

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SEEN_BY_THE_SCHEMA = [  # bad files that a schema can refuse; the others break YAML itself or a rule between fields
    *("01-unknown-key", "02-unknown-nested-key", "03-key-of-another-section", "04-unknown-section", "05-missing-name"),
    *("06-missing-uri", "08-truth-for-number", "10-section-is-a-list", "11-section-without-value", "12-wrong-choice"),
    *(
        "13-out-of-bounds",
        "14-betas",
        "15-too-few-betas",
        "16-too-many-betas",
        "17-name-no-label",
        "18-name-is-a-number",
    ),
    *(
        "19-name-too-long",
        "20-misspelt-task",
        "23-options-not-a-mapping",
        "25-duration-without-unit",
        "27-duration-misspelt",
        "58-shard-of-one",
        "60-empty-stage",
        "64-misspelt-schedule",
        "68-unknown-class-and-action",
        "79-kubernetes-keys",
        "81-kubernetes-resources",
        "82-kubernetes-names",
        "83-kubernetes-tolerations",
        "84-kubernetes-volumes-and-env",
        "88-kubernetes-durations",
        "90-kubernetes-is-a-list",
        "91-envelope-of-another-kind",
        "92-envelope-of-another-version",
        "93-envelope-in-part",
        "94-envelope-without-spec",
        "95-envelope-with-short-forms",
        "97-envelope-many-at-once",
    ),
]


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = importlib.import_module("jsonschema")  # comes with Ray; ships no types
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def test_the_file_in_docs_is_current() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "orchestrator.spec.schema_export"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert made == render()
    assert (ROOT / "docs/job.schema.json").read_text(encoding="utf-8") == made


def test_every_key_is_explained() -> None:
    assert schema()["$schema"] == DIALECT
    definitions = schema()["$defs"]
    sections = [made for made in definitions.values() if "properties" in made]
    sections += [definitions["TrainingJob"]["properties"][key] for key in ("metadata", "spec")]
    assert len(sections) == 18
    for section in sections:
        assert section["additionalProperties"] is False
        for key, made in section["properties"].items():
            explained = made if "$ref" not in made else {**definitions[made["$ref"].rpartition("/")[2]], **made}
            assert explained.get("description"), key
    assert '"null"' not in render()


@pytest.mark.parametrize("path", sorted([*HERE.glob("good/*.yaml"), *ROOT.glob("examples/*/job.yaml")]), ids=str)
def test_the_schema_accepts_what_the_loader_accepts(path: Path, validator: Any) -> None:
    validator.validate(read(path.read_text(encoding="utf-8"), file=path.name).root)


@pytest.mark.parametrize("name", SEEN_BY_THE_SCHEMA)
def test_the_schema_refuses_what_it_can_see(name: str, validator: Any) -> None:
    tree = read((HERE / "bad" / f"{name}.yaml").read_text(encoding="utf-8"), file=name).root
    assert not validator.is_valid(tree)


def test_the_template_loads() -> None:
    job = load_text(render_template("my-job"), base_dir="/jobs")
    assert (job.name, job.task.target, job.checkpoint.uri) == ("my-job", "gpt", "/jobs/checkpoints")
    assert (job.parallel.data, job.parallel.zero_stage, job.parallel.copies) == (4, 1, 1)


def test_the_comments_of_the_template_are_the_defaults() -> None:
    text = render_template("my-job")
    uncommented = re.sub(r"^( *)# ([a-zA-Z_-]+:(?:$|  *.*))$", r"\1\2", text, flags=re.MULTILINE)
    assert uncommented.count("\n") == text.count("\n")
    assert load_text(uncommented, base_dir="/jobs") == load_text(text, base_dir="/jobs")
    assert training_job(uncommented)["spec"]["kubernetes"]["image"]
    written = set(re.findall(r"^ *([a-zA-Z_-]+):", uncommented, flags=re.MULTILINE))
    of_items = {"TolerationSpec", "VolumeSpec"}  # written in braces
    sections = [made for name, made in schema()["$defs"].items() if name not in (of_items | {"TrainingJob"})]
    assert written == {key for section in sections for key in section.get("properties", {})}


def test_the_defaults_of_the_kubernetes_section_are_in_the_template() -> None:
    defaults = KubernetesSpec().model_dump(mode="json", exclude_none=True)
    constant = {key: value for key, value in defaults.items() if isinstance(value, str) and value}
    assert constant == {"backend": "auto", "topologyKey": "kubernetes.io/hostname", "gangTimeout": "10m"}
    for key, value in {**constant, "storage": defaults["head"]["storage"]}.items():
        assert re.search(rf"^ +# {key}: {re.escape(value)}( |$)", render_template("my-job"), flags=re.MULTILINE), key


@pytest.mark.parametrize("name", ["", "My Job", "a" * 64, "-a", "a\n"])
def test_the_template_refuses_a_wrong_name(name: str) -> None:
    with pytest.raises(SpecError, match=r"^name: .* is no DNS label"):
        render_template(name)
