"""Between job files and TrainingJob objects: `launch` makes an object of a file, operator and agent read the job back.

The object holds what the file says and nothing that it leaves out, so that the API server's defaults apply, as after
`kubectl apply`.
Relative paths in it (a task's file, a checkpoint's folder) start at the working folder of the pods, not where the file lay.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from orchestrator.core.job import Job
from orchestrator.spec.document import of_tree, read
from orchestrator.spec.envelope import API_VERSION, KIND, TrainingJobSpec, is_envelope, long_form
from orchestrator.spec.errors import Problem, dotted
from orchestrator.spec.kube_values import WORKDIR
from orchestrator.spec.kubernetes import KubernetesSpec
from orchestrator.spec.loader import judged
from orchestrator.spec.resolve import resolve

__all__ = ["WORKDIR", "from_training_job", "refused_by_server", "training_job"]

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # kubectl's own note on an object, wrong for a new one


def training_job(
    text: str,
    *,
    file: str = "<text>",
    namespace: str = "",
    name: str = "",
    image: str = "",
) -> dict[str, Any]:
    """The TrainingJob of a job file's text, bare or in its envelope, ready for the API server.

    `namespace`, `name` and `image`, where given, replace what the file says. Raises SpecError with all problems of the file.
    """
    document = read(text, file=file)
    root = document.root
    enveloped = is_envelope(root)
    if name:
        _put(root, ("metadata", "name") if enveloped else ("name",), name)
    if namespace and enveloped:
        _put(root, ("metadata", "namespace"), namespace)
    if image:
        _put(root, ("spec", "kubernetes", "image") if enveloped else ("kubernetes", "image"), image)
    spec = judged(document, on_kubernetes=True)
    metadata: dict[str, Any] = {"name": spec.name}
    if namespace:
        metadata["namespace"] = namespace
    if not enveloped:
        body = {key: value for key, value in root.items() if key != "name"}
        return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": long_form(body)}
    written = root["metadata"]
    assert isinstance(written, dict), "it was judged"
    metadata |= {key: written[key] for key in ("namespace", "labels", "annotations") if key in written}
    if annotations := metadata.get("annotations"):
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != _LAST_APPLIED}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": root["spec"]}


def from_training_job(
    obj: Mapping[str, Any], *, base_dir: str | os.PathLike[str] = WORKDIR, begun: bool = False
) -> tuple[Job, KubernetesSpec, bool]:
    """(job, its kubernetes section, suspend) of an object of the API server.

    `base_dir` is where its relative paths start, the working folder of the pods. A job that has `begun` may have been scaled to
    fewer nodes than its `parallel` section fills: it is read as it began. Raises SpecError, whose problems have paths
    (spec.train.steps) and no lines.
    """
    metadata = _plain(obj.get("metadata") or {})
    name = metadata.get("name")
    tree = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": _plain(obj.get("spec") or {})}
    if begun:
        _make_room(tree["spec"])
    spec = judged(of_tree(tree, file=f"trainingjob/{name}"))
    assert isinstance(spec, TrainingJobSpec), "a TrainingJob is an envelope"
    assert spec.kubernetes is not None, "a TrainingJob without an image is refused"
    return resolve(spec, base_dir=os.fspath(base_dir)), spec.kubernetes, spec.suspend


def refused_by_server(text: str, *, file: str, field: str, message: str) -> Problem:
    """What the API server said about a field (`spec.train.steps`) of the file's TrainingJob, at its place in the file.

    A field that the file does not hold is placed at the nearest section above it.
    """
    document = read(text, file=file)
    above: tuple[str, ...] = () if is_envelope(document.root) else ("spec",)
    known = {dotted((*above, *path)): path for path in document.value_at}
    if above:
        known["metadata.name"] = ("name",)
    near = field
    while near and near not in known:
        near = near[: max(near.rfind("."), near.rfind("["), 0)]
    at = document.position(known.get(near, ()), of_key=False)
    return Problem(file=file, line=at.line, column=at.column, path=field, message=message)


def _make_room(spec: dict[str, Any]) -> None:
    """As many nodes as `parallel` fills, where the spec (with the API server's defaults) has fewer."""
    parallel, cluster = spec.get("parallel") or {}, spec.get("cluster") or {}
    sizes = [parallel.get(axis, 1) for axis in ("pipeline", "data", "tensor")] + [cluster.get("slots_per_node", 1)]
    if all(isinstance(size, int) and size > 0 for size in (*sizes, cluster.get("nodes"))):
        cluster["nodes"] = max(cluster["nodes"], math.ceil(math.prod(sizes[:3]) / sizes[3]))


def _put(root: dict[str, Any], path: tuple[str, ...], value: str) -> None:
    """Write a value into the tree; where the file holds no mapping on the way it is left for the judges."""
    for key in path[:-1]:
        root = root.setdefault(key, {})
        if not isinstance(root, dict):
            return
    root[path[-1]] = value


def _plain(value: Any) -> Any:
    """A copy made of dicts and lists, whatever mappings a client library uses."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
