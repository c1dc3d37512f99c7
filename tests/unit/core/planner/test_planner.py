"""First plans and swaps: seats spread over nodes, each element owned once, copies elsewhere, words that say why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.plan.layout import merge, subtract
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import DATA, OPTIMIZER, PARAMS, PIPELINE, TENSOR, PipelineSchedule, Plan, homes
from orchestrator.core.planner.planner import PlanError, first_plan, swap_plan
from orchestrator.testkit.jobs import make_graph, make_job
from tests.unit.core.planner.world import Workers, blocks, workers_on
from tests.unit.core.strategies import make_plan, plans

GRAPH = make_graph(*[3 * 1024] * 4)  # 12 blocks
node_lists = st.lists(st.sampled_from("abcd"), min_size=1, max_size=10)


def plan_for(workers: Workers, **job: Any) -> Plan:
    """The first plan of a job of that shape, epoch 1."""
    return first_plan(job=make_job(**{"micro_batches": 16, "zero_stage": 1, **job}), graph=GRAPH, workers=workers, epoch=1)


@given(node_lists, st.data())
def test_seats_are_spread_over_the_nodes(nodes: list[str], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(nodes)))
    plan = plan_for(workers_on(nodes), data=n)
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
    assert plan_for(shuffled, data=n) == plan_for(workers_on(nodes), data=n)


def nodes_of(plan: Plan, ranks: Sequence[int]) -> list[str]:
    """Where some ranks sit."""
    return [plan.seats[r].node_id for r in ranks]


def test_replicas_are_apart_and_tensor_coordinates_together() -> None:
    plan = plan_for(workers_on("aabbccdd"), pipeline=2, data=2, tensor=2, copies=1)
    for rank in range(plan.size):
        pipe, replica, _ = plan.coordinates(rank)
        assert len(set(nodes_of(plan, plan.replicas(rank)))) == 2
        assert len(set(nodes_of(plan, [plan.rank_at(pipe, replica, t) for t in (0, 1)]))) == 1


@pytest.mark.parametrize("nodes", ["aabb", "abab", "abcd", "abca"])
def test_those_who_hold_the_same_shard_are_apart(nodes: str) -> None:
    plan = plan_for(workers_on(nodes), data=4, shard=2, copies=1)
    for position in (0, 1):
        assert len(set(nodes_of(plan, [position, position + 2]))) == 2
    held = Counter(b for h in plan.layout(OPTIMIZER).holdings for b in blocks(h.everything, plan.block))
    assert set(held.values()) == {2}, "a replica elsewhere is a copy; there are no others"


@given(plans())
def test_owners_have_equal_shares(plan: Plan) -> None:
    for rank in range(plan.size):
        mine = [len(blocks(plan.layout(OPTIMIZER).holdings[r].primary, plan.block)) for r in plan.replicas(rank)]
        assert max(mine) - min(mine) <= 1 + (1 < plan.shard < plan.axis(DATA))


@given(plans())
def test_what_each_stage_of_zero_shards(plan: Plan) -> None:
    for rank in range(plan.size):
        section = blocks(plan.section_of(rank), plan.block)
        params, state = (blocks(plan.layout(n).holdings[rank].everything, plan.block) for n in (PARAMS, OPTIMIZER))
        share = -(-len(section) // plan.shard)
        assert len(state & section) <= share or plan.copies
        if plan.zero_stage == 0:
            assert section <= state
        if plan.zero_stage == 3:
            assert params == state
        else:
            assert params == section | state


@given(plans(with_copies=True))
def test_every_region_is_on_two_nodes_and_copies_are_spread(plan: Plan) -> None:
    holders: dict[int, set[str]] = {}
    for seat, h in zip(plan.seats, plan.layout(OPTIMIZER).holdings, strict=True):
        for b in blocks(h.everything, plan.block):
            holders.setdefault(b, set()).add(seat.node_id)
    assert all(len(nodes) >= 2 for nodes in holders.values())


@given(st.integers(2, 8), st.integers(1, 30))
def test_on_nodes_of_their_own_everybody_keeps_one_neighbours_shard(ranks: int, count: int) -> None:
    plan = make_plan([f"n{i}" for i in range(ranks)], layers=(16 * count,), block=16, copies=1)
    holdings = plan.layout(OPTIMIZER).holdings
    extra = [len(blocks(h.extra, plan.block)) for h in holdings]
    assert max(extra) <= -(-count // ranks)
    if count % ranks == 0:
        assert [h.extra for h in holdings[1:]] == [h.primary for h in holdings[:-1]]


def test_copies_of_a_pipeline_lie_in_other_stages() -> None:
    plan = make_plan("abc", layers=(16, 16, 32), block=16, pipeline=3, copies=1, zero_stage=0)
    assert lint(plan) == ()
    extra = [len(blocks(h.extra, 16)) for h in plan.layout(OPTIMIZER).holdings]
    assert sum(extra) == 4
    assert max(extra) == 2
    bare = make_plan("abc", layers=(16, 16, 32), block=16, pipeline=3, zero_stage=0)
    assert all(not h.extra for h in bare.layout(OPTIMIZER).holdings)


def test_more_ranks_than_blocks() -> None:
    plan = plan_for(workers_on([f"n{i}" for i in range(14)]), data=14, copies=1)
    assert lint(plan) == ()
    assert sorted(len(blocks(h.primary, plan.block)) for h in plan.layout(OPTIMIZER).holdings) == [0, 0] + [1] * 12


@given(plans(), st.data())
def test_a_swap_keeps_every_owner_and_every_other_seat(parent: Plan, data: st.DataObject) -> None:
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
    with pytest.raises(PlanError, match=r"^6 ranks need 6 workers, 2 are ready$"):
        plan_for(workers_on("ab"), data=3, pipeline=2)


def test_too_few_layers() -> None:
    with pytest.raises(PlanError, match=r"^5 pipeline stages need as many layers, and the model names 4$"):
        plan_for(workers_on("abcde"), data=1, pipeline=5)


@pytest.mark.parametrize(
    ("nodes", "apart"),
    [(["a@x", "b@x", "c@y", "d@y"], {"x", "y"}), (["a@x", "b@x", "c@x"], {"a@x", "b@x", "c@x"}), (["a", "b"], {"a", "b"})],
)
def test_copies_lie_on_other_machines_and_where_there_is_one_on_other_nodes_of_it(nodes: list[str], apart: set[str]) -> None:
    plan = plan_for(workers_on(nodes), data=len(nodes), copies=1)
    assert lint(plan) == ()
    where = homes(plan.seats)
    assert set(where) == apart
    holdings = plan.layout(OPTIMIZER).holdings
    for rank, holding in enumerate(holdings):
        elsewhere = merge(i for r, h in enumerate(holdings) if where[r] != where[rank] for i in h.everything)
        assert not subtract(holding.primary, elsewhere)


def test_copies_on_one_node() -> None:
    with pytest.raises(PlanError, match=r"^peer copies need workers on at least two nodes, and all ready workers share one$"):
        plan_for(workers_on("aaa"), data=3, copies=1)


def test_a_swap_onto_the_last_node() -> None:
    parent = plan_for(workers_on("ab"), data=2, copies=1)
    with pytest.raises(PlanError, match=r"^rank 0 has no peer on another node than b to keep its copy$"):
        swap_plan(parent, epoch=2, replacements={0: ("j/w9", "b")}, reason="")


def test_the_plan_is_what_the_job_asks_for() -> None:
    plan = plan_for(
        workers_on("abcd"), pipeline=2, data=2, zero_stage=2, stages_per_rank=2, layers_per_stage=(1, 1, 1, 1), recompute=(True,)
    )
    assert [(a.name, a.size) for a in plan.mesh] == [(PIPELINE, 2), (DATA, 2), (TENSOR, 1)]
    assert (plan.zero_stage, plan.shard, plan.copies, plan.micro_batches, plan.recompute) == (2, 2, 0, 16, (True,) * 4)
    assert (plan.schedule, len(plan.stages), plan.section) == (PipelineSchedule.INTERLEAVED, 4, 12 * 1024)
    assert lint(plan) == ()


@pytest.mark.parametrize(
    ("nodes", "job", "words"),
    [
        ("ab", {"data": 2, "zero_stage": 0}, "data parallel over 2 ranks on 2 nodes"),
        ("ab", {"data": 2}, "data parallel with sharded optimizer state (ZeRO-1) over 2 ranks on 2 nodes"),
        (
            "ab",
            {"data": 2, "copies": 1},
            "data parallel with sharded optimizer state (ZeRO-1) over 2 ranks on 2 nodes "
            "and a copy of each shard on another node",
        ),
        ("a", {"data": 1}, "everything on one rank"),
        ("aab", {"data": 1, "pipeline": 3}, "pipeline over 3 ranks on 2 nodes"),
        (
            "ab",
            {"data": 1, "pipeline": 2, "copies": 1},
            "pipeline over 2 ranks on 2 nodes and a copy of its state on another node",
        ),
        (
            "abababab",
            {"data": 4, "pipeline": 2, "zero_stage": 3, "shard": 2},
            "pipeline 2 x data parallel 4 with sharded parameters, gradients and optimizer state (ZeRO-3) in groups of 2 "
            "over 8 ranks on 2 nodes",
        ),
        ("aa", {"data": 1, "tensor": 2, "zero_stage": 0}, "tensor parallel over 2 ranks on 1 node"),
    ],
)
def test_a_first_plan_says_what_it_is(nodes: str, job: dict[str, int], words: str) -> None:
    assert plan_for(workers_on(nodes), **job).reason == f"first plan: {words}, as the job asks"
