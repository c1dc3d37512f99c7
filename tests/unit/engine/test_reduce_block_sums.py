"""Block sums of squares: right, and the same bits however the blocks are grouped into regions."""

from __future__ import annotations

import pytest
import torch

from orchestrator.engine.norms import block_sums


@pytest.mark.parametrize("block", [1, 2, 7, 64, 65, 1000, 4096, 70_000])
def test_bits_do_not_depend_on_the_grouping(block: int) -> None:
    rows = 40 if block < 70_000 else 5
    flat = torch.randn(rows * block, generator=torch.Generator().manual_seed(block)) * 1e3
    together = block_sums(flat, block)
    for count in range(1, rows + 1):
        parts = [block_sums(flat[i * block : (i + count) * block], block) for i in range(0, rows, count)]
        assert torch.equal(torch.cat(parts), together)
    offset = torch.cat([torch.zeros(1), flat])[1:]  # another alignment in memory
    assert torch.equal(block_sums(offset, block), together)


@pytest.mark.parametrize("numel", [0, 1, 63, 64, 65, 1000])
def test_a_short_tail_counts_as_padded_with_zeros(numel: int) -> None:
    flat = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    padded = torch.cat([flat, torch.zeros(-numel % 64)])
    assert torch.equal(block_sums(flat, 64), block_sums(padded, 64))
    assert block_sums(flat, 64).shape == (-(-numel // 64),)


def test_value_and_range() -> None:
    flat = torch.randn(10 * 4096, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block_sums(flat, 4096), flat.double().square().view(10, 4096).sum(1), rtol=1e-13, atol=0.0)
    huge = torch.full((128,), 1e30)  # the square is no float32
    torch.testing.assert_close(block_sums(huge, 64), torch.full((2,), 64e60, dtype=torch.float64), rtol=1e-6, atol=0.0)
    tiny = torch.full((64,), 1e-30)
    torch.testing.assert_close(block_sums(tiny, 64), torch.tensor([64e-60], dtype=torch.float64), rtol=1e-6, atol=0.0)
    assert block_sums(torch.ones(4, dtype=torch.bfloat16), 2).tolist() == [2.0, 2.0]
    assert block_sums(torch.tensor([1.0, torch.nan]), 1).isnan().tolist() == [False, True]


def test_refusal() -> None:
    with pytest.raises(ValueError, match="block of 0"):
        block_sums(torch.ones(1), 0)
