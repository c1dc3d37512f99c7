"""Measures links between workers over the groups that training uses: latency of a small message, bandwidth of large ones.

Every worker goes through the same rounds (core/cluster/rounds.py) and forms one small group in each that it takes part in. Round
k ends by its deadline, the same for all: who waits for a peer that has vanished loses that round and is in step with the next.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Final

import torch

from orchestrator.core.cluster.measured import LinkMeasure
from orchestrator.core.cluster.resources import Link
from orchestrator.core.cluster.rounds import Meeting, Round
from orchestrator.engine.groups import BackendUnavailable, EpochGroup, GroupBroken, connect_store, form_group

SECONDS: Final = 6.5
_PINGS: Final = 13
_COMPUTE_S: Final = 0.003  # before each ping, on a CPU
_BYTES_MIN: Final = 64 << 10
_BYTES_MAX: Final = 64 << 20
_GROWTH: Final = 4
_ENOUGH_S: Final = 0.1  # a transfer that takes this long is long enough
_MEANS_S: Final = 0.025  # and one that takes less says nothing
_REPEATS: Final = 2
_POLL_S: Final = 0.01
_PING_TAG: Final = 1
_CONNECT_S: Final = 2.0  # to a peer's store, and for each of its answers


def measure_links(
    plan: Sequence[Round],
    *,
    me: int,
    workers: Sequence[tuple[str, str]],
    bind_host: str,
    epoch: int,
    number: int,
    backend: str = "gloo",
    device: torch.device = torch.device("cpu"),  # noqa: B008  a value
    seconds: float = SECONDS,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[LinkMeasure, ...]:
    """What was measured in the meetings that this worker leads (as their first sender), in the order of the rounds.

    `plan`: of `rounds`, whose workers these are: (worker_id, endpoint of its store). `me`: index of this one; `bind_host`: the
    address that the others reach it at. `epoch` and `number` make names of groups that are used only once: the epoch that the
    stores are in, and a number for each probe. `backend` and `device` are those of the kind of device. All workers start at about
    the same time; it ends within `seconds` whatever happens to the others, and soon after stop() is true, with what it has then.
    """
    began = time.monotonic()
    found = []
    for k, meetings in enumerate(plan):
        mine = next((m for m in meetings if me in m.workers), None)
        if mine is None or stop():
            continue
        link, problem = _meet(
            mine,
            workers[mine.senders[0]][1],
            me=me,
            until=began + seconds * (k + 2) / (len(plan) + 1),  # two shares for the first: not all start at once
            stop=stop,
            form=partial(form_group, backend, name=f"probe-{number}-{k}", epoch=epoch, bind_host=bind_host),
            device=device,
        )
        if me == mine.senders[0]:
            found.append(
                LinkMeasure(
                    senders=tuple(workers[w][0] for w in mine.senders),
                    receivers=tuple(workers[w][0] for w in mine.receivers),
                    bandwidth=link.bandwidth,
                    latency_s=link.latency_s,
                    problem=problem,
                )
            )
    return tuple(found)


def _meet(
    meeting: Meeting,
    store_endpoint: str,
    *,
    me: int,
    until: float,
    stop: Callable[[], bool],
    form: Callable[..., EpochGroup],
    device: torch.device,
) -> tuple[Link, str]:
    """What this meeting measured, and why it measured nothing."""
    talk: _Talk | None = None
    why = "its time was over"
    with _watch(until, stop) as watch:
        try:
            left_s = max(_POLL_S, until - time.monotonic())
            with closing(connect_store(store_endpoint, min(left_s, _CONNECT_S))) as store:
                group = form(
                    store, rank=meeting.workers.index(me), size=len(meeting.workers), deadline_s=left_s, cancelled=watch.over
                )
            with closing(group):
                watch.guard(group)
                talk = _Talk(group, len(meeting.senders), device, until)
                talk.measure()
        except (GroupBroken, BackendUnavailable) as error:
            why = "its time was over" if watch.over.is_set() or time.monotonic() >= until else str(error)
    if talk is None or talk.bandwidth == 0:
        return Link(0.0, 0.0), why
    return Link(talk.bandwidth, talk.latency_s), ""  # where it broke half-way, what was measured until then


def pings(group: EpochGroup, peer: int, *, device: torch.device, count: int) -> list[float]:
    """Seconds of each of `count` small messages between two ranks, both ways at once; the peer calls it too.

    On a CPU both compute first, as ranks do: the threads that carry messages must get a core from those that compute, which takes
    much longer than the way.
    """
    out, into, matrix = torch.zeros(1, device=device), torch.zeros(1, device=device), torch.ones(128, 128)
    trips = []
    for _ in range(count):
        until = time.perf_counter() + _COMPUTE_S
        while device.type == "cpu" and time.perf_counter() < until:
            torch.mm(matrix, matrix)
        began = time.perf_counter()
        group.exchange([(out, peer)], [(into, peer)], tag=_PING_TAG).wait()
        _settle(device)
        trips.append(time.perf_counter() - began)
    return trips


def usual_s(trips: Sequence[float]) -> float:
    """Their mean, the slowest fifth not counted."""
    return statistics.fmean(sorted(trips)[: max(1, len(trips) * 4 // 5)])


def _settle(device: torch.device) -> None:
    """Wait for what an accelerator has only been asked to do."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


