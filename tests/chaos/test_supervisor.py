"""The supervisor's process is killed on Ray: the workers step on, it comes back by itself and takes them up again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from orchestrator.core.supervisor.events import StepCommitted, SupervisorRestarted, WorkerHello
from tests.chaos.conftest import Calm
from tests.chaos.support import LIMIT_S, POLL_S, Cluster, lives, until_gone
from tests.world.facts import Wanted, assert_as_if_nothing_happened, at_step, says
from tests.world.jobs import tiny_job
from tests.world.tasks import furthest

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(400)]

STEPS = 200
PACE_MS = 100  # of a micro-batch, so that the job is not at its end when the second supervisor is back
READOPTED_WITHIN_S = 10.0  # from when it works again; how soon Ray brings it back is measured elsewhere


def test_killed_twice_the_second_time_together_with_a_worker(cluster: Cluster, calm: Calm, tmp_path: Path) -> None:
    diary, hurry = tmp_path / "diary", tmp_path / "hurry"
    job = tiny_job("headless", nodes=3, spares=1, zero=1, steps=STEPS, pace_ms=PACE_MS, diary=str(diary), hurry=str(hurry))
    while len(cluster.nodes.node_ids) < 5:
        cluster.nodes.add_node()
    cluster.submit(job)
    cluster.until(job, says("w3 is ready"))
    cluster.until(job, at_step(5))

    kill_supervisor(cluster)
    known = cluster.records(job)[-1]
    deadline = time.monotonic() + LIMIT_S
    while furthest(diary) < known.committed_step + 3:
        assert time.monotonic() < deadline, "the workers stand still without a supervisor"
        time.sleep(POLL_S)
    assert not any(isinstance(r.event, SupervisorRestarted) for r in cluster.records(job)), "they stepped on without one"
    restarted = cluster.until(job, lambda r: isinstance(r.event, SupervisorRestarted))
    for number in range(4):
        back = cluster.until(
            job,
            hello_of(f"headless/w{number}"),
            after=restarted.seq,
        )
        assert back.wall_s - restarted.wall_s <= READOPTED_WITHIN_S
    resent = cluster.until(job, lambda r: isinstance(r.event, StepCommitted), after=restarted.seq)
    assert resent.committed_step == known.committed_step + 1, "what was committed meanwhile is told afterwards"

    victim, pid = cluster.worker(job, 0)
    killed_s = kill_supervisor(cluster)
    os.kill(pid, signal.SIGKILL)
    again = cluster.until(job, lambda r: isinstance(r.event, SupervisorRestarted), after=restarted.seq)
    assert again.wall_s > killed_s
    hurry.touch()
    run = cluster.finish(job)
    assert victim in run.killed
    assert list(run.epochs) == [1, 2]
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[0])


def kill_supervisor(cluster: Cluster) -> float:
    """SIGKILL its process, which has written its last word when this returns; when that was (Unix time)."""
    pid = cluster.supervisor_pid
    assert lives(pid)
    killed_s = time.time()
    os.kill(pid, signal.SIGKILL)
    until_gone(pid)
    return killed_s


def hello_of(worker_id: str) -> Wanted:
    """Whether a record is this worker's hello."""
    return lambda r: isinstance(r.event, WorkerHello) and r.event.worker_id == worker_id
