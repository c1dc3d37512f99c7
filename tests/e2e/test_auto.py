"""A job that leaves its plan to the planner: real workers measure themselves, one is killed, and no bit changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.plan.plan import TENSOR
from orchestrator.core.supervisor.commands import MeasureWorker
from orchestrator.core.supervisor.events import Fault, WorkerMeasured
from tests.e2e.conftest import Calm
from tests.world.jobs import auto_job
from tests.world.processes import System

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

STEPS = 30


async def test_it_measures_chooses_survives_and_ends_at_the_same_bits(tmp_path: Path, calm: Calm) -> None:
    job = auto_job(steps=STEPS, checkpoints=tmp_path / "checkpoints", resilience={"grow_after_steps": 2})
    async with System(tmp_path) as system:
        run = await system.run(job, Fault("kill-worker", 0, "", 5, 1, 0))
        assert run.state is not None
        assert run.state.outcome == "completed", f"{run.state.last_word}\n{run}"
        asked = [c for r in run.records for c in r.commands if isinstance(c, MeasureWorker)]
        told = {r.event.worker_id: r.event for r in run.records if isinstance(r.event, WorkerMeasured)}
        assert len({c.worker_id for c in asked}) >= 3, str(run)
        assert told, str(run)
        for event in told.values():
            assert event.measure.device.flops > 0
            assert all(kind.timings for kind in event.costs.kinds)
        plans = run.plans
        first, second = run.expected[1], run.expected[2]
        assert first.choice is not None
        best = first.choice.best  # its devices are numbered among all workers, those of the option among the seated ones
        assert replace(best.strategy, devices=()) == replace(first.option.strategy, devices=())
        assert first.option.estimate.step_s > 0
        if plans[1].size == job.cluster.nodes:  # of fewer workers fewer links count, which are not all equally good
            assert first.option.estimate.step_s == pytest.approx(best.estimate.step_s)
        assert "chosen by the planner" in plans[1].reason
        assert plans[1].checkpoint_every == first.option.estimate.checkpoint_every
        assert second.option.strategy.ranks == plans[2].size
        assert {p.axis(TENSOR) for p in plans.values()} == {1}
        undisturbed = await calm(steps=STEPS)
        assert run.losses == undisturbed.losses, str(run)
        assert run.digest == undisturbed.digest, str(run)
        assert run.steps_lost == 0, str(run)
