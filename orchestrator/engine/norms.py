"""Sums of squares whose bits do not depend on how a vector is cut over ranks.

The gradient norm that clips must be the same number for any number of owners.  So the vector is seen as blocks of a
fixed size, each block is summed by elementwise halving in float64 (no library reduction, whose order may depend on
the shape), and whoever wants the norm adds the block sums in block order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SCRATCH_NUMEL = 1 << 16  # float64: 512 KiB, stays in a core's cache
_COLUMNS_BULK = 64


def block_sums(flat_region: Tensor, block: int) -> Tensor:
    """Sum of squares of each block of `flat_region` [n], any float dtype -> float64 [ceil(n / block)].

    The last block may be short: it counts as padded with zeros. Bits depend on the block's contents alone.
    """
    if block < 1:
        raise ValueError(f"block of {block} elements")
    numel = flat_region.numel()
    whole = numel // block
    out = torch.empty(-(-numel // block), dtype=torch.float64, device=flat_region.device)
    if whole:
        _row_sums(flat_region[: whole * block].view(whole, block), out[:whole])
    if numel > whole * block:
        tail = torch.zeros(1, block, dtype=flat_region.dtype, device=flat_region.device)
        tail[0, : numel - whole * block] = flat_region[whole * block :]
        _row_sums(tail, out[whole:])
    return out


def _row_sums(rows: Tensor, out: Tensor) -> None:
    count, block = rows.shape
    group = max(1, min(count, _SCRATCH_NUMEL // block))
    scratch = torch.empty(group, block, dtype=torch.float64, device=rows.device)
    narrow = min(block, _halved_below(block, _COLUMNS_BULK))
    columns = torch.empty(count, narrow, dtype=torch.float64, device=rows.device)
    for first in range(0, count, group):
        part = rows[first : first + group]
        squares = scratch[: part.shape[0]]
        squares.copy_(part)
        squares.mul_(squares)
        width = block
        while width > narrow:
            width = _halve(squares, width)
        columns[first : first + group] = squares[:, :width]
    width = narrow
    while width > 1:
        width = _halve(columns, width)
    out.copy_(columns[:, 0])


def _halve(values: Tensor, width: int) -> int:
    half = (width + 1) // 2
    values[:, : width - half].add_(values[:, half:width])
    return half


def _halved_below(width: int, limit: int) -> int:
    while width > limit:
        width = (width + 1) // 2
    return width
