"""Moving state between ranks: every bit in its place, by the group and by local memory, and flipped bits fetched again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest
import torch
from torch import Tensor

from orchestrator.core.plan.layout import Interval, Intervals
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS
from orchestrator.core.reshard.recovery import Transfer
from orchestrator.engine import transfer, transfer_cut
from orchestrator.engine.checksum import sums
from orchestrator.engine.control import Control
from orchestrator.engine.extents import Extents
from orchestrator.engine.groups import EpochGroup, GroupBroken, StoreServer
from orchestrator.engine.transfer import Arrival, Corrupt, MoveReport, TransferCorrupt, move
from orchestrator.engine.transfer_cut import WINDOW_NUMEL, windows
from tests.unit.engine.forking import CONTEXT, forked
from tests.unit.engine.groups_world import DEADLINE_S, HOST, form, run_ranks

KEYS = ((PARAMS, torch.float32), (OPTIMIZER, torch.float32), (OPTIMIZER, torch.float64))
NODES = ("n", "n", "n", "n")
State = Mapping[str, Sequence[Extents]]


def go(
    tensor: str, src: int, dst: int, start: int, stop: int, *, at: int | None = None, round: int = 0, others: tuple[int, ...] = ()
) -> Transfer:
    return Transfer(tensor, src, dst, start, stop, start if at is None else at, round, others)


def element(row: int, lo: int, hi: int, dtype: torch.dtype) -> Tensor:
    """What place lo..hi of the row-th tensor holds, the same for whoever holds it."""
    return ((torch.arange(lo, hi, dtype=torch.float64) + row * 0.25) * 1.5).to(dtype)


def state(intervals: Mapping[str, Sequence[tuple[int, int]]], *, fill: bool, odd: bool = False) -> dict[str, list[Extents]]:
    """Extents for the intervals of each kind; `odd`: in memory that 64-bit words do not suit."""
    out: dict[str, list[Extents]] = {PARAMS: [], OPTIMIZER: []}
    for row, (kind, dtype) in enumerate(KEYS):
        extents = Extents(dtype)
        for lo, hi in intervals.get(kind, ()):
            room = torch.full((hi - lo + 1,), -1.0, dtype=dtype)
            tensor = room[1:] if odd else room[:-1]
            if fill:
                tensor.copy_(element(row, lo, hi, dtype))
            extents.add(Interval(lo, hi), tensor)
        out[kind].append(extents)
    return out


def wrong_elements(targets: State, got: Mapping[str, Intervals]) -> int:
    wrong = 0
    flat = [e for kind in (PARAMS, OPTIMIZER) for e in targets[kind]]
    for row, ((kind, dtype), extents) in enumerate(zip(KEYS, flat, strict=True)):
        for i in got.get(kind, ()):
            for lo, hi, view in extents.pieces(i.start, i.stop):
                wrong += int((view != element(row, lo, hi, dtype)).sum())
    return wrong


@dataclass(frozen=True)
class Case:
    transfers: tuple[Transfer, ...]
    has: Sequence[Mapping[str, Sequence[tuple[int, int]]]]  # by rank
    wants: Sequence[Mapping[str, Sequence[tuple[int, int]]]]


def carry_out(
    case: Case, *, local: bool = True, nodes: Sequence[str] = NODES, corrupt: Corrupt | None = None, odd: bool = False
) -> list[MoveReport]:
    """On threads; checks every element that was to arrive."""

    def work(group: EpochGroup) -> MoveReport:
        sources = state(case.has[group.rank], fill=True)
        targets = state(case.wants[group.rank], fill=False, odd=odd)
        report = move(
            group,
            case.transfers,
            rank=group.rank,
            nodes=nodes,
            sources=sources,
            targets=targets,
            control=Control(),
            local=local,
            corrupt=corrupt,
        )
        got = {
            kind: tuple(Interval(t.start, t.stop) for t in case.transfers if (t.tensor, t.dst) == (kind, group.rank))
            for kind in (PARAMS, OPTIMIZER)
        }
        assert wrong_elements(targets, got) == 0
        for row, ((kind, dtype), e) in enumerate(zip(KEYS, [*sources[PARAMS], *sources[OPTIMIZER]], strict=True)):
            assert all(torch.equal(t, element(row, i.start, i.stop, dtype)) for i, t in e), (kind, "a source was written to")
        return report

    return run_ranks(len(case.has), work)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces and windows without much data."""
    monkeypatch.setattr(transfer_cut, "PIECE_NUMEL", 1000)
    monkeypatch.setattr(transfer_cut, "WINDOW_NUMEL", 3000)
    monkeypatch.setattr(transfer_cut, "SMALL_NUMEL", 300)
    monkeypatch.setattr(transfer_cut, "BUNDLE_NUMEL", 700)
    monkeypatch.setattr(transfer, "AGAIN_NUMEL", 2000)


