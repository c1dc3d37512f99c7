"""The embedded cluster as a whole: where it listens, who may join, what is left of it, and the supervisor that lives in it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.adapters.ray.connection import authentication
from orchestrator.adapters.ray.local_cluster import LocalCluster, LocalClusterError, recorded_nodes, stop_recorded
from orchestrator.adapters.ray.nodes import keeper, members
from orchestrator.adapters.ray.placement import create_worker, find_worker, shutdown_all
from orchestrator.adapters.ray.supervisor_actor import (
    EndpointResolver,
    SupervisorUnavailableError,
    ensure_supervisor,
    resolve_endpoint,
    supervisor_pid,
)
from tests.unit.adapters.ray.mains import HERE
from tests.unit.adapters.ray.support import LIMIT_S, joined_cluster, lives

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

LIMIT_MS = int(LIMIT_S * 1000)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with joined_cluster(nodes=1) as made:
        yield made


@pytest.fixture
def endpoint(cluster: LocalCluster) -> Iterator[str]:
    """A supervisor."""
    endpoint, _ = ensure_supervisor(f"{HERE}:supervise", {"greeting": "hello"}, timeout_ms=LIMIT_MS)
    yield endpoint
    shutdown_all()
    eventually(lambda: resolve_endpoint(LIMIT_MS) is None)


def eventually(holds: Callable[[], bool]) -> None:
    """For what Ray tells nobody: wait until it holds."""
    deadline_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.02)


def say(endpoint: str, word: str) -> str:
    """One line to the supervisor of these tests, and its answer."""
    host, port = endpoint.split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as s:
        s.sendall(word.encode() + b"\n")
        return s.makefile().readline().strip()


def start_worker(cluster: LocalCluster) -> int:
    """A worker in the only slot; returns its pid."""
    handle = create_worker(
        name="job/w1",
        node_id=cluster.node_ids[0],
        worker_main=f"{HERE}:wait_for_ever",
        settings={},
        request={"orchestrator_slot": 1.0},
    )
    pid: int = ray.get(handle.start.remote(), timeout=LIMIT_S)
    return pid


def test_everything_listens_on_loopback_only(cluster: LocalCluster, endpoint: str) -> None:
    start_worker(cluster)
    listening = set()
    for process in (p for record in cluster.records() for p in members(record)):
        with suppress(psutil.NoSuchProcess):  # a helper that has just ended
            listening |= {c.laddr.ip for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_the_token_is_closed_to_others_and_demanded(cluster: LocalCluster) -> None:
    assert stat.S_IMODE(cluster.token_path.stat().st_mode) == 0o600
    script = (
        "import sys; from orchestrator.adapters.ray.connection import registered_node_ids as ids\n"
        "print(len(ids(sys.argv[1], timeout_s=10)))"
    )

    def nodes_seen_by(environment: dict[str, str]) -> str:
        command = [sys.executable, "-c", script, cluster.address]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S).stdout.strip()

    assert nodes_seen_by(_environment()) == "0"
    assert nodes_seen_by({**_environment(), **authentication(cluster.token_path)}) == "2"


def test_a_directory_holds_one_cluster(cluster: LocalCluster) -> None:
    second = LocalCluster(nodes=1, slots_per_node=1, run_dir=cluster.token_path.parent.parent)
    with pytest.raises(LocalClusterError, match="already holds a cluster"):
        second.start()
    assert all(keeper(r) is not None for r in cluster.records())


def test_the_supervisor_is_found_and_not_started_twice(cluster: LocalCluster, endpoint: str) -> None:
    assert say(endpoint, "anything") == "hello"
    again, kept = ensure_supervisor(f"{HERE}:supervise", {"greeting": "another"}, timeout_ms=LIMIT_MS)
    assert kept == {"greeting": "hello"}
    assert again == endpoint
    assert resolve_endpoint(LIMIT_MS) == endpoint
    (head,) = [r for r in cluster.records() if r.head]
    assert supervisor_pid(LIMIT_MS) in {p.pid for p in members(head)}


@pytest.mark.chaos
def test_a_killed_supervisor_comes_back_and_its_workers_go_on(cluster: LocalCluster, endpoint: str) -> None:
    worker_pid = start_worker(cluster)
    before = supervisor_pid(LIMIT_MS)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: _pid_or_zero() not in (0, before))
    assert say(ensure_supervisor(f"{HERE}:supervise", {}, timeout_ms=LIMIT_MS)[0], "anything") == "hello"
    assert lives(worker_pid)
    assert ray.get(find_worker("job/w1").pid.remote(), timeout=LIMIT_S) == worker_pid


@pytest.mark.chaos
def test_a_crashed_supervisor_comes_back(cluster: LocalCluster, endpoint: str) -> None:
    before = supervisor_pid(LIMIT_MS)
    assert say(endpoint, "crash") == ""
    eventually(lambda: _pid_or_zero() not in (0, before))


def test_a_supervisor_that_is_done_is_not_started_again(cluster: LocalCluster, endpoint: str) -> None:
    assert say(endpoint, "end") == "hello"
    eventually(lambda: resolve_endpoint(LIMIT_MS) is None)
    with pytest.raises(SupervisorUnavailableError):
        supervisor_pid(2_000)


def test_without_a_supervisor_nothing_is_resolved(cluster: LocalCluster) -> None:
    resolver = EndpointResolver()
    try:
        assert resolver.resolve(LIMIT_MS) is None
    finally:
        resolver.close()


def test_shutdown_ends_supervisor_and_workers(cluster: LocalCluster, endpoint: str) -> None:
    pids = [start_worker(cluster), supervisor_pid(LIMIT_MS)]
    assert shutdown_all() == 2
    eventually(lambda: not any(lives(p) for p in pids))
    eventually(lambda: shutdown_all() == 0)


def _pid_or_zero() -> int:
    try:
        return supervisor_pid(2_000)
    except SupervisorUnavailableError:
        return 0


@pytest.mark.chaos
def test_it_outlives_a_killed_launcher_and_another_process_ends_it(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.adapters.ray.local_cluster import LocalCluster\n"
        "LocalCluster(nodes=1, slots_per_node=1, run_dir=Path(sys.argv[1])).start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    launcher = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=LIMIT_S, env=_environment())
    records = recorded_nodes(tmp_path)
    processes = [p for r in records for p in (keeper(r), *members(r)) if p is not None]
    try:
        assert launcher.returncode == -signal.SIGKILL
        assert len(records) == 2
        assert len(processes) >= 7  # two keepers and raylets with two agents each, and the GCS
    finally:
        killed = stop_recorded(tmp_path)
    assert killed >= 7  # Ray may have begun or ended a helper since
    assert not any(lives(p.pid) for p in processes)
    assert recorded_nodes(tmp_path) == ()
    assert not any(Path(r.socket_dir).exists() for r in records)
    assert stop_recorded(tmp_path) == 0


@pytest.mark.chaos
def test_an_interrupt_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    cluster = LocalCluster(nodes=1, slots_per_node=1, run_dir=tmp_path)
    seen: list[int] = []

    def interrupt(_: str) -> None:
        seen.extend(p.pid for r in cluster.records() for p in members(r))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.start(interrupt)
    assert seen
    assert not any(lives(pid) for pid in seen)
    assert cluster.records() == ()


@pytest.mark.chaos
def test_an_interrupt_before_anything_is_recorded_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = LocalCluster(nodes=2, slots_per_node=1, run_dir=tmp_path)
    launched: list[subprocess.Popen[bytes]] = []
    launch = cluster._launch

    def launch_and_interrupt(name: str) -> subprocess.Popen[bytes]:
        launched.append(launch(name))
        if len(launched) == 3:
            raise KeyboardInterrupt
        return launched[-1]

    monkeypatch.setattr(cluster, "_launch", launch_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        cluster.start()
    assert [p.poll() for p in launched] == [-signal.SIGKILL] * 3
    assert cluster.records() == ()


def test_a_node_that_cannot_start_is_an_error_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.adapters.ray.local_cluster.OBJECT_STORE_BYTES", 1)
    cluster = LocalCluster(nodes=1, slots_per_node=1, run_dir=tmp_path)
    with pytest.raises(LocalClusterError, match=r"ended while it started: .+"):
        cluster.start()
    assert cluster.records() == ()


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[4])
    return {**{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}, "PYTHONPATH": root}
