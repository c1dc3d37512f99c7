"""The same interface over NCCL.

NCCL's works complete on the GPU; blocking a host thread in the library would make it deaf to an abort, so we poll the
work and our own flag.  `ProcessGroupNCCL.abort` does end pending kernels, but may take its time: it runs in a thread,
while our flag wakes the waiters.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from orchestrator.engine.groups.base import BackendUnavailable, GroupBroken
from orchestrator.engine.groups.library import LibraryGroup
from orchestrator.engine.groups.store import StoreClient

_POLL_MIN_S = 20e-6
_POLL_MAX_S = 1e-3


class NcclGroup(LibraryGroup):
    """Made by `form_nccl`. Tensors live on the group's CUDA device."""

    def __init__(
        self,
        pg: Any,
        *,
        store: StoreClient,
        name: str,
        epoch: int,
        rank: int,
        size: int,
        device: torch.device,
        op_timeout_s: float,
    ) -> None:
        super().__init__(pg, name=name, epoch=epoch, rank=rank, size=size, device=device, op_timeout_s=op_timeout_s)
        self._ended = threading.Event()
        self._store = store  # NCCL's own threads go on asking it

    def abort(self) -> None:
        self._break("the group was aborted")
        with self._lock:
            pg = None if self._ended.is_set() else self._pg
            self._ended.set()
        if pg is not None:
            threading.Thread(target=pg.abort, name=f"abort-{self.name}-{self.epoch}", daemon=True).start()

    def close(self) -> None:
        super().close()
        self._store.close()

    def _collective(self, start: Callable[[Any], Any]) -> None:
        try:
            self._poll(self._start(start))
        except RuntimeError as error:
            raise self._failed(error) from error

    def _finish_transfers(self, works: list[Any]) -> None:
        try:
            for work in works:
                self._poll(work)
        except RuntimeError as error:
            raise self._failed(error) from error

    def _poll(self, work: Any) -> None:
        pause_s = _POLL_MIN_S
        while not work.is_completed():  # NCCL's own time-out completes it, with an error
            self._ended.wait(pause_s)
            self._require()
            pause_s = min(2 * pause_s, _POLL_MAX_S)
        self._require()
        work.wait()  # raises the work's error; orders the current stream after it

    def _is_fault(self, error: RuntimeError) -> bool:
        return isinstance(error, dist.DistError)

    def _start_exchange(
        self, pg: Any, sends: Sequence[tuple[Tensor, int]], recvs: Sequence[tuple[Tensor, int]], tag: int
    ) -> list[Any]:
        """One NCCL group call, so that transfers in opposite directions cannot wait for one another."""
        if not sends and not recvs:
            return []
        pg._start_coalescing(self._device)
        for tensor, dst in sends:
            pg.send([tensor], dst, tag)
        for tensor, src in recvs:
            pg.recv([tensor], src, tag)
        return [pg._end_coalescing(self._device)]


def form_nccl(
    store: StoreClient,
    *,
    name: str,
    epoch: int,
    rank: int,
    size: int,
    bind_host: str,
    deadline_s: float,
    op_timeout_s: float,
) -> NcclGroup:
    """Block until all ranks have formed the group on their current CUDA device.

    NCCL takes its interface from NCCL_SOCKET_IFNAME, not from `bind_host`. Raises BackendUnavailable without CUDA or
    NCCL; RuntimeError or GroupBroken when forming fails.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable("backend nccl needs a CUDA device, and torch.cuda.is_available() is False; use gloo")
    if not dist.is_nccl_available():
        raise BackendUnavailable("backend nccl: this build of torch has no NCCL; use gloo")
    device = torch.device("cuda", torch.cuda.current_device())
    nccl: Any = getattr(c10d, "ProcessGroupNCCL")  # noqa: B009  absent from CPU builds, so unknown to the stubs too
    options = nccl.Options()
    options._timeout = timedelta(seconds=op_timeout_s)
    pg = nccl(c10d.PrefixStore(f"epoch{epoch}/{name}/nccl", store), rank, size, options)
    group = NcclGroup(pg, store=store, name=name, epoch=epoch, rank=rank, size=size, device=device, op_timeout_s=deadline_s)
    try:
        group.all_reduce_sum_(torch.zeros(1, device=device))  # NCCL connects at the first collective
    except GroupBroken:
        group.close()
        raise
    group._timeout = timedelta(seconds=op_timeout_s)
    return group
