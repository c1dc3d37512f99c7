"""Ray's head is lost under a job: the workers step on, the head comes back around its store, and later losses are still mended."""

from __future__ import annotations

import os
import signal
import time

import pytest

from orchestrator.core.supervisor.events import SupervisorRestarted
from tests.chaos.conftest import Calm
from tests.chaos.support import LIMIT_S, POLL_S, Cluster, lives, until_gone
from tests.world.facts import assert_as_if_nothing_happened, at_step, says
from tests.world.jobs import tiny_job

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(180)]

STEPS = 200


@pytest.mark.parametrize("whole", [False, True], ids=["gcs", "whole-head"])
def test_workers_that_are_lost_after_the_head_was_are_replaced_also_by_new_ones(
    cluster: Cluster, calm: Calm, whole: bool
) -> None:
    job = tiny_job("whole" if whole else "gcs", nodes=3, spares=1, zero=1, steps=STEPS, pace_ms=30)
    while len(cluster.nodes.node_ids) < 4:
        cluster.nodes.add_node()
    cluster.submit(job)
    cluster.until(job, says("w3 is ready"))
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

    os.kill(before[1][1], signal.SIGKILL)  # the spare takes over at once
    cluster.until(job, says("w4 is ready"))  # which took a GCS that knows the cluster
    os.kill(before[2][1], signal.SIGKILL)
    run = cluster.finish(job)
    assert sorted(run.killed) == sorted((before[1][0], before[2][0]))
    first = run.epochs[1]
    spare, new = f"{job.name}/w3", f"{job.name}/w4"
    assert run.epochs == {1: first, 2: {**first, 1: spare}, 3: {**first, 1: spare, 2: new}}
    restarts = [r for r in run.records if isinstance(r.event, SupervisorRestarted)]
    assert len(restarts) == (1 if whole else 0)
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[1, 2])


def until_another_supervisor(cluster: Cluster, old: int) -> None:
    """Wait until another process has published itself."""
    deadline = time.monotonic() + LIMIT_S
    while cluster.supervisor_pid == old:
        assert time.monotonic() < deadline, "the supervisor did not come back"
        time.sleep(POLL_S)