def tangle() -> Case:
    """Three ranks, both kinds, two rounds, cuts that agree nowhere, a rank that sends and receives at once."""
    transfers = (
        go(OPTIMIZER, 0, 1, 0, 7000),
        go(PARAMS, 1, 2, 500, 4500),
        go(OPTIMIZER, 2, 0, 20000, 30000),
        go(OPTIMIZER, 1, 2, 10000, 11111, round=1),
        go(PARAMS, 0, 1, 0, 8, round=1),
    )
    has: list[dict[str, list[tuple[int, int]]]] = [
        {OPTIMIZER: [(0, 3333), (3333, 7000)], PARAMS: [(0, 100)]},
        {OPTIMIZER: [(9000, 12000)], PARAMS: [(0, 1234), (1234, 5000)]},
        {OPTIMIZER: [(20000, 24000), (24000, 24001), (24001, 31000)]},
    ]
    wants: list[dict[str, list[tuple[int, int]]]] = [
        {OPTIMIZER: [(20000, 25000), (25000, 30000)]},
        {OPTIMIZER: [(0, 100), (100, 6999), (6999, 9000)], PARAMS: [(0, 8)]},
        {OPTIMIZER: [(10000, 11111)], PARAMS: [(0, 4096), (4096, 8192)]},
    ]
    return Case(transfers, has, wants)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("nodes", [NODES, ("a", "b", "c", "d"), ("a", "a", "b", "b")])
def test_every_element_arrives(small_pieces: None, nodes: tuple[str, ...], odd: bool) -> None:
    case = tangle()
    reports = carry_out(case, nodes=nodes, odd=odd)
    local = network = 0
    for t in case.transfers:
        nbytes = (t.stop - t.start) * (4 if t.tensor == PARAMS else 12)
        if nodes[t.src] == nodes[t.dst]:
            local += nbytes
        else:
            network += nbytes
    assert sum(r.received_local for r in reports) == sum(r.sent_local for r in reports) == local
    assert sum(r.received_network for r in reports) == sum(r.sent_network for r in reports) == network
    assert all(r.refetched == 0 for r in reports)
    assert max(r.peak_extra_bytes for r in reports) <= 2 * 2 * 3000 * 12  # bundles in and out, of two windows


