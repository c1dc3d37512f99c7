"""Every finding of the linter, each from a plan with that one thing wrong; what the planner makes has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given

from orchestrator.core.plan.layout import Holding, Interval, StateLayout
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import DATA, OPTIMIZER, PARAMS, PIPELINE, TENSOR, MeshAxis, PipelineSchedule, Plan, Stage
from tests.unit.core.strategies import make_plan, plans

GOOD = make_plan("ab", layers=(12,), block=4, zero_stage=1, copies=1)
PIPED = make_plan("abcd", layers=(8, 4), block=4, zero_stage=0, pipeline=2)  # stages [0, 8) and [8, 20): parameters are aligned
SHARDED = make_plan("abc", layers=(12,), block=4, zero_stage=3)
GROUPED = make_plan("abcd", layers=(8,), block=4, zero_stage=2, shard=2)


def iv(*edges: int) -> tuple[Interval, ...]:
    """iv(0, 4, 6, 8) is [0, 4) and [6, 8)."""
    return tuple(Interval(lo, hi) for lo, hi in zip(edges[::2], edges[1::2], strict=True))


def held(name: str, *holdings: Holding, of: Plan = GOOD) -> Plan:
    """A plan with other holdings of one layout."""
    return replace(of, layouts=tuple(replace(x, holdings=holdings) if x.name == name else x for x in of.layouts))


def changed(of: Plan, name: str, rank: int, holding: Holding) -> Plan:
    """A plan in which one rank holds something else of one layout."""
    holdings = list(of.layout(name).holdings)
    holdings[rank] = holding
    return held(name, *holdings, of=of)


def with_seat(**changes: object) -> Plan:
    """GOOD with another second seat."""
    return replace(GOOD, seats=(GOOD.seats[0], replace(GOOD.seats[1], **changes)))  # type: ignore[arg-type]


def mesh(pipeline: int, data: int, tensor: int) -> tuple[MeshAxis, ...]:
    """All three axes."""
    return MeshAxis(PIPELINE, pipeline), MeshAxis(DATA, data), MeshAxis(TENSOR, tensor)


# GOOD: rank 0 owns [0, 8) of [0, 12), rank 1 the rest, each has the other's copy
FINDINGS: dict[str, tuple[Callable[[], Plan], tuple[str, ...]]] = {
    "mesh-size": (lambda: replace(GOOD, mesh=mesh(2, 2, 1)), ("the mesh has 4 places and the plan 2 seats",)),
    "mesh-axes": (
        lambda: replace(GOOD, mesh=(MeshAxis(DATA, 2),)),
        ("the mesh is data 2 and not pipeline, data, tensor",),
    ),
    "mesh-empty": (
        lambda: replace(GOOD, mesh=mesh(1, 2, 0)),
        ("the mesh is pipeline 1, data 2, tensor 0 and not pipeline, data, tensor",),
    ),
    "epoch": (lambda: replace(GOOD, parent=1), ("epoch 1 does not follow its parent 1",)),
    "rank-numbers": (lambda: with_seat(rank=2), ("seats are not numbered 0..n-1 in order",)),
    "rank-order": (lambda: replace(GOOD, seats=tuple(reversed(GOOD.seats))), ("seats are not numbered 0..n-1 in order",)),
    "two-seats": (lambda: with_seat(worker_id="w0"), ("one worker has two seats",)),
    "hungry": (lambda: replace(GOOD, micro_batches=1), ("1 micro-batches cannot feed 2 replicas",)),
    "shares-count": (
        lambda: replace(GOOD, shares=(1, 1, 1)),
        ("shares of 1, 1, 1 do not deal 2 micro-batches out to 2 replicas",),
    ),
    "shares-none": (lambda: replace(GOOD, shares=(2, 0)), ("shares of 2, 0 do not deal 2 micro-batches out to 2 replicas",)),
    "shares-in-rounds": (
        lambda: replace(GOOD, zero_stage=2, shares=(1, 1)),
        ("under ZeRO-2 micro-batches are dealt out in rounds, and shares are given",),
    ),
    "recompute": (lambda: replace(PIPED, recompute=(True,)), ("1 stages are said to recompute or not, of 2",)),
    "zero": (lambda: replace(GOOD, zero_stage=4), ("there is no ZeRO stage 4",)),
    "copies": (lambda: replace(GOOD, copies=2), ("2 copies: only 0 and 1 are known",)),
    "shard-divides": (lambda: replace(SHARDED, shard=2), ("shards of 2 ranks do not divide 3 replicas",)),
    "shard-zero": (lambda: replace(SHARDED, shard=0), ("shards of 0 ranks do not divide 3 replicas",)),
    "shard-of-nothing": (lambda: replace(PIPED, shard=2), ("nothing is sharded under ZeRO-0, and shard is 2",)),
    "section": (lambda: replace(GOOD, section=10), ("a section of 10 elements is not whole blocks of 4",)),
    "no-stages": (lambda: replace(PIPED, stages=()), ("0 stages do not divide over 2 pipeline ranks",)),
    "odd-stages": (
        lambda: replace(PIPED, stages=(*PIPED.stages, Stage(2, 3, 20, 24))),
        ("3 stages do not divide over 2 pipeline ranks",),
    ),
    "schedule": (
        lambda: replace(PIPED, schedule=PipelineSchedule.INTERLEAVED),
        ("1 stages per rank do not go with the schedule interleaved",),
    ),
    "schedule-of-many": (
        lambda: replace(
            PIPED,
            stages=tuple(Stage(n, n + 1, 4 * n, 4 * n + 4 * (1 + n // 3)) for n in range(4)),
            recompute=(False,) * 4,
        ),
        ("2 stages per rank do not go with the schedule 1f1b",),
    ),
    "layers-missing": (
        lambda: replace(PIPED, stages=(PIPED.stages[0], replace(PIPED.stages[1], first=2, last=3))),
        ("stage 1 has layers [2, 3) where 1 comes next",),
    ),
    "stage-empty": (
        lambda: replace(PIPED, stages=(PIPED.stages[0], replace(PIPED.stages[1], last=1))),
        ("stage 1 has layers [1, 1) where 1 comes next",),
    ),
    "stage-gap": (
        lambda: replace(PIPED, stages=(PIPED.stages[0], replace(PIPED.stages[1], start=12))),
        ("stage 1 lies at [12, 20) where whole blocks from 8 on come next",),
    ),
    "stage-unaligned": (
        lambda: replace(PIPED, stages=(replace(PIPED.stages[0], stop=6), replace(PIPED.stages[1], start=6))),
        ("stage 0 lies at [0, 6) where whole blocks from 0 on come next",),
    ),
    "stages-end": (
        lambda: replace(PIPED, stages=(PIPED.stages[0], replace(PIPED.stages[1], stop=16))),
        ("the stages end at 16 and the section at 20",),
    ),
    "no-optimizer": (lambda: replace(GOOD, layouts=GOOD.layouts[:1]), (f"0 layouts for {OPTIMIZER}",)),
    "no-params": (lambda: replace(GOOD, layouts=GOOD.layouts[1:]), (f"0 layouts for {PARAMS}",)),
    "two-params": (lambda: replace(GOOD, layouts=(*GOOD.layouts, GOOD.layouts[0])), (f"2 layouts for {PARAMS}",)),
    "numel": (
        lambda: replace(GOOD, layouts=(GOOD.layouts[0], StateLayout(OPTIMIZER, 16, GOOD.layouts[1].holdings))),
        ("optimizer: 16 elements for 1 sections of 12",),
    ),
    "holdings": (lambda: held(OPTIMIZER, Holding(iv(0, 12), ())), ("optimizer: 1 holdings for 2 ranks",)),
    "gap": (
        lambda: held(OPTIMIZER, Holding(iv(0, 4), iv(8, 12)), Holding(iv(8, 12), iv(0, 4))),
        ("optimizer: primary regions do not cover [0, 12) exactly once",),
    ),
    "twice": (
        lambda: held(OPTIMIZER, Holding(iv(0, 8), iv(8, 12)), Holding(iv(4, 12), iv(0, 4))),
        ("optimizer: primary regions do not cover [0, 12) exactly once",),
    ),
    "beyond": (
        lambda: changed(GOOD, OPTIMIZER, 1, Holding(iv(8, 12), iv(0, 8, 12, 16))),
        ("optimizer: [12, 16) ends behind 12",),
    ),
    "unaligned": (
        lambda: held(OPTIMIZER, Holding(iv(0, 6), iv(6, 12)), Holding(iv(6, 12), iv(0, 6))),
        (
            "optimizer: [0, 6) is not aligned to blocks of 4",
            "optimizer: [6, 12) is not aligned to blocks of 4",
            "optimizer: [6, 12) is not aligned to blocks of 4",
            "optimizer: [0, 6) is not aligned to blocks of 4",
        ),
    ),
    "both": (
        lambda: changed(GOOD, OPTIMIZER, 0, Holding(iv(0, 8), iv(4, 12))),
        ("optimizer: rank 0 lists a region as primary and as extra",),
    ),
    "unsorted": (
        lambda: changed(GOOD, OPTIMIZER, 1, Holding(iv(8, 12), (*iv(4, 8), *iv(0, 4)))),
        ("optimizer: the extra regions of rank 1 are not sorted, apart and joined",),
    ),
    "not-joined": (
        lambda: changed(GOOD, OPTIMIZER, 0, Holding(iv(0, 4, 4, 8), iv(8, 12))),
        ("optimizer: the primary regions of rank 0 are not sorted, apart and joined",),
    ),
    "other-owner": (
        lambda: held(PARAMS, Holding(iv(0, 4), iv(4, 12)), Holding(iv(4, 12), iv(0, 4))),
        ("rank 0 owns other parameters than moments", "rank 1 owns other parameters than moments"),
    ),
    "foreign-owner": (
        lambda: replace(
            PIPED,
            layouts=tuple(
                replace(
                    x,
                    holdings=(
                        Holding(iv(0, 4, 8, 12), iv(4, 8)),
                        Holding(iv(4, 8), iv(0, 4)),
                        Holding(iv(12, 16), iv(8, 12, 16, 20)),
                        Holding(iv(16, 20), iv(8, 16)),
                    ),
                )
                for x in PIPED.layouts
            ),
        ),
        ("rank 0 owns 4 elements of layers that it does not compute",),
    ),
    "moments-without-params": (
        lambda: changed(PIPED, OPTIMIZER, 0, Holding(iv(0, 4), iv(4, 12))),
        (f"rank 0 holds 4 elements of {OPTIMIZER} without their {PARAMS}",),
    ),
    "params-missing": (
        lambda: changed(GOOD, PARAMS, 0, Holding(iv(0, 8), ())),
        (
            f"rank 0 holds 4 elements of {OPTIMIZER} without their {PARAMS}",
            "rank 0 lacks 4 parameters that it computes with",
        ),
    ),
    "zero-3-params": (
        lambda: changed(SHARDED, PARAMS, 0, Holding(iv(0, 4), iv(4, 8))),
        (f"rank 0 holds parameters whose {OPTIMIZER} it does not hold, under ZeRO-3",),
    ),
    "group": (
        lambda: changed(GROUPED, OPTIMIZER, 2, Holding(GROUPED.layouts[1].holdings[2].primary, ())),
        (f"ranks 2, 3 lack 4 elements of their section's {OPTIMIZER} between them",),
    ),
    "no-copy": (
        lambda: changed(GOOD, OPTIMIZER, 1, Holding(iv(8, 12), iv(0, 4))),
        ("optimizer: 4 elements of rank 0 have no copy on another node than a",),
    ),
    "copy-on-same-node": (
        lambda: with_seat(node_id="a"),
        (
            "optimizer: 8 elements of rank 0 have no copy on another node than a",
            "optimizer: 4 elements of rank 1 have no copy on another node than a",
        ),
    ),
}


def test_the_good_plans_have_no_findings() -> None:
    assert GOOD.layout(OPTIMIZER).holdings == (Holding(iv(0, 8), iv(8, 12)), Holding(iv(8, 12), iv(0, 8)))
    assert [lint(p) for p in (GOOD, PIPED, SHARDED, GROUPED)] == [()] * 4


@pytest.mark.parametrize("name", FINDINGS)
def test_finding(name: str) -> None:
    make, words = FINDINGS[name]
    assert lint(make()) == words


def test_findings_add_up() -> None:
    assert len(lint(replace(GOOD, parent=1, micro_batches=1, layouts=()))) == 4


@given(plans())
def test_what_the_planner_makes_may_run(plan: Plan) -> None:
    assert lint(plan) == ()
