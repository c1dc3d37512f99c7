"""What every plan of the planner has: seats spread over nodes, each element owned once, copies elsewhere, words that say why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import OPTIMIZER, PARAMS, Plan
from orchestrator.core.planner.planner import PlanError, buddies, first_plan, shard_intervals, swap_plan
from tests.scenarios.story import GRAPH, make_job
from tests.unit.core.strategies import plans

Workers = list[tuple[str, str]]
node_lists = st.lists(st.sampled_from("abcd"), min_size=1, max_size=10)


def workers_on(nodes: Sequence[str]) -> Workers:
    """One worker per entry."""
    return [(f"j/w{i}", node) for i, node in enumerate(nodes)]


def plan_for(workers: Workers, *, data: int, zero: int = 1, copies: int = 1, graph: GraphView = GRAPH) -> Plan:
    """The first plan of a job of that shape, epoch 1."""
    job = make_job(data=data, zero=zero)
    job = replace(
        job,
        parallel=replace(job.parallel, copies=copies),
        train=replace(job.train, micro_batches=16),
    )
    return first_plan(job=job, graph=graph, workers=workers, epoch=1)


@given(node_lists, st.data())
def test_seats_are_spread_over_the_nodes(nodes: list[str], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(nodes)))
    plan = plan_for(workers_on(nodes), data=n, zero=0, copies=0)
    assert len({s.worker_id for s in plan.seats}) == n == plan.size
    assert all((s.worker_id, s.node_id) in workers_on(nodes) for s in plan.seats)
    there, used = Counter(nodes), Counter(s.node_id for s in plan.seats)
    for node in there:
        for other in used:
            fuller = used[other] - used[node]
            assert fuller <= 1 or used[node] == there[node], "a node is used twice only where no other has room"
    assert lint(plan) == ()


@given(node_lists, st.data())
def test_the_order_in_which_workers_came_does_not_matter(nodes: list[str], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(nodes)))
    shuffled = data.draw(st.permutations(workers_on(nodes)))
    assert plan_for(shuffled, data=n, zero=0, copies=0) == plan_for(workers_on(nodes), data=n, zero=0, copies=0)


@given(st.integers(1, 6), st.integers(1, 60), st.integers(1, 8))
def test_shards_cover_once_in_order_and_evenly(size: int, numel: int, block: int) -> None:
    shards = shard_intervals(numel=numel, block=block, size=size)
    assert [x for s in shards for i in s for x in range(i.start, i.stop)] == list(range(numel))
    assert all(len(s) <= 1 for s in shards)
    assert all(i.start % block == 0 for s in shards for i in s)
    blocks = -(-numel // block)
    assert max(i.numel for s in shards for i in s) <= -(-blocks // size) * block


@given(plans())
def test_everybody_has_all_params_and_its_part_of_the_optimizer(plan: Plan) -> None:
    numel = plan.layout(PARAMS).numel
    for layout in plan.layouts:
        owners = Counter(x for h in layout.holdings for i in h.primary for x in range(i.start, i.stop))
        assert owners == Counter(range(numel)), "each element has one owner"
    assert all(sum(i.numel for i in h.everything) == numel for h in plan.layout(PARAMS).holdings)
    held = Counter(x for h in plan.layout(OPTIMIZER).holdings for i in h.everything for x in range(i.start, i.stop))
    assert set(held.values()) == {plan.size if plan.zero_stage == 0 else 1 + plan.copies}


@given(plans(with_copies=True))
def test_every_copy_is_on_another_node(plan: Plan) -> None:
    holders: dict[int, set[str]] = {}
    for rank, h in enumerate(plan.layout(OPTIMIZER).holdings):
        for i in h.everything:
            for x in range(i.start, i.stop):
                holders.setdefault(x, set()).add(plan.seats[rank].node_id)
    assert {len(nodes) for nodes in holders.values()} == {2}


@given(st.integers(2, 5), st.integers(1, 4), st.booleans())
def test_on_equal_nodes_everybody_keeps_exactly_one_copy(nodes: int, slots: int, in_turn: bool) -> None:
    names = [f"n{i}" for i in range(nodes)]
    places = names * slots if in_turn else [n for n in names for _ in range(slots)]
    chosen = buddies(places)
    assert sorted(chosen) == list(range(len(places)))
    assert all(places[b] != places[r] for r, b in enumerate(chosen))


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=11).map(lambda nodes: [*nodes, "e"]).flatmap(st.permutations))
def test_on_any_nodes_copies_are_spread_almost_as_evenly_as_can_be(nodes: list[str]) -> None:
    chosen = buddies(nodes)
    assert all(nodes[b] != nodes[r] for r, b in enumerate(chosen))
    biggest = max(Counter(nodes).values())
    best = max(1, -(-biggest // (len(nodes) - biggest)))
    assert max(Counter(chosen).values()) <= best + 1


@given(plans(), st.data())
def test_a_swap_keeps_every_primary_region_and_every_other_seat(parent: Plan, data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.integers(0, parent.size - 1), unique=True))
    replacements = {r: (f"new{r}", data.draw(st.sampled_from("abcdxy"))) for r in ranks}
    try:
        plan = swap_plan(parent, epoch=7, replacements=replacements, reason="why")
    except PlanError:
        nodes = {replacements[s.rank][1] if s.rank in replacements else s.node_id for s in parent.seats}
        assert parent.copies, "only copies need another node"
        assert len(nodes) == 1, "and only where there is none"
        return
    assert lint(plan) == ()
    assert (plan.epoch, plan.parent, plan.reason) == (7, parent.epoch, "why")
    for old, new in zip(parent.seats, plan.seats, strict=True):
        expected = replacements.get(old.rank, (old.worker_id, old.node_id))
        assert (new.rank, new.worker_id, new.node_id) == (old.rank, *expected)
    for old_layout, new_layout in zip(parent.layouts, plan.layouts, strict=True):
        assert [h.primary for h in old_layout.holdings] == [h.primary for h in new_layout.holdings]
    if [s.node_id for s in plan.seats] == [s.node_id for s in parent.seats]:
        assert plan.layouts == parent.layouts, "the same nodes give the same copies"


def test_too_few_workers() -> None:
    with pytest.raises(PlanError, match=r"^3 ranks need 3 workers, 2 are ready$"):
        plan_for(workers_on("ab"), data=3)


def test_copies_on_one_node() -> None:
    with pytest.raises(PlanError, match=r"^peer copies need workers on at least two nodes, and all ready workers share one$"):
        plan_for(workers_on("aaa"), data=3)


def test_a_swap_onto_the_last_node() -> None:
    parent = plan_for(workers_on("ab"), data=2)
    with pytest.raises(PlanError, match=r"^rank 0 has no peer on another node than b to keep its copy$"):
        swap_plan(parent, epoch=2, replacements={0: ("j/w9", "b")}, reason="")


@pytest.mark.parametrize(
    ("zero", "copies", "words"),
    [
        (0, 0, "first plan: data parallel over 2 ranks on 2 nodes, as the job asks"),
        (1, 0, "first plan: data parallel with sharded optimizer state (ZeRO-1) over 2 ranks on 2 nodes, as the job asks"),
        (
            1,
            1,
            "first plan: data parallel with sharded optimizer state (ZeRO-1) over 2 ranks on 2 nodes "
            "and a copy of each shard on another node, as the job asks",
        ),
    ],
)
def test_a_first_plan_says_what_it_is(zero: int, copies: int, words: str) -> None:
    assert plan_for(workers_on("ab"), data=2, zero=zero, copies=copies).reason == words
