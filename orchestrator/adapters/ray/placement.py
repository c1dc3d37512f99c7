"""Ray calls about one worker: create it in its slot, find it again, end it and free the slot. All of them block.

A worker and its placement group both carry one name, made of job and worker id, so that any process, and a supervisor that
knows nothing but its journal, can find them. Both are detached: they belong to the cluster and not to whoever created them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import ray
from ray.util import list_named_actors
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.adapters.ray.actors import WorkerActor
from orchestrator.adapters.ray.settings import NAMESPACE, NODE_ID_LABEL, SUPERVISOR_NAME


def actor_name(*, job: str, worker_id: str) -> str:
    """Name of a worker's actor and placement group: worker ids are unique within a job only."""
    return f"{job}/{worker_id}"


def create_worker(*, name: str, node_id: str, worker_main: str, settings: dict[str, str], request: Mapping[str, float]) -> Any:
    """Ask Ray for a worker of this actor name on this node; returns its handle before it is up.

    Idempotent. `request` is what one slot of that node consists of. While the node has no free slot the worker waits for one.
    """
    group = _find_group(name) or placement_group(
        [dict(request)],
        strategy="STRICT_PACK",
        name=name,
        lifetime="detached",
        bundle_label_selector=[{NODE_ID_LABEL: node_id}],
    )
    custom = {k: v for k, v in request.items() if k not in ("CPU", "GPU")}
    actor_class: Any = ray.remote(WorkerActor)  # Ray's types do not follow options() on an actor class
    return actor_class.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=0,
        max_task_retries=0,
        num_cpus=request.get("CPU", 0),
        num_gpus=request.get("GPU", 0),
        resources=custom,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
    ).remote(worker_main, settings)


def find_worker(name: str) -> Any:
    """The handle of a living worker. Raises ValueError when the GCS knows none."""
    return ray.get_actor(name, namespace=NAMESPACE)


def end_worker(name: str) -> None:
    """Kill the worker, if there is one, and free its slot; returns before either has happened. Idempotent."""
    with contextlib.suppress(ValueError):
        ray.kill(find_worker(name), no_restart=True)
    group = _find_group(name)
    if group is not None:
        remove_placement_group(group)


def shutdown_all() -> int:
    """End the supervisor and all workers of the connected cluster, the supervisor first; returns how many there were."""
    names = [a["name"] for a in list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE]
    if SUPERVISOR_NAME in names:
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(SUPERVISOR_NAME, namespace=NAMESPACE), no_restart=True)
    for name in names:
        if name != SUPERVISOR_NAME:
            end_worker(name)
    return len(names)


def _find_group(name: str) -> PlacementGroup | None:
    try:
        group: PlacementGroup = get_placement_group(name)
    except ValueError:
        return None
    return group
