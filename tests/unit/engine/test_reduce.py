"""Reductions over real gloo groups: bitwise equal to the serial tree, for any number of ranks and any ownership."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from orchestrator.engine.accumulate import GradAccumulator
from orchestrator.engine.buffers import BufferPool
from orchestrator.engine.groups import EpochGroup, GroupBroken
from orchestrator.engine.reduce import (
    Ownership,
    all_reduce_exact,
    all_reduce_fast,
    reduce_scatter_exact,
    reduce_scatter_fast,
)
from orchestrator.engine.tree import Folder, Node, split
from tests.unit.engine.groups_world import run_ranks

LENGTH = 9_001  # several of the smallest chunks (1024 elements) for each owner


def gradient(index: int) -> Tensor:
    return torch.randn(LENGTH, generator=torch.Generator().manual_seed(index)) * 10.0 ** (index % 7)


def serial(total: int) -> Tensor:
    folder: Folder[Tensor] = Folder(total, torch.add)
    for index in range(total):
        folder.push((index, index + 1), gradient(index))
    return folder.result()


def partials(group: EpochGroup, total: int, *, exact: bool = True) -> list[tuple[Node, Tensor]]:
    run = split(total, group.rank, group.size)
    grads = GradAccumulator(LENGTH, total=total, lo=run.start, hi=run.stop, pool=BufferPool(), exact=exact)
    while not grads.done:
        index, buffer = grads.begin()
        buffer += gradient(index)
        grads.commit()
    return grads.partials()


def scattered(size: int) -> Ownership:
    """Seven odd pieces a rank, dealt at random; the last rank owns nothing when there are four."""
    owners = max(1, size - 1) if size == 4 else size
    rng = random.Random(size)
    cuts = [0, *sorted(rng.sample(range(1, LENGTH), 7 * owners - 1)), LENGTH]
    pieces = list(pairwise(cuts))
    rng.shuffle(pieces)
    return Ownership.of([pieces[rank::owners] if rank < owners else [] for rank in range(size)])


def ownership(kind: str, size: int) -> Ownership:
    return Ownership.even(LENGTH, size) if kind == "even" else scattered(size)


def region_of(owned: Ownership, rank: int, flat: Tensor) -> Tensor:
    return torch.cat([flat[a:b] for a, b in owned.regions[rank]] or [flat[:0]])


@pytest.mark.parametrize("kind", ["even", "scattered"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_exact_sums_have_the_serial_bits(size: int, kind: str) -> None:
    owned = ownership(kind, size)
    wanted = {total: serial(total) for total in (4, 8, 12, 7)}

    def work(group: EpochGroup) -> None:
        pool = BufferPool()
        for total, want in wanted.items():
            mine = partials(group, total)
            before = [value.clone() for _, value in mine]
            for scratch_bytes in (1, 64 << 20):  # many chunks, one chunk
                region = reduce_scatter_exact(group, owned, mine, total=total, pool=pool, scratch_bytes=scratch_bytes)
                assert torch.equal(region, region_of(owned, group.rank, want))
                flat = torch.full((LENGTH,), torch.nan)
                all_reduce_exact(group, owned, mine, flat, total=total, pool=pool, scratch_bytes=scratch_bytes)
                assert torch.equal(flat, want)
                pool.give(region)
            assert all(torch.equal(a, b) for a, (_, b) in zip(before, mine, strict=True)), "partials are only read"

    run_ranks(size, work)


@pytest.mark.parametrize("kind", ["even", "scattered"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_fast_sums_are_close_and_equal_on_all_ranks(size: int, kind: str) -> None:
    owned = ownership(kind, size)
    want = torch.stack([gradient(i).double() for i in range(12)]).sum(0)

    def work(group: EpochGroup) -> Tensor:
        pool = BufferPool()
        flat = torch.empty(LENGTH)
        for exact in (False, True):  # one local sum, or several partials
            mine = partials(group, 12, exact=exact)
            all_reduce_fast(group, owned, mine, flat, pool=pool)
            torch.testing.assert_close(flat.double(), want, rtol=1e-4, atol=10.0)
            region = reduce_scatter_fast(group, owned, mine, pool=pool)
            assert torch.equal(region, region_of(owned, group.rank, flat))
        return flat

    results = run_ranks(size, work)
    assert all(torch.equal(results[0], other) for other in results)


def test_given_output_and_bounded_scratch() -> None:
    owned = Ownership.even(LENGTH, 2)

    def work(group: EpochGroup) -> int:
        pool = BufferPool()
        out = torch.empty(owned.numel(group.rank))
        got = reduce_scatter_exact(group, owned, partials(group, 7), total=7, pool=pool, out=out, scratch_bytes=64 << 10)
        assert got is out
        return pool.free_bytes

    assert all(0 < scratch <= 64 << 10 for scratch in run_ranks(2, work))


def test_after_an_abort_the_partials_serve_the_next_epoch() -> None:
    owned = Ownership.even(LENGTH, 2)
    kept: dict[int, list[tuple[Node, Tensor]]] = {}

    def broken_epoch(group: EpochGroup) -> None:
        kept[group.rank] = partials(group, 8)
        group.barrier()
        if group.rank == 1:
            group.abort()
            return
        with pytest.raises(GroupBroken):
            reduce_scatter_exact(group, owned, kept[0], total=8, pool=BufferPool())

    def next_epoch(group: EpochGroup) -> Tensor:
        flat = torch.empty(LENGTH)
        all_reduce_exact(group, owned, kept[group.rank], flat, total=8, pool=BufferPool())
        return flat

    run_ranks(2, broken_epoch)
    assert all(torch.equal(flat, serial(8)) for flat in run_ranks(2, next_epoch))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="tile"):
        Ownership.of([[(0, 5)], [(4, 9)]])
    with pytest.raises(ValueError, match="tile"):
        Ownership.of([[(0, 5)], [(6, 9)]])
    with pytest.raises(ValueError, match="tile"):
        Ownership.of([[(1, 5)]])

    def work(group: EpochGroup) -> None:
        pool, owned = BufferPool(), Ownership.even(LENGTH, 1)
        with pytest.raises(ValueError, match="has sums of"):
            reduce_scatter_exact(group, owned, [((0, 1), gradient(0))], total=2, pool=pool)
        with pytest.raises(ValueError, match="for a vector of"):
            reduce_scatter_exact(group, owned, [((0, 1), gradient(0)[1:])], total=1, pool=pool)
        with pytest.raises(ValueError, match="in a group of 1"):
            reduce_scatter_exact(group, Ownership.even(LENGTH, 2), [((0, 1), gradient(0))], total=1, pool=pool)

    run_ranks(1, work)


def test_chunks_cut_across_intervals() -> None:
    owned = Ownership.of([[(5, 12), (0, 2)], [(2, 5)]])
    assert owned.chunks(0, 4) == [[(5, 9)], [(9, 12), (0, 1)], [(1, 2)]]
    assert owned.chunks(1, 4) == [[(2, 5)]]
    assert (owned.numel(0), owned.numel(1), owned.length) == (9, 3, 12)
