"""What is near to the parent keeps what need not move; the rule's strategies are the rule's."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.search.arrange import Ground
from orchestrator.core.planner.search.seeds import near, outside
from orchestrator.core.planner.strategy import Parent, Problem, Strategy
from tests.unit.core.planner.search.worlds import cluster, layer, model, node, problem

PLAIN = PipelineSchedule.ONE_F_ONE_B
OLD = Strategy(3, (2, 2), (2, 2), PLAIN, 1, 12, 1, 3, 0, (False, False), tuple(range(12)))


def lost(asked: Problem, strategy: Strategy, *names: str) -> tuple[Problem, Parent]:
    nodes = tuple(replace(n, healthy=n.node_id not in names) for n in asked.resources.nodes)
    gone = [not nodes[n].healthy for n in asked.resources.node_of]
    devices = tuple(-1 if gone[d] else d for d in strategy.devices)
    return replace(asked, resources=replace(asked.resources, nodes=nodes)), Parent(replace(strategy, devices=devices), 100, 1e9)


def found(nodes: int, *names: str) -> list[Strategy]:
    asked = problem(model(layer(), order=(0,) * 4), cluster(*(node(f"n{k}") for k in range(nodes))), batch=12)
    less, parent = lost(asked, OLD, *names)
    out = near(less, parent, Ground(less.resources))
    assert all(outside(less, s) == "" for s in out)
    usable = {d for d, n in enumerate(less.resources.node_of) if less.resources.nodes[n].healthy}
    assert all(usable.issuperset(s.devices) for s in out)
    return out


def test_a_spare_takes_the_place_of_the_lost_node() -> None:
    first = found(7, "n4")[0]
    assert first.data == 3
    assert set(first.devices) == {*range(8), *range(10, 14)}
    before = {d: rank // 6 for rank, d in enumerate(OLD.devices)}
    after = {d: rank // 6 for rank, d in enumerate(first.devices)}
    assert all(after[d] == before[d] for d in after if d < 12)  # every device that is left runs the stages it ran


def test_without_a_spare_a_replica_is_given_up_and_the_others_stay() -> None:
    first = found(6, "n4")[0]
    assert (first.data, first.shard) == (2, 2)
    assert first.devices == (0, 1, 4, 5, 6, 7, 10, 11)


def test_a_block_of_the_replica_given_up_fills_another_ones_gap() -> None:
    first = found(6, "n0", "n4")[0]
    assert first.data == 2
    assert set(first.devices) == {2, 3, 4, 5, 6, 7, 10, 11}


def test_where_a_whole_stage_is_lost_a_replica_of_the_other_gives_its_devices_only_if_they_are_spare() -> None:
    assert found(6, "n0", "n1", "n2") == []
    assert {s.data for s in found(7, "n0", "n1", "n2")} == {1}
