"""Every way to cut a job trains as one rank does: equal bits where the order of sums is kept, within 1e-5 elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from orchestrator.core.job import Job
from orchestrator.core.plan.plan import PipelineSchedule
from tests.unit.engine.engine_world import World, curve, job, world

pytestmark = pytest.mark.slow

RANKS_MAX = 8
LAYERS = 6  # of the task


def layered(*, steps: int = 2, **changes: Any) -> Job:
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


class Runs:
    """One world of eight workers that runs one plan after the other from the seed."""

    def __init__(self, w: World) -> None:
        self._world, self._epoch = w, 0

    def run(self, cut_as: Job) -> tuple[list[str], dict[int, tuple[float, float]]]:
        """Digests by rank, and the curve."""
        self._epoch += 1
        for worker in self._world.workers.values():
            worker.events.clear()
        self._world.start(*list(self._world.workers)[: cut_as.parallel.ranks], epoch=self._epoch, cut_as=cut_as)
        return self._world.finish(), curve(self._world)


@pytest.fixture(scope="module")
def runs() -> Iterator[tuple[Runs, str, dict[int, tuple[float, float]]]]:
    """The world, and digest and curve of one rank alone."""
    the_job = layered(batch_norm=True)
    with world(the_job) as w:
        w.spawn(*[f"w{n}" for n in range(RANKS_MAX)])
        made = Runs(w)
        (digest,), losses = made.run(the_job)
        yield made, digest, losses


EXACT: list[Mapping[str, Any]] = [
    {"data": 3},
    {"data": 5, "zero": 1},
    {"data": 3, "zero": 2},
    {"data": 4, "zero": 3},
    {"data": 4, "zero": 1, "shard": 2},
    {"data": 4, "zero": 3, "shard": 2, "copies": 1},
    {"data": 3, "zero": 3, "copies": 1},
    {"data": 2, "recompute": (True,)},
    {"data": 3, "shares": (1, 4, 1)},
    {"data": 2, "zero": 1, "shares": (5, 1), "copies": 1},
    {"pipeline": 2, "data": 3, "zero": 1, "shares": (3, 1, 2)},
    {"pipeline": 3, "data": 1, "recompute": (False, True, False)},
    {"pipeline": 2},
    {"pipeline": 3, "copies": 1},
    {"pipeline": 2, "layers_per_stage": (4, 2), "data": 2, "zero": 1},
    {"pipeline": 2, "data": 2, "zero": 3},
    {"pipeline": 2, "data": 4, "zero": 2},
    {"pipeline": 6, "data": 1, "recompute": (True,)},
    {"pipeline": 2, "stages_per_rank": 2, "schedule": PipelineSchedule.INTERLEAVED},
    {"pipeline": 3, "stages_per_rank": 2, "schedule": PipelineSchedule.INTERLEAVED, "data": 2, "zero": 1},
    {"pipeline": 2, "schedule": PipelineSchedule.ZERO_BUBBLE},
    {"pipeline": 4, "schedule": PipelineSchedule.ZERO_BUBBLE, "data": 2, "zero": 3},
]

CLOSE: list[Mapping[str, Any]] = [
    {"tensor": 2},
    {"tensor": 2, "data": 2, "zero": 1, "copies": 1},
    {"tensor": 2, "pipeline": 2, "data": 2, "zero": 3},
    {"tensor": 4, "pipeline": 2, "recompute": (False, True), "schedule": PipelineSchedule.ZERO_BUBBLE},
]


FACTORS = [
    (pipeline, data, tensor)
    for size in range(1, RANKS_MAX + 1)
    for pipeline in range(1, min(size, LAYERS) + 1)
    for data in range(1, size + 1)
    for tensor in range(1, size + 1)
    if pipeline * data * tensor == size
]
Made = tuple[Runs, str, dict[int, tuple[float, float]]]


@pytest.mark.parametrize("cut", EXACT, ids=str)
def test_equal_bits(runs: Made, cut: Mapping[str, Any]) -> None:
    """Data, sharded and pipeline parallel in every combination: params, moments, losses and norms of one rank."""
    made, digest, losses = runs
    digests, found = made.run(layered(**cut))
    assert found == losses
    assert set(digests) == {digest}


@pytest.mark.parametrize("cut", CLOSE, ids=str)
def test_tensor_parallel_is_close(runs: Made, cut: Mapping[str, Any]) -> None:
    """Tensor parallelism changes the order of sums inside a product."""
    made, _, losses = runs
    digests, found = made.run(layered(**cut))
    assert len(set(digests)) == 1
    _assert_close(found, losses)


@pytest.mark.parametrize("factors", FACTORS, ids=lambda f: "x".join(map(str, f)))
def test_all_factorisations(runs: Made, factors: tuple[int, int, int]) -> None:
    """Pipeline x data x tensor, the ZeRO stage and the schedule taken in turn."""
    made, digest, losses = runs
    pipeline, data, tensor = factors
    number = FACTORS.index(factors)
    schedule = (PipelineSchedule.ONE_F_ONE_B, PipelineSchedule.ZERO_BUBBLE)[number % 2]
    cut = layered(pipeline=pipeline, data=data, tensor=tensor, zero=number % 4 if data > 1 else 0, schedule=schedule)
    digests, found = made.run(cut)
    assert len(set(digests)) == 1
    if tensor == 1:
        assert (found, digests[0]) == (losses, digest)
    _assert_close(found, losses)


def _assert_close(found: Mapping[int, tuple[float, float]], losses: Mapping[int, tuple[float, float]]) -> None:
    for step, (loss, norm) in losses.items():
        assert found[step][0] == pytest.approx(loss, rel=1e-5)
        assert found[step][1] == pytest.approx(norm, rel=1e-4)
