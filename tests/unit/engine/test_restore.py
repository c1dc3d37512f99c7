"""State that moves between ranks: to other nodes, when a rank is lost during a recovery, and bits that flip on the way."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest
import torch

from orchestrator.core.plan.plan import OPTIMIZER, PARAMS
from orchestrator.core.reshard.recovery import Resume, Source, Transfer
from orchestrator.engine import restore
from orchestrator.engine.control import Control
from orchestrator.engine.digest import word_sum
from orchestrator.engine.groups import EpochGroup
from orchestrator.engine.rank_state import FatalCheck
from orchestrator.runtime.ports import Failed
from tests.unit.engine.engine_world import Trap, job, undisturbed, world
from tests.unit.engine.groups_world import run_ranks


@cache
def reference() -> str:
    """Digest of a run in which nothing fails."""
    return undisturbed(job())[0]


def test_peer_copies_move_when_the_spare_sits_where_a_copy_is() -> None:
    names = [f"w{n}" for n in range(4)]
    with world(job(zero_stage=1, copies=1)) as w:
        w.spawn("w0", "w2", "w3", "spare")
        w.spawn("w1", traps=[Trap("commit", 3)])
        w.start(*names)
        first = w.plan
        w.recover("spare", node="node-w2")  # rank 2 may not keep rank 1's copy any more
        assert first is not None
        assert w.plan is not None
        assert w.plan.layout(OPTIMIZER) != first.layout(OPTIMIZER)
        assert set(w.finish()) == {reference()}


def test_a_spare_lost_during_the_recovery() -> None:
    names = [f"w{n}" for n in range(4)]
    with world(job(zero_stage=1, copies=1)) as w:
        w.spawn("w0", "w2", "w3", "second")
        w.spawn("w1", traps=[Trap("gather", 3)])
        w.spawn("first", traps=[Trap("restoring", 3)])
        w.start(*names)
        w.recover("first")
        w.recover("second")
        assert set(w.finish()) == {reference()}


def test_a_survivor_lost_during_the_recovery_of_a_data_parallel_run() -> None:
    with world(job(size=3)) as w:
        w.spawn("w0", "s0", "s1")
        w.spawn("w1", traps=[Trap("update", 3)])
        w.spawn("w2", traps=[Trap("forming", 3)])
        w.start("w0", "w1", "w2")
        w.recover("s0")
        w.recover("s1")
        assert set(w.finish()) == {reference()}


def test_two_ranks_lost_at_once() -> None:
    with world(job(size=4, zero_stage=1, copies=1)) as w:
        w.spawn("w0", "w2", "s0", "s1")  # ranks 1 and 3 keep no copy of one another
        w.spawn("w1", traps=[Trap("reduce", 3)])
        w.spawn("w3", traps=[Trap("reduce", 3)])
        w.start("w0", "w1", "w2", "w3")
        w.recover("s0", "s1")
        assert set(w.finish()) == {reference()}


def test_a_run_that_broke_before_its_first_step_begins_again_from_the_seed() -> None:
    with world(job(size=2)) as w:
        w.spawn("w0", "spare")
        w.spawn("w1", traps=[Trap("reduce", 1)])
        w.start("w0", "w1")
        resume = w.recover("spare")
        assert resume.step == 0
        assert resume.source is Source.MEMORY
        assert set(w.finish()) == {reference()}


def _views(tensor: torch.Tensor) -> restore.View:
    return lambda lo, hi: tensor[lo:hi]


def test_transfers_move_regions_of_every_tensor_and_the_scalars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "PIECE_NUMEL", 64)
    monkeypatch.setattr(restore, "WINDOW_BYTES", 1024)
    transfers = (Transfer(PARAMS, 0, 1, 0, 600), Transfer(OPTIMIZER, 2, 1, 100, 500), Transfer(OPTIMIZER, 2, 0, 0, 64))

    def work(group: EpochGroup) -> tuple[list[torch.Tensor], restore.Scalars]:
        tensors = [torch.full((600,), float(10 * group.rank + k)) for k in range(3)]
        views = {PARAMS: [_views(tensors[0])], OPTIMIZER: [_views(tensors[1]), _views(tensors[2])]}
        scalars = {f"p{group.rank}": {"step": {"value": 3}}}
        return tensors, restore._move(group, transfers, sources=views, targets=views, scalars=scalars, control=Control())

    results = run_ranks(3, work)
    assert torch.equal(results[1][0][0], torch.zeros(600))
    expected = torch.full((600,), 12.0)
    expected[100:500] = 22.0
    assert torch.equal(results[1][0][2], expected)
    assert torch.equal(results[0][0][1][:64], torch.full((64,), 21.0))
    assert results[1][1] == {"p2": {"step": {"value": 3}}}
    assert results[2][1] == {}


def test_a_bit_that_flips_on_the_way_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = (Transfer(PARAMS, 0, 1, 0, 1024),)

    def work(group: EpochGroup) -> None:
        tensor = torch.full((1024,), 1.0 if group.rank == 0 else 2.0)
        views = {PARAMS: [_views(tensor)], OPTIMIZER: []}
        restore._move(group, transfers, sources=views, targets=views, scalars={}, control=Control())

    run_ranks(2, work)  # the same data, honestly summed, passes
    calls = itertools.count()  # sender and receiver see sums that differ
    monkeypatch.setattr(restore, "word_sum", lambda values: word_sum(values) + next(calls))
    with pytest.raises(FatalCheck, match="that rank 0 sent to rank 1 arrived changed"):
        run_ranks(2, work)


def test_a_rank_that_should_hold_state_and_does_not_says_so() -> None:
    with world(job(size=2)) as w:
        w.spawn("w0", "w1")
        w.start("w0", "w1")
        w.finish()
        assert w.plan is not None
        w.run(replace(w.plan, epoch=2, parent=1), Resume(Source.MEMORY, 4, None, (), (), ""))
        for outcome in w.outcomes():
            assert isinstance(outcome, Failed)
            assert outcome.fatal_check
            assert "resumes at 4" in outcome.traceback
