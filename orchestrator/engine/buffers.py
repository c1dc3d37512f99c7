"""Flat scratch tensors that are used again: on a CPU the first touch of fresh pages costs ten times a copy.

Sizes change with the plan: when the pool is full, the sizes that were not asked for for longest make room.

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
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}  # those asked for last are last
        self.free_bytes = 0

    def take(self, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor [numel]."""
        stack = self._free.pop((numel, dtype), [])
        if not stack:
            return torch.empty(numel, dtype=dtype, device=self._device)
        tensor = stack.pop()
        if stack:
            self._free[numel, dtype] = stack
        self.free_bytes -= tensor.nbytes
        return tensor

    def give(self, tensor: Tensor) -> None:
        """Hand back a tensor from `take`, of which no view is used any more; it is freed when the pool is full of its size."""
        key, room = (tensor.numel(), tensor.dtype), self._free_bytes_max - tensor.nbytes
        for other in list(self._free):
            if room < 0 or self.free_bytes <= room or other == key:
                break
            self.free_bytes -= sum(t.nbytes for t in self._free.pop(other))
        if self.free_bytes <= room:
            self._free.setdefault(key, []).append(tensor)
            self.free_bytes += tensor.nbytes

    def clear(self) -> None:
        """Free everything."""
        self._free.clear()
        self.free_bytes = 0
