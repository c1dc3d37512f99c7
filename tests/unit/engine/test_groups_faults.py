"""Ranks in processes of their own, killed and stopped in the middle of operations."""

from __future__ import annotations

import signal
import socket
import time

import psutil
import pytest

from tests.unit.engine.forking import forked
from tests.unit.engine.groups_world import DEADLINE_S, Child, processes

# What a survivor says whose group was aborted: that, or what its sockets say of a neighbour that was aborted before it had begun.
OUT = ("the group was aborted", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def form_all(children: list[Child], *, epoch: int, host_of_store: Child) -> str:
    host_of_store.ask("serve")
    endpoint = str(host_of_store.told())
    for seat, child in enumerate(children):
        child.ask("form", endpoint, epoch, seat, len(children))
    assert [child.told() for child in children] == ["formed"] * len(children)
    return endpoint


def start(children: list[Child], op: str) -> None:
    for child in children:
        child.ask("start", op)
    assert [child.told() for child in children] == ["starting"] * len(children)


def swap_in_and_end(survivors: list[Child], spare: Child) -> None:
    """The survivors, in their old processes, form the next epoch with the spare; then all end in an orderly way."""
    ranks = [survivors[0], spare, *survivors[1:]]
    form_all(ranks, epoch=2, host_of_store=survivors[-1])
    start(ranks, "all_reduce")
    assert [child.told() for child in ranks] == [("done", [10.0] * 4, None)] * 4
    for child in ranks:
        child.ask("quit")
    for child in ranks:
        child.process.join(DEADLINE_S)
    assert [child.process.exitcode for child in ranks] == [0] * 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_rank_in_a_collective() -> None:
    with processes(5, how="spawn") as (zero, victim, two, three, spare):
        form_all([zero, victim, two, three], epoch=1, host_of_store=zero)
        survivors = [zero, two, three]
        start(survivors, "all_reduce")
        victim.kill(signal.SIGKILL)
        # Those that wait for the victim itself notice by themselves, and know whom they lost.
        reports = {child.rank: child.told() for child in (zero, two)}
        assert {rank: (kind, peer) for rank, (kind, _, peer) in reports.items()} == {0: ("broken", 1), 2: ("broken", 1)}
        # Whoever waits for somebody else is told.
        three.ask("abort")
        assert three.told()[0] == "broken"
        swap_in_and_end(survivors, spare)


@forked
def test_killed_rank_that_all_wait_for_in_a_receive() -> None:
    with processes(4) as children:
        endpoint = form_all(children, epoch=1, host_of_store=children[0])
        victim, *survivors = children
        start(survivors, "recv0")
        victim.kill(signal.SIGKILL)
        assert [(kind, peer) for kind, _, peer in (child.told() for child in survivors)] == [("broken", 0)] * 3
        # The store's port is the liveness port: a refusal proves that its process is gone.
        victim.process.join(DEADLINE_S)
        host, port = endpoint.split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=DEADLINE_S)


@forked
@pytest.mark.parametrize("op", ["all_reduce", "barrier", "recv1"])
def test_stopped_rank_is_left_by_an_abort(op: str) -> None:
    with processes(5) as (zero, victim, two, three, spare):
        endpoint = form_all([zero, victim, two, three], epoch=1, host_of_store=victim)
        survivors = [zero, two, three]
        victim.kill(signal.SIGSTOP)
        start(survivors, op)
        # A stopped process still answers on its port: silence is not death.
        host, port = endpoint.split(":")
        socket.create_connection((host, int(port)), timeout=DEADLINE_S).close()
        assert not any(child.pipe.poll(0) for child in survivors)
        for child in survivors:
            child.ask("abort")
        # Nobody was lost: each is told that its group is aborted, or learns first that a neighbour's half of it is.
        told = [child.told() for child in survivors]
        assert [kind for kind, _, _ in told] == ["broken"] * 3
        assert any(why == "the group was aborted" for _, why, _ in told), "the first of them has no neighbour that is out"
        assert all(any(words in why for words in OUT) for _, why, _ in told), told
        assert victim.rank not in [peer for _, _, peer in told]
        swap_in_and_end(survivors, spare)
        victim.kill(signal.SIGCONT)


@forked
@pytest.mark.parametrize(("mine", "theirs"), [("send-much", "take-some"), ("recv-much", "give-some")])
@pytest.mark.parametrize("killed", [False, True])
def test_a_transfer_that_is_half_way_through_is_left_by_an_abort(mine: str, theirs: str, killed: bool) -> None:
    with processes(5) as (zero, victim, two, three, spare):
        form_all([zero, victim, two, three], epoch=1, host_of_store=three)
        start([zero], mine)
        assert zero.told() == "posted"
        start([victim], theirs)
        stopped = psutil.Process(victim.process.pid)
        while stopped.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        if killed:
            victim.kill(signal.SIGKILL)
        zero.ask("abort")
        assert zero.told()[0] in ("broken", "done")  # done: on a busy machine all of it moved before the stop took effect
        swap_in_and_end([zero, two, three], spare)
