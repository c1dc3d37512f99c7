"""A job that leaves its plan to the planner, on Ray: what it chooses is run, and chosen anew when a node is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.supervisor.events import Fault, WorkerMeasured
from tests.chaos.conftest import Calm
from tests.chaos.support import Cluster
from tests.world.jobs import auto_job

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(400)]

STEPS = 40


def test_it_measures_chooses_loses_a_node_and_chooses_again(cluster: Cluster, calm: Calm, tmp_path: Path) -> None:
    while len(cluster.nodes.node_ids) < 3:
        cluster.nodes.add_node()
    job = auto_job(steps=STEPS, checkpoints=tmp_path / "checkpoints")
    cluster.submit(job, Fault("kill-node", 0, "", 8, 1, 0))
    run = cluster.finish(job)
    assert run.state is not None
    assert run.state.outcome == "completed", f"{run.state.last_word}\n{run}"
    assert sum(isinstance(r.event, WorkerMeasured) for r in run.records) >= 3, str(run)
    plans = run.plans
    assert len(plans) >= 2, str(run)
    for epoch, plan in plans.items():
        assert run.expected[epoch].option.strategy.ranks == plan.size
        assert run.expected[epoch].option.estimate.step_s > 0
    assert "chosen by the planner" in plans[1].reason
    undisturbed = calm(STEPS)
    assert run.losses == undisturbed.losses, str(run)
    assert run.digest == undisturbed.digest, str(run)
    assert run.steps_lost == 0, str(run)
