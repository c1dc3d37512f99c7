"""Small moves stay in the space, change something, and are all that one expects of a small strategy."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.search.arrange import Ground
from orchestrator.core.planner.search.moves import neighbours
from orchestrator.core.planner.search.seeds import outside
from orchestrator.core.planner.strategy import Problem, Space, Strategy
from tests.unit.core.planner.search.worlds import FAST, SLOW, cluster, layer, model, node, problem

PLAIN = PipelineSchedule.ONE_F_ONE_B


def world(space: Space | None = None) -> tuple[Problem, Strategy]:
    """Two replicas of a pipeline of two, one of each on fast devices, and a slow device left idle."""
    resources = cluster(node("a", FAST, 2), node("b", SLOW, 3))
    asked = problem(model(layer(), order=(0,) * 5), resources)
    asked = replace(asked, space=space or asked.space)
    strategy = Strategy(2, (1, 1), (2, 3), PLAIN, 1, 8, 0, 1, 0, (True, False), (0, 1, 2, 3))
    return asked, strategy


def moves_of(asked: Problem, strategy: Strategy) -> list[Strategy]:
    return list(neighbours(strategy, problem=asked, ground=Ground(asked.resources)))


def test_all_stay_in_the_space_and_change_something() -> None:
    asked, strategy = world(Space(datas=(2,), pipelines=(2,)))
    found = moves_of(asked, strategy)
    assert strategy not in found
    assert {outside(asked, s) for s in found} == {""}


def test_layers_recomputation_shares_devices_and_details() -> None:
    asked, strategy = world()
    found = moves_of(asked, strategy)
    assert {s.cuts for s in found} == {(2, 3), (1, 4), (3, 2)}
    assert any(s.recompute == (False, False) for s in found)
    assert {s.share(0) for s in found} == {3, 4, 5}
    assert {s.devices for s in found} >= {(2, 3, 0, 1), (4, 1, 2, 3), (2, 1, 0, 3)}
    assert {s.zero for s in found} == {0, 1, 2, 3}
    assert any(s.schedule is PipelineSchedule.ZERO_BUBBLE for s in found)


def test_uniform_plans_stay_uniform() -> None:
    asked, strategy = world(Space(uneven=False))
    found = moves_of(asked, strategy)
    assert {s.cuts for s in found} == {strategy.cuts}
    assert {s.shares for s in found} == {()}


def test_alike_devices_are_not_exchanged() -> None:
    asked = problem(model(layer(), order=(0,) * 4), cluster(node("a", FAST, 4)))
    strategy = Strategy(2, (1, 1), (2, 2), PLAIN, 1, 8, 0, 1, 0, (False, False), (0, 1, 2, 3))
    assert {s.devices for s in moves_of(asked, strategy)} == {strategy.devices}
