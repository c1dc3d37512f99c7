"""A digest that does not depend on the layout and tells who holds the wrong bits."""

from __future__ import annotations

import pytest
import torch

from orchestrator.core.plan.plan import OPTIMIZER, MeshAxis, Plan, Seat
from orchestrator.core.planner.planner import make_layouts
from orchestrator.engine.digest import CopiesDiffer, Digester, word_sum
from orchestrator.engine.groups import EpochGroup
from orchestrator.engine.optim import Regions
from tests.unit.engine.groups_world import run_ranks

BLOCK, BLOCKS = 1024, 7


def _plan(size: int, zero: int) -> Plan:
    nodes = [f"n{r}" for r in range(size)]
    copies = 1 if zero and size > 1 else 0
    return Plan(
        job="j",
        epoch=1,
        parent=0,
        mesh=(MeshAxis("data", size),),
        zero_stage=zero,
        copies=copies,
        micro_batches=8,
        block=BLOCK,
        seats=tuple(Seat(r, f"w{r}", n) for r, n in enumerate(nodes)),
        layouts=make_layouts(numel=BLOCK * BLOCKS, block=BLOCK, nodes=nodes, zero_stage=zero, copies=copies),
        reason="test",
    )


def _digests(size: int, zero: int, *, flip: tuple[int, int] | None = None, step: int = 5) -> list[str]:
    """`flip`: (rank, element) of the moment whose copy is changed."""
    plan = _plan(size, zero)
    generator = torch.Generator().manual_seed(3)
    flat, moment = (torch.randn(BLOCK * BLOCKS, generator=generator) for _ in range(2))

    def work(group: EpochGroup) -> str:
        regions = Regions(plan.layout(OPTIMIZER).holdings[group.rank].everything)
        mine = torch.cat([moment[i.start : i.stop] for i in regions.intervals]) if regions.intervals else moment[:0]
        if flip is not None and flip[0] == group.rank:
            regions.view(mine, flip[1], flip[1] + 1).neg_()
        digester = Digester(plan=plan, group=group, keys=["exp_avg"])
        return digester.compute(step=step, flat=flat, regions=regions, moments={"exp_avg": mine})

    return run_ranks(size, work)


def test_every_layout_gives_the_same_digest() -> None:
    (expected,) = _digests(1, 0)
    for size, zero in ((2, 0), (3, 1), (4, 1)):
        assert _digests(size, zero) == [expected] * size
    assert _digests(1, 0, step=6) != [expected]


def test_a_wrong_copy_is_named() -> None:
    plan = _plan(3, 1)
    holder = next(r for r, h in enumerate(plan.layout(OPTIMIZER).holdings) for i in h.extra if i.start == 0)
    with pytest.raises(CopiesDiffer, match=rf"rank {holder} holds other bits of exp_avg .* block 1 .* its owner, rank 0"):
        _digests(3, 1, flip=(holder, BLOCK + 5))


def test_a_wrong_owner_changes_the_digest_where_there_is_no_copy() -> None:
    assert _digests(1, 1, flip=(0, 9)) != _digests(1, 1)


def test_word_sums_wrap() -> None:
    ones = torch.full((4,), -1, dtype=torch.int32)
    assert word_sum(ones) == -2
    assert word_sum(torch.zeros(8)) == 0
    top = torch.tensor([1 << 62, 1 << 62], dtype=torch.int64)
    assert word_sum(top) == -(1 << 63)
