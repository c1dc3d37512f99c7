"""Looking things up in a plan, and how a step's micro-batches are dealt out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from tests.unit.core.strategies import make_plan, plans


@given(plans(), st.integers(0, 40))
def test_micro_batches_are_dealt_once_each_in_order_and_evenly(plan: Plan, more: int) -> None:
    plan = replace(plan, micro_batches=plan.size + more)
    ranges = [plan.micro_batch_range(r) for r in range(plan.size)]
    assert [m for r in ranges for m in r] == list(range(plan.micro_batches))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert min(map(len, ranges)) >= 1


def test_look_ups() -> None:
    plan = make_plan("ab", numel=8, block=2, zero_stage=1, copies=1)
    assert plan.size == 2
    assert [plan.layout(n).name for n in (PARAMS, OPTIMIZER)] == [PARAMS, OPTIMIZER]
    assert plan.seat_of("w1") == plan.seats[1]
    assert plan.seat_of("w2") is None
    with pytest.raises(KeyError):
        plan.layout("momentum")
