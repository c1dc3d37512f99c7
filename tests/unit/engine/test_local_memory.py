"""Pulling out of another process's memory, and out of one that is not there, not the same, or has left."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import pytest
import torch

from orchestrator.engine.local_memory import BEACON_WORDS, Beacon, PeerGone, PeerMemory, readable
from tests.unit.engine.forking import CONTEXT, forked

LIMIT_S = 120.0


def _show(link: Connection, numel: int) -> None:
    beacon, data = Beacon(), torch.arange(numel, dtype=torch.float32)
    with readable():
        link.send((beacon.words, data.data_ptr()))
        while link.recv() != "leave":
            pass
        beacon.close()
        link.send("left")
        link.recv()


@contextmanager
def sender(numel: int) -> Iterator[tuple[list[int], int, Connection, multiprocessing.process.BaseProcess]]:
    """A process that shows `numel` floats, counting up."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_show, args=(there, numel), daemon=True)
    process.start()
    there.close()
    try:
        assert here.poll(LIMIT_S)
        words, address = here.recv()
        yield words, address, here, process
    finally:
        process.kill()
        process.join(LIMIT_S)


@forked
def test_the_bytes_arrive_and_the_end_is_noticed() -> None:
    numel = 3 << 20
    with sender(numel) as (words, address, link, process):
        assert len(words) == BEACON_WORDS
        assert words[0] == process.pid
        memory = PeerMemory(words)
        assert memory.reachable()
        into = torch.zeros(numel)
        memory.pull([(address, into.nbytes)], into)
        assert torch.equal(into, torch.arange(numel, dtype=torch.float32))
        memory.pull([(address + 400, 40)], into[:10])
        assert into[:10].tolist() == list(range(100, 110))
        runs = [(address + 4 * (at * at % numel), 4 + 4 * (at % 3)) for at in range(2500)]  # more than one call takes
        memory.pull(runs, into[:4999])
        expected = [at * at % numel + k for at in range(2500) for k in range(1 + at % 3)]
        assert into[:4999].tolist() == expected
        with pytest.raises(PeerGone) as freed:  # nothing is mapped there
            memory.pull([(8, into.nbytes)], into)
        assert not freed.value.dead
        link.send("leave")
        assert link.recv() == "left"
        assert not memory.reachable()
        with pytest.raises(PeerGone, match="has left") as left:
            memory.pull([(address, into.nbytes)], into)
        assert not left.value.dead
        process.kill()
        process.join(LIMIT_S)
        with pytest.raises(PeerGone) as gone:
            memory.pull([(address, into.nbytes)], into)
        assert gone.value.dead


def test_a_process_without_the_beacon_is_not_the_one() -> None:
    beacon = Beacon()
    words = beacon.words
    assert PeerMemory(words).reachable()
    for other in ([words[0], words[1], 0, *words[3:]], [0, *words[1:]], [os.getppid(), *words[1:]], [0] * BEACON_WORDS):
        assert not PeerMemory(other).reachable()
    assert Beacon().words[2:] != words[2:]
