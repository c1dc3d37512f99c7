"""Tensors that cross from one pipeline stage to the next, and their gradients back, over the group of an epoch.

An activation is announced by a header of a few numbers, so that every micro-batch may have a shape of its own; its gradient has
the same shape and type and needs none. Receives are posted as early as their size is known. Sends are waited for late, but only
so many may be under way: core/plan/pipeline.py says how many never make anybody wait in vain.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from orchestrator.core.plan.pipeline import sends_max
from orchestrator.core.plan.plan import PIPELINE, Plan
from orchestrator.engine.control import Control
from orchestrator.engine.groups.base import EpochGroup, Handle
from orchestrator.engine.rank_state import user_code
from orchestrator.engine.task import TaskError

_TAG = 1024  # three for each boundary from here on
_DIMS_MAX = 8
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)

_Receipt = tuple[Handle, Tensor]  # a transfer under way, and what must live as long


class Boundaries:
    """One rank's side of them. A boundary is named by the stage before it; stages of one rank hand over without the group.

    Every call may raise GroupBroken; `drop` everything then: the library may still write into what was to be received.
    """

    def __init__(self, *, plan: Plan, rank: int, group: EpochGroup, control: Control, device: torch.device) -> None:
        self._plan, self._group, self._control, self._device = plan, group, control, device
        self._pipe, self._replica, self._coordinate = plan.coordinates(rank)
        self._sends_max = sends_max(plan.axis(PIPELINE))
        self._sent: deque[list[_Receipt]] = deque()
        self._headers: dict[tuple[int, int], _Receipt] = {}
        self._gradients: dict[tuple[int, int], _Receipt] = {}
        self._local: dict[tuple[int, int, bool], Tensor] = {}

    # -------------------------------------------------------------------------------------------------- activations

    def expect(self, boundary: int, index: int) -> None:
        """The activation of a micro-batch will come over it: be ready for its header. Called in ascending order of `index`."""
        src = self._other(boundary)
        if src is not None:
            header = torch.empty(3 + _DIMS_MAX, dtype=torch.int64, device=self._device)
            self._headers[boundary, index] = self._group.irecv(header, src, _tag(boundary, 0)), header

    def send(self, boundary: int, index: int, y: Tensor) -> None:
        """What the stage has made of a micro-batch; it must not change any more. If it requires a gradient that is expected back.

        Raises UserError for more dimensions or another type than a header can tell.
        """
        dst = self._other(boundary)
        if dst is None:
            self._local[boundary, index, False] = y
            return
        if y.dim() > _DIMS_MAX or y.dtype not in _DTYPES:
            with user_code():
                raise TaskError(f"a {y.dtype} tensor of {y.dim()} dimensions cannot go from one pipeline stage to the next")
        numbers = [y.dim(), _DTYPES.index(y.dtype), int(y.requires_grad), *y.shape]
        header = torch.tensor(numbers + [0] * (3 + _DIMS_MAX - len(numbers)), dtype=torch.int64, device=self._device)
        self._post((header, _tag(boundary, 0)), (y.detach(), _tag(boundary, 1)), dst=dst)
        if y.requires_grad and y.numel():
            dy = torch.empty_like(y, requires_grad=False)
            self._gradients[boundary, index] = self._group.irecv(dy, dst, _tag(boundary, 2)), dy

    def receive(self, boundary: int, index: int) -> Tensor:
        """What the stage before has made of a micro-batch."""
        src = self._other(boundary)
        if src is None:
            return self._local.pop((boundary, index, False))
        handle, header = self._headers.pop((boundary, index))
        with self._control.comm():
            handle.wait()
            dims, dtype, wanted, *shape = header.tolist()
            x = torch.empty(shape[:dims], dtype=_DTYPES[dtype], device=self._device)
            if x.numel():
                self._group.recv(x, src, _tag(boundary, 1))
        return x.requires_grad_(bool(wanted))

    # ---------------------------------------------------------------------------------------------------- gradients

    def send_gradient(self, boundary: int, index: int, dx: Tensor) -> None:
        """Of what came over the boundary."""
        dst = self._other(boundary)
        if dst is None:
            self._local[boundary, index, True] = dx
        else:
            self._post((dx, _tag(boundary, 2)), dst=dst)

    def receive_gradient(self, boundary: int, index: int) -> Tensor | None:
        """Of what was sent over the boundary; None where none was wanted."""
        if self._other(boundary) is None:
            return self._local.pop((boundary, index, True), None)
        receipt = self._gradients.pop((boundary, index), None)
        if receipt is None:
            return None
        with self._control.comm():
            receipt[0].wait()
        return receipt[1]

    # ------------------------------------------------------------------------------------------------------ the group

    def settle(self) -> None:
        """Wait until all that was sent has arrived."""
        self._wait_for_sends(0)

    def drop(self) -> None:
        """Forget what is under way."""
        self._sent.clear()
        self._headers.clear()
        self._gradients.clear()
        self._local.clear()

    def _post(self, *messages: tuple[Tensor, int], dst: int) -> None:
        works = [(self._group.isend(tensor, dst, tag), tensor) for tensor, tag in messages if tensor.numel()]
        self._sent.append(works)
        self._wait_for_sends(self._sends_max)

    def _wait_for_sends(self, left: int) -> None:
        while len(self._sent) > left:
            with self._control.comm():
                for handle, _ in self._sent[0]:
                    handle.wait()
            self._sent.popleft()

    def _other(self, boundary: int) -> int | None:
        """The rank on the other side; None where both sides are here."""
        size = self._plan.axis(PIPELINE)
        before, after = boundary % size, (boundary + 1) % size
        if before == after:
            return None
        return self._plan.rank_at(after if before == self._pipe else before, self._replica, self._coordinate)


def _tag(boundary: int, message: int) -> int:
    return _TAG + 3 * boundary + message
