"""A checkpoint counts only when a supervisor is within reach: what a cut-off worker writes is taken away again."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from orchestrator.core.job import CheckpointSettings
from orchestrator.core.planner.planner import first_plan
from orchestrator.core.reshard.recovery import Resume, Source
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import CheckpointReported, Event
from orchestrator.engine.checkpoint_files import list_steps
from orchestrator.engine.engine import TorchEngine
from orchestrator.runtime.ports import Finished
from tests.unit.engine.engine_world import job
from tests.unit.engine.forking import forked


def trained(folder: Path, *, refusals: int, detect_within_ms: int) -> list[CheckpointReported]:
    """What one rank, in a process of its own, reports of its checkpoints of steps 3 and 6, after so many refusals."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(_train, folder, refusals, detect_within_ms).result()


def _train(folder: Path, refusals: int, detect_within_ms: int) -> list[CheckpointReported]:
    the_job = job(size=1, checkpoint=CheckpointSettings(str(folder), 3, 2))
    the_job = replace(the_job, resilience=replace(the_job.resilience, detect_within_ms=detect_within_ms))
    events: list[Event] = []
    left = [False] * refusals
    engine = TorchEngine(the_job, "127.0.0.1", may_commit=lambda: left.pop() if left else True)
    try:
        plan = first_plan(job=the_job, graph=engine.warm(), workers=[("w0", "n0")], epoch=1)
        order = RunEpoch("w0", plan, Resume(Source.INIT, 0, None, (), (0,), "", 0, ()), engine.store_endpoint())
        assert isinstance(engine.run_epoch(order, events.append), Finished)
    finally:
        engine.close()
    return [e for e in events if isinstance(e, CheckpointReported)]


@forked
def test_without_a_supervisor_it_trains_on_and_nothing_is_committed(tmp_path: Path) -> None:
    told = trained(tmp_path, refusals=10_000, detect_within_ms=500)
    assert [(t.step, t.ok) for t in told] == [(3, False), (6, False)]
    assert all("no supervisor was within reach" in t.detail for t in told)
    assert list_steps(str(tmp_path)) == []


@forked
def test_a_supervisor_that_is_back_soon_is_waited_for(tmp_path: Path) -> None:
    told = trained(tmp_path, refusals=2, detect_within_ms=20_000)
    assert [(t.step, t.ok) for t in told] == [(3, True), (6, True)]
    assert [step for step, _ in list_steps(str(tmp_path))] == [6, 3]
