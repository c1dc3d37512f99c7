"""Forming a gloo group, its operations, and what an abort must leave alone."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import psutil
import pytest
import torch

from orchestrator.engine.groups import (
    BackendUnavailable,
    EpochGroup,
    GroupBroken,
    StoreServer,
    connect_store,
    forming,
)
from orchestrator.engine.groups.library import LibraryGroup
from orchestrator.engine.groups.sockets import Connection, create_with_listener
from orchestrator.engine.groups.store import StoreClient
from orchestrator.engine.groups.store_server import ADD, GET, SET, pack
from tests.unit.engine.groups_world import DEADLINE_S, HOST, form, run_ranks


def listening() -> set[tuple[str, int]]:
    found = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return {(str(c.laddr[0]), int(c.laddr[1])) for c in found}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_operation(size: int) -> None:
    def work(group: EpochGroup) -> None:
        rank = group.rank
        others = [peer for peer in range(size) if peer != rank]
        summed = torch.full((5,), float(rank + 1))
        group.all_reduce_sum_(summed)
        assert summed.tolist() == [size * (size + 1) / 2] * 5

        flat = torch.zeros(3 * size)
        flat[3 * rank : 3 * rank + 3] = rank
        group.all_gather_into(flat, flat[3 * rank : 3 * rank + 3])
        assert flat.view(size, 3)[:, 0].tolist() == list(range(size))

        # Rank r sends s elements of value 10 r + s to rank s: rank 0 gets nothing.
        sent = torch.cat([torch.full((peer,), 10.0 * rank + peer) for peer in range(size)])
        got = torch.empty(rank * size)
        group.all_to_all(got, sent, [rank] * size, list(range(size)))
        assert got.tolist() == [10.0 * peer + rank for peer in range(size) for _ in range(rank)]

        shard = torch.empty(2)
        group.reduce_scatter_sum(shard, torch.arange(2.0 * size))
        assert shard.tolist() == [size * 2.0 * rank, size * (2.0 * rank + 1)]

        copied = torch.full((2,), float(rank))
        group.broadcast_(copied, size - 1)
        assert copied.tolist() == [size - 1.0] * 2

        if size > 1:
            after, before = (rank + 1) % size, (rank - 1) % size
            handle, passed = group.isend(torch.full((4,), float(rank)), after, 7), torch.empty(4)
            group.recv(passed, before, 7)
            handle.wait()
            assert passed.tolist() == [float(before)] * 4

        # Two transfers a peer, of unequal size, and an empty one: they meet in order.
        boxes = [(torch.empty(n), peer) for peer in others for n in (1, 0, 3)]
        group.exchange([(torch.full((n,), rank + 0.1 * n), peer) for peer in others for n in (1, 0, 3)], boxes).wait()
        for box, peer in boxes:
            torch.testing.assert_close(box, torch.full_like(box, peer + 0.1 * box.numel()))
        group.barrier()
        assert group.broken is None

    run_ranks(size, work)


def test_wrong_arguments_are_not_a_broken_world() -> None:
    def work(group: EpochGroup) -> None:
        with pytest.raises(ValueError, match="refuses"):
            group.all_gather_into(torch.empty(5), torch.empty(3))
        with pytest.raises(ValueError, match="cannot exchange"):
            group.send(torch.empty(1), group.rank)
        group.barrier()

    run_ranks(2, work)


def test_an_aborted_group_raises_for_ever() -> None:
    together = threading.Barrier(2)

    def work(group: EpochGroup) -> None:
        together.wait()
        group.abort()
        group.abort()
        for operation in (group.barrier, lambda: group.send(torch.zeros(1), 1 - group.rank)):
            with pytest.raises(GroupBroken, match="aborted") as caught:
                operation()
            assert caught.value.peer is None
        group.close()
        group.close()
        assert group.broken is not None

    run_ranks(2, work)


@pytest.mark.parametrize("op", ["collective", "recv", "send", "reduce_scatter"])
def test_abort_wakes_a_waiter(op: str) -> None:
    """Rank 1 never takes part, so rank 0 can only end through the abort."""
    arrived = threading.Barrier(2)

    def abort_when_arrived(group: EpochGroup) -> None:
        arrived.wait()
        group.abort()

    big = torch.zeros(1 << 24)  # 64 MiB: a send that no receiver has asked for stays pending

    def work(group: EpochGroup) -> None:
        if group.rank == 1:
            arrived.wait()
            return
        threading.Thread(target=abort_when_arrived, args=(group,), daemon=True).start()
        operations: dict[str, Callable[[], None]] = {
            "collective": group.barrier,
            "recv": lambda: group.recv(big, 1),
            "send": lambda: group.send(big, 1),
            "reduce_scatter": lambda: group.reduce_scatter_sum(torch.zeros(2), torch.zeros(4)),
        }
        with pytest.raises(GroupBroken, match="aborted"):
            operations[op]()

    run_ranks(2, work)


def test_nothing_listens_beyond_the_given_host() -> None:
    before = listening()

    def work(group: EpochGroup) -> set[tuple[str, int]]:
        group.barrier()
        found = listening() - before
        group.barrier()
        return found

    found = set().union(*run_ranks(2, work))
    assert len(found) == 3  # the store's and one for each rank
    assert {host for host, _ in found} == {HOST}


def test_connections_opened_by_others_while_forming_survive_an_abort() -> None:
    foreign = socket.create_server((HOST, 0))
    pairs: list[tuple[socket.socket, socket.socket]] = []
    some, begun, formed = threading.Event(), threading.Event(), threading.Event()

    def open_one() -> None:
        client = socket.create_connection(foreign.getsockname())
        pairs.append((client, foreign.accept()[0]))

    def open_many() -> None:
        open_one()
        some.set()
        begun.wait(DEADLINE_S)
        open_one()
        while not formed.wait(0.001) and len(pairs) < 300:
            open_one()

    opener = threading.Thread(target=open_many)
    opener.start()
    assert some.wait(DEADLINE_S)
    opened_before = len(pairs)
    begun.set()

    all_formed = threading.Barrier(3)

    def work(group: EpochGroup) -> None:
        all_formed.wait()
        formed.set()
        group.abort()

    try:
        run_ranks(3, work)
        formed.set()
        opener.join()
        assert len(pairs) > opened_before
        for client, server in pairs:
            client.sendall(b"alive")
            assert server.recv(5) == b"alive"
        socket.create_connection(foreign.getsockname()).close()  # the listening one too
    finally:
        formed.set()
        opener.join()
        for sock in (foreign, *(end for pair in pairs for end in pair)):
            sock.close()


def test_a_reused_descriptor_is_left_alone() -> None:
    listener = socket.create_server((HOST, 0))
    ours = socket.create_connection(listener.getsockname())
    fd, inode = ours.fileno(), os.fstat(ours.fileno()).st_ino
    connection = Connection(fd=fd, inode=inode, local=ours.getsockname(), remote=ours.getpeername())
    assert connection.alive()
    theirs = socket.create_connection(listener.getsockname())
    os.dup2(theirs.fileno(), fd)  # the library closed its socket and somebody else got the number
    accepted = [listener.accept()[0] for _ in range(2)]
    connection.shut()
    assert not connection.alive()
    theirs.sendall(b"x")
    assert accepted[1].recv(1) == b"x"
    for sock in (listener, ours, theirs, *accepted):
        sock.close()


def test_a_listening_socket_is_never_shut() -> None:
    listener = socket.create_server((HOST, 0))
    inode = os.fstat(listener.fileno()).st_ino
    Connection(fd=listener.fileno(), inode=inode, local=listener.getsockname(), remote=(HOST, 1)).shut()
    socket.create_connection(listener.getsockname()).close()
    listener.close()


def test_two_new_listeners_at_once_make_it_try_again() -> None:
    calls: list[list[socket.socket]] = []

    def create() -> socket.socket:
        calls.append([socket.create_server((HOST, 0)) for _ in range(2 if len(calls) == 0 else 1)])
        return calls[-1][0]

    made, endpoint = create_with_listener(create)
    assert len(calls) == 2
    assert endpoint == made.getsockname()
    for sock in (sock for call in calls for sock in call):
        sock.close()


def test_forming_can_be_cancelled_and_its_thread_ends() -> None:
    server, cancelled = StoreServer(HOST), threading.Event()

    def cancel_when_rank_0_waits() -> None:
        with contextlib.closing(connect_store(server.endpoint, DEADLINE_S)) as store:
            store.wait(["epoch1/world/listener/0"])  # its constructor is about to wait for rank 1
        cancelled.set()

    thread = threading.Thread(target=cancel_when_rank_0_waits)
    thread.start()
    with pytest.raises(GroupBroken, match="cancelled"):
        form(server.endpoint, rank=0, size=2, cancelled=cancelled)
    for helper in [each for each in threading.enumerate() if each.name == "form-world-1"]:
        helper.join()  # it does not sit out its deadline: the connection that it waits on is closed
    thread.join()
    server.close()


def test_a_group_formed_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    building, cancelled, closed = threading.Event(), threading.Event(), threading.Event()

    class Late:
        def close(self) -> None:
            closed.set()

    def build(*_: object, **__: object) -> Late:
        cancelled.set()
        building.wait()
        return Late()

    monkeypatch.setitem(forming._BUILDERS, "gloo", build)
    server = StoreServer(HOST)
    with pytest.raises(GroupBroken, match="cancelled"):
        form(server.endpoint, rank=0, size=2, cancelled=cancelled)
    assert not closed.is_set()
    building.set()
    assert closed.wait(DEADLINE_S)
    server.close()


def test_a_missing_peer_ends_the_forming_at_the_deadline() -> None:
    server = StoreServer(HOST)
    with pytest.raises(GroupBroken, match=r"not formed within|timed out"):
        form(server.endpoint, rank=0, size=2, deadline_s=0.3)
    server.close()


def test_a_lost_store_ends_the_forming() -> None:
    server = StoreServer(HOST)

    def close_when_rank_0_waits() -> None:
        with contextlib.closing(connect_store(server.endpoint, DEADLINE_S)) as store:
            store.wait(["epoch1/world/listener/0"])
        server.close()

    thread = threading.Thread(target=close_when_rank_0_waits)
    thread.start()
    with pytest.raises(GroupBroken, match="store") as caught:
        form(server.endpoint, rank=0, size=2)
    thread.join()
    assert "no answer" in caught.value.cause


def test_unknown_and_unavailable_backends() -> None:
    server = StoreServer(HOST)
    with pytest.raises(ValueError, match="'gloop': one of gloo, nccl"):
        form(server.endpoint, rank=0, size=1, backend="gloop")
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="needs a CUDA device"):
            form(server.endpoint, rank=0, size=1, backend="nccl")
    server.close()


def test_the_store_listens_on_its_host_alone_and_refuses_once_closed() -> None:
    before = listening()
    server = StoreServer(HOST)
    host, port = server.endpoint.split(":")
    assert listening() - before == {(HOST, int(port))}
    one, two = connect_store(server.endpoint, DEADLINE_S), connect_store(server.endpoint, DEADLINE_S)
    for _ in range(20):
        socket.create_connection((host, int(port))).close()  # liveness probes disturb nobody
    one.set("key", "value")
    assert two.get("key") == b"value"
    server.close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    with pytest.raises(GroupBroken, match="no answer"):
        one.set("key", "other")
    with pytest.raises(GroupBroken, match="refused"):
        connect_store(server.endpoint, DEADLINE_S)
    with pytest.raises(ValueError, match="not host:port"):
        connect_store("nonsense", DEADLINE_S)
    one.close()
    two.close()


@pytest.fixture
def stores() -> Iterator[tuple[StoreClient, StoreClient]]:
    server = StoreServer(HOST)
    clients = connect_store(server.endpoint, DEADLINE_S), connect_store(server.endpoint, DEADLINE_S)
    yield clients
    for client in clients:
        client.close()
    server.close()


def test_store_operations(stores: tuple[StoreClient, StoreClient]) -> None:
    one, two = stores
    one.set("a", b"\x00\xff")
    one.set("a", b"\x01" * 100_000)  # replaced, and longer than one read
    assert two.get("a") == b"\x01" * 100_000
    assert (one.check(["a"]), one.check(["a", "b"])) == (True, False)
    assert [one.add("n", 5), two.add("n", -7)] == [5, -2]
    assert (two.delete_key("a"), two.delete_key("a"), one.check(["a"])) == (True, False, False)
    one.set("empty", "")
    assert two.get("empty") == b""


def test_store_waits_for_a_key_and_a_closed_client_wakes(stores: tuple[StoreClient, StoreClient]) -> None:
    one, two = stores
    got: list[object] = []

    def wait_then_wait_for_ever() -> None:
        two.wait(["first"])
        got.append(two.get("first"))
        try:
            two.get("never")
        except GroupBroken as broken:
            got.append(broken.cause)

    thread = threading.Thread(target=wait_then_wait_for_ever)
    thread.start()
    one.set("first", "1")
    while not got:
        one.add("turns", 1)  # a round trip
    two.close()
    thread.join()
    assert got[0] == b"1"
    assert "'never'" in str(got[1])
    assert one.get("first") == b"1"


def test_store_times_out(stores: tuple[StoreClient, StoreClient]) -> None:
    one, two = stores
    with pytest.raises(GroupBroken, match="timed out"):
        one.wait(["never"], timedelta(seconds=0.05))
    with pytest.raises(GroupBroken):
        one.set("late", "x")  # an answer to the wait might come yet
    two.set("never", "x")
    assert two.get("never") == b"x"


@pytest.mark.parametrize(
    "frame",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x00",
        pack(99, b"key", b""),
        pack(SET, b"\xff", b""),
        pack(ADD, b"key", b"x"),
        pack(GET, b"absent", b"") + pack(SET, b"key", b""),
    ],
    ids=["http", "empty", "unknown", "not-utf8", "not-a-number", "two-at-once"],
)
def test_a_client_that_breaks_the_protocol_is_dropped_alone(stores: tuple[StoreClient, StoreClient], frame: bytes) -> None:
    host, port = stores[0].endpoint.split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as rude:
        rude.sendall(frame)
        with contextlib.suppress(ConnectionResetError):
            assert rude.recv(1) == b""
    stores[0].set("still", "here")
    assert stores[1].get("still") == b"here"


def test_a_store_forgets_the_epochs_before_the_newest() -> None:
    server = StoreServer(HOST)
    try:
        store = connect_store(server.endpoint, 5.0)
        store.set("epoch9/world/listener/0", b"a")
        store.set("other/key", b"b")
        store.set("epoch10/world/listener/0", b"c")
        assert not store.check(["epoch9/world/listener/0"])
        assert store.get("other/key") == b"b"
        assert store.get("epoch10/world/listener/0") == b"c"
        big = b"x" * 1_000_000
        for epoch in range(11, 111):  # more than the store may hold, were it all kept
            store.set(f"epoch{epoch}/world/gloo/0", big)
        assert store.get("epoch110/world/gloo/0") == big
        store.close()
    finally:
        server.close()


def test_a_group_that_nobody_closed_is_destroyed_elsewhere_when_it_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its destructor waits for a pending operation; whoever runs the collector must not."""

    class Cyclic(LibraryGroup):
        def abort(self) -> None:
            self._break("the group was aborted")

        _collective = _finish_transfers = _start_exchange = _is_fault = lambda self, *a: None  # type: ignore[assignment]

    gc.collect()  # what others have left is not handed over here
    handed_over: list[object] = []
    monkeypatch.setattr("orchestrator.engine.groups.library.destroy_later", handed_over.extend)
    backend = object()
    group = Cyclic(backend, name="w", epoch=1, rank=0, size=1, device=torch.device("cpu"), op_timeout_s=1.0)
    group.itself = group  # type: ignore[attr-defined]
    del group
    gc.collect()
    assert handed_over == [backend]
