"""A digest that does not depend on the layout, and a vote on who holds the wrong bits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from orchestrator.core.plan.layout import Interval
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.engine import digest
from orchestrator.engine.digest import CopiesDiffer, Digester, fill, serial_digest
from orchestrator.engine.extents import Extents
from orchestrator.engine.groups import EpochGroup
from tests.unit.engine.groups_world import run_ranks
from tests.unit.engine.state_world import KEYS, Rank, cut_up, new_state, plan_of, whole_vector

Verdict = tuple[tuple[int, ...], str]


def outcomes(plan: Plan, *, flips: Sequence[tuple[int, str, int]] = (), step: int = 5) -> list[str | Verdict]:
    """Digest, or who is accused and the message, by rank. `flips`: (rank, tensor, element) of what is changed."""

    def work(group: EpochGroup) -> str | Verdict:
        rank = Rank(plan, group.rank)
        for who, name, at in flips:
            if who == group.rank:
                extents = rank.params if name == PARAMS else rank.moments[name]
                extents.view(at, at + 1).add_(1.0)
        digester = Digester(plan=plan, group=group, keys=KEYS)
        try:
            return digester.compute(step=step, params=rank.params, moments=rank.moments)
        except CopiesDiffer as error:
            return error.accused, str(error)

    return run_ranks(plan.size, work)


def accused(plan: Plan, *flips: tuple[int, str, int]) -> Verdict:
    """What every rank says."""
    first, *others = outcomes(plan, flips=flips)
    assert others == [first] * (plan.size - 1)
    assert isinstance(first, tuple)
    return first


def serial(degree: int, *, step: int = 5) -> str:
    """Of the whole vector of a tensor degree."""
    state = new_state(degree=degree)
    parts = [cut_up(whole_vector(state, s, params_only=s > 1), (Interval(0, state.space.numel),), s) for s in (1, 2, 3)]
    moments = dict(zip(KEYS, parts[1:], strict=True))
    return serial_digest(step=step, numel=state.space.numel, block=state.block, params=parts[0], moments=moments)


@pytest.mark.parametrize("name", ["serial", "zero0", "zero1", "zero3", "groups", "pipeline", "interleaved"])
def test_every_layout_gives_the_digest_of_the_serial_run(name: str) -> None:
    plan = plan_of(name)
    assert outcomes(plan) == [serial(1)] * plan.size
    if name == "serial":
        assert outcomes(plan, step=6) == [serial(1, step=6)] != [serial(1)]


@pytest.mark.parametrize("name", ["tensor2", "all"])
def test_tensor_sections_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "TABLE_BYTES_MAX", 1000)  # looked at in many pieces
    plan = plan_of(name)
    assert outcomes(plan) == [serial(2)] * plan.size


def test_where_memory_is_cut_makes_no_difference() -> None:
    vector = torch.randn(5 * 1024, generator=torch.Generator().manual_seed(1))
    tables = []
    for dtype in (torch.float32, torch.bfloat16):
        for seed in range(20):
            table = torch.zeros(2, 5, dtype=torch.int64)
            fill(table, cut_up(vector.to(dtype), (Interval(0, 5 * 1024),), seed), (Interval(1024, 5 * 1024),), 1024)
            tables.append(table)
    assert all(torch.equal(t, tables[0]) for t in tables[:20])
    assert all(torch.equal(t, tables[20]) for t in tables[20:])
    assert not torch.equal(tables[0], tables[20])
    assert not tables[0][:, 0].any()
    assert tables[0][:, 1:].all()


def test_sums_wrap_and_two_words_that_changed_places_are_seen() -> None:
    top = torch.full((1024,), -1, dtype=torch.int64)
    swapped = torch.arange(1024)
    out = []
    for values in (top, torch.arange(1024), swapped):
        extents = Extents(torch.int64)
        extents.add(Interval(0, 1024), values)
        if values is swapped:
            swapped[[3, 7]] = swapped[[7, 3]]
        table = torch.zeros(2, 1, dtype=torch.int64)
        fill(table, extents, (Interval(0, 1024),), 1024)
        out.append(table.view(-1).tolist())
    assert out[0][0] == -1024
    assert out[1][0] == out[2][0]
    assert out[1][1] != out[2][1]


def test_of_two_copies_that_differ_nobody_is_accused() -> None:
    plan = plan_of("zero1")
    owner = next(r for r, h in enumerate(plan.layout(OPTIMIZER).holdings) if h.primary[0].start == 0)
    keeper = next(r for r, h in enumerate(plan.layout(OPTIMIZER).holdings) for i in h.extra if i.start <= 1029 < i.stop)
    who, why = accused(plan, (keeper, "exp_avg", 1029))
    assert who == ()
    pair = " against ".join(f"rank {r}" for r in sorted((owner, keeper)))
    assert f"exp_avg, block 1 (elements [1024, 2048)): {pair}, with no majority" in why
    assert accused(plan, (owner, "exp_avg", 1029)) == (who, why)


@pytest.mark.parametrize("liar", [0, 1, 2])
def test_the_majority_says_who_is_wrong_be_it_the_owner(liar: int) -> None:
    plan = plan_of("zero0")
    who, why = accused(plan, (liar, PARAMS, 3))
    assert who == (liar,)
    others = ", ".join(str(r) for r in range(3) if r != liar)
    assert why == (
        f"after step 5 holders of the same state have different bits: params, block 0 (elements [0, 1024)): "
        f"rank {liar} against ranks {others}"
    )


def test_every_block_has_a_vote_of_its_own() -> None:
    plan = plan_of("zero0")
    who, why = accused(plan, (1, "exp_avg", 3), (2, "exp_avg_sq", 5000), (1, "exp_avg_sq", 9000))
    assert who == (1, 2)
    assert "exp_avg, block 0" in why
    assert "exp_avg_sq, block 4" in why
    who, why = accused(plan, (0, PARAMS, 3), (1, PARAMS, 4), (2, PARAMS, 1024 * 7))
    assert who == (2,)  # block 0 has three versions
    assert "block 0 (elements [0, 1024)): rank 0 against rank 1 against rank 2, with no majority" in why


def test_many_differences_are_not_all_told() -> None:
    plan = plan_of("groups")
    who, why = accused(plan, *((3, PARAMS, at) for at in range(0, 30 * 1024, 1024)))
    assert who == (3,)
    assert why.endswith("and 26 more blocks")


def test_a_wrong_owner_changes_the_digest_where_there_is_no_copy() -> None:
    plan = plan_of("serial")
    assert outcomes(plan, flips=[(0, "exp_avg", 9)]) != outcomes(plan)
