"""From every plan to every other: all that the planner makes over 1 to 8 ranks, with the fewest bytes, in bounded rounds."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import OPTIMIZER, TENSOR, Plan, Seat
from orchestrator.core.planner.planner import first_plan, replan
from orchestrator.core.reshard.recovery import resolve
from orchestrator.testkit.jobs import make_graph, make_job
from tests.unit.core.reshard.vectors import assert_state, carried_out, held, least

WORKERS = [(f"w{k}", f"n{k}") for k in range(8)]
BLOCK = 16
ROUND_BYTES = 1024
KINDS: dict[str, dict[str, Any]] = {
    "1 rank": {"data": 1},
    "dp2": {"data": 2},
    "dp3": {"data": 3},
    "dp8": {"data": 8},
    "zero1 x3 copies": {"data": 3, "zero_stage": 1, "copies": 1},
    "zero1 x4 copies": {"data": 4, "zero_stage": 1, "copies": 1},
    "zero1 x8": {"data": 8, "zero_stage": 1},
    "zero2 x5": {"data": 5, "zero_stage": 2},
    "zero3 x3 copies": {"data": 3, "zero_stage": 3, "copies": 1},
    "zero3 x4": {"data": 4, "zero_stage": 3},
    "zero3 x7": {"data": 7, "zero_stage": 3},
    "groups of 2 in 6": {"data": 6, "zero_stage": 1, "shard": 2},
    "pipe3": {"pipeline": 3, "data": 1},
    "pipe2 x dp2": {"pipeline": 2, "data": 2},
    "pipe4 x zero1 x2": {"pipeline": 4, "data": 2, "zero_stage": 1},
    "pipe2 x zero3 x3 copies": {"pipeline": 2, "data": 3, "zero_stage": 3, "copies": 1},
    "interleaved 2 x dp2": {"pipeline": 2, "data": 2, "stages_per_rank": 2},
    "tensor2": {"data": 1, "tensor": 2},
    "tensor2 x zero1 x2": {"data": 2, "tensor": 2, "zero_stage": 1},
    "tensor2 x pipe2 x zero3 x2": {"pipeline": 2, "data": 2, "tensor": 2, "zero_stage": 3},
    "tensor3 x dp2": {"data": 2, "tensor": 3},
}


def job_of(kind: str) -> Job:
    """The job that asks for it."""
    return make_job(micro_batches=8, **{"data": 1, "zero_stage": 0, "copies": 0, "shard": 0, **KINDS[kind]})


def graph_of() -> GraphView:
    """Six layers, of different sizes, that do not divide evenly."""
    return make_graph(50, 70, 33, 64, 90, 41, block=BLOCK)


@pytest.mark.parametrize("before", KINDS)
def test_every_pair_of_plans(before: str) -> None:
    graph = graph_of()
    old = first_plan(job=job_of(before), graph=graph, workers=WORKERS, epoch=1)
    assert lint(old) == ()
    holders = {s.worker_id: held(old, s.rank) for s in old.seats}
    for after in KINDS:
        new = next_plan(old, job_of(after), graph)
        assert lint(new) == (), after
        seated = {s.worker_id for s in new.seats}
        leaving = [Seat(0, s.worker_id, s.node_id) for s in old.seats if s.worker_id not in seated]
        leaving = [Seat(new.size + k, s.worker_id, s.node_id) for k, s in enumerate(leaving)]
        by_rank = {s.rank: holders[s.worker_id] for s in (*new.seats, *leaving) if s.worker_id in holders}
        resume = resolve(new=new, held=by_rank, known=None, graph=graph, leaving=leaving, bytes_per_round=ROUND_BYTES)
        memories, moved = carried_out(graph, new, by_rank, resume)
        assert_state(graph, new, by_rank, memories)
        assert moved == least(graph, new, by_rank), after
        assert moved == 0 or after != before, "the same plan again moves nothing"
        load: dict[tuple[int, str, int], int] = {}
        for t in resume.transfers:
            if t.src != t.dst:
                for key in ((t.round, "out", t.src), (t.round, "in", t.dst)):
                    load[key] = load.get(key, 0) + t.numel * (8 if t.tensor == OPTIMIZER else 4)
        assert max(load.values(), default=0) <= ROUND_BYTES, after


def next_plan(old: Plan, job: Job, graph: GraphView) -> Plan:
    """The planner's next plan; under another tensor degree it can only be a first one."""
    p = job.parallel
    if p.tensor != old.axis(TENSOR):
        return first_plan(job=job, graph=graph, workers=WORKERS, epoch=2)
    return replan(
        parent=old,
        job=job,
        graph=graph,
        workers=WORKERS,
        held={s.worker_id: held(old, s.rank) for s in old.seats},
        epoch=2,
        pipeline=p.pipeline,
        data=p.data,
        reason="test",
    )


def test_there_are_enough_plans() -> None:
    assert len(list(itertools.permutations(KINDS, 2))) >= 14 * 13
    assert {job_of(kind).parallel.ranks for kind in KINDS} == set(range(1, 9))
