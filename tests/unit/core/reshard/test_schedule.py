"""Schedules: bounds, balance and prediction of those that are made, and the words for those that must not be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.plan.layout import Interval, Intervals, merge
from orchestrator.core.reshard.regions import Region, in_place
from orchestrator.core.reshard.schedule import Links, Party, ReshardSchedule, ScheduleError, Transfer
from orchestrator.core.reshard.senders import OTHERS_MAX, NoHolder, make_schedule
from tests.unit.core.strategies import intervals

BYTES = {"params": 4, "optimizer": 8}


def ranges(*pairs: tuple[int, int]) -> Intervals:
    """Intervals from pairs of (start, stop)."""
    return tuple(Interval(a, b) for a, b in pairs)


def party(rank: int, needs: Intervals, has: Intervals, *, node: str = "", tensor: str = "params") -> Party:
    """A rank on a node of its own, or on the one named, with regions of one state tensor."""
    return Party(rank, node or f"n{rank}", {tensor: in_place(needs)}, {tensor: in_place(has)}, stays=True)


@st.composite
def parties(draw: st.DrawFn) -> list[Party]:
    """Up to 6 ranks on up to 3 nodes; everything that somebody needs is somewhere."""
    n = draw(st.integers(1, 6))
    some = st.lists(intervals(), max_size=3).map(merge)
    out = []
    for rank in range(n):
        node = draw(st.sampled_from("abc"))
        held = {t: draw(some) if rank else ranges((0, 40)) for t in BYTES}
        needs = {t: in_place(draw(some)) for t in BYTES}
        out.append(Party(rank, node, needs, {t: in_place(h) for t, h in held.items()}, stays=True))
    return out


@settings(deadline=None)
@given(parties(), st.integers(8, 200), st.integers(1, 100))
def test_rounds_are_bounded_bytes_are_the_minimum_and_the_same_again(who: list[Party], bound: int, share: int) -> None:
    made = make_schedule(who, element_bytes=BYTES, bytes_per_round=bound, share_bytes_min=share)
    assert made == make_schedule(who, element_bytes=BYTES, bytes_per_round=bound, share_bytes_min=share)
    needed = sum(BYTES[t] * len(_points(p.needs[t]) - _points(p.has[t])) for p in who for t in BYTES)
    assert made.bytes_moved == made.bytes_minimum == needed
    sizes: dict[tuple[str, int, int], int] = {}
    for t in made.transfers:
        for key in (("out", t.src, t.round), ("in", t.dst, t.round)):
            sizes[key] = sizes.get(key, 0) + BYTES[t.tensor] * t.numel
    assert max(sizes.values(), default=0) <= bound
    assert {t.round for t in made.transfers} == set(range(made.rounds)), "no round is empty"
    assert list(made.transfers) == sorted(made.transfers, key=lambda t: (t.round, t.tensor != "params", t.src, t.dst, t.start))
    for p, peak in zip(who, made.peak_extra_bytes, strict=True):
        incoming = sum(BYTES[t.tensor] * t.numel for t in made.transfers if t.dst == p.rank)
        assert incoming <= peak <= incoming + 2 * bound


@settings(deadline=None)
@given(parties())
def test_who_is_on_the_receivers_node_sends(who: list[Party]) -> None:
    node = {p.rank: p.node_id for p in who}
    for t in make_schedule(who, element_bytes=BYTES).transfers:
        near = [p.rank for p in who if node[p.rank] == node[t.dst] and set(range(t.start, t.stop)) <= _points(p.has[t.tensor])]
        assert t.src in near or not near


def _points(regions: tuple[Region, ...]) -> set[int]:
    return {x for r in regions for x in range(r.start, r.stop)}


def test_replicas_share_the_sending() -> None:
    whole = ranges((0, 96))
    who = [party(0, whole, whole), party(1, whole, whole), party(2, whole, whole), party(3, whole, ())]
    made = make_schedule(who, element_bytes={"params": 4}, share_bytes_min=4)
    assert [(t.src, t.start, t.stop, t.others) for t in made.transfers] == [
        (0, 0, 32, (1, 2)),
        (1, 32, 64, (2, 0)),
        (2, 64, 96, (0, 1)),
    ]


def test_a_holder_without_choice_is_spared_where_there_is_one() -> None:
    who = [party(0, (), ranges((0, 64))), party(1, (), ranges((32, 64))), party(2, ranges((0, 64)), ())]
    made = make_schedule(who, element_bytes={"params": 4}, share_bytes_min=4 * 32)
    assert [(t.src, t.start, t.stop) for t in made.transfers] == [(0, 0, 32), (1, 32, 64)]


def test_the_links_of_nodes_are_balanced_not_only_the_ranks() -> None:
    """Ranks 0 and 1 share a link; rank 2, which has one of its own, is given as much as both together."""
    whole = ranges((0, 64))
    who = [
        party(0, (), whole, node="a"),
        party(1, (), whole, node="a"),
        party(2, (), whole, node="b"),
        party(3, whole, (), node="c"),
    ]
    made = make_schedule(who, element_bytes={"params": 4}, share_bytes_min=4 * 16)
    by = {rank: sum(t.numel for t in made.transfers if t.src == rank) for rank in range(3)}
    assert by == {0: 32, 1: 0, 2: 32}


def test_fallbacks_are_few() -> None:
    whole = ranges((0, 8))
    made = make_schedule([*(party(r, whole, whole) for r in range(9)), party(9, whole, ())], element_bytes={"params": 4})
    assert [len(t.others) for t in made.transfers] == [OTHERS_MAX]


def test_a_long_transfer_is_cut_into_rounds_at_cache_lines() -> None:
    made = make_schedule(
        [party(0, (), ranges((0, 100))), party(1, ranges((0, 100)), ())], element_bytes={"params": 4}, bytes_per_round=4 * 40
    )
    assert [(t.round, t.start, t.stop) for t in made.transfers] == [(0, 0, 32), (1, 32, 64), (2, 64, 100)]


def test_full_rounds_keep_the_busiest_link_busy() -> None:
    """Two ranks lack everything and everybody else has it: no more rounds than what they receive takes."""
    whole = ranges((0, 1024))
    who = [*(party(r, whole, whole) for r in range(4)), party(4, whole, ()), party(5, whole, ())]
    made = make_schedule(who, element_bytes={"params": 4}, bytes_per_round=4 * 128, share_bytes_min=4 * 16)
    assert made.rounds == 8


def test_prediction_adds_the_rounds_of_the_busiest() -> None:
    links = Links(inside_bytes_per_s=1e6, across_bytes_per_s=1e5, inside_latency_ms=1.0, across_latency_ms=5.0)
    half, whole = ranges((0, 500)), ranges((0, 1000))
    near = [party(0, (), whole, node="a"), party(1, half, (), node="a")]
    far = [party(0, (), whole, node="a"), party(1, half, (), node="b"), party(2, half, (), node="b")]
    assert make_schedule(near, element_bytes={"params": 4}, links=links).predicted_ms == 2 + 1
    assert make_schedule(far, element_bytes={"params": 4}, links=links).predicted_ms == 40 + 5, "two share the link of node b"
    cut = make_schedule(near, element_bytes={"params": 4}, links=links, bytes_per_round=1024)
    assert (cut.rounds, cut.predicted_ms) == (2, 2 + 2)
    assert make_schedule(near[:1], element_bytes={"params": 4}, links=links).predicted_ms == 0


def test_peak_memory_is_what_arrives_and_the_fullest_round() -> None:
    who = [party(0, (), ranges((0, 96))), party(1, ranges((0, 96)), ())]
    made = make_schedule(who, element_bytes={"params": 4}, bytes_per_round=4 * 32)
    assert made.peak_extra_bytes == (4 * 32, 4 * 96 + 4 * 32)


def test_what_nobody_has_is_named() -> None:
    with pytest.raises(NoHolder, match=r"params \[3, 5\) of rank 1 has no holder"):
        make_schedule([party(0, (), ranges((0, 3))), party(1, ranges((0, 5)), ())], element_bytes={"params": 4})


def test_a_bound_that_nothing_fits_in_is_refused() -> None:
    with pytest.raises(ValueError, match="3 bytes per round are less than one element"):
        make_schedule([party(0, (), ())], element_bytes={"params": 4}, bytes_per_round=3)
    with pytest.raises(ValueError, match="rate above 0"):
        Links(across_bytes_per_s=0)


WHO = (party(0, ranges((0, 8)), ranges((0, 8))), party(1, ranges((0, 8)), ranges((0, 4))), party(2, (), ranges((6, 8))))
GOOD = Transfer("params", 0, 1, 4, 8, 4, 0, ())


@pytest.mark.parametrize(
    ("transfers", "words"),
    [
        ([], r"^params \[4, 8\), which rank 1 needs, is not delivered$"),
        ([replace(GOOD, stop=6)], r"^params \[6, 8\), which rank 1 needs, is not delivered$"),
        ([replace(GOOD, stop=6), replace(GOOD, start=5, src_start=5)], r"^params \[5, 6\) is delivered to rank 1 twice$"),
        ([replace(GOOD, start=3, src_start=3)], r"^params \[3, 4\) is sent to rank 1, which has it$"),
        ([replace(GOOD, src=2)], r"rank 2 does not hold \[4, 8\)$"),
        ([replace(GOOD, others=(2,))], r"rank 2 does not hold \[4, 8\)$"),
        ([replace(GOOD, src_start=3)], r"rank 0 holds other elements at 3$"),
        ([GOOD, replace(GOOD, dst=2)], r"^params \[4, 8\) from rank 0 to rank 2 is not part of one region that rank 2 needs"),
        ([replace(GOOD, src=7)], r"rank 7 to rank 1 is not between ranks that take part"),
        ([replace(GOOD, tensor="colour")], r"^colour .* of a known state tensor"),
        ([replace(GOOD, round=-1)], r"in a round$"),
        ([replace(GOOD, start=8)], r"is not between"),
    ],
)
def test_a_wrong_schedule_cannot_be_made(transfers: list[Transfer], words: str) -> None:
    assert ReshardSchedule(WHO, (GOOD,), {"params": 4}, 64).bytes_moved == 16
    with pytest.raises(ScheduleError, match=words):
        ReshardSchedule(WHO, tuple(transfers), {"params": 4}, 64)


def test_a_bound_exceeded_is_named() -> None:
    with pytest.raises(
        ScheduleError, match=r"rank 1 receives 16 bytes in round 0, more than 15; rank 0 sends 16 bytes in round 0"
    ):
        ReshardSchedule(WHO, (GOOD,), {"params": 4}, 15)


def test_many_findings_are_counted() -> None:
    who = (party(0, (), ranges((0, 40))), party(1, ranges(*((4 * k, 4 * k + 2) for k in range(9))), ()))
    with pytest.raises(ScheduleError, match=r"params \[16, 18\), which rank 1 needs, is not delivered; and 4 more$"):
        ReshardSchedule(who, (), {"params": 4}, 16)
