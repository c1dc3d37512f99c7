"""Every finding of the linter, each from a plan with that one thing wrong; what the planner makes has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given

from orchestrator.core.plan.layout import Holding, Interval
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, MeshAxis, Plan
from tests.unit.core.strategies import make_plan, plans

GOOD = make_plan("ab", numel=10, block=4, zero_stage=1, copies=1)


def iv(*edges: int) -> tuple[Interval, ...]:
    """iv(0, 4, 6, 8) is [0, 4) and [6, 8)."""
    return tuple(Interval(lo, hi) for lo, hi in zip(edges[::2], edges[1::2], strict=True))


def optimizer(*holdings: Holding) -> Plan:
    """GOOD with other holdings of the optimizer state."""
    params, state = GOOD.layouts
    return replace(GOOD, layouts=(params, replace(state, holdings=holdings)))


def with_seat(**changes: object) -> Plan:
    """GOOD with another second seat."""
    return replace(GOOD, seats=(GOOD.seats[0], replace(GOOD.seats[1], **changes)))  # type: ignore[arg-type]


FINDINGS: dict[str, tuple[Callable[[], Plan], tuple[str, ...]]] = {
    "mesh": (
        lambda: replace(GOOD, mesh=(MeshAxis("data", 2), MeshAxis("x", 2))),
        ("the mesh has 4 places and the plan 2 seats",),
    ),
    "epoch": (lambda: replace(GOOD, parent=1), ("epoch 1 does not follow its parent 1",)),
    "rank-numbers": (lambda: with_seat(rank=2), ("seats are not numbered 0..n-1 in order",)),
    "rank-order": (lambda: replace(GOOD, seats=tuple(reversed(GOOD.seats))), ("seats are not numbered 0..n-1 in order",)),
    "two-seats": (lambda: with_seat(worker_id="w0"), ("one worker has two seats",)),
    "hungry": (lambda: replace(GOOD, micro_batches=1), ("1 micro-batches cannot feed 2 ranks",)),
    "no-optimizer": (lambda: replace(GOOD, layouts=GOOD.layouts[:1]), (f"no layout for {OPTIMIZER}",)),
    "no-params": (lambda: replace(GOOD, layouts=GOOD.layouts[1:]), (f"no layout for {PARAMS}",)),
    "holdings": (lambda: optimizer(Holding(iv(0, 10), ())), ("optimizer: 1 holdings for 2 ranks",)),
    "gap": (
        lambda: optimizer(Holding(iv(0, 4), iv(8, 10)), Holding(iv(8, 10), iv(0, 4))),
        ("optimizer: primary regions do not cover [0, 10) exactly once",),
    ),
    "twice": (
        lambda: optimizer(Holding(iv(0, 8), iv(8, 10)), Holding(iv(4, 10), iv(0, 4))),
        ("optimizer: primary regions do not cover [0, 10) exactly once",),
    ),
    "beyond": (
        lambda: optimizer(Holding(iv(0, 8), iv(8, 12)), Holding(iv(8, 12), iv(0, 8))),
        ("optimizer: primary regions do not cover [0, 10) exactly once",),
    ),
    "unaligned": (
        lambda: optimizer(Holding(iv(0, 6), iv(6, 10)), Holding(iv(6, 10), iv(0, 6))),
        (
            "optimizer: [0, 6) is not aligned to blocks of 4",
            "optimizer: [6, 10) is not aligned to blocks of 4",
        ),
    ),
    "no-copy": (
        lambda: optimizer(Holding(iv(0, 8), iv(8, 10)), Holding(iv(8, 10), iv(0, 4))),
        ("optimizer: 4 elements of rank 0 have no copy on another node than a",),
    ),
    "copy-on-same-node": (
        lambda: with_seat(node_id="a"),
        tuple(
            f"{name}: {numel} elements of rank {rank} have no copy on another node than a"
            for name in (PARAMS, OPTIMIZER)
            for rank, numel in ((0, 8), (1, 2))
        ),
    ),
    "both": (
        lambda: optimizer(Holding(iv(0, 8), iv(4, 10)), Holding(iv(8, 10), iv(0, 8))),
        ("optimizer: rank 0 lists a region as primary and as extra",),
    ),
}


def test_the_good_plan_has_no_findings() -> None:
    assert lint(GOOD) == ()


@pytest.mark.parametrize("name", FINDINGS)
def test_finding(name: str) -> None:
    make, words = FINDINGS[name]
    assert lint(make()) == words


def test_findings_add_up() -> None:
    assert len(lint(replace(GOOD, parent=1, micro_batches=1, layouts=()))) == 4


@given(plans())
def test_what_the_planner_makes_may_run(plan: Plan) -> None:
    assert lint(plan) == ()
