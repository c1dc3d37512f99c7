"""Starts one Ray node of an embedded cluster and then stays as its keeper.

Nodes are started each by a process of its own, all at once: Ray's own Node class waits for seconds in its constructor, is not
safe in threads, and must run on a main thread. Once the raylet is up the process replaces itself by the tiny `keeper.py`,
keeping its pid, its session and its children. `NodeOrder` is the whole input, one JSON object in argv. A head that is started
again by its keeper finds the record of its first life and takes the port from there, since every other node knows that one.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from orchestrator.adapters.ray.nodes import NodeRecord, process_started, this_boot
from orchestrator.adapters.ray.settings import HEAD_RESOURCE, SLOT_RESOURCE

_PR_SET_CHILD_SUBREAPER: Final = 36
_POLL_S: Final = 0.02
_SOCKET_PREFIX: Final = "orc-"
_PORT_OPTION: Final = "--gcs_server_port="


@dataclass(frozen=True, slots=True)
class NodeOrder:
    """What to start."""

    name: str
    record_path: str
    head_record_path: str  # of the head; its own path for the head itself
    ray_dir: str  # Ray's sessions and logs
    slots: int  # 0 for the head
    memory_bytes: int
    object_store_bytes: int
    head_wait_ms: int

    @property
    def head(self) -> bool:
        """Whether this node is the head."""
        return self.record_path == self.head_record_path

    def to_json(self) -> str:
        """For argv."""
        return json.dumps(asdict(self))


def main(order: NodeOrder) -> None:
    """Write the record, start the node, complete the record, become the keeper."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed: a node's orphans could not be found again")
    earlier = NodeRecord.read(Path(order.record_path))
    if earlier is not None and earlier.socket_dir:
        shutil.rmtree(earlier.socket_dir, ignore_errors=True)
    socket_dir = tempfile.mkdtemp(prefix=_SOCKET_PREFIX)
    record = NodeRecord(
        name=order.name,
        head=order.head,
        keeper_pid=os.getpid(),
        keeper_started=process_started(os.getpid()),
        boot=this_boot(),
        socket_dir=socket_dir,
        gcs_address=earlier.gcs_address if earlier is not None else "",
    )
    record.write(Path(order.record_path))
    try:
        head = _start_ray_node(order, record)
    except BaseException:
        shutil.rmtree(socket_dir, ignore_errors=True)
        raise
    keeper_path = str(Path(__file__).with_name("keeper.py"))
    os.execv(sys.executable, [sys.executable, "-I", "-S", keeper_path, *([json.dumps(head)] if head else [])])


def _start_ray_node(order: NodeOrder, record: NodeRecord) -> dict[str, Any]:
    """Returns the keyword arguments of keeper.Head; empty for a node that is none."""
    # Private names of Ray, used in this process only: `ray start` has no way to leave its API server and log monitor out,
    # takes twice as long, and prints to the terminal. tests/unit/adapters/ray covers each of them.
    import ray._private.services as services
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    logging.getLogger("ray").setLevel(logging.ERROR)
    assert services is not None
    gcs_address = None if order.head else _wait_for_head(order)

    class EmbeddedNode(Node):
        """A node without API server, whose log files no other node of this machine can collide with."""

        def start_api_server(self, **_: Any) -> None:
            self._webui_url = ""

        def _get_log_file_name(self, name: str, suffix: str, unique: bool = False) -> str:
            return str(super()._get_log_file_name(f"{name}-{order.name}", suffix, unique=unique))

        def start_ray_processes(self) -> None:
            super().start_ray_processes()  # type: ignore[no-untyped-call]
            raylet = self.all_processes["raylet"][0].process
            record.with_raylet(raylet_pid=raylet.pid, node_id=self.node_id, gcs_address=self.gcs_address).write(
                Path(order.record_path)
            )

    params = RayParams(
        node_name=order.name,
        node_ip_address="127.0.0.1",
        gcs_address=gcs_address,
        gcs_server_port=_port(record.gcs_address),
        num_cpus=0,
        num_gpus=0,
        resources={HEAD_RESOURCE: 1} if order.head else {SLOT_RESOURCE: order.slots},
        memory=order.memory_bytes,
        object_store_memory=order.object_store_bytes,
        temp_dir=order.ray_dir,
        plasma_store_socket_name=f"{record.socket_dir}/store",
        raylet_socket_name=f"{record.socket_dir}/raylet",
        include_dashboard=False,
        include_log_monitor=False,  # type: ignore[arg-type]  # Ray's annotation is wrong
        no_monitor=True,
        dashboard_host="127.0.0.1",
        dashboard_agent_listen_port=0,
        min_worker_port=0,
        max_worker_port=0,
    )
    node = EmbeddedNode(params, head=order.head, shutdown_at_exit=False, spawn_reaper=False)
    if not order.head:
        return {}
    gcs, raylet = (node.all_processes[kind][0].process for kind in ("gcs_server", "raylet"))
    return {
        "gcs_pid": gcs.pid,
        "gcs_command": _on_port(gcs.args, _port(node.gcs_address)),
        "raylet_pid": raylet.pid,
        "again": [sys.executable, "-m", "orchestrator.adapters.ray.node_process", order.to_json()],
    }


def _on_port(command: Sequence[str], port: int) -> list[str]:
    """The same GCS, on the port that it has chosen the first time."""
    return [f"{_PORT_OPTION}{port}" if word.startswith(_PORT_OPTION) else word for word in command]


def _port(address: str) -> int:
    """Of host:port; 0, any, where there is no address."""
    return int(address.rpartition(":")[2]) if address else 0


def _wait_for_head(order: NodeOrder) -> str:
    deadline_s = time.monotonic() + order.head_wait_ms / 1000
    while time.monotonic() < deadline_s:
        head = NodeRecord.read(Path(order.head_record_path))
        if head is not None and head.gcs_address:
            return head.gcs_address
        time.sleep(_POLL_S)
    raise TimeoutError(f"the head node did not start within {order.head_wait_ms} ms")


if __name__ == "__main__":
    main(NodeOrder(**json.loads(sys.argv[1])))
