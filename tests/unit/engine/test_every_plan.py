"""Every way to cut a job trains as one rank does: equal bits where the order of sums is kept, within 1e-5 elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.core.job import Job
from orchestrator.core.plan.plan import PipelineSchedule
from tests.unit.engine.engine_world import curve, job, undisturbed, world

pytestmark = pytest.mark.slow

_calm: dict[str, tuple[str, dict[int, tuple[float, float]]]] = {}


def layered(*, steps: int = 3, **changes: Any) -> Job:
    """A job over the layered task; `changes` are fields of its ParallelSettings or the task's option batch_norm."""
    options = {"batch_norm": changes.pop("batch_norm")} if "batch_norm" in changes else {}
    size = changes.pop("data", 1)
    zero = changes.pop("zero", 0)
    copies = changes.pop("copies", 0)
    return job(
        size=size,
        zero_stage=zero,
        copies=copies,
        steps=steps,
        target="layered_task.py:Layered",
        fields=changes,
        **options,
    )


def calm(the_job: Job) -> tuple[str, dict[int, tuple[float, float]]]:
    """The undisturbed serial run of a job's task."""
    key = f"{the_job.task} {the_job.train.steps}"
    if key not in _calm:
        _calm[key] = undisturbed(the_job)
    return _calm[key]


def run(the_job: Job) -> tuple[list[str], dict[int, tuple[float, float]]]:
    """Digests by rank, and the curve."""
    with world(the_job) as w:
        names = [f"w{n}" for n in range(the_job.parallel.ranks)]
        w.spawn(*names)
        w.start(*names)
        return w.finish(), curve(w)


SCHEDULES = list(PipelineSchedule)

EXACT: list[Mapping[str, Any]] = [
    {"data": 3},
    {"data": 5, "zero": 1},
    {"data": 3, "zero": 2},
    {"data": 4, "zero": 3},
    {"data": 4, "zero": 1, "shard": 2},
    {"data": 4, "zero": 3, "shard": 2, "copies": 1},
    {"data": 3, "zero": 3, "copies": 1, "batch_norm": True},
    {"data": 2, "recompute": True, "batch_norm": True},
    {"pipeline": 2},
    {"pipeline": 3, "copies": 1},
    {"pipeline": 2, "layers_per_stage": (4, 2), "data": 2, "zero": 1},
    {"pipeline": 2, "data": 2, "zero": 3},
    {"pipeline": 2, "data": 4, "zero": 2, "batch_norm": True},
    {"pipeline": 6, "data": 1, "recompute": True},
    {"pipeline": 2, "stages_per_rank": 2, "schedule": PipelineSchedule.INTERLEAVED},
    {"pipeline": 3, "stages_per_rank": 2, "schedule": PipelineSchedule.INTERLEAVED, "data": 2, "zero": 1},
    {"pipeline": 2, "schedule": PipelineSchedule.ZERO_BUBBLE},
    {"pipeline": 4, "schedule": PipelineSchedule.ZERO_BUBBLE, "data": 2, "zero": 3},
]

CLOSE: list[Mapping[str, Any]] = [
    {"tensor": 2},
    {"tensor": 2, "data": 2, "zero": 1, "copies": 1},
    {"tensor": 2, "pipeline": 2, "data": 2, "zero": 3},
    {"tensor": 4, "pipeline": 2, "recompute": True, "schedule": PipelineSchedule.ZERO_BUBBLE},
]


@pytest.mark.parametrize("cut", EXACT, ids=str)
def test_equal_bits(cut: Mapping[str, Any]) -> None:
    """Data, sharded and pipeline parallel in every combination: params, moments, losses and norms of one rank."""
    the_job = layered(**cut)
    digest, losses = calm(the_job)
    digests, found = run(the_job)
    assert found == losses
    assert set(digests) == {digest}


@pytest.mark.parametrize("cut", CLOSE, ids=str)
def test_tensor_parallel_is_close(cut: Mapping[str, Any]) -> None:
    """Tensor parallelism changes the order of sums inside a product."""
    the_job = layered(**cut)
    _, losses = calm(the_job)
    digests, found = run(the_job)
    assert len(set(digests)) == 1
    for step, (loss, norm) in losses.items():
        assert found[step][0] == pytest.approx(loss, rel=1e-5)
        assert found[step][1] == pytest.approx(norm, rel=1e-4)