def test_whole_blocks_need_no_extra_memory(small_pieces: None) -> None:
    for local in (True, False):
        assert all(r.peak_extra_bytes == 0 for r in carry_out(three_holders(), local=local))


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("flip", [False, True])
def test_rows_of_a_matrix_travel_in_bundles(small_pieces: None, local: bool, flip: bool) -> None:
    """As when the tensor degree changes: a thousand small transfers to other places."""
    rows, width = 1000, 24
    half = [go(OPTIMIZER, 0, 1, r * width, r * width + width, at=2 * r * width, round=r // 600) for r in range(rows)]

    def corrupt(arrival: Arrival, tensor: Tensor) -> None:
        if flip and arrival.attempt == 0 and arrival.start == 240:
            tensor[3] += 1.0

    def work(group: EpochGroup) -> MoveReport:
        sources = state({OPTIMIZER: [(0, 2 * rows * width)]} if group.rank == 0 else {}, fill=True)
        targets = state({OPTIMIZER: [(0, 1000), (1000, rows * width)]} if group.rank == 1 else {}, fill=False)
        report = move(
            group,
            half,
            rank=group.rank,
            nodes=NODES,
            sources=sources,
            targets=targets,
            control=Control(),
            local=local,
            corrupt=corrupt,
        )
        for row, extents in enumerate(targets[OPTIMIZER], start=1):
            for i, tensor in extents:
                places = torch.arange(i.start, i.stop)
                whole = element(row, 0, 2 * rows * width, extents.dtype)
                assert torch.equal(tensor, whole[places // width * 2 * width + places % width])
        return report

    sent, got = run_ranks(2, work)
    assert sent.bytes_sent - got.bytes_received == 0
    assert 0 < got.peak_extra_bytes <= 2 * 3000 * 12
    assert (got.refetched > 0) == flip
    assert got.refetched <= 2 * 700 // width + 2  # the bundles with the flipped word, one for each tensor


def test_local_memory_can_be_ruled_out(small_pieces: None) -> None:
    assert all(r.received_local == 0 for r in carry_out(tangle(), local=False))


def test_a_rank_moves_within_itself_when_places_change() -> None:
    def work(group: EpochGroup) -> MoveReport:
        sources, targets = Extents(torch.float32), Extents(torch.float32)
        lo, other = 100 * group.rank, 100 * (1 - group.rank)
        sources.add(Interval(lo, lo + 100), torch.arange(lo, lo + 100, dtype=torch.float32))
        targets.add(Interval(0, 20), torch.zeros(20))
        transfers = [go(PARAMS, r, r, 0, 10, at=100 * r + 5) for r in (0, 1)]
        transfers += [go(PARAMS, 1 - r, r, 10, 20, at=100 * (1 - r) + 50) for r in (0, 1)]
        report = move(
            group,
            transfers,
            rank=group.rank,
            nodes=NODES,
            sources={PARAMS: [sources]},
            targets={PARAMS: [targets]},
            control=Control(),
        )
        expected = [*range(lo + 5, lo + 15), *range(other + 50, other + 60)]
        assert targets.view(0, 20).tolist() == expected
        return report

    assert [(r.copied, r.received_local) for r in run_ranks(2, work)] == [(40, 40), (40, 40)]


def test_nothing_to_move() -> None:
    nothing: list[dict[str, list[tuple[int, int]]]] = [{}, {}]
    assert [r.received_local for r in carry_out(Case((), nothing, nothing))] == [0, 0]


# ------------------------------------------------------------------------------------------------------------ flipped bits


def flip_first(sources: Sequence[int], attempts: int = 1) -> Callable[[Arrival, Tensor], None]:
    """Changes one word of the part that starts at 3000 in the first attempts, when it comes from one of `sources`."""

    def corrupt(arrival: Arrival, tensor: Tensor) -> None:
        if arrival.start <= 3000 < arrival.stop and arrival.src in sources and arrival.attempt < attempts:
            tensor.view(torch.uint8)[-1] ^= 1

    return corrupt


def three_holders() -> Case:
    """Rank 0 sends to rank 3; 1 and 2 hold the same."""
    region = {OPTIMIZER: [(0, 6000)]}
    return Case((go(OPTIMIZER, 0, 3, 0, 6000, others=(1, 2)),), [region, region, region, {}], [{}, {}, {}, region])


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("bad", [(0,), (0, 1), (0, 1, 2)])
def test_what_arrived_changed_comes_from_another_holder(small_pieces: None, bad: tuple[int, ...], local: bool) -> None:
    seen: list[Arrival] = []
    inner = flip_first(bad, attempts=len(bad))

    def corrupt(arrival: Arrival, tensor: Tensor) -> None:
        if arrival.attempt:
            seen.append(arrival)
        inner(arrival, tensor)

    reports = carry_out(three_holders(), corrupt=corrupt, local=local)
    assert reports[3].refetched == 2  # one for each of the two tensors
    assert [a.src for a in seen[::2]] == [1, 2, 0][: len(bad)]
    assert all(a.start <= 3000 < a.stop for a in seen)
    assert max(r.peak_extra_bytes for r in reports) == 12 * 1000


def test_everything_wrong_is_fetched_again_in_bounded_lots(small_pieces: None) -> None:
    def corrupt(arrival: Arrival, tensor: Tensor) -> None:
        if arrival.attempt == 0:
            tensor[0], tensor[1] = tensor[1].clone(), tensor[0].clone()

    reports = carry_out(three_holders(), corrupt=corrupt)
    assert reports[3].refetched == 12
    assert reports[1].peak_extra_bytes <= 2000 * 8


def test_bits_that_no_holder_can_deliver_end_the_move_on_every_rank(small_pieces: None) -> None:
    case = three_holders()
    words: list[str] = []

    def work(group: EpochGroup) -> None:
        with pytest.raises(TransferCorrupt) as caught:
            move(
                group,
                case.transfers,
                rank=group.rank,
                nodes=NODES,
                sources=state(case.has[group.rank], fill=True),
                targets=state(case.wants[group.rank], fill=False),
                control=Control(),
                corrupt=flip_first((0, 1, 2), attempts=99),
            )
        words.append(str(caught.value))

    run_ranks(4, work)
    assert len(set(words)) == 1
    assert len(words) == 4
    assert "optimizer tensor 0 [3000, 4000) for rank 3 from rank(s) 0, 1, 2" in words[0]


def test_a_swap_of_words_and_a_changed_bit_change_the_sums() -> None:
    torch.manual_seed(1)
    for numel in (2, 16, 2048, 131_072, 300_000):
        tensor = torch.randn(numel, dtype=torch.float64)
        words = tensor.view(torch.int64)
        expected = [int(words.sum()), int((words * torch.arange(1, numel + 1)).sum())]
        assert sums(tensor).tolist() == expected
        for _ in range(20):
            a, b = torch.randperm(numel)[:2].tolist()
            other = tensor.clone()
            other[a], other[b] = tensor[b], tensor[a]
            assert sums(other)[1] != expected[1]
            other = tensor.clone()
            other.view(torch.uint8)[8 * a + b % 8] ^= 1 << (b % 7)
            assert sums(other)[0] != expected[0]


# ----------------------------------------------------------------------------------------------------------------- cutting


def test_windows_are_bounded_and_keep_the_rounds() -> None:
    much = 5 * WINDOW_NUMEL // 2
    transfers = [go(PARAMS, 0, d, d * much, (d + 1) * much) for d in (1, 2)]
    transfers += [go(PARAMS, 3, 1, 0, much, round=1), go(OPTIMIZER, 2, 3, 0, 8, round=2)]
    found = list(windows(transfers))
    for n, t in enumerate(transfers):
        pieces = [p for w in found for p in w if p.transfer == n]
        assert [p.start for p in pieces] == [t.start, *(p.stop for p in pieces[:-1])]
        assert pieces[-1].stop == t.stop
    rounds = [{transfers[p.transfer].round for p in w} for w in found]
    assert all(len(r) == 1 for r in rounds)
    assert [r for s in rounds for r in s] == sorted(r for s in rounds for r in s)
    for window in found:
        for rank in range(4):
            for end in ("src", "dst"):
                assert sum(p.stop - p.start for p in window if getattr(transfers[p.transfer], end) == rank) <= WINDOW_NUMEL
    assert {p.transfer for p in found[0]} == {0, 1}  # they take turns


# ------------------------------------------------------------------------------------------------------------ real processes


def _rank_process(link: Connection, endpoint: str, rank: int, trap: bool) -> None:
    torch.set_num_threads(1)
    numel = 8 << 20
    group = form(endpoint, rank=rank, size=2)
    full = {PARAMS: [(0, numel)]}
    sources = state(full if rank == 0 else {}, fill=True)
    targets = state(full if rank == 1 else {}, fill=False)
    control = Control()

    def stop_at_first(arrival: Arrival, tensor: Tensor) -> None:
        if trap and arrival.start == 0:
            link.send("pulled")
            link.recv()

    try:
        report = move(
            group,
            [go(PARAMS, 0, 1, 0, numel)],
            rank=group.rank,
            nodes=NODES,
            sources=sources,
            targets=targets,
            control=control,
            corrupt=stop_at_first,
        )
    except GroupBroken as broken:
        link.send(("broken", broken.peer))
    else:
        wrong = wrong_elements(targets, {PARAMS: (Interval(0, numel),)} if rank == 1 else {})
        link.send(("moved", wrong, report.received_local))
    link.recv()
    os._exit(0)


def _start(trap: bool) -> tuple[StoreServer, list[BaseProcess], list[Connection]]:
    server = StoreServer(HOST)
    children: list[BaseProcess] = []
    links: list[Connection] = []
    for rank in range(2):
        here, there = CONTEXT.Pipe()
        child = CONTEXT.Process(target=_rank_process, args=(there, server.endpoint, rank, trap), daemon=True)
        child.start()
        there.close()
        children.append(child)
        links.append(here)
    return server, children, links


def _told(link: Connection) -> object:
    assert link.poll(DEADLINE_S)
    return link.recv()


@forked
def test_between_processes_the_receiver_pulls() -> None:
    server, children, links = _start(trap=False)
    try:
        assert _told(links[1]) == ("moved", 0, 32 << 20)
        assert _told(links[0]) == ("moved", 0, 0)
    finally:
        for child in children:
            child.kill()
            child.join()
        server.close()


@forked
def test_a_sender_that_dies_while_it_is_read_breaks_the_group() -> None:
    server, children, links = _start(trap=True)
    try:
        assert _told(links[1]) == "pulled"
        pid = children[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        children[0].join()
        links[1].send("go on")
        assert _told(links[1]) == ("broken", 0)
    finally:
        for child in children:
            child.kill()
            child.join()
        server.close()


def test_a_fence_ends_the_move_of_everybody() -> None:
    """Rank 1 never comes: the others wait for it, until they are told to leave."""
    control = Control()
    assert control.enter(1) == ""
    case = tangle()

    def work(group: EpochGroup) -> str:
        if group.rank == 1:
            until = time.monotonic() + DEADLINE_S
            while group.broken is None and time.monotonic() < until:
                time.sleep(0.01)
            return "stayed away"
        control.attach(group)
        if group.rank == 0:
            threading.Timer(0.3, group.abort).start()
        with pytest.raises(GroupBroken):
            move(
                group,
                case.transfers,
                rank=group.rank,
                nodes=NODES,
                sources=state(case.has[group.rank], fill=True),
                targets=state(case.wants[group.rank], fill=False),
                control=control,
            )
        group.abort()
        return "left"

    def work_and_tell(group: EpochGroup) -> str:
        groups.append(group)
        try:
            return work(group)
        finally:
            for other in groups:
                other.abort()

    groups: list[EpochGroup] = []
    assert run_ranks(3, work_and_tell) == ["left", "stayed away", "left"]
