"""The JSON Schema (draft 2020-12) of job.yaml, for editors and for the operator: `python -m
orchestrator.spec.schema_export`.

It is made from the models, so it cannot drift from what the loader accepts; `docs/job.schema.json` holds its output
and a test compares them. What the file may not say, such as null, is taken out, and the short forms of `task` and
`parallel` are put in.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import BaseModel

from orchestrator.spec.model import JobSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema as a tree of JSON values."""
    made = _tidied(JobSpec.model_json_schema())
    task = made["properties"]["task"]
    target = dict(made["$defs"]["TaskSpec"]["properties"]["target"])
    target.pop("default", None)
    made["properties"]["task"] = {"description": task["description"], "anyOf": [target, {"$ref": "#/$defs/TaskSpec"}]}
    parallel = made["properties"]["parallel"]
    made["properties"]["parallel"] = {
        "description": parallel["description"],
        "anyOf": [{"$ref": "#/$defs/Planning"}, {"$ref": "#/$defs/ParallelSpec"}],
    }
    return {"$schema": DIALECT, **made, "title": "job.yaml"}


def render() -> str:
    """The schema as text, equal byte for byte whenever the models are equal."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def render_model(model: type[BaseModel], *, title: str) -> str:
    """The schema of another kind of file as text."""
    made = {"$schema": DIALECT, **_tidied(model.model_json_schema()), "title": title}
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _tidied(node: Any) -> Any:
    """Without `null` (an absent key says that) and without the titles that only repeat a key."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: _tidied(value) for key, value in node.items() if key != "title" or not isinstance(value, str)}
    if "anyOf" in tidy:
        options = [option for option in tidy["anyOf"] if option != {"type": "null"}]
        if len(options) < len(tidy["anyOf"]):
            tidy.pop("default", None)
        if len(options) == 1:
            tidy.pop("anyOf")
            tidy = {**options[0], **tidy}
    return tidy


if __name__ == "__main__":
    sys.stdout.write(render())
