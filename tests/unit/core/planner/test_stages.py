"""Stages: as given, or the most even cut there is, found here by trying all of them."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.graph.space import space_of
from orchestrator.core.plan.plan import Stage
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.stages import make_stages
from orchestrator.testkit.jobs import make_graph


@given(st.lists(st.integers(1, 90), min_size=1, max_size=8), st.data())
def test_the_largest_stage_is_as_small_as_can_be_and_the_rest_even(layers: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(layers)))
    stages = make_stages(make_graph(*layers, block=16), tensor=1, pipeline=count)
    made = [sum(layers[s.first : s.last]) for s in stages]
    best = min(
        (max(sizes), sum(x * x for x in sizes))
        for cuts in combinations(range(1, len(layers)), count - 1)
        for sizes in [[sum(layers[a:b]) for a, b in pairwise((0, *cuts, len(layers)))]]
    )
    assert (max(made), sum(x * x for x in made)) == best


@given(st.lists(st.integers(1, 90), min_size=4, max_size=8), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2))
def test_stages_are_runs_of_whole_layers(layers: list[int], tensor: int, pipeline: int, per_rank: int) -> None:
    graph = make_graph(*layers, block=8)
    stages = make_stages(graph, tensor=tensor, pipeline=pipeline, stages_per_rank=per_rank)
    bounds = space_of(graph, tensor).layers
    assert len(stages) == pipeline * per_rank
    assert (stages[0].first, stages[-1].last) == (0, len(layers))
    assert all(a.last == b.first and a.stop == b.start for a, b in pairwise(stages))
    assert all((s.start, s.stop) == (bounds[s.first].start, bounds[s.last - 1].stop) for s in stages)


def test_stages_as_given() -> None:
    graph = make_graph(16, 16, 16, 16, block=16)
    stages = make_stages(graph, tensor=1, pipeline=2, layers_per_stage=(3, 1))
    assert stages == (Stage(0, 3, 0, 48), Stage(3, 4, 48, 64))


@pytest.mark.parametrize(
    ("per_rank", "given_layers", "words"),
    [
        (1, (4,), r"^layers_per_stage lists 1 stages, and the pipeline has 2$"),
        (2, (2, 2), r"^layers_per_stage lists 2 stages, and the pipeline has 4$"),
        (1, (4, 0), r"^layers_per_stage leaves a stage without layers$"),
        (1, (2, 3), r"^layers_per_stage adds up to 5 layers, and the model has 4$"),
        (3, (), r"^6 pipeline stages need as many layers, and the model names 4$"),
    ],
)
def test_stages_that_do_not_fit(per_rank: int, given_layers: tuple[int, ...], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make_stages(make_graph(*[16] * 4), tensor=1, pipeline=2, stages_per_rank=per_rank, layers_per_stage=given_layers)


def test_many_layers_take_no_time_to_speak_of() -> None:
    stages = make_stages(make_graph(*[64, 32] * 500, block=32), tensor=1, pipeline=96)
    sizes = [s.stop - s.start for s in stages]
    assert (max(sizes), sum(sizes)) == (544, 48_000)
