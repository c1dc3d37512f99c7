"""The rules that people use, as the bench applies them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.plan_cases import TITAN, cases, machines, problem
from bench.plan_rules import Taste, blocks_of, by_the_rules, equal_cuts, rivals, shapes, strategy, words
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.transformer import Blocks, Transformer, transformer_costs
from orchestrator.core.planner.cost.estimate import Costing

TWO_NODES = machines("two", 2, "a100-80g", "hdr", "160 GB/s")
PLAIN = Taste(units=1, zero=0, replicas_inside=True, narrow_last=False)


def gpt(*, hidden: int) -> ModelCosts:
    """Six blocks between an embedding and a head."""
    blocks = Blocks(name="block", layers=6, hidden=hidden, heads=16)
    return transformer_costs(Transformer(name="gpt", blocks=blocks, vocabulary=1000, sequence=2048))


SMALL = gpt(hidden=1024)


def test_the_cases_have_the_published_sizes() -> None:
    billions = {c.name: c.problem.costs.params / 1e9 for c in cases()}
    published = {"GPT-3 175B": 174.6, "BLOOM 176B": 176.2, "OPT-175B": 175, "LLaMA-65B": 65.2, "GPT-NeoX-20B": 20.6}
    assert {name: billions[name] for name in published} == pytest.approx(published, rel=0.01)
    assert billions[TITAN] == pytest.approx(260, rel=0.01)
    assert len(billions) >= 6


def test_every_stage_has_as_many_blocks_and_the_ends_go_along() -> None:
    costs = SMALL
    assert len(costs.order) == 8
    assert equal_cuts(costs, 1, main_only=False) == (8,)
    assert equal_cuts(costs, 3, main_only=False) == (3, 2, 3)
    assert equal_cuts(costs, 4, main_only=False) == (2, 2, 1, 3)


def test_narrow_modules_count_as_blocks_or_go_to_the_last_stage() -> None:
    costs = next(c.problem.costs for c in cases() if c.name == TITAN)
    assert len(blocks_of(costs, main_only=False)) == 72
    assert len(blocks_of(costs, main_only=True)) == 48
    assert equal_cuts(costs, 4, main_only=True) == (13, 12, 12, 40)
    alike = equal_cuts(costs, 4, main_only=False)
    assert sum(alike) == 77
    assert alike[:2] == (19, 18)


def test_shapes_grow_inside_a_machine_first() -> None:
    p = problem(SMALL, TWO_NODES, 16)
    assert list(shapes(p, 3)) == [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (8, 3)]


def test_what_fits_on_a_device_is_replicated() -> None:
    p = problem(SMALL, TWO_NODES, 16)
    found = by_the_rules(p, Costing(p), PLAIN)
    assert found is not None
    assert words(found.option.strategy) == "d16 p1 t1 u1 cuts 8"
    assert found.option.estimate.fits


def test_what_does_not_fit_is_recomputed_and_then_cut() -> None:
    tight = replace(TWO_NODES, types=tuple(replace(t, memory_bytes=8 << 30) for t in TWO_NODES.types))
    p = problem(gpt(hidden=4096), tight, 16)
    found = by_the_rules(p, Costing(p), PLAIN)
    assert found is not None
    s = found.option.strategy
    assert (s.tensor, found.option.estimate.fits) == (8, True)
    before = list(shapes(p, 6))[: list(shapes(p, 6)).index((s.tensor, s.pipeline))]
    smaller = [strategy(p, PLAIN, tensor=t, pipeline=q, recompute=True) for t, q in before]
    assert before
    assert not any(Costing(p).estimate(x).fits for x in smaller if x)


def test_ranks_lie_side_by_side_as_the_taste_wants() -> None:
    p = problem(SMALL, TWO_NODES, 16)
    inside = strategy(p, PLAIN, tensor=4, pipeline=2, recompute=False)
    outside = strategy(p, replace(PLAIN, replicas_inside=False), tensor=4, pipeline=2, recompute=False)
    assert inside is not None
    assert outside is not None
    assert inside.devices == tuple(range(16))
    assert outside.devices == (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15)
    assert strategy(p, PLAIN, tensor=8, pipeline=3, recompute=False) is None


def test_all_tastes_are_tried() -> None:
    assert len(rivals(problem(SMALL, TWO_NODES, 16))) == 4 * 2 * 2
