"""Parameters that are only there while their layer runs (ZeRO-3), although autograd wants to keep them from forward to backward.

Autograd saves a parameter, or a view of it such as its transpose, for the backward pass. Here it saves the way to find it again:
which parameter, which strides. What the parameter's memory is meanwhile is somebody else's business; when the backward pass runs,
its values must be back, wherever they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement


@dataclass(frozen=True, slots=True)
class _Dress:
    """What makes a DTensor of its local tensor."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A tensor inside a parameter's memory."""

    param: nn.Parameter
    size: torch.Size
    stride: tuple[int, ...]
    offset: int  # elements from the parameter's first
    dress: _Dress | None  # of a DTensor

    def look_up(self) -> Tensor:
        """The same place of the parameter as it is now."""
        now = _local(self.param).detach()
        local = torch.as_strided(now, self.size, self.stride, now.storage_offset() + self.offset)
        if self.dress is None:
            return local
        d = self.dress
        made: Tensor = DTensor.from_local(local, d.mesh, d.placements, run_check=False, shape=d.shape, stride=d.stride)
        return made


def looked_up(params: Iterable[nn.Parameter]) -> AbstractContextManager[object]:
    """Inside, what autograd saves of these parameters' memory is looked up again in the parameters when it is needed.

    Each parameter must lie densely in its memory, as views of a flat vector do.
    """
    known = [(_local(p).data_ptr(), _local(p).nbytes, p) for p in params if _local(p).numel()]

    def pack(tensor: Tensor) -> Tensor | _Found:
        local = _local(tensor)
        at = local.data_ptr() if local.numel() else 0
        for start, nbytes, param in known:
            if start <= at < start + nbytes and local.dtype is param.dtype:
                offset = (at - start) // local.element_size()
                return _Found(param, local.size(), local.stride(), offset, _dress(tensor))
        return tensor

    def unpack(saved: Tensor | _Found) -> Tensor:
        return saved.look_up() if isinstance(saved, _Found) else saved

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _local(tensor: Tensor) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _dress(tensor: Tensor) -> _Dress | None:
    if not isinstance(tensor, DTensor):
        return None
    return _Dress(tensor.device_mesh, tuple(tensor.placements), tensor.shape, tensor.stride())
