"""Equal bits whatever the number of ranks and the layout, and wherever a rank dies."""

from __future__ import annotations

from functools import cache

import pytest

from orchestrator.core.job import Consistency
from tests.unit.engine.engine_world import Trap, curve, job, undisturbed, world

pytestmark = pytest.mark.slow  # all of it: engines in processes of their own


@cache
def reference() -> tuple[str, dict[int, tuple[float, float]]]:
    """One rank, nothing fails."""
    return undisturbed(job())


@pytest.mark.parametrize(("size", "zero", "copies"), [(2, 0, 0), (4, 0, 0), (2, 1, 0), (4, 1, 1)])
def test_digest_and_curve_do_not_depend_on_the_layout(size: int, zero: int, copies: int) -> None:
    names = [f"w{n}" for n in range(size)]
    with world(job(size=size, zero_stage=zero, copies=copies)) as w:
        w.spawn(*names)
        w.start(*names)
        digests = w.finish()
        assert set(digests) == {reference()[0]}
        assert curve(w) == reference()[1]


def test_ranks_that_own_nothing_and_a_swap_among_them() -> None:
    alone = undisturbed(job(width=8))  # one block: ranks 1 and 2 own no part of the optimizer's state
    with world(job(size=3, zero_stage=1, copies=1, width=8)) as w:
        w.spawn("w1", "w2", "spare")
        w.spawn("w0", traps=[Trap("commit", 3)])
        w.start("w0", "w1", "w2")
        w.recover("spare")
        assert (set(w.finish()), curve(w)) == ({alone[0]}, alone[1])


@pytest.mark.parametrize("options", [{"rows": 3}, {"careless": True}])
def test_sparse_gradients_and_batches_from_the_global_rng(options: dict[str, object]) -> None:
    """A sparse gradient is added row by row, which must not happen on top of another micro-batch's sum."""
    alone = undisturbed(job(steps=3, micro_batches=4, **options))  # type: ignore[arg-type]
    names = [f"w{n}" for n in range(4)]
    with world(job(steps=3, micro_batches=4, **options)) as w:  # type: ignore[arg-type]
        w.spawn(*names)
        w.start(*names)
        assert (set(w.finish()), curve(w)) == ({alone[0]}, alone[1])


PHASES = ["batch", "reduce", "commit", "update", "gather"]


@pytest.mark.parametrize(("phase", "victim"), [*((p, 2) for p in PHASES), ("reduce", 0), ("update", 0)])
def test_a_rank_of_a_sharded_run_dies(phase: str, victim: int) -> None:
    names = [f"w{n}" for n in range(4)]
    with world(job(zero_stage=1, copies=1)) as w:
        w.spawn(*(n for n in names if n != names[victim]), "spare")
        w.spawn(names[victim], traps=[Trap(phase, 3)])
        w.start(*names)
        resume = w.recover("spare")
        assert resume.step in (2, 3)
        assert set(w.finish()) == {reference()[0]}
        assert curve(w) == reference()[1]


@pytest.mark.parametrize("phase", PHASES[:-1])
def test_a_rank_of_a_data_parallel_run_dies(phase: str) -> None:
    names = [f"w{n}" for n in range(3)]
    with world(job(size=3)) as w:
        w.spawn("w0", "w2", "spare")
        w.spawn("w1", traps=[Trap(phase, 3)])
        w.start(*names)
        w.recover("spare")
        assert set(w.finish()) == {reference()[0]}
        assert curve(w) == reference()[1]


def test_fast_mode_swaps_exactly_while_the_number_of_ranks_stays() -> None:
    results = []
    for traps in ([], [Trap("reduce", 3)]):
        with world(job(size=2, consistency=Consistency.FAST)) as w:
            w.spawn("w0", "spare")
            w.spawn("w1", traps=traps)
            w.start("w0", "w1")
            if traps:
                w.recover("spare")
            results.append((w.finish(), curve(w)))
    assert results[0] == results[1]
