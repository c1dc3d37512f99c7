"""Names and Ray settings that every process of the cluster must agree on.

Ray reads its settings from the environment when its native library loads, each process for itself, so one table is laid into
the environment of every node, driver and actor before Ray is imported there. What is in the table was measured (facts.md):
health checks that notice a dead node in about two seconds, and nothing that spends CPU on a machine that should train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

NAMESPACE: Final = "orchestrator"
SUPERVISOR_NAME: Final = "orchestrator-supervisor"
SLOT_RESOURCE: Final = "orchestrator_slot"  # one unit holds one worker; nodes of an embedded cluster have it
HEAD_RESOURCE: Final = "orchestrator_head"  # one unit, on an embedded cluster's head: it has no slots
RAY_HEAD_RESOURCE: Final = "node:__internal_head__"  # one unit, on the head of every Ray cluster: the place of the supervisor
NODE_ID_LABEL: Final = "ray.io/node-id"  # Ray gives every node this label
MACHINE_LABEL: Final = "orchestrator.dev/machine"  # of nodes that share machines: the name of theirs
OBJECT_STORE_BYTES: Final = 80 * 2**20  # about Ray's minimum: no data of ours goes through it

HEALTH_SETTINGS: Final[dict[str, str]] = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
}

QUIET_SETTINGS: Final[dict[str, str]] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",  # 0 turns task events off
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor that asks for no GPU keeps its view of the devices
}

CLUSTER_SETTINGS: Final[dict[str, str]] = {
    **HEALTH_SETTINGS,
    **QUIET_SETTINGS,
    "RAY_worker_niceness": "0",  # Ray's 15 would let any other process starve a rank, and with it all ranks
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # every node would watch, and blame itself for, the whole machine's memory
    "RAY_worker_register_timeout_seconds": "120",  # five workers that start at once on two cores are slow, not lost
    "RAY_gcs_server_request_timeout_seconds": "20",
    # A worker would end itself one second after its raylet. Whether a worker lives is the supervisor's decision, and fencing
    # must hold without Ray's help; this is the backstop for a worker that nobody speaks to any more.
    "RAY_raylet_death_check_interval_milliseconds": "30000",
}

LOOPBACK_SETTINGS: Final[dict[str, str]] = {
    # Without it Ray takes "127.0.0.1" for "this machine's address towards the world", and looks for the cluster there.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def head_storage(directory: Path) -> dict[str, str]:
    """For the head alone: a GCS that keeps its tables in `directory`, so that one that is started again there goes on with them.

    Without it a new GCS is a new cluster, and every node, actor and driver of the old one ends.
    """
    return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(directory)}


THREAD_SETTINGS: Final[dict[str, str]] = {
    "OMP_NUM_THREADS": "1",  # one thread per rank: the order of sums must not depend on the machine
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}
