"""The JSON Schema (draft 2020-12) of job files, bare or in the envelope of a TrainingJob, for editors: `python -m
orchestrator.spec.schema_export`.

It is made from the models, so it cannot drift from what the loader accepts; `docs/job.schema.json` holds its output
and a test compares them. What the file may not say, such as null, is taken out, and the short forms of `task` and
`parallel` are put in where they are allowed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import BaseModel

from orchestrator.spec.envelope import API_VERSION, ENVELOPE_KEYS, KIND, WRITTEN_BY_SERVER, Metadata, TrainingJobSpec
from orchestrator.spec.model import JobSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema as a tree of JSON values."""
    bare, inner = tidied(JobSpec.model_json_schema()), tidied(TrainingJobSpec.model_json_schema())
    definitions = bare.pop("$defs")
    del inner["$defs"]
    task, parallel = (bare["properties"][key] for key in ("task", "parallel"))
    target = dict(definitions["TaskSpec"]["properties"]["target"])
    target.pop("default", None)
    short = {
        "task": {"description": task["description"], "anyOf": [target, {"$ref": "#/$defs/TaskSpec"}]},
        "parallel": {
            "description": parallel["description"],
            "anyOf": [{"$ref": "#/$defs/Planning"}, {"$ref": "#/$defs/ParallelSpec"}],
        },
    }
    bare["properties"] |= short
    del inner["properties"]["name"]
    inner["required"] = ["kubernetes"]
    metadata = tidied(Metadata.model_json_schema())
    metadata["properties"] |= {key: {"description": "Written by the API server; ignored in a file."} for key in WRITTEN_BY_SERVER}
    object_ = {
        "type": "object",
        "description": "A job as an object of Kubernetes.",
        "properties": {
            "apiVersion": {"description": "Version of the object's form.", "const": API_VERSION},
            "kind": {"description": "What the object is.", "const": KIND},
            "metadata": metadata,
            "spec": inner,
            "status": {"description": "What became of the job; ignored in a file."},
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
    }
    return {
        "$schema": DIALECT,
        "$defs": {**definitions, "JobSpec": bare, "TrainingJob": object_},
        "title": "job.yaml",
        "if": {"anyOf": [{"required": [key]} for key in ENVELOPE_KEYS]},
        "then": {"$ref": "#/$defs/TrainingJob"},
        "else": {"$ref": "#/$defs/JobSpec"},
    }


def render() -> str:
    """The schema as text, equal byte for byte whenever the models are equal."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def render_model(model: type[BaseModel], *, title: str) -> str:
    """The schema of another kind of file as text."""
    made = {"$schema": DIALECT, **tidied(model.model_json_schema()), "title": title}
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def tidied(node: Any) -> Any:
    """A schema of pydantic without `null` (an absent key says that) and without the titles that only repeat a key."""
    if isinstance(node, list):
        return [tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: tidied(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}
    if "anyOf" in tidy:
        options = [option for option in tidy["anyOf"] if option != {"type": "null"}]
        if len(options) < len(tidy["anyOf"]):
            tidy.pop("default", None)
        tidy["anyOf"] = options
        if len(options) == 1:
            tidy.pop("anyOf")
            tidy = {**options[0], **tidy}
    if tidy.get("default") == "":
        del tidy["default"]
    return tidy


if __name__ == "__main__":
    sys.stdout.write(render())