class _Talk:
    """One meeting. Rank 0 leads: it says how much is sent next, and holds the watch; what it measured is here, else 0."""

    def __init__(self, group: EpochGroup, senders: int, device: torch.device, until: float) -> None:
        self._group, self._senders, self._device, self._until = group, senders, device, until
        self._order = torch.zeros(1, dtype=torch.int64, device=device)
        self.bandwidth = 0.0  # bytes/s of all senders together
        self.latency_s = 0.0
        self._least_s = 0.0  # of the pings: what is left of the latency while nobody computes

    def measure(self) -> None:
        """Pings, then transfers that grow until they are long enough."""
        self.latency_s = self._ping()
        nbytes, repeats, first = _BYTES_MIN, 0, True
        while True:
            took = self._transfer(nbytes)
            if took < 0:
                return
            if self._group.rank:
                continue
            if took >= _MEANS_S or nbytes == _BYTES_MAX:
                rate = self._senders * nbytes / max(took - self._least_s, took / 2)
                self.bandwidth = max(self.bandwidth, rate) if repeats else rate  # of the largest size
            enough = took >= _ENOUGH_S or nbytes == _BYTES_MAX
            repeats += enough and not first  # the first may be let through at once, by what a slow link has saved up
            growth = 1 if enough or first else _GROWTH
            if repeats == _REPEATS or time.monotonic() + took * growth > self._until:
                self._transfer(0)
                return
            nbytes, first = nbytes * growth, False

    def _ping(self) -> float:
        """Seconds until a small message is there, between the first sender and the first receiver."""
        peer = {0: self._senders, self._senders: 0}.get(self._group.rank)
        trips = [] if peer is None else pings(self._group, peer, device=self._device, count=_PINGS)
        self._group.barrier()
        self._least_s = min(trips, default=0.0)
        return usual_s(trips) if trips else 0.0

    def _transfer(self, nbytes: int) -> float:
        """Seconds from the leader's word to the last byte at the last receiver; -1 where the word was that it is over."""
        self._order.fill_(nbytes)
        self._group.broadcast_(self._order, 0)
        asked = int(self._order.item())
        if asked == 0:
            return -1.0
        data = torch.ones(asked, dtype=torch.uint8, device=self._device)  # written to, so that its pages are there
        rank = self._group.rank
        self._group.barrier()
        began = time.perf_counter()
        if rank < self._senders:
            self._group.send(data, rank + self._senders)
        else:
            self._group.recv(data, rank - self._senders)
        self._group.barrier()
        _settle(self._device)
        return time.perf_counter() - began


class _Watch:
    """Ends a meeting from beside: at its deadline, or when stop() says so."""

    def __init__(self, until: float, stop: Callable[[], bool]) -> None:
        self.over = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._group: EpochGroup | None = None
        self._thread = threading.Thread(target=self._run, args=(until, stop), name="probe-watch", daemon=True)
        self._thread.start()

    def guard(self, group: EpochGroup) -> None:
        """Abort this one when it is over."""
        with self._lock:
            self._group = group
            if self.over.is_set():
                group.abort()

    def end(self) -> None:
        """The meeting has ended by itself."""
        self._done.set()
        self._thread.join()

    def _run(self, until: float, stop: Callable[[], bool]) -> None:
        while not self._done.wait(_POLL_S):
            if time.monotonic() >= until or stop():
                with self._lock:
                    self.over.set()
                    if self._group is not None:
                        self._group.abort()
                return


@contextmanager
def _watch(until: float, stop: Callable[[], bool]) -> Iterator[_Watch]:
    watch = _Watch(until, stop)
    try:
        yield watch
    finally:
        watch.end()
