"""What is slow is not lost: pauses, a slow disk and a busy machine cost time, and nobody is declared lost."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.core.supervisor.events import Fault, StepCommitted
from orchestrator.runtime.ports import Record
from tests.chaos.support import Cluster, pause
from tests.world.facts import Facts, at_step, says
from tests.world.jobs import tiny_job
from tests.world.processes import System

PAUSE_S = 3.0
BUSY_S = 15.0
SPINNERS = 4


def assert_nobody_lost(run: Facts) -> None:
    """One epoch, no kill, no failure."""
    assert run.killed == {}, str(run)
    assert list(run.epochs) == [1]
    assert run.state is not None
    assert run.state.budget == run.state.job.resilience.failure_budget


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_pauses_of_three_seconds_and_a_busy_machine(cluster: Cluster) -> None:
    job = tiny_job("patient", nodes=3, spares=1, zero=1, steps=100_000, pace_ms=10, detect_within="5s")
    while len(cluster.nodes.node_ids) < 4:
        cluster.nodes.add_node()
    cluster.submit(job)
    cluster.until(job, says("w3 is ready"))
    cluster.until(job, at_step(5))
    _, pid = cluster.worker(job, 1)
    for stopped in (pid, cluster.supervisor_pid):
        pause(stopped, PAUSE_S)
        after = cluster.records(job)[-1]
        cluster.until(job, at_step(after.committed_step + 3))
    spinners = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(SPINNERS)]
    try:
        before = cluster.records(job)[-1]
        time.sleep(BUSY_S)  # the length of the load is what is tested
        cluster.until(job, at_step(before.committed_step + 1))
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert_nobody_lost(cluster.cancel(job))


class SlowDisk(SqliteJournal):
    """A journal on a disk that takes three seconds for some writes."""

    def append(self, record: Record, *, durable: bool) -> None:
        """As ever, at leisure."""
        if isinstance(record.event, StepCommitted) and record.event.step in (5, 9):
            time.sleep(PAUSE_S)
        super().append(record, durable=durable)


@pytest.mark.chaos
async def test_a_disk_that_takes_three_seconds(tmp_path: Path) -> None:
    job = tiny_job("disk", zero=1, steps=15)
    async with System(tmp_path, open_journal=SlowDisk) as system:
        run = await system.run(job, Fault("slow", 1, "", 2, 0, 20))
        assert_nobody_lost(run)
        assert run.state is not None
        assert run.state.outcome == "completed"
