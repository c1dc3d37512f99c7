"""Ranks on devices: exact where there are few, good where there are many, and never together what must not be lost together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, permutations

import pytest

from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.planner import placement
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.placement import EXACT_RANKS, RANKS_MAX, Traffic, place, seconds, seconds_per_byte
from orchestrator.core.planner.placement_swaps import State, Table, arrange, cost

Group = tuple[int, ...]


def cluster(
    *devices: int,
    racks: tuple[str, ...] = (),
    inside: tuple[float, ...] = (),
    network: tuple[float, ...] = (),
    uplink: float | None = None,
) -> Resources:
    """Nodes of so many devices; 100 bytes/s inside and 1 outside unless said otherwise."""
    nodes = tuple(
        NodeResources(
            node_id=f"n{i}",
            device="d",
            devices=count,
            rack=racks[i] if racks else "",
            inside=Link(inside[i] if inside else 100.0, 0.0),
            network=Link(network[i] if network else 1.0, 0.0),
            network_total=10.0,
        )
        for i, count in enumerate(devices)
    )
    return Resources("c", (DeviceType("d", "cpu", 1.0, 1.0, 1),), nodes, None if uplink is None else Link(uplink, 0.0))


def graph(rng: random.Random, ranks: int, *, missing: float = 0.3) -> Traffic:
    pairs = [p for p in combinations(range(ranks), 2) if rng.random() >= missing] or [(0, ranks - 1)]
    return Traffic(ranks, tuple((a, b, 10 ** rng.uniform(0, 3)) for a, b in pairs))


def together(where: Group, groups: Sequence[Group], on: Resources) -> int:
    """Pairs of the groups that share a node."""
    return sum(on.node_of[where[a]] == on.node_of[where[b]] for group in groups for a, b in combinations(group, 2))


def test_the_pair_that_talks_is_put_on_one_node() -> None:
    on = cluster(2, 2)
    traffic = Traffic(4, ((0, 2, 1000.0), (1, 3, 1000.0), (0, 1, 1.0)))
    where = place(traffic, on, range(4))
    assert [on.node_of[d] for d in where] == [0, 1, 0, 1]
    assert seconds(traffic, on, where) == pytest.approx(10 + 10 + 1)


def test_a_link_is_as_fast_as_the_slower_end_and_the_way_between_racks() -> None:
    on = cluster(2, 2, 2, racks=("a", "a", "b"), inside=(100, 50, 100), network=(10, 5, 10), uplink=2)
    assert [1 / seconds_per_byte(on, 0, n) for n in range(3)] == pytest.approx([100, 5, 2])
    assert 1 / seconds_per_byte(on, 1, 1) == pytest.approx(50)
    assert 1 / seconds_per_byte(cluster(1, 1, racks=("a", "b"), network=(10, 5)), 0, 1) == pytest.approx(5)


def test_unlike_links_swap_places() -> None:
    """The ancestor's mapper gives the same answer when the bandwidths inside and between machines are exchanged."""
    traffic = Traffic(4, ((0, 1, 1000.0), (2, 3, 1000.0), (0, 2, 1.0), (1, 3, 1.0)))
    near, far = cluster(2, 2), cluster(2, 2, inside=(1, 1), network=(100, 100))
    assert [near.node_of[d] for d in place(traffic, near, range(4))] in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert len({far.node_of[d] for d in place(traffic, far, range(4))[:2]}) == 2


@pytest.mark.parametrize("seed", range(40))
def test_few_ranks_are_placed_at_the_least_cost_there_is(seed: int) -> None:
    rng = random.Random(seed)
    on = rng.choice(
        [
            cluster(2, 2, 2),
            cluster(1, 2, 3),
            cluster(3, 3, network=(1, 7)),
            cluster(2, 2, 2, racks=("a", "a", "b"), inside=(100, 30, 60), network=(9, 8, 2), uplink=0.5),
        ]
    )
    traffic = graph(rng, rng.randint(2, on.size))
    groups = [tuple(rng.sample(range(traffic.ranks), 2)) for _ in range(rng.randint(0, 2))]
    where = place(traffic, on, range(on.size), apart=groups)
    every = permutations(range(on.size), traffic.ranks)
    best = min((together(w, groups, on), seconds(traffic, on, w)) for w in every)
    assert len(set(where)) == traffic.ranks
    assert together(where, groups, on) == best[0]
    assert seconds(traffic, on, where) == pytest.approx(best[1])


def test_only_the_given_devices_are_used() -> None:
    on = cluster(4, 4)
    traffic = Traffic(3, ((0, 1, 5.0), (1, 2, 5.0)))
    assert sorted(place(traffic, on, [2, 4, 5, 7])) == [4, 5, 7]


def test_ranks_that_must_be_apart_are_spread_over_all_nodes_there_are() -> None:
    on = cluster(2, 2)
    traffic = Traffic(4, ((0, 1, 1e6), (2, 3, 1e6)))
    assert together(place(traffic, on, range(4), apart=[(0, 1)]), [(0, 1)], on) == 0
    four = place(traffic, on, range(4), apart=[(0, 1, 2, 3)])
    assert together(four, [(0, 1, 2, 3)], on) == 2, "two nodes for four ranks: two pairs at the least"
    alone = cluster(4)
    assert sorted(place(traffic, alone, range(4), apart=[(0, 1)])) == [0, 1, 2, 3], "one node: they can not be apart"


