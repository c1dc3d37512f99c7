"""Dealing blocks out: all of them, evenly, and as much as can be where it is."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.plan.layout import Interval, Intervals, merge, total
from orchestrator.core.planner.dealing import deal, pile_up, take, whole_blocks
from tests.unit.core.planner.world import blocks, from_blocks

Holds = dict[int, set[int]]


def most_kept(count: int, holds: Holds, takers: int) -> int:
    """The largest number of blocks that can stay when everybody gets as many, found by augmenting paths (Kuhn) over all choices
    of who gets one more."""
    room, more = divmod(count, takers)
    best = 0
    for lucky in combinations(range(takers), more):
        slots = [t for t in range(takers) for _ in range(room + (t in lucky))]
        owner: dict[int, int] = {}

        def place(block: int, seen: set[int], slots: list[int] = slots, owner: dict[int, int] = owner) -> bool:
            for n, taker in enumerate(slots):
                if block in holds.get(taker, set()) and n not in seen:
                    seen.add(n)
                    if n not in owner or place(owner[n], seen):
                        owner[n] = block
                        return True
            return False

        best = max(best, sum(place(b, set()) for b in range(count)))
    return best


holdings = st.integers(1, 4).flatmap(
    lambda n: st.tuples(st.just(n), st.dictionaries(st.integers(0, n - 1), st.sets(st.integers(0, 9)), max_size=n))
)


@given(st.integers(0, 10), holdings, st.integers(1, 3))
def test_everybody_gets_as_much_and_the_most_stays(count: int, who: tuple[int, Holds], block: int) -> None:
    takers, holds = who
    holds = {t: {b for b in have if b < count} for t, have in holds.items()}
    region: Intervals = (Interval(0, count * block),) if count else ()
    parts = deal(
        region,
        takers=[(t,) for t in range(takers)],
        held={t: from_blocks(have, block) for t, have in holds.items()},
        prefer={},
        block=block,
    )
    got = [blocks(p, block) for p in parts]
    assert sorted(b for g in got for b in g) == list(range(count))
    assert max(map(len, got)) - min(map(len, got)) <= 1
    assert all(p == merge(p) for p in parts)
    assert sum(len(g & holds.get(t, set())) for t, g in enumerate(got)) == most_kept(count, holds, takers)


@given(st.integers(1, 10), st.integers(1, 4), st.data())
def test_owners_stay_owners_up_to_their_share(count: int, takers: int, data: st.DataObject) -> None:
    owner = data.draw(st.lists(st.integers(0, takers - 1), min_size=count, max_size=count))
    owned = {t: {b for b in range(count) if owner[b] == t} for t in range(takers)}
    everything = {t: from_blocks(set(range(count)), 1) for t in range(takers)}
    parts = deal(
        (Interval(0, count),),
        takers=[(t,) for t in range(takers)],
        held=everything,
        prefer={t: from_blocks(mine, 1) for t, mine in owned.items()},
        block=1,
    )
    got = [blocks(p, 1) for p in parts]
    for taker, mine in owned.items():
        assert len(got[taker] & mine) >= min(len(mine), count // takers)


def test_without_holders_parts_are_contiguous_and_in_order() -> None:
    parts = deal((Interval(0, 12), Interval(20, 28)), takers=[(0,), (1,), (2,)], held={}, prefer={}, block=4)
    assert parts == [(Interval(0, 8),), (Interval(8, 12), Interval(20, 24)), (Interval(24, 28),)]


def test_a_taker_of_several_ranks_keeps_what_most_of_them_hold() -> None:
    left, right = (Interval(0, 4),), (Interval(4, 8),)
    held = {0: right, 1: right, 2: left, 3: (Interval(0, 8),)}
    assert deal((Interval(0, 8),), takers=[(0, 1), (2, 3)], held=held, prefer={}, block=2) == [right, left]


def test_blocks_that_are_held_in_part_do_not_count() -> None:
    assert whole_blocks((Interval(1, 9), Interval(9, 12)), 4) == (Interval(4, 12),)
    piles = pile_up((Interval(0, 12),), takers=[(7,)], held={7: (Interval(1, 9),)}, prefer={7: (Interval(4, 8),)}, block=4)
    assert {(p.first, p.holders): p.pieces for p in piles} == {
        (-1, ()): (Interval(0, 4), Interval(8, 12)),
        (0, ((0, 1),)): (Interval(4, 8),),
    }


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=5), st.integers(0, 30))
def test_taking_takes_the_first(gaps: list[tuple[int, int]], amount: int) -> None:
    at, pieces = 0, []
    for gap, length in gaps:
        pieces.append(Interval(at + gap, at + gap + length))
        at += gap + length
    into: list[Interval] = []
    rest = take(pieces, amount, into)
    assert total(into) == min(amount, total(pieces))
    assert merge((*into, *rest)) == tuple(pieces)
    assert not into or not rest or into[-1].stop <= rest[0].start
