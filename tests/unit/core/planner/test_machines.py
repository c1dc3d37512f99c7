"""Plans on nodes that share machines: whatever happens, no machine holds some state alone while the ranks are on two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.cluster.machines import machine_of
from orchestrator.core.plan.lint import lint
from orchestrator.core.plan.plan import OPTIMIZER, Plan
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.planner import first_plan, replan, swap_plan
from orchestrator.testkit.jobs import make_graph, make_job
from tests.unit.core.planner.world import Workers, blocks, held_by, workers_on

GRAPH = make_graph(*[30 * 16] * 4, block=16)  # 4 layers of 30 blocks
PODS = ["a@x", "b@x", "c@x", "d@y", "e@y", "f@z", "g"]
SHAPES = [(1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3), (4, 1), (3, 2)]
KINDS = [(0, 0, 0), (0, 0, 1), (1, 0, 1), (1, 2, 0), (1, 2, 1), (2, 0, 1), (3, 2, 0), (3, 0, 1)]  # zero stage, shard, copies


def machines(plan: Plan) -> set[str]:
    """Those that a plan's ranks are on."""
    return {machine_of(s.node_id) for s in plan.seats}


def alone(plan: Plan) -> dict[str, int]:
    """Blocks of the optimizer state that one machine (or one node, where there is one machine) holds alone."""
    several = len(machines(plan)) > 1
    on: dict[int, set[str]] = {}
    for seat, holding in zip(plan.seats, plan.layout(OPTIMIZER).holdings, strict=True):
        for block in blocks(holding.everything, plan.block):
            on.setdefault(block, set()).add(machine_of(seat.node_id) if several else seat.node_id)
    out: dict[str, int] = {}
    for where in on.values():
        if len(where) == 1:
            (home,) = where
            out[home] = out.get(home, 0) + 1
    return out


def twice(plan: Plan, *, copies: int) -> bool:
    """Whether its state is to be on two machines (or nodes)."""
    return len({s.node_id for s in plan.seats}) > 1 and bool(copies)


@given(st.lists(st.sampled_from(PODS), min_size=8, max_size=10), st.data())
def test_a_life_of_swaps_and_other_shapes(nodes: list[str], data: st.DataObject) -> None:
    zero, shard, copies = data.draw(st.sampled_from(KINDS))

    def drawn() -> tuple[tuple[int, int], dict[str, Any]]:
        shape = data.draw(st.sampled_from(SHAPES))
        fits = shape[1] % (shard or 1) == 0
        return shape, {"zero_stage": zero, "shard": shard if fits else 0, "copies": copies if fits else 1}

    shape, more = drawn()
    job = make_job(pipeline=shape[0], data=shape[1], **more)
    try:
        plan = first_plan(job=job, graph=GRAPH, workers=workers_on(nodes), epoch=1)
    except PlanError:
        assert len(set(nodes)) == 1
        return
    spread = {machine_of(n) for n in nodes}
    assert len(machines(plan)) > 1 or len(spread) == 1, "all ranks on one machine beside another one"
    number = 10
    for _ in range(4):
        assert lint(plan) == ()
        if twice(plan, copies=more["copies"]):
            assert not alone(plan)
        more["copies"] &= plan.copies  # given up where all ranks are on one node; a swap does not bring them back
        if data.draw(st.booleans()):
            lost = data.draw(st.lists(st.sampled_from(range(plan.size)), min_size=1, max_size=3, unique=True))
            fresh = workers_on(data.draw(st.lists(st.sampled_from(PODS), min_size=len(lost), max_size=len(lost))), first=number)
            try:
                plan = swap_plan(plan, epoch=plan.epoch + 1, replacements=dict(zip(lost, fresh, strict=True)), reason="test")
            except PlanError:
                kept = {s.node_id for s in plan.seats if s.rank not in lost} | {n for _, n in fresh}
                assert len(kept) == 1
        else:
            shape, more = drawn()
            left = [(s.worker_id, s.node_id) for s in plan.seats]
            fresh = workers_on(data.draw(st.lists(st.sampled_from(PODS), min_size=8, max_size=8)), first=number)
            plan = replan(
                parent=plan,
                job=make_job(pipeline=shape[0], data=shape[1], **more),
                graph=GRAPH,
                workers=[*left, *fresh],
                held={w: held_by(plan, w) for w, _ in left},
                epoch=plan.epoch + 1,
                pipeline=shape[0],
                data=shape[1],
                reason="test",
            )
        number += 10


def plan_on(nodes: Sequence[str], **job: Any) -> Plan:
    """The first plan on these nodes, one worker each."""
    workers: Workers = workers_on(nodes)
    return first_plan(job=make_job(**{"zero_stage": 1, "copies": 1, **job}), graph=GRAPH, workers=workers, epoch=1)


def where(plan: Plan) -> list[str]:
    """The node of each rank."""
    return [s.node_id for s in plan.seats]


def test_replicas_go_to_other_machines_before_other_nodes() -> None:
    assert where(plan_on(["a@x", "b@x", "c@y"], data=2)) == ["a@x", "c@y"]
    assert where(plan_on(["a@x", "b@x"], data=2)) == ["a@x", "b@x"]


def test_tensor_coordinates_of_a_replica_are_on_nodes_of_one_machine() -> None:
    assert where(plan_on(["a@x", "b@y", "c@x", "d@y"], data=2, tensor=2)) == ["a@x", "c@x", "b@y", "d@y"]


def test_those_that_hold_the_same_in_groups_are_on_different_machines() -> None:
    plan = plan_on(["a@x", "b@x", "c@y", "d@y"], data=4, shard=2, zero_stage=1, copies=0)
    for part in (0, 1):
        assert len({machine_of(plan.seats[r].node_id) for r in (part, part + 2)}) == 2


@pytest.mark.parametrize("copies", [0, 1])
def test_replicas_that_come_to_share_a_machine_have_a_copy_elsewhere_if_the_job_asks_for_copies(copies: int) -> None:
    pods = plan_on(["a@x", "b@y", "c@x", "d@y"], data=4, shard=2, copies=copies)
    assert not alone(pods)
    together = dict(enumerate(workers_on(["p@x", "q@y", "r@x", "s@y"], first=10)))  # ranks 0 and 2 hold the same
    swapped = swap_plan(pods, epoch=2, replacements=together, reason="test")
    assert (swapped.copies, not alone(swapped)) == (copies, bool(copies)), "who asks for none has the memory for none"


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (["a@x", "b@x", "c@y"], "over 3 ranks on 3 nodes of 2 machines and a copy of each shard on another machine"),
        (["a@x", "b@x", "c@x"], "over 3 ranks on 3 nodes of 1 machine and a copy of each shard on another node"),
        (["a@x", "b@y", "c@z"], "over 3 ranks on 3 nodes of 3 machines and a copy of each shard on another machine"),
        (["a", "b", "c"], "over 3 ranks on 3 nodes and a copy of each shard on another node"),
    ],
)
def test_the_reason_says_what_the_copies_are_safe_from(nodes: list[str], words: str) -> None:
    assert words in plan_on(nodes, data=3).reason


def test_lint_names_the_machine_that_holds_something_alone() -> None:
    plan = plan_on(["a@x", "b@y", "c@y"], data=3)
    bare = (replace(lay, holdings=tuple(replace(h, extra=()) for h in lay.holdings)) for lay in plan.layouts)
    findings = lint(replace(plan, layouts=tuple(bare)))
    assert "optimizer: 640 elements of rank 0 have no copy on another machine than x" in findings
