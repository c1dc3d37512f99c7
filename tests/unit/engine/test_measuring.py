"""A worker measures itself between epochs, and trains afterwards as if it had not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import Colleague, MeasureWorker
from orchestrator.engine.engine import TorchEngine
from tests.unit.engine.engine_world import job

ME = "w0"


def auto_job() -> Job:
    made = job(size=1, target="layered_task.py:Layered", fields={"detect_within_ms": 1000})
    return replace(made, planner=replace(made.planner, auto=True))


@pytest.fixture
def engine() -> TorchEngine:
    return TorchEngine(auto_job(), "127.0.0.1")


def order(engine: TorchEngine) -> MeasureWorker:
    return MeasureWorker(ME, 0, 1, (Colleague(ME, "n0", engine.store_endpoint()),))


def test_costs_come_with_the_graph_and_timings_with_the_measuring(engine: TorchEngine) -> None:
    graph = engine.warm()
    costs = engine.costs()
    assert costs is not None
    assert len(costs.order) == len(graph.layers)
    assert not any(kind.timings for kind in costs.kinds)
    told = engine.measure(order(engine), lambda: False)
    assert told is not None
    assert told.worker_id == ME
    assert told.measure.device.kind == "cpu"
    assert told.measure.device.flops > 0
    assert told.measure.links == ()
    assert all(len(kind.timings) == 1 and kind.timings[0].forward_s > 0 for kind in told.costs.kinds)
    assert replace(told.costs, kinds=costs.kinds) == costs
    assert engine.pulse().phase == "idle"
    engine.close()


def test_it_stops_when_somebody_wants_it_to_train(engine: TorchEngine) -> None:
    engine.warm()
    assert engine.measure(order(engine), lambda: True) is None
    assert engine.pulse().phase == "idle"
    engine.close()


def test_a_job_whose_plan_is_given_is_not_traced() -> None:
    engine = TorchEngine(job(size=1), "127.0.0.1")
    engine.warm()
    assert engine.costs() is None
    engine.close()
