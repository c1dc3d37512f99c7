"""The CustomResourceDefinition of TrainingJob: `python -m orchestrator.spec.crd` writes manifests/crd/trainingjobs.yaml.

Its spec is made from the models, so that the API server and the loader judge alike: bounds, choices, patterns, and those defaults
that mean the same as an absent key. Its status is written by the agent in the head pod and by the operator, each its own fields.
"""

from __future__ import annotations

import sys
from typing import Any

import yaml

from orchestrator.spec.envelope import GROUP, KIND, VERSION, TrainingJobSpec
from orchestrator.spec.kube_values import JOB_NAME_CHARS_MAX, JOB_NAME_PATTERN
from orchestrator.spec.schema_export import tidied
from orchestrator.spec.structural import Schema, structural, with_empty_sections, without_defaults

PLURAL = "trainingjobs"
PHASES = ("Pending", "Starting", "Running", "Recovering", "Suspending", "Suspended", "Succeeded", "Failed", "Cancelled")
_HEADER = "# Generated from orchestrator/spec by `make generate`: change the models there, not this file.\n"


def spec_schema() -> Schema:
    """The structural schema of a TrainingJob's spec."""
    raw = tidied(TrainingJobSpec.model_json_schema())
    made = structural(raw, raw["$defs"])
    sections = made["properties"]
    del sections["name"]
    sections["parallel"] = without_defaults(sections["parallel"])  # with plan: auto, what is written stays fixed
    sections["kubernetes"]["required"] = ["image"]
    made["required"] = ["kubernetes"]
    made["description"] = "The job: a job file without its name, and suspend."
    return with_empty_sections(made)


def status_schema() -> Schema:
    """The structural schema of a TrainingJob's status."""
    told = {
        "phase": {"type": "string", "enum": list(PHASES), "description": "Where the job stands."},
        "reason": _text("One word on the phase."),
        "message": _text("The reason in a sentence, and what to do where something must be done."),
        "step": _count("Newest committed step."),
        "steps": _count("Steps of the whole run."),
        "progress": _text("Committed steps of all, such as 42%."),
        "loss": {"type": "number", "description": "Training loss of the newest step that reported one."},
        "etaSeconds": _count("Seconds until the end, at the present pace."),
        "goodput": _text("Share of the time since the start that was spent in steps that count, such as 0.98."),
        "recoveries": _count("Failures and changes that the job went on from."),
        "failures": _count("Failures that count against resilience.failures now; planned changes never do."),
        "stepsLost": _count("Steps that had to be computed again."),
        "epoch": _count("Number of the plan that is at work; the fencing token."),
        "ranks": _count("Ranks of that plan."),
        "nodes": _count("Nodes that the supervisor trains on at full strength."),
        "nodesRefused": _count(
            "spec.cluster.nodes, where the supervisor has refused it; the job goes on with as many as before."
        ),
        "spares": _count("Warm spare workers that wait."),
        "seats": {
            "type": "array",
            "items": {"type": "string"},
            "x-kubernetes-list-type": "atomic",
            "description": "The pod of each rank, in the order of the ranks; the others are spares. Left out beyond 4096 ranks.",
        },
        "checkpoint": _count("Step of the newest complete durable checkpoint."),
        "digest": _text("Digest of the newest state that was digested."),
        "lastDecision": _text("What the supervisor decided last, and why."),
        "lastReport": _time("When the agent last heard of the supervisor."),
        "observedGeneration": _count("Generation of the spec that the operator has acted on."),
        "replicas": _count("Worker pods."),
        "readyReplicas": _count("Worker pods that are ready."),
        "selector": _text("Label selector of the worker pods."),
        "startTime": _time("When the operator took the job on."),
        "completionTime": _time("When the job reached its last phase."),
        "submitted": _tree("The spec with which the job was submitted. It goes on as such, whatever is edited since."),
        "podSettings": _tree("spec.kubernetes as new pods get it, where it was edited since the job was submitted."),
        "conditions": _conditions(),
    }
    return {"type": "object", "description": "What became of the job.", "properties": told}


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a tree of JSON values."""
    name = {
        "type": "string",
        "maxLength": JOB_NAME_CHARS_MAX,
        "pattern": JOB_NAME_PATTERN,
    }
    schema = {
        "type": "object",
        "description": "A training job that survives the loss of its workers and nodes.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": spec_schema(),
            "status": status_schema(),
        },
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.cluster.nodes",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            _column("State", ".status.phase"),
            _column("Step", ".status.step", kind="integer"),
            _column("Progress", ".status.progress"),
            _column("Goodput", ".status.goodput"),
            _column("Recoveries", ".status.recoveries", kind="integer"),
            _column("Spares", ".status.spares", kind="integer"),
            _column("Age", ".metadata.creationTimestamp", kind="date"),
            _column("Loss", ".status.loss", kind="number", wide=True),
            _column("ETA", ".status.etaSeconds", kind="integer", wide=True),
            _column("Epoch", ".status.epoch", kind="integer", wide=True),
            _column("Reason", ".status.reason", wide=True),
        ],
        "schema": {"openAPIV3Schema": schema},
    }
    names = {"plural": PLURAL, "singular": "trainingjob", "kind": KIND, "listKind": f"{KIND}List", "shortNames": ["tj"]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": {**names, "categories": ["all"]}, "versions": [version]},
    }


def render() -> str:
    """The manifest as YAML, equal byte for byte whenever the models are equal."""
    return _HEADER + yaml.dump(definition(), Dumper=_Dumper, sort_keys=False, width=130, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes equal parts out instead of pointing at them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _column(name: str, path: str, *, kind: str = "string", wide: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, **({"priority": 1} if wide else {})}


def _text(description: str) -> Schema:
    return {"type": "string", "nullable": True, "description": description}  # nullable: 1.20 takes an empty text for null


def _time(description: str) -> Schema:
    return {"type": "string", "format": "date-time", "description": description}


def _count(description: str) -> Schema:
    return {"type": "integer", "format": "int64", "minimum": 0, "description": description}


def _tree(description: str) -> Schema:
    """A part of a spec, as one value: who writes it owns all of it."""
    free = {"x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-map-type": "atomic"}
    return {"type": "object", **free, "description": description}


def _conditions() -> Schema:
    """A list of metav1.Condition, in which each manager owns the types that it writes."""
    reason = {"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "minLength": 1, "maxLength": 1024}
    condition = {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": {"type": "string", "maxLength": 316, "description": "What it is about."},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
            "reason": {"type": "string", **reason, "description": "Why, in one word."},
            "message": {**_text("Why, in a sentence."), "maxLength": 32768},
            "lastTransitionTime": _time("When its status last changed."),
            "observedGeneration": _count("Generation of the spec that it speaks of."),
        },
    }
    return {
        "type": "array",
        "description": "What holds of the job at the moment, by type.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": condition,
    }


if __name__ == "__main__":
    sys.stdout.write(render())
