"""From every plan to every other: the state arrives to the bit, and no byte more than must travels.

Values are what the element's place in the uncut model says, so whatever a rank holds afterwards can be checked without a run.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.core.graph.space import graph_view, runs, space_of
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.layout import Intervals, intersect, total
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, TENSOR, PipelineSchedule, Plan
from orchestrator.core.planner.planner import first_plan, replan
from orchestrator.core.reshard.recovery import Held, Resume, resolve
from orchestrator.core.supervisor.handover import handover, missing
from orchestrator.engine.control import Control
from orchestrator.engine.describe import build_seeded, named_layers
from orchestrator.engine.extents import Extents, Pages
from orchestrator.engine.groups import EpochGroup
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.tensor_parallel import cut_dim
from orchestrator.engine.transfer import MoveReport, move
from orchestrator.testkit.jobs import make_job
from tests.unit.engine.groups_world import run_ranks
from tests.unit.engine.layered_task import Layered

RANKS_MAX = 8
MOMENTS = 2
INTERLEAVED = PipelineSchedule.INTERLEAVED

CUTS: list[Mapping[str, Any]] = [
    {"data": 1},
    {"data": 4},
    {"data": 3, "zero_stage": 1},
    {"data": 4, "zero_stage": 1, "copies": 1},
    {"data": 7, "zero_stage": 1},
    {"data": 8, "zero_stage": 2},
    {"data": 5, "zero_stage": 3},
    {"data": 6, "zero_stage": 3, "copies": 1},
    {"data": 4, "zero_stage": 1, "shard": 2},
    {"pipeline": 3, "data": 1},
    {"pipeline": 2, "data": 3, "zero_stage": 1, "layers_per_stage": (2, 4)},
    {"pipeline": 2, "data": 2, "zero_stage": 3, "stages_per_rank": 2, "schedule": INTERLEAVED},
    {"pipeline": 4, "data": 2, "copies": 1},
    {"tensor": 2, "data": 2, "zero_stage": 1},
    {"tensor": 2, "pipeline": 2, "data": 2, "zero_stage": 3},
    {"tensor": 3, "data": 2, "zero_stage": 1},
]


def _job(cut: Mapping[str, Any]) -> Job:
    return make_job(micro_batches=16, nodes=RANKS_MAX, **cut)


@pytest.fixture(scope="module")
def graph() -> GraphView:
    """Of the layered task: tied weights, a batch norm, layers of unlike size."""
    task = Layered(batch_norm=True, hidden=32)
    module = build_seeded(task, seed=1)
    state = FlatState(module, named_layers(task, module), cut_dim=lambda layer, name: cut_dim(task, layer, name))
    return graph_view(state.shapes, layer_names=state.layer_names, fingerprint="f")


@functools.cache  # it is only read
def _vector(graph: GraphView, degree: int, row: int) -> Tensor:
    """The whole state tensor number `row` in the vector of a degree; padding is zero."""
    out = torch.zeros(space_of(graph, degree).numel)
    for start, serial, numel in runs(graph, degree):
        out[start : start + numel] = torch.arange(serial + 1, serial + 1 + numel) + row * 0.25
    return out


def _hold(intervals: Intervals, vector: Tensor | None) -> Extents:
    extents = Pages("cpu").extents(intervals, torch.float32)
    for i, tensor in extents:
        tensor.copy_(vector[i.start : i.stop]) if vector is not None else tensor.fill_(-1.0)
    return extents


def _held(plan: Plan, rank: int) -> Held:
    params, optimizer = (plan.layout(name).holdings[rank].everything for name in (PARAMS, OPTIMIZER))
    return Held(plan.epoch, rank, plan.axis(TENSOR), 5, 5, 5, optimizer, params, None)


def _carry(graph: GraphView, before: Plan, after: Plan, resume: Resume) -> list[MoveReport]:
    """The reshard on threads with a real gloo group; checks every element of every rank of `after`."""
    old, new = ([_vector(graph, p.axis(TENSOR), row) for row in range(1 + MOMENTS)] for p in (before, after))
    was = {s.worker_id: s.rank for s in before.seats}

    def work(group: EpochGroup) -> MoveReport:
        rank, worker = group.rank, after.seats[group.rank].worker_id
        same = before.axis(TENSOR) == after.axis(TENSOR)
        sources: dict[str, list[Extents]] = {}
        targets: dict[str, list[Extents]] = {}
        for name, rows in ((PARAMS, (0,)), (OPTIMIZER, range(1, 1 + MOMENTS))):
            have = before.layout(name).holdings[was[worker]].everything if worker in was else ()
            want = after.layout(name).holdings[rank].everything
            sources[name] = [_hold(have, old[row]) for row in rows]
            targets[name] = [_hold(want, None) for _ in rows]
            for row, target in zip(rows, targets[name], strict=True):
                for i in intersect(have, want) if same else ():
                    for lo, hi, view in target.pieces(i.start, i.stop):
                        view.copy_(old[row][lo:hi])
                if not same:  # padding comes from nowhere
                    for _, tensor in target:
                        tensor.zero_()
        report = move(
            group,
            resume.transfers,
            rank=rank,
            nodes=[s.node_id for s in after.seats],
            sources=sources,
            targets=targets,
            control=Control(),
        )
        for name, rows in ((PARAMS, (0,)), (OPTIMIZER, range(1, 1 + MOMENTS))):
            for row, target in zip(rows, targets[name], strict=True):
                for i, tensor in target:
                    assert torch.equal(tensor, new[row][i.start : i.stop]), (name, row, i, rank)
        return report

    return run_ranks(after.size, work)


def _logical(graph: GraphView, degree: int, intervals: Intervals) -> Tensor:
    """How often a rank has each element of the uncut model."""
    count = torch.zeros(graph.padded_numel, dtype=torch.int32)
    for start, serial, numel in runs(graph, degree):
        for lo, hi in ((max(start, i.start), min(start + numel, i.stop)) for i in intervals):
            if lo < hi:
                count[serial + lo - start : serial + hi - start] += 1
    return count


def _minimum(graph: GraphView, before: Plan, after: Plan) -> int:
    """Bytes that cannot but travel, counted element by element in the uncut model (and padding, where that is state too)."""
    was = {s.worker_id: s.rank for s in before.seats}
    same = before.axis(TENSOR) == after.axis(TENSOR)
    out = 0
    for seat in after.seats:
        for name, weight in ((PARAMS, 4), (OPTIMIZER, 4 * MOMENTS)):
            want = after.layout(name).holdings[seat.rank].everything
            have = before.layout(name).holdings[was[seat.worker_id]].everything if seat.worker_id in was else ()
            if same:
                out += weight * (total(want) - total(intersect(want, have)))
            else:
                needs = _logical(graph, after.axis(TENSOR), want) > 0
                has = _logical(graph, before.axis(TENSOR), have) > 0
                out += weight * int((needs & ~has).sum())
    return out


def _workers(plan: Plan, count: int) -> list[tuple[str, str]]:
    """Those of the plan first, then new ones; two to a node."""
    known = [(s.worker_id, s.node_id) for s in plan.seats]
    fresh = [(f"w{n}", f"n{n // 2}") for n in range(RANKS_MAX) if f"w{n}" not in {w for w, _ in known}]
    return (known + fresh)[:count]


def _step(graph: GraphView, before: Plan, after: Plan) -> None:
    held = {s.worker_id: _held(before, s.rank) for s in before.seats}
    by_rank = {s.rank: held[s.worker_id] for s in after.seats if s.worker_id in held}
    resume = resolve(new=after, held=by_rank, known=None, graph=graph, moments=MOMENTS)
    assert resume.step == 5
    reports = _carry(graph, before, after, resume)
    minimum = _minimum(graph, before, after)
    assert sum(r.bytes_received for r in reports) == minimum, (before.reason, after.reason)
    for report in reports:
        assert report.peak_extra_bytes <= 1 << 20  # staging and sums; the state here is 5 MB in all


@pytest.mark.slow
@pytest.mark.parametrize("first", range(len(CUTS)), ids=lambda n: str(CUTS[n]))
def test_from_one_plan_to_every_other(graph: GraphView, first: int) -> None:
    """Ordered pairs; where leaving ranks alone hold something, the staying take it over before they go."""
    before_job = _job(CUTS[first])
    pool = [(f"w{n}", f"n{n // 2}") for n in range(RANKS_MAX)]
    for second in range(len(CUTS)):
        if first == second:
            continue
        before = first_plan(job=before_job, graph=graph, workers=pool, epoch=1)
        job = _job(CUTS[second])
        workers = _workers(before, job.parallel.ranks)
        going = [s.rank for s in before.seats if s.worker_id not in {w for w, _ in workers}]
        if missing(before, going):
            between = replace(handover(before, going), epoch=2, parent=1)
            _step(graph, before, between)
            before = between
        held = {s.worker_id: _held(before, s.rank) for s in before.seats if s.rank not in going}
        after = replan(
            parent=before,
            job=job,
            graph=graph,
            workers=workers,
            held=held,
            epoch=3,
            pipeline=job.parallel.pipeline,
            data=job.parallel.data,
            layers_per_stage=job.parallel.layers_per_stage,
            reason=f"{CUTS[first]} -> {CUTS[second]}",
        )
        assert after.size == job.parallel.ranks
        _step(graph, before, after)


def test_there_are_enough_pairs() -> None:
    """The claim: at least 14 plans over 1 to 8 ranks."""
    sizes = {_job(c).parallel.ranks for c in CUTS}
    assert len(CUTS) >= 14
    assert (min(sizes), max(sizes)) == (1, RANKS_MAX)
    assert len(list(itertools.permutations(CUTS, 2))) == len(CUTS) * (len(CUTS) - 1)
