"""Flat scratch tensors that are used again: on a CPU the first touch of fresh pages costs ten times a copy.

A buffer that took part in an operation of a broken group may still be written to by it: such a buffer is simply never
given back.
"""

from __future__ import annotations

import torch
from torch import Tensor


class BufferPool:
    """Free 1-D tensors of one device, by size and dtype. Not thread-safe: one pool for one thread."""

    def __init__(self, *, device: torch.device | str = "cpu", free_bytes_max: int = 256 << 20) -> None:
        self._device = torch.device(device)
        self._free_bytes_max = free_bytes_max
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self.free_bytes = 0

    def take(self, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor [numel]."""
        stack = self._free.get((numel, dtype))
        if not stack:
            return torch.empty(numel, dtype=dtype, device=self._device)
        tensor = stack.pop()
        self.free_bytes -= tensor.nbytes
        return tensor

    def give(self, tensor: Tensor) -> None:
        """Hand back a tensor from `take`, of which no view is used any more; it is freed when the pool is full."""
        if self.free_bytes + tensor.nbytes <= self._free_bytes_max:
            self._free.setdefault((tensor.numel(), tensor.dtype), []).append(tensor)
            self.free_bytes += tensor.nbytes

    def clear(self) -> None:
        """Free everything."""
        self._free.clear()
        self.free_bytes = 0
