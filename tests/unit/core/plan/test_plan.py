"""Looking things up in a plan, places of the mesh, and how a step's micro-batches are dealt out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.plan.layout import Interval
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import DATA, OPTIMIZER, PARAMS, PIPELINE, TENSOR, Plan, Stage
from tests.unit.core.strategies import make_plan, plans


@given(plans(), st.integers(0, 40))
def test_micro_batches_are_dealt_once_each_and_evenly(plan: Plan, more: int) -> None:
    plan = replace(plan, micro_batches=plan.axis(DATA) + more)
    for rank in range(plan.size):
        dealt = [plan.micro_batches_of(r) for r in plan.replicas(rank)]
        assert sorted(m for d in dealt for m in d) == list(range(plan.micro_batches))
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        assert min(map(len, dealt)) >= 1
        assert all(list(d) == sorted(d) for d in dealt)
        if plan.zero_stage < 2:
            assert [m for d in dealt for m in d] == list(range(plan.micro_batches)), "contiguous runs"


@given(plans().filter(lambda plan: plan.zero_stage < 2), st.data())
def test_shares_are_contiguous_runs_as_long_as_they_say(plan: Plan, data: st.DataObject) -> None:
    shares = tuple(data.draw(st.integers(1, 9)) for _ in range(plan.axis(DATA)))
    plan = replace(plan, shares=shares, micro_batches=sum(shares))
    assert lint(plan) == ()
    for rank in range(plan.size):
        dealt = [plan.micro_batches_of(r) for r in plan.replicas(rank)]
        assert tuple(map(len, dealt)) == shares
        assert [m for d in dealt for m in d] == list(range(plan.micro_batches))


@given(plans())
def test_ranks_and_places_of_the_mesh_are_one_to_one(plan: Plan) -> None:
    places = [plan.coordinates(r) for r in range(plan.size)]
    assert len(set(places)) == plan.size
    assert [plan.rank_at(*p) for p in places] == list(range(plan.size))
    assert places == sorted(places), "pipeline-major, tensor innermost"


@given(plans())
def test_replicas_differ_in_the_data_axis_alone(plan: Plan) -> None:
    for rank in range(plan.size):
        pipe, replica, coordinate = plan.coordinates(rank)
        replicas = plan.replicas(rank)
        assert replicas == tuple(plan.rank_at(pipe, d, coordinate) for d in range(plan.axis(DATA)))
        group = plan.shard_group(rank)
        assert rank in group
        assert len(group) == plan.shard
        assert group == tuple(r for r in replicas if plan.coordinates(r)[1] // plan.shard == replica // plan.shard)


@given(plans())
def test_the_sections_of_the_ranks_make_up_the_vector(plan: Plan) -> None:
    numel = plan.section * plan.axis(TENSOR)
    covered = [0] * numel
    for pipe in range(plan.axis(PIPELINE)):
        for coordinate in range(plan.axis(TENSOR)):
            for i in plan.section_of(plan.rank_at(pipe, 0, coordinate)):
                for x in range(i.start, i.stop):
                    covered[x] += 1
    assert covered == [1] * numel


def test_interleaved_stages_go_round_the_ranks() -> None:
    plan = make_plan("ab", layers=(4, 4, 4, 4), block=4, pipeline=2)
    plan = replace(plan, stages=tuple(Stage(n, n + 1, 4 * n, 4 * n + 4) for n in range(4)))
    assert [plan.stages_of(r) for r in (0, 1)] == [(0, 2), (1, 3)]
    assert plan.section_of(1) == (Interval(4, 8), Interval(12, 16))


def test_look_ups() -> None:
    plan = make_plan("ab", copies=1)
    assert plan.size == 2
    assert [plan.layout(n).name for n in (PARAMS, OPTIMIZER)] == [PARAMS, OPTIMIZER]
    assert plan.axis("expert") == 1
    assert plan.seat_of("w1") == plan.seats[1]
    assert plan.seat_of("w2") is None
    with pytest.raises(KeyError):
        plan.layout("momentum")
