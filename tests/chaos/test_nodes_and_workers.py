"""Nodes, their daemons and workers are lost for real, on Ray: each is noticed in time and swapped, and zombies end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import Fault, StepCommitted, Tick
from tests.chaos.conftest import Calm
from tests.chaos.support import Cluster, unshrinkable, until_gone
from tests.world.facts import assert_as_if_nothing_happened, at_step, is_in, loses
from tests.world.jobs import tiny_job

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(400)]

STEPS = 60


def job_of(name: str, *, zero: int = 1) -> Job:
    """Three ranks and a spare, which is waited for where it is not there yet; a tenth of a second a step."""
    return unshrinkable(tiny_job(name, nodes=3, spares=1, zero=zero, steps=STEPS, pace_ms=30))


def test_a_stopped_worker_is_found_within_detect_within_swapped_and_refused(cluster: Cluster, calm: Calm) -> None:
    job = job_of("stopped")
    cluster.submit(job)
    cluster.until(job, at_step(5))
    victim, pid = cluster.worker(job, 1)
    os.kill(pid, signal.SIGSTOP)
    lost = cluster.until(job, loses(victim))
    assert "worker-hung" in lost.reason
    assert isinstance(lost.event, Tick)
    silence_ms = next(o.silence_ms for o in lost.event.observations if o.worker_id == victim)
    assert 0.8 * job.resilience.detect_within_ms <= silence_ms <= job.resilience.detect_within_ms
    with suppress(ProcessLookupError):  # it may have been ended by then
        os.kill(pid, signal.SIGCONT)
    until_gone(pid)
    run = cluster.finish(job)
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[1])


def test_a_raylet_alone_is_killed_and_its_worker_that_trains_on_is_refused_and_ends(cluster: Cluster, calm: Calm) -> None:
    job = job_of("raylet")
    cluster.submit(job)
    cluster.until(job, at_step(5))
    victim, pid = cluster.worker(job, 1)
    node = next(w.node_id for w in cluster.status(job).workers if w.worker_id == victim)
    assert cluster.nodes.kill_raylet(node)
    lost = cluster.until(job, loses(victim))
    assert "node-lost" in lost.reason
    until_gone(pid)
    run = cluster.finish(job)
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[1])


@pytest.mark.parametrize("zero", [0, 1])
def test_a_whole_node_is_killed_in_mid_step(cluster: Cluster, calm: Calm, zero: int) -> None:
    job = job_of(f"node-{zero}", zero=zero)
    if len(cluster.nodes.node_ids) < 5:
        cluster.nodes.add_node()
    cluster.submit(job, Fault("kill-node", 2, "", 8, 1, 0))
    run = cluster.finish(job)
    victim = run.epochs[1][2]
    lost = next(r for r in run.records if loses(victim)(r))
    assert lost.committed_step == 7
    first = next(r for r in run.records if isinstance(r.event, StepCommitted) and r.event.epoch == 2)
    assert first.event.step == 8  # type: ignore[union-attr]
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[2])


def test_a_node_that_joins_staffs_a_job_that_waits(cluster: Cluster, calm: Calm) -> None:
    nodes = cluster.nodes
    while len(nodes.node_ids) > 3:
        nodes.kill_node(nodes.node_ids[0])
    job = unshrinkable(tiny_job("waits", nodes=3, spares=0, zero=1, steps=STEPS, pace_ms=30))
    cluster.submit(job, Fault("kill-node", 0, "", 8, 1, 0))
    waiting = cluster.until(job, is_in("waiting", epoch=1))
    assert "waiting for a node or a worker" in waiting.reason
    assert cluster.status(job).phase == "waiting"
    nodes.add_node()
    run = cluster.finish(job)
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[0])