@pytest.mark.parametrize("ranks", [16, 32, 96])
def test_many_ranks_find_their_groups(ranks: int) -> None:
    """Heavy inside groups of a node's size, light across: any other placement is dearer."""
    rng = random.Random(ranks)
    on = cluster(*[8] * (ranks // 8))
    group = [g for g in range(ranks // 8) for _ in range(8)]
    rng.shuffle(group)
    flows = [(a, b, 100.0 if group[a] == group[b] else 1.0) for a, b in combinations(range(ranks), 2)]
    where = place(Traffic(ranks, tuple(flows)), on, range(ranks))
    assert len(set(where)) == ranks
    assert all((group[a] == group[b]) == (on.node_of[where[a]] == on.node_of[where[b]]) for a, b, _ in flows)


@pytest.mark.parametrize("seed", range(20))
def test_the_search_does_not_lean_on_its_start(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the worst arrangement it still ends at the best."""
    rng = random.Random(seed)
    on = cluster(2, 2, 2, inside=(3, 3, 2), network=(2, 3, 3))
    traffic = graph(rng, 6)
    every = [list(w) for w in permutations([0, 0, 1, 1, 2, 2])]
    monkeypatch.setattr(placement, "arrange", lambda table: max(every, key=lambda w: cost(table, w)))
    best = min(seconds(traffic, on, w) for w in permutations(range(6)))
    assert seconds(traffic, on, place(traffic, on, range(6))) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(20))
def test_swaps_alone_come_close_to_the_best_and_keep_apart(seed: int) -> None:
    """What more ranks than can be searched get, on as few as can."""
    rng = random.Random(seed)
    weights: list[dict[int, float]] = [{} for _ in range(8)]
    for a, b, volume in graph(rng, 8).flows:
        weights[a][b] = weights[b][a] = volume
    links = [[0.01 if m == n else 1.0 for n in range(4)] for m in range(4)]
    apart: list[dict[int, int]] = [{} for _ in range(8)]
    pairs = rng.sample(list(combinations(range(8), 2)), 12)
    for a, b in pairs:
        apart[a][b] = apart[b][a] = 1
    table = Table([2] * 4, links, weights, apart, penalty=1e6)
    best = min(cost(table, list(w)) for w in set(permutations([0, 0, 1, 1, 2, 2, 3, 3])))
    where = arrange(table)
    assert sorted(where) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cost(table, where) <= 1.2 * best, "no pair more on one node than must be, and little more traffic"


@pytest.mark.parametrize("seed", range(10))
def test_what_a_rank_would_cost_is_kept_up_to_date(seed: int) -> None:
    """The change that a move promises is the change that it makes."""
    rng = random.Random(seed)
    weights: list[dict[int, float]] = [{} for _ in range(8)]
    for a, b, volume in graph(rng, 8).flows:
        weights[a][b] = weights[b][a] = volume
    links = [[rng.uniform(0, 1) for _ in range(4)] for _ in range(4)]
    links = [[(links[m][n] + links[n][m]) / 2 for n in range(4)] for m in range(4)]
    apart: list[dict[int, int]] = [{} for _ in range(8)]
    for a, b in rng.sample(list(combinations(range(8), 2)), 6):
        apart[a][b] = apart[b][a] = 1
    table = Table([3] * 4, links, weights, apart, penalty=1e3)
    state = State(table, [0, 0, 1, 1, 2, 2, 3, 3])
    for r in (0, 3, 5, 0, 7, 2):
        before = cost(table, state.where)
        change, partner, node = state.best(r, [s for s in range(8) if s != r])
        state.do(r, partner, node)
        assert cost(table, state.where) - before == pytest.approx(change)


def test_many_ranks_are_kept_apart_too() -> None:
    on = cluster(*[4] * 5)
    groups = [(r, r + 1) for r in range(0, 18, 2)]
    traffic = Traffic(18, tuple((a, b, 100.0) for a, b in groups))
    where = place(traffic, on, range(20), apart=groups)
    assert len(set(where)) == 18
    assert together(where, groups, on) == 0


def test_the_same_question_has_the_same_answer() -> None:
    on = cluster(4, 4, 4, racks=("a", "a", "b"), uplink=0.3)
    traffic = graph(random.Random(5), 12)
    shuffled = Traffic(12, tuple(reversed(traffic.flows)))
    assert place(traffic, on, range(12)) == place(traffic, on, range(12)) == place(shuffled, on, list(reversed(range(12))))


def test_when_the_visits_run_out_the_best_so_far_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    on = cluster(2, 2, 2, 2, network=(1, 2, 3, 4))
    traffic = graph(random.Random(3), 8)
    exact = seconds(traffic, on, place(traffic, on, range(8)))
    monkeypatch.setattr(placement, "EXACT_VISITS", 0)
    bounded = place(traffic, on, range(8))
    assert sorted(bounded) == list(range(8))
    assert exact <= seconds(traffic, on, bounded) <= 1.5 * exact


def test_what_can_not_be_placed_is_said_in_words() -> None:
    with pytest.raises(PlanError, match="4 ranks need 4 devices, 3 are given"):
        place(Traffic(4, ()), cluster(2, 2), range(3))
    many = RANKS_MAX + 1
    with pytest.raises(PlanError, match=f"at most {RANKS_MAX} ranks"):
        place(Traffic(many, ()), cluster(many), range(many))


def test_ranks_that_say_nothing_are_placed_all_the_same() -> None:
    on = cluster(2, 2)
    where = place(Traffic(3, ()), on, range(4), apart=[(0, 1)])
    assert len(set(where)) == 3
    assert on.node_of[where[0]] != on.node_of[where[1]]
    assert place(Traffic(1, ((0, 0, 5.0),)), on, [3]) == (3,)
    many = EXACT_RANKS + 2
    assert len(set(place(Traffic(many, ()), cluster(many), range(many)))) == many
