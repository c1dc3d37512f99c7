"""Forming a group must be interruptible: a peer may die meanwhile, and the library's constructor then blocks.

So the constructor runs in a helper thread.  When the caller's patience ends first (cancelled, deadline) the thread is
abandoned; the group that it may still form is closed by it, and its own time-out bounds its life.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from orchestrator.engine.groups.base import BackendUnavailable, EpochGroup, GroupBroken
from orchestrator.engine.groups.gloo import form_gloo
from orchestrator.engine.groups.library import first_line
from orchestrator.engine.groups.nccl import form_nccl
from orchestrator.engine.groups.store import StoreClient, connect_store

OP_TIMEOUT_S = 1800.0

_CANCEL_POLL_S = 0.002
_BUILDERS: dict[str, Callable[..., EpochGroup]] = {"gloo": form_gloo, "nccl": form_nccl}


class _Attempt:
    """What the helper thread and the caller share: exactly one of them disposes of the group."""

    def __init__(self) -> None:
        self.finished = threading.Event()
        self._lock = threading.Lock()
        self._abandoned = False
        self._group: EpochGroup | None = None
        self._error: Exception | None = None
        self._store: StoreClient | None = None

    def use(self, store: StoreClient) -> None:
        """The connection that the constructor waits on: closing it ends the waiting."""
        with self._lock:
            self._store = store
            late = self._abandoned
        if late:
            store.close()

    def finish(self, group: EpochGroup | None, error: Exception | None) -> None:
        with self._lock:
            late = self._abandoned
            self._group, self._error = (None if late else group), error
            store = self._store
        if group is None and store is not None:
            store.close()
        if late and group is not None:
            group.close()
        self.finished.set()

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            group, self._group = self._group, None
            store = self._store
        if store is not None:
            store.close()
        if group is not None:
            group.close()

    def result(self) -> EpochGroup:
        with self._lock:
            group, error = self._group, self._error
        if group is not None:
            return group
        assert error is not None
        raise error


def form_group(
    backend: str,
    store: StoreClient,
    *,
    name: str,
    epoch: int,
    rank: int,
    size: int,
    bind_host: str,
    deadline_s: float,
    cancelled: threading.Event,
    op_timeout_s: float = OP_TIMEOUT_S,
) -> EpochGroup:
    """Form the group `name` of `epoch` with the other ranks; returns when it works on all of them.

    `backend` is "gloo" or "nccl". `store` is any client of the ranks' common store: the group connects to the same
    server by itself, so that the caller's connection is never blocked; a pair (epoch, name) can be formed once in a
    store. `bind_host` is the address that peers reach this rank at. `op_timeout_s` bounds each later operation.
    Raises GroupBroken when `cancelled` is set, when `deadline_s` passes, or when forming fails; BackendUnavailable;
    ValueError for an unknown backend. If `cancelled` is set later, abort the group yourself: look at it once more
    after you have put the group where your aborting thread finds it.
    """
    if backend not in _BUILDERS:
        raise ValueError(f"unknown backend {backend!r}: one of {', '.join(_BUILDERS)}")
    attempt = _Attempt()

    def build() -> None:
        try:
            own = connect_store(store.endpoint, deadline_s)  # so that the caller's is never blocked
            attempt.use(own)
            group = _BUILDERS[backend](
                own,
                name=name,
                epoch=epoch,
                rank=rank,
                size=size,
                bind_host=bind_host,
                deadline_s=deadline_s,
                op_timeout_s=op_timeout_s,
            )
        except (GroupBroken, BackendUnavailable, ValueError) as error:
            attempt.finish(None, error)
        except (RuntimeError, OSError) as error:
            attempt.finish(None, GroupBroken(f"cannot form {name!r}: {first_line(error)}"))
        except Exception as error:  # our own bug: the caller must see it, not wait for the deadline
            attempt.finish(None, error)
        else:
            attempt.finish(group, None)

    deadline = time.monotonic() + deadline_s
    threading.Thread(target=build, name=f"form-{name}-{epoch}", daemon=True).start()
    while not attempt.finished.wait(_CANCEL_POLL_S):
        if cancelled.is_set() or time.monotonic() > deadline:
            break
    if cancelled.is_set():
        attempt.abandon()
        raise GroupBroken(f"forming {name!r} of epoch {epoch} was cancelled")
    if not attempt.finished.is_set():
        attempt.abandon()
        raise GroupBroken(f"{name!r} of epoch {epoch} was not formed within {deadline_s:g} s")
    return attempt.result()
