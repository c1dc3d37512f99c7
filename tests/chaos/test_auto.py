"""A job that leaves its plan to the planner, on Ray: what it chooses is run, and chosen anew when a node is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.supervisor.commands import ExpectEpoch, RunEpoch
from orchestrator.core.supervisor.events import Fault, WorkerMeasured
from tests.chaos.conftest import Calm
from tests.chaos.support import Cluster
from tests.world.jobs import tiny_job

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(180)]

STEPS = 40


def test_it_measures_chooses_loses_a_node_and_chooses_again(cluster: Cluster, calm: Calm, tmp_path: Path) -> None:
    while len(cluster.nodes.node_ids) < 3:
        cluster.nodes.add_node()
    job = tiny_job(
        "auto",
        parallel={"plan": "auto", "tensor": 1},
        nodes=3,
        spares=0,
        steps=STEPS,
        pace_ms=10,
        on_loss=("swap", "shrink", "wait"),
        checkpoint=tmp_path / "checkpoints",
        checkpoint_every="auto",
    )
    cluster.submit(job, Fault("kill-node", 0, "", 8, 1, 0))
    run = cluster.finish(job)
    assert run.state is not None
    assert run.state.outcome == "completed", f"{run.state.last_word}\n{run}"
    assert sum(isinstance(r.event, WorkerMeasured) for r in run.records) >= 3, str(run)
    plans = {c.plan.epoch: c.plan for r in run.records for c in r.commands if isinstance(c, RunEpoch)}
    chosen = {c.epoch: c for r in run.records for c in r.commands if isinstance(c, ExpectEpoch)}
    assert len(plans) >= 2, str(run)
    for epoch, plan in plans.items():
        assert chosen[epoch].option.strategy.ranks == plan.size
        assert chosen[epoch].option.estimate.step_s > 0
    assert "chosen by the planner" in plans[1].reason
    undisturbed = calm(STEPS)
    assert run.losses == undisturbed.losses, str(run)
    assert run.digest == undisturbed.digest, str(run)
    assert run.steps_lost == 0, str(run)
