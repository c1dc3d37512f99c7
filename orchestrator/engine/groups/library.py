"""What the gloo and the NCCL group share: torch's collectives, and the memory of why the group broke.

The library's objects are typed Any here, in this one place: torch's stubs leave out most of what they have.
"""

from __future__ import annotations

import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    AllToAllOptions,
    BarrierOptions,
    BroadcastOptions,
    ReduceScatterOptions,
)

from orchestrator.engine.groups.base import EpochGroup, GroupBroken, Handle
from orchestrator.engine.groups.closing import destroy_later

T = TypeVar("T")


class Transfers:
    """Point-to-point works of one call; waits for all of them."""

    def __init__(self, finish: Callable[[list[Any]], None], works: list[Any]) -> None:
        self._finish = finish
        self._works = works

    def wait(self) -> None:
        """As in Handle."""
        self._finish(self._works)
        self._works = []


class LibraryGroup(EpochGroup):
    """An EpochGroup over a backend object `pg` of torch.distributed. The options' default operation is the sum."""

    def __init__(
        self, pg: Any, *, name: str, epoch: int, rank: int, size: int, device: torch.device, op_timeout_s: float
    ) -> None:
        super().__init__(name=name, epoch=epoch, rank=rank, size=size)
        self._pg: Any = pg
        self._device = device
        self._timeout = timedelta(seconds=op_timeout_s)
        self._lock = threading.Lock()
        self._broken: GroupBroken | None = None

    @property
    def broken(self) -> GroupBroken | None:
        return self._broken

    def all_reduce_sum_(self, tensor: Tensor) -> None:
        options: Any = AllreduceOptions()
        options.timeout = self._timeout
        self._collective(lambda pg: pg.allreduce([tensor], options))

    def all_gather_into(self, out_flat: Tensor, in_flat: Tensor) -> None:
        options: Any = AllgatherOptions()
        options.timeout = self._timeout
        self._collective(lambda pg: pg._allgather_base(out_flat, in_flat, options))

    def all_to_all(self, out_flat: Tensor, in_flat: Tensor, out_splits: Sequence[int], in_splits: Sequence[int]) -> None:
        options: Any = AllToAllOptions()
        options.timeout = self._timeout
        self._collective(lambda pg: pg.alltoall_base(out_flat, in_flat, list(out_splits), list(in_splits), options))

    def reduce_scatter_sum(self, out: Tensor, in_flat: Tensor) -> None:
        options: Any = ReduceScatterOptions()
        options.timeout = self._timeout
        self._collective(lambda pg: pg._reduce_scatter_base(out, in_flat, options))

    def broadcast_(self, tensor: Tensor, root: int) -> None:
        options: Any = BroadcastOptions()
        options.rootRank, options.rootTensor = root, 0
        options.timeout = self._timeout
        self._collective(lambda pg: pg.broadcast([tensor], options))

    def barrier(self) -> None:
        options: Any = BarrierOptions()
        options.timeout = self._timeout
        if self._device.type != "cpu":
            options.device = self._device
        self._collective(lambda pg: pg.barrier(options))

    def isend(self, tensor: Tensor, dst: int, tag: int = 0) -> Handle:
        self._check_peer(dst)
        return self._transfers(lambda pg: [pg.send([tensor], dst, tag)])

    def irecv(self, tensor: Tensor, src: int, tag: int = 0) -> Handle:
        self._check_peer(src)
        return self._transfers(lambda pg: [pg.recv([tensor], src, tag)])

    def exchange(self, sends: Sequence[tuple[Tensor, int]], recvs: Sequence[tuple[Tensor, int]], *, tag: int = 0) -> Handle:
        for _, peer in (*sends, *recvs):
            self._check_peer(peer)
        outgoing = [(tensor, dst) for tensor, dst in sends if tensor.numel()]
        incoming = [(tensor, src) for tensor, src in recvs if tensor.numel()]
        return self._transfers(lambda pg: self._start_exchange(pg, outgoing, incoming, tag))

    def wait_in(self, call: Callable[[], object]) -> None:
        """Run `call`, which waits inside the library for an operation of this group. Raises GroupBroken, on an abort at once."""
        try:
            call()
        except RuntimeError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self.abort()
        with self._lock:
            last_reference, self._pg = [self._pg], None
        destroy_later(last_reference)

    def __del__(self) -> None:
        """A group that nobody closed: its destructor joins threads, which must not happen to whoever runs the collector."""
        if getattr(self, "_pg", None) is not None and not sys.is_finalizing():
            self.close()

    @abstractmethod
    def _collective(self, start: Callable[[Any], Any]) -> None:
        """Start a work and wait for it."""

    @abstractmethod
    def _finish_transfers(self, works: list[Any]) -> None:
        """Wait for point-to-point works."""

    @abstractmethod
    def _start_exchange(
        self, pg: Any, sends: Sequence[tuple[Tensor, int]], recvs: Sequence[tuple[Tensor, int]], tag: int
    ) -> list[Any]:
        """Start the transfers; none of the tensors is empty."""

    def _transfers(self, start: Callable[[Any], list[Any]]) -> Handle:
        return Transfers(self._finish_transfers, self._start(start))

    def _start(self, start: Callable[[Any], T]) -> T:
        try:
            return start(self._require())
        except RuntimeError as error:
            if self._broken is None and not self._is_fault(error):
                raise ValueError(f"the library refuses the operation: {first_line(error)}") from error
            # Without its traceback, whose frames have the library's group: who forgets the error last would destroy that.
            raise self._failed(error) from error.with_traceback(None)

    @abstractmethod
    def _is_fault(self, error: RuntimeError) -> bool:
        """Whether an error at the start of an operation means a broken world; otherwise the arguments are wrong."""

    def _require(self) -> Any:
        broken, pg = self._broken, self._pg
        if broken is not None:
            raise GroupBroken(broken.cause, broken.peer)
        if pg is None:
            raise GroupBroken("the group is closed")
        return pg

    def _break(self, cause: str, peer: int | None = None) -> GroupBroken:
        """Remember the first cause: an abort by us explains all that follows from it."""
        with self._lock:
            if self._broken is None:
                self._broken = GroupBroken(cause, peer)
            broken = self._broken
        return GroupBroken(broken.cause, broken.peer)

    def _failed(self, error: RuntimeError) -> GroupBroken:
        """What the library's error means for the group."""
        return self._break(first_line(error))


def first_line(error: BaseException) -> str:
    """An error's text without torch's stack of frames."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
