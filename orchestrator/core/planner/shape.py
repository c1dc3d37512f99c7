"""How many pipeline stages and data replicas a job has on so many workers.

At full strength what the job asks for. With fewer workers the tensor degree stays (another one would change the order of sums),
the pipeline stays while one replica of it fits, and the data axis shrinks; only then the pipeline gets shorter.
"""

from __future__ import annotations

from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job


def shape_for(job: Job, graph: GraphView, workers: int) -> tuple[int, int] | None:
    """(pipeline, data) for at most `workers` ranks; None when the job may or can not train with so few.

    Never more than the job asks for: to grow beyond that, give a job that asks for more.
    """
    p = job.parallel
    layers = len(graph.layers)
    data_max = min(p.data, job.train.micro_batches)
    found: list[tuple[int, int]] = []
    for pipeline in range(min(p.pipeline, layers), 0, -1):
        data = min(data_max, workers // (pipeline * p.tensor))
        if data >= 1 and pipeline * data * p.tensor >= job.resilience.ranks_min:
            found.append((pipeline, data))
    if found and found[0][0] == p.pipeline:
        return found[0]
    return max(found, key=lambda shape: (shape[0] * shape[1], shape[0]), default=None)


def shard_for(job: Job, data: int) -> int:
    """How many of `data` replicas a state is spread over: the job's number, or the next larger one that divides `data`.

    Never fewer than the job asks for while there are so many ranks: each then has room for its share.
    """
    p = job.parallel
    if p.zero_stage == 0:
        return 1
    return next((s for s in range(p.shard or data, data) if data % s == 0), data)


def stages_per_rank_for(job: Job, graph: GraphView, pipeline: int) -> int:
    """Stages per rank: the job's number, or as many as there are layers for; one where there is no pipeline."""
    if pipeline == 1:
        return 1
    return max(1, min(job.parallel.stages_per_rank, len(graph.layers) // pipeline))


def recompute_for(job: Job, stages: int) -> tuple[bool, ...]:
    """Which stages recompute: as the job says of each; where it speaks of another number of stages, all if any does."""
    asked = job.parallel.recompute
    return asked if len(asked) == stages else (any(asked),) * stages


def shares_for(job: Job, data: int) -> tuple[int, ...]:
    """Micro-batches of each replica: as the job says where there are as many replicas, else even."""
    shares = job.parallel.shares
    return shares if len(shares) == data else ()
