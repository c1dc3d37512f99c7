"""A gloo group that another thread can abort.

gloo's own `abort` and `shutdown` leave pending operations waiting, so aborting means: set a flag, wake those who wait
on an event of ours, and shut down the group's connections under gloo's feet.  Collectives are waited for through
their future's callback, which lets the waiter leave at once; sends and receives have no future, and one that is
half-way through is forgotten when its connection drops, so others wait for them (waits.py).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C import _distributed_c10d as c10d

from orchestrator.engine.groups.base import GroupBroken
from orchestrator.engine.groups.library import LibraryGroup, first_line
from orchestrator.engine.groups.sockets import Connection, Endpoint, connections, create_with_listener
from orchestrator.engine.groups.store import StoreClient
from orchestrator.engine.groups.waits import Helpers, LeftBehind

_Gloo: Any = c10d.ProcessGroupGloo
_helpers = Helpers()


class GlooGroup(LibraryGroup):
    """Made by `form_gloo`."""

    def __init__(
        self,
        pg: Any,
        *,
        name: str,
        epoch: int,
        rank: int,
        size: int,
        op_timeout_s: float,
        conns: Sequence[Connection],
    ) -> None:
        device = torch.device("cpu")
        super().__init__(pg, name=name, epoch=epoch, rank=rank, size=size, device=device, op_timeout_s=op_timeout_s)
        self._conns = list(conns)
        self._rank_of: dict[Connection, int] = {}
        self._waiters: set[threading.Event] = set()

    def abort(self) -> None:
        self._break("the group was aborted")
        with self._lock:
            waiters, conns = list(self._waiters), self._conns
            self._conns = []
        for waiter in waiters:
            waiter.set()
        for conn in conns:
            conn.shut()

    def _collective(self, start: Callable[[Any], Any]) -> None:
        done = threading.Event()
        with self._lock:
            self._waiters.add(done)
        try:
            work = self._start(start)
            future = _future(work)
            if future is not None:
                future.add_done_callback(lambda _: done.set())
                done.wait()  # the work's own time-out bounds it
                self._require()
            work.wait(self._timeout)
            self._require()
        except RuntimeError as error:
            raise self._failed(error) from error
        finally:
            with self._lock:
                self._waiters.discard(done)

    def _finish_transfers(self, works: list[Any]) -> None:
        timeout = self._timeout

        def wait() -> None:
            for work in works:
                work.wait(timeout)

        self.wait_in(wait)

    def wait_in(self, call: Callable[[], object]) -> None:
        wait_elsewhere = LeftBehind(call)
        with self._lock:
            self._waiters.add(wait_elsewhere.done)
        try:
            self._require()
            _helpers.start(wait_elsewhere)
            wait_elsewhere.done.wait()  # the works' own time-out bounds it
            self._require()
        finally:
            with self._lock:
                self._waiters.discard(wait_elsewhere.done)
        if wait_elsewhere.error is not None:
            raise self._failed(wait_elsewhere.error) from wait_elsewhere.error

    def _start_exchange(
        self, pg: Any, sends: Sequence[tuple[Tensor, int]], recvs: Sequence[tuple[Tensor, int]], tag: int
    ) -> list[Any]:
        incoming = [pg.recv([tensor], src, tag) for tensor, src in recvs]
        return incoming + [pg.send([tensor], dst, tag) for tensor, dst in sends]

    def _lost(self) -> list[int]:
        return sorted(rank for conn, rank in self._rank_of.items() if not conn.alive())

    def _is_fault(self, error: RuntimeError) -> bool:
        return bool(self._lost())

    def _failed(self, error: RuntimeError) -> GroupBroken:
        if self._broken is not None:
            return self._break("")  # the first cause stands
        gone = self._lost()
        text = first_line(error)
        if len(gone) > 1:
            text = f"{text} [connections lost: ranks {gone}]"
        return self._break(text, gone[0] if len(gone) == 1 else None)

    def _introduce(self, listeners: Sequence[Endpoint]) -> None:
        """Learn which connection leads to which rank; also proves that the new group works. Collective."""
        made = {conn: listeners.index(conn.remote) for conn in self._conns if conn.remote in listeners}
        mine = torch.zeros(self.size, dtype=torch.int64)  # [r]: local port of the connection that I made to rank r
        for conn, rank in made.items():
            mine[rank] = conn.local[1]
        table = torch.zeros(self.size * self.size, dtype=torch.int64)
        self.all_gather_into(table, mine)
        ports = table.view(self.size, self.size)[:, self.rank].tolist()  # [r]: port that rank r calls me from
        accepted = {}
        for conn in self._conns:
            callers = [rank for rank, port in enumerate(ports) if port == conn.remote[1] and conn not in made]
            if len(callers) > 1:  # the same port on two machines
                callers = [rank for rank in callers if listeners[rank][0] == conn.remote[0]]
            if len(callers) == 1:
                accepted[conn] = callers[0]
        self._rank_of = {**accepted, **made}


def _future(work: Any) -> Any:
    """The work's future, or None where gloo has none (reduce-scatter): such a waiter wakes when connections drop."""
    try:
        return work.get_future()
    except RuntimeError:
        return None


def form_gloo(
    store: StoreClient,
    *,
    name: str,
    epoch: int,
    rank: int,
    size: int,
    bind_host: str,
    deadline_s: float,
    op_timeout_s: float,
) -> GlooGroup:
    """Block until all `size` ranks have formed the group. `store` is the group's own and closed in the end.

    Nothing listens beyond `bind_host`. Raises RuntimeError, OSError or GroupBroken; `form_group` makes one of the
    three.
    """
    prefix = f"epoch{epoch}/{name}"
    device, listener = create_with_listener(lambda: _Gloo.create_device(hostname=bind_host))
    store.set(f"{prefix}/listener/{rank}", json.dumps(listener))
    options = _Gloo._Options()
    options._devices = [device]
    options._timeout = timedelta(seconds=deadline_s)
    pg = _Gloo(c10d.PrefixStore(f"{prefix}/gloo", store), rank, size, options)
    found = [json.loads(store.get(f"{prefix}/listener/{peer}")) for peer in range(size)]  # all are there: gloo has connected
    listeners = [(str(host), int(port)) for host, port in found]
    store.close()  # gloo asks it no more
    conns = connections(listener, {listeners[peer] for peer in range(size) if peer != rank})
    group = GlooGroup(pg, name=name, epoch=epoch, rank=rank, size=size, op_timeout_s=deadline_s, conns=conns)
    del pg  # a traceback through here must not be what keeps it
    try:
        group._introduce(listeners)
    except GroupBroken:
        group.close()
        raise
    group._pg._set_default_timeout(timedelta(seconds=op_timeout_s))
    group._timeout = timedelta(seconds=op_timeout_s)
    return group
