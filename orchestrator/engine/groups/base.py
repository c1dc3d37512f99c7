"""The one interface to a process group of one epoch.

A group belongs to one epoch and is thrown away when anything in it fails: survivors leave it (from another thread if
need be) and form the next one, without restarting.  The default group of torch.distributed is never used, and the one
way in which a collective may fail is `GroupBroken`, so that callers tell a broken world from a bug.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

USER_TAG_MAX = (1 << 20) - 1  # tags above this are the engine's own (see reduce.py)


class GroupBroken(Exception):
    """The group can be used no more: it was aborted, a peer failed, or it could not be formed.

    `peer` is the rank (in this group) whose connection was lost, where that is known for certain, else None. It is
    evidence, not a verdict: a rank that saw nothing itself and was told to abort has `peer` None.
    """

    def __init__(self, cause: str, peer: int | None = None) -> None:
        super().__init__(cause if peer is None else f"{cause} (rank {peer})")
        self.cause = cause
        self.peer = peer


class BackendUnavailable(Exception):
    """The communication library asked for does not exist on this machine."""


class Handle(Protocol):
    """A point-to-point operation under way. Keep it until `wait` has returned."""

    def wait(self) -> None:
        """Block until done; raise GroupBroken."""


class EpochGroup(ABC):
    """Ranks 0..size-1 of one epoch. Tensors are dense and contiguous, on the device that the backend serves.

    Every operation blocks until its result may be used, and raises `GroupBroken` once the group is broken; it then
    raises at once for ever. One thread at a time runs collectives, in the same order on every rank; `abort` and
    `close` may come from any thread. Arguments that do not fit (sizes, dtypes, ranks) raise ValueError.

    **An operation that ended in GroupBroken may still write into its output tensors** (a stopped peer that goes on
    again): never use those tensors again, not even as scratch. Tensors that were only read stay as they were.

    A rank that is killed is noticed by the ranks that wait for it; others wait until `abort` (or the operation's
    time-out). A rank that is stopped is noticed by nobody: whoever supervises must tell every survivor to abort.
    """

    def __init__(self, *, name: str, epoch: int, rank: int, size: int) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} is not in 0..{size - 1}")
        self.name = name
        self.epoch = epoch
        self.rank = rank
        self.size = size

    @property
    @abstractmethod
    def broken(self) -> GroupBroken | None:
        """Why the group is broken, or None while it is usable."""

    @abstractmethod
    def all_reduce_sum_(self, tensor: Tensor) -> None:
        """In place; the library chooses the order of the sums."""

    @abstractmethod
    def all_gather_into(self, out_flat: Tensor, in_flat: Tensor) -> None:
        """`out_flat` [size * k] gets every rank's `in_flat` [k] in rank order.

        `in_flat` may be its own place in `out_flat`.
        """

    @abstractmethod
    def all_to_all(self, out_flat: Tensor, in_flat: Tensor, out_splits: Sequence[int], in_splits: Sequence[int]) -> None:
        """Rank r gets my in_splits[r] elements; I get out_splits[r] elements of rank r, in rank order.

        Zeros are allowed.
        """

    @abstractmethod
    def reduce_scatter_sum(self, out: Tensor, in_flat: Tensor) -> None:
        """`out` [k] gets the sum over ranks of its place in `in_flat` [size * k].

        The library chooses the order of the sums.
        """

    @abstractmethod
    def broadcast_(self, tensor: Tensor, root: int) -> None:
        """In place, from rank `root`."""

    @abstractmethod
    def isend(self, tensor: Tensor, dst: int, tag: int = 0) -> Handle:
        """Start to send; `tensor` must stay as it is until the handle's wait has returned."""

    @abstractmethod
    def irecv(self, tensor: Tensor, src: int, tag: int = 0) -> Handle:
        """Start to receive into `tensor`."""

    @abstractmethod
    def exchange(self, sends: Sequence[tuple[Tensor, int]], recvs: Sequence[tuple[Tensor, int]], *, tag: int = 0) -> Handle:
        """Start many transfers at once: (tensor, peer) each; the handle waits for all of them.

        The k-th tensor sent to a peer meets the k-th that this peer receives from here under the same tag, over
        successive calls too; their sizes must agree. Empty tensors are skipped on both sides. All ranks call it in
        the same order.
        """

    @abstractmethod
    def barrier(self) -> None:
        """Return when every rank has come here."""

    @abstractmethod
    def abort(self) -> None:
        """Break the group: wake every waiter, return at once. Any thread, any number of times."""

    @abstractmethod
    def close(self) -> None:
        """Abort, and destroy the library's object in the background. Any thread, any number of times.

        A peer that is still in its last operation sees this as a broken group: agree on the end elsewhere first.
        """

    def send(self, tensor: Tensor, dst: int, tag: int = 0) -> None:
        """Send and wait until `tensor` may be changed again."""
        self.isend(tensor, dst, tag).wait()

    def recv(self, tensor: Tensor, src: int, tag: int = 0) -> None:
        """Receive into `tensor` and wait."""
        self.irecv(tensor, src, tag).wait()

    def _check_peer(self, peer: int) -> None:
        if peer == self.rank or not 0 <= peer < self.size:
            raise ValueError(f"rank {self.rank} of {self.size} cannot exchange tensors with rank {peer}")
