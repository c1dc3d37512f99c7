"""Small worlds of ranks for the tests: threads of one process, or real processes to be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeVar

import torch

from orchestrator.engine.groups import EpochGroup, GroupBroken, StoreServer, connect_store, drain, form_group
from tests.unit.engine.forking import CONTEXT

HOST = "127.0.0.1"
DEADLINE_S = 120.0
MUCH = 16 << 20  # 64 MiB: no socket buffers hold that
T = TypeVar("T")


def form(
    endpoint: str,
    *,
    rank: int,
    size: int,
    epoch: int = 1,
    deadline_s: float = DEADLINE_S,
    cancelled: threading.Event | None = None,
    backend: str = "gloo",
) -> EpochGroup:
    """The gloo group "world" of a test."""
    with closing(connect_store(endpoint, DEADLINE_S)) as store:
        return form_group(
            backend,
            store,
            name="world",
            epoch=epoch,
            rank=rank,
            size=size,
            bind_host=HOST,
            deadline_s=deadline_s,
            cancelled=cancelled or threading.Event(),
        )


def run_ranks(size: int, work: Callable[[EpochGroup], T]) -> list[T]:
    """Run `work` on `size` ranks, one thread and one gloo group each; its results in rank order, or the first error.

    An abort on one rank may drop connections of the others, as all are in one process here.
    """
    server = StoreServer(HOST)
    results: dict[int, T] = {}
    errors: list[BaseException] = []
    groups: list[EpochGroup] = []

    def one(rank: int) -> None:
        try:
            group = form(server.endpoint, rank=rank, size=size)
            groups.append(group)
            results[rank] = work(group)
        except BaseException as error:
            errors.append(error)
            for other in list(groups):
                other.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for group in groups:
        group.close()
    server.close()
    assert drain(DEADLINE_S)
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]


@dataclass
class Child:
    """A rank in a process of its own. `ask` gives it an order; `told` takes its next report."""

    rank: int
    process: BaseProcess
    pipe: Connection
    reports: list[Any] = field(default_factory=list)

    def ask(self, *order: Any) -> None:
        self.pipe.send(order)

    def told(self) -> Any:
        limit_s = 2 * DEADLINE_S  # five interpreters may be importing torch
        assert self.pipe.poll(limit_s), f"rank {self.rank} said nothing within {limit_s} s"
        return self.pipe.recv()

    def kill(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


@contextmanager
def processes(size: int, *, how: Literal["forkserver", "spawn"] = "forkserver") -> Iterator[list[Child]]:
    """`size` started ranks that have formed nothing yet; whatever is left at the end is killed.

    Forked from a server that has torch, or spawned: a spawned one takes seconds, and ends as an interpreter does.
    """
    make = CONTEXT.Process if how == "forkserver" else multiprocessing.get_context("spawn").Process
    children = []
    try:
        for rank in range(size):
            here, there = multiprocessing.Pipe()
            process = make(target=child_main, args=(there, rank), daemon=True)
            process.start()
            there.close()
            children.append(Child(rank, process, here))
        yield children
    finally:
        for child in children:
            if child.process.is_alive():
                child.kill(signal.SIGKILL)
            child.process.join(DEADLINE_S)
            child.pipe.close()


def child_main(pipe: Connection, rank: int) -> None:
    """Orders: serve -> endpoint; form(endpoint, epoch, rank, size); start(op); abort; quit. Every order is answered."""
    torch.set_num_threads(1)
    groups: list[EpochGroup] = []
    servers: list[StoreServer] = []
    while True:
        order, *arguments = pipe.recv()
        if order == "serve":
            servers.append(StoreServer(HOST))
            pipe.send(servers[-1].endpoint)
        elif order == "form":
            endpoint, epoch, seat, size = arguments
            groups.append(form(endpoint, rank=seat, size=size, epoch=epoch))
            pipe.send("formed")
        elif order == "start":
            pipe.send("starting")
            threading.Thread(target=_operate, args=(pipe, groups[-1], arguments[0]), daemon=True).start()
        elif order == "abort":
            groups[-1].abort()
        elif order == "quit":
            for group in groups:
                group.close()
            return  # where it was spawned, an ordinary end of the interpreter: atexit waits for the destructors


def _operate(pipe: Connection, group: EpochGroup, op: str) -> None:
    tensor = torch.full((4,), float(group.rank + 1))
    try:
        if op == "all_reduce":
            group.all_reduce_sum_(tensor)
        elif op == "barrier":
            group.barrier()
        elif op in ("send-much", "recv-much"):
            move = group.isend if op == "send-much" else group.irecv
            handle = move(torch.ones(MUCH), 1)
            pipe.send("posted")
            handle.wait()
        elif op in ("take-some", "give-some"):  # the sockets hold a part of it, and then this process stops
            move = group.irecv if op == "take-some" else group.isend
            handle = move(torch.ones(MUCH), 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            handle.wait()
        elif op.startswith("recv"):
            group.recv(tensor, int(op.removeprefix("recv")))
        else:
            raise AssertionError(op)
        pipe.send(("done", tensor.tolist(), None))
    except GroupBroken as broken:
        pipe.send(("broken", broken.cause, broken.peer))
