"""Shapes for fewer workers: a table that says what is kept, and what no table can leave out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.planner.shape import shape_for, shard_for, stages_per_rank_for
from orchestrator.testkit.jobs import make_graph, make_job

GRAPH = make_graph(*[1024] * 6)


@pytest.mark.parametrize(
    ("pipeline", "data", "tensor", "workers", "shape"),
    [
        (1, 4, 1, 4, (1, 4)),
        (1, 4, 1, 9, (1, 4)),  # never more than the job asks for
        (1, 4, 1, 3, (1, 3)),
        (1, 4, 1, 1, (1, 1)),
        (1, 4, 1, 0, None),
        (2, 2, 1, 3, (2, 1)),  # the pipeline stays, the data axis shrinks
        (2, 2, 1, 1, (1, 1)),  # until not even one replica fits
        (4, 2, 1, 7, (4, 1)),
        (4, 2, 1, 3, (3, 1)),
        (3, 3, 1, 2, (2, 1)),
        (4, 3, 1, 3, (3, 1)),  # the longer pipeline where both give as many ranks
        (2, 2, 2, 7, (2, 1)),  # the tensor degree always stays
        (2, 2, 2, 3, (1, 1)),
        (2, 2, 2, 1, None),
        (6, 1, 1, 6, (6, 1)),
        (8, 1, 1, 8, (6, 1)),  # a stage needs a layer
    ],
)
def test_shapes(pipeline: int, data: int, tensor: int, workers: int, shape: tuple[int, int] | None) -> None:
    assert shape_for(make_job(pipeline=pipeline, data=data, tensor=tensor), GRAPH, workers) == shape


def test_the_minimum_is_kept() -> None:
    job = make_job(data=4, ranks_min=3)
    assert [shape_for(job, GRAPH, n) for n in (4, 3, 2)] == [(1, 4), (1, 3), None]
    job = make_job(pipeline=4, data=2, ranks_min=6)
    assert shape_for(job, GRAPH, 7) == (3, 2), "four stages would leave four ranks"


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 3), st.integers(0, 40), st.integers(1, 8), st.integers(1, 12))
def test_a_shape_fits(pipeline: int, data: int, tensor: int, workers: int, ranks_min: int, micro_batches: int) -> None:
    job = make_job(pipeline=pipeline, data=data, tensor=tensor, ranks_min=ranks_min, micro_batches=micro_batches)
    found = shape_for(job, GRAPH, workers)
    if found is None:
        fits = [
            p * d * tensor
            for p in range(1, pipeline + 1)
            for d in range(1, min(data, micro_batches) + 1)
            if p * d * tensor <= workers
        ]
        assert not fits or max(fits) < ranks_min
        return
    p, d = found
    assert ranks_min <= p * d * tensor <= workers
    assert d <= min(data, micro_batches)
    assert p <= len(GRAPH.layers)
    assert found == shape_for(job, GRAPH, p * d * tensor), "spare workers change nothing"


@pytest.mark.parametrize(
    ("zero", "shard", "data", "chosen"),
    [
        (0, 0, 4, 1),
        (1, 0, 4, 4),
        (3, 0, 3, 3),
        (1, 2, 4, 2),
        (1, 2, 3, 3),
        (1, 2, 8, 2),
        (1, 4, 6, 6),
        (1, 4, 3, 3),
        (2, 2, 1, 1),
    ],
)
def test_shards_stay_as_small_as_the_job_asks(zero: int, shard: int, data: int, chosen: int) -> None:
    assert shard_for(make_job(data=8, zero_stage=zero, shard=shard), data) == chosen


def test_stages_per_rank_follow_the_layers() -> None:
    job = make_job(pipeline=3, stages_per_rank=2)
    assert [stages_per_rank_for(job, GRAPH, p) for p in (1, 2, 3, 4, 6)] == [1, 2, 2, 1, 1]
