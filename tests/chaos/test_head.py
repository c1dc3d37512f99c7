"""Ray's head is lost under a job: the workers step on, the head comes back around its store, later losses are mended too."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from orchestrator.core.supervisor.events import SupervisorRestarted
from tests.chaos.conftest import Calm
from tests.chaos.support import LIMIT_S, POLL_S, Cluster, lives, unshrinkable, until_gone
from tests.world.facts import assert_as_if_nothing_happened, at_step
from tests.world.jobs import tiny_job

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(400)]

STEPS = 150
PACE_MS = 150  # a minute and more: the job is not at its end when the head is back, however busy the machine is


@pytest.mark.parametrize("whole", [False, True], ids=["gcs", "whole-head"])
def test_a_worker_that_is_lost_after_the_head_was_is_replaced_by_a_new_one(
    cluster: Cluster, calm: Calm, whole: bool, tmp_path: Path
) -> None:
    hurry = tmp_path / "hurry"
    # No spare, and no fewer ranks: it goes on only with a worker that is started, which takes a GCS that knows the cluster.
    name = "whole" if whole else "gcs"
    job = unshrinkable(tiny_job(name, nodes=3, spares=0, zero=1, steps=STEPS, pace_ms=PACE_MS, hurry=str(hurry)))
    cluster.submit(job)
    cluster.until(job, at_step(5))
    supervisor = cluster.supervisor_pid
    before = {rank: cluster.worker(job, rank) for rank in range(3)}

    gcs = cluster.nodes.gcs_pid
    if whole:
        assert cluster.nodes.kill_head_raylet()
        until_gone(supervisor)
        until_another_supervisor(cluster, supervisor)
    else:
        os.kill(gcs, signal.SIGKILL)
    until_gone(gcs)
    known = cluster.records(job)[-1]
    cluster.until(job, at_step(known.committed_step + 5))
    assert lives(supervisor) is not whole
    assert {rank: cluster.worker(job, rank) for rank in range(3)} == before

    victim, pid = before[1]
    os.kill(pid, signal.SIGKILL)
    hurry.touch()
    run = cluster.finish(job)
    assert list(run.epochs) == [1, 2]
    first, second = run.epochs[1], run.epochs[2]
    assert [w for w in run.killed if w in first.values()] == [victim]
    assert second[1] not in first.values()
    assert second == {**first, 1: second[1]}
    restarts = [r for r in run.records if isinstance(r.event, SupervisorRestarted)]
    assert len(restarts) == (1 if whole else 0)
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[1])


def until_another_supervisor(cluster: Cluster, old: int) -> None:
    """Wait until another process has published itself."""
    deadline = time.monotonic() + LIMIT_S
    while cluster.supervisor_pid == old:
        assert time.monotonic() < deadline, "the supervisor did not come back"
        time.sleep(POLL_S)
