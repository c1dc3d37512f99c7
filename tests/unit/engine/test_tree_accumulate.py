"""A rank's gradients as tree nodes: the bits, the number of buffers, and going on after an interruption."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.engine.accumulate import GradAccumulator
from orchestrator.engine.buffers import BufferPool
from orchestrator.engine.tree import Folder, segments

NUMEL = 33


def gradient(index: int) -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(index)) * 10.0 ** (index % 5)


def expected(lo: int, hi: int, total: int) -> list[Tensor]:
    def node(a: int, b: int) -> Tensor:
        if b - a == 1:
            return gradient(a)
        mid = a + (1 << ((b - a - 1).bit_length() - 1))
        return node(a, mid) + node(mid, b)

    return [node(a, b) for a, b in segments(lo, hi, total)]


def run(grads: GradAccumulator) -> None:
    while not grads.done:
        index, buffer = grads.begin()
        buffer += gradient(index)
        grads.commit()


RUNS = [(0, 8, 8), (0, 7, 7), (3, 9, 12), (5, 6, 7), (1, 11, 12), (4, 4, 8)]


@pytest.mark.parametrize("join_leaves", [False, True])
@pytest.mark.parametrize(("lo", "hi", "total"), RUNS)
def test_partials_are_the_tree_nodes(lo: int, hi: int, total: int, join_leaves: bool) -> None:
    pool = BufferPool()
    grads = GradAccumulator(NUMEL, total=total, lo=lo, hi=hi, pool=pool, join_leaves=join_leaves)
    for _ in range(2):  # the second step runs on used buffers
        run(grads)
        assert [node for node, _ in grads.partials()] == segments(lo, hi, total)
        for (_, got), want in zip(grads.partials(), expected(lo, hi, total), strict=True):
            assert torch.equal(got, want)
        grads.reset()


@pytest.mark.parametrize("join_leaves", [False, True])
@pytest.mark.parametrize("stop_at", range(3, 9))
def test_an_interrupted_micro_batch_leaves_no_trace(stop_at: int, join_leaves: bool) -> None:
    grads = GradAccumulator(NUMEL, total=12, lo=3, hi=9, pool=BufferPool(), join_leaves=join_leaves)
    computed: list[int] = []
    interrupted = False
    while not grads.done:
        index, buffer = grads.begin()
        if index == stop_at and not interrupted:
            interrupted = True
            buffer += 1e6  # half a backward pass, then the epoch broke
            assert all(float(value.abs().max()) < 9e5 for _, value in grads.partials())
            goes_on_at = grads.next_index
            assert grads.begin()[0] == goes_on_at
            continue
        buffer += gradient(index)
        computed.append(index)
        grads.commit()
    assert [torch.equal(got, want) for (_, got), want in zip(grads.partials(), expected(3, 9, 12), strict=True)]
    for (_, got), want in zip(grads.partials(), expected(3, 9, 12), strict=True):
        assert torch.equal(got, want)
    again = {i for i in computed if computed.count(i) > 1}
    assert again == ({stop_at - 1} if join_leaves and stop_at % 2 == 1 and stop_at > 3 else set())


def test_inexact_adds_into_one_buffer() -> None:
    pool = BufferPool()
    grads = GradAccumulator(NUMEL, total=12, lo=3, hi=9, pool=pool, exact=False)
    run(grads)
    [(node, value)] = grads.partials()
    assert node == (3, 9)
    torch.testing.assert_close(value, torch.stack([gradient(i) for i in range(3, 9)]).sum(0))
    grads.reset()
    assert pool.free_bytes == 4 * NUMEL


def test_buffers_are_few_and_used_again() -> None:
    pool = BufferPool()
    grads = GradAccumulator(NUMEL, total=64, lo=0, hi=64, pool=pool)
    for _ in range(3):
        run(grads)
        grads.reset()
        assert pool.free_bytes <= 4 * NUMEL * 7  # log2(64) + 1


def test_sizes_that_nobody_asks_for_any_more_make_room() -> None:
    pool = BufferPool(free_bytes_max=1000)
    for numel in (200, 100, 150):  # as the plans change
        pool.give(pool.take(numel))
    assert pool.free_bytes == 4 * 250
    again = pool.take(100)
    address = again.data_ptr()
    pool.give(again)
    more = pool.take(130)
    pool.give(more)  # 150 was asked for longest ago
    assert pool.free_bytes == 4 * 230
    assert pool.take(100).data_ptr() == address
    pool.give(pool.take(300))
    assert pool.free_bytes == 4 * 130, "what does not fit at all makes no room"


def test_misuse() -> None:
    grads = GradAccumulator(NUMEL, total=4, lo=0, hi=1, pool=BufferPool())
    with pytest.raises(ValueError, match="without begin"):
        grads.commit()
    run(grads)
    with pytest.raises(ValueError, match="are complete"):
        grads.begin()
    with pytest.raises(ValueError, match="not inside"):
        GradAccumulator(NUMEL, total=4, lo=0, hi=5, pool=BufferPool())


def test_autograd_adds_a_shared_parameter_once() -> None:
    """What join_leaves rests on: a tied weight's gradient arrives as one sum, never piece by piece."""
    torch.manual_seed(0)
    weight = torch.randn(16, 16, requires_grad=True)
    inputs = torch.randn(5, 16)
    base = torch.randn(16, 16)
    (torch.tanh(torch.tanh(inputs @ weight) @ weight.t())).sum().backward()
    assert weight.grad is not None
    whole = weight.grad.clone()
    weight.grad = base.clone()
    (torch.tanh(torch.tanh(inputs @ weight) @ weight.t())).sum().backward()
    assert torch.equal(weight.grad, base + whole)


def test_folder_of_tensors_agrees_with_the_accumulator() -> None:
    grads = GradAccumulator(NUMEL, total=7, lo=0, hi=7, pool=BufferPool())
    run(grads)
    folder: Folder[Tensor] = Folder(7, torch.add)
    for i in range(7):
        folder.push((i, i + 1), gradient(i))
    assert torch.equal(grads.partials()[0][1], folder.result())
