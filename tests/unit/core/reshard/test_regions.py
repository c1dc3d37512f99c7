"""Regions and the sweep against the plain thing they stand for: dictionaries from element to place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.plan.layout import Interval, merge
from orchestrator.core.reshard.regions import Region, Regions, in_place, join, lacking, once, pieces, translated
from tests.unit.core.strategies import intervals


def places(regions: Regions) -> dict[int, set[int]]:
    """Element of the common vector -> its places in the rank's own."""
    out: dict[int, set[int]] = {}
    for r in regions:
        for x in range(r.start, r.stop):
            out.setdefault(x, set()).add(r.at + x - r.start)
    return out


region = st.tuples(intervals(), st.sampled_from([0, 0, 50, 100])).map(lambda t: Region(t[0].start, t[0].stop, t[0].start + t[1]))
regions = st.lists(region, max_size=5).map(join)


@given(st.lists(region, max_size=5))
def test_joined_is_the_same_in_fewer_parts(parts: list[Region]) -> None:
    joined = join(parts)
    assert places(joined) == places(tuple(parts))
    assert len(joined) <= len(parts)
    assert join([Region(0, 2, 5), Region(2, 3, 7)]) == (Region(0, 3, 5),)
    assert len(join([Region(0, 2, 5), Region(2, 3, 8)])) == 2


@given(regions)
def test_once_has_every_element_at_one_of_its_places(of: Regions) -> None:
    kept = once(of)
    assert sum(r.stop - r.start for r in kept) == len(places(of))
    assert all(at <= places(of)[x] for x, at in places(kept).items())


@given(regions, regions)
def test_lacking_is_what_is_not_there_at_the_same_place(wants: Regions, has: Regions) -> None:
    has = once(has)
    there = {(x, at) for x, ats in places(has).items() for at in ats}
    wanted = {(x, at) for x, ats in places(wants).items() for at in ats}
    lacks = lacking(wants, has)
    assert {(x, at) for x, ats in places(lacks).items() for at in ats} == wanted - there


@given(st.dictionaries(st.integers(0, 3), regions, max_size=3), st.dictionaries(st.integers(0, 5), regions.map(once), max_size=5))
def test_pieces_cover_what_is_wanted_and_name_all_who_have_it(wanted: dict[int, Regions], has: dict[int, Regions]) -> None:
    wanted = {rank: once(r) for rank, r in wanted.items()}
    found: dict[int, dict[int, set[int]]] = {rank: {} for rank in wanted}
    for piece in pieces(wanted, has):
        for x in range(piece.region.start, piece.region.stop):
            assert x not in found[piece.dst], "no element comes twice"
            found[piece.dst][x] = {piece.region.at + x - piece.region.start}
            able = {rank: at for rank, of in has.items() for at in places(of).get(x, ())}
            assert {rank: x + shift for rank, shift in piece.holders} == able
    assert found == {rank: places(of) for rank, of in wanted.items()}


def test_a_piece_is_cut_only_where_its_holders_change() -> None:
    has = {1: in_place_of((0, 10)), 2: in_place_of((0, 4), (6, 10))}
    found = pieces({3: in_place_of((1, 9)), 4: in_place_of((2, 3))}, has)
    assert [(p.dst, p.region.start, p.region.stop, [r for r, _ in p.holders]) for p in sorted(found)] == [
        (3, 1, 4, [1, 2]),
        (3, 4, 6, [1]),
        (3, 6, 9, [1, 2]),
        (4, 2, 3, [1, 2]),
    ]


@given(st.lists(intervals(60), max_size=4))
def test_translation_leaves_padding_out(of: list[Interval]) -> None:
    runs = ((0, 100, 8), (10, 30, 5), (15, 35, 1), (20, 0, 30))  # (own, common, elements)
    common = {own + k: at + k for own, at, n in runs for k in range(n)}
    mine = merge(of)
    assert places(translated(mine, runs)) == {common[x]: {x} for i in mine for x in range(i.start, i.stop) if x in common}


def in_place_of(*pairs: tuple[int, int]) -> Regions:
    """Regions that lie in their own vector where they lie in the common one."""
    return in_place(tuple(Interval(a, b) for a, b in pairs))
