"""The choice: the best there is on small problems, never worse than a seed, the same in every process, and with its reasons."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.estimate import Costing
from orchestrator.core.planner.cost.move import move
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.search.choose import choose
from orchestrator.core.planner.search.seeds import outside
from orchestrator.core.planner.strategy import Parent, Problem, Strategy
from tests.unit.core.planner.search.worlds import FAST, GIB, SLOW, cluster, layer, model, node, problem

PLAIN = PipelineSchedule.ONE_F_ONE_B


def pipelines_of(asked: Problem) -> list[Strategy]:
    """Every cut of a pipeline of two ranks on two devices, either of them first."""
    layers = len(asked.costs.order)
    out = []
    for inner in combinations(range(1, layers), 1):
        cuts = tuple(b - a for a, b in pairwise((0, *inner, layers)))
        for devices in ((0, 1), (1, 0)):
            for recompute in ((False, False), (True, False), (False, True), (True, True)):
                out.append(Strategy(1, (1, 1), cuts, PLAIN, 1, asked.batch, 0, 1, 0, recompute, devices))
    return out


def two_unlike(*, memory: int = 8 * GIB) -> Problem:
    """A pipeline over a fast and a slow device of a model that begins light and ends heavy."""
    costs = model(layer("light", flops=2e8), layer("heavy", flops=2e9, params=20_000_000), order=(0, 0, 0, 0, 1, 1, 1))
    resources = cluster(node("a", FAST, 1), node("b", SLOW, 1), memory=memory)
    return problem(costs, resources, pipelines=(2,), datas=(1,), tensors=(1,), schedules=(PLAIN,))


@pytest.mark.parametrize("memory", [8 * GIB, 1500 << 20, 1000 << 20, 800 << 20])
def test_the_best_of_all_pipelines_over_two_unlike_devices(memory: int) -> None:
    asked = two_unlike(memory=memory)
    costing = Costing(asked)
    fitting = [e.effective_s for e in map(costing.estimate, pipelines_of(asked)) if e.fits]
    choice = choose(asked)
    assert choice.best.estimate.effective_s == pytest.approx(min(fitting), rel=1e-12)
    assert choice.proven
    assert choice.best.estimate.fits


def test_only_stages_that_lack_memory_recompute() -> None:
    asked = two_unlike()
    kept = layer("block", params=1000, kept=1e8)
    roomy = replace(asked, costs=model(kept, order=(0,) * 4), batch=4)
    assert choose(roomy).best.strategy.recompute == (False, False)
    tight = replace(roomy, resources=cluster(node("a", FAST, 1), node("b", FAST, 1), memory=350 << 20))
    assert choose(tight).best.strategy.recompute == (True, False)


def test_nothing_fits() -> None:
    asked = problem(model(layer(params=1 << 30), order=(0,) * 2), cluster(node("a"), memory=GIB))
    with pytest.raises(PlanError, match=r"no strategy fits: needs .* GiB on a device of 1\.0"):
        choose(asked)


def test_no_device_is_healthy() -> None:
    with pytest.raises(PlanError, match="no device is healthy"):
        choose(problem(model(layer()), cluster(node("a", healthy=False))))


def test_fast_replicas_get_more_micro_batches() -> None:
    resources = cluster(node("a", FAST, 1), node("b", SLOW, 1))
    asked = problem(model(layer(), order=(0,) * 4), resources, batch=9, tensors=(1,), pipelines=(1,), ranks_min=2)
    best = choose(asked).best.strategy
    fast = best.devices.index(0)
    assert [best.share(fast), best.share(1 - fast)] == [6, 3]


def test_unlike_tensor_degrees_on_request() -> None:
    resources = cluster(node("a", FAST, 1), node("b", SLOW, 2))
    costs = model(layer(), order=(0,) * 4)
    same = choose(problem(costs, resources, batch=32, ranks_min=3))
    mixed = choose(problem(costs, resources, batch=32, ranks_min=3, mixed_tensors=True))
    assert mixed.best.estimate.effective_s <= same.best.estimate.effective_s
    assert not mixed.proven, "only some of them are listed"


def test_never_worse_than_a_seed_and_seeds_of_another_space_do_not_count() -> None:
    asked = two_unlike()
    seed = pipelines_of(asked)[0]
    assert outside(asked, seed) == ""
    value = Costing(asked).estimate(seed).effective_s
    assert choose(asked, seeds=[seed], effort=1.0).best.estimate.effective_s <= value
    other = replace(seed, cuts=(3, 4), zero=2)
    whole = replace(asked, space=replace(asked.space, zeros=(0,)))
    assert outside(whole, other) == "zero"
    assert choose(whole, seeds=[other]).best.strategy.zero == 0


def test_a_choice_without_enough_effort_is_not_proven_and_says_how_far_it_may_be() -> None:
    resources = cluster(*(node(f"n{k}", FAST if k % 2 else SLOW, 2) for k in range(4)))
    asked = problem(model(layer(), layer("heavy", flops=5e9), order=(0, 1) * 4), resources, batch=16)
    hasty, thorough = choose(asked, effort=50.0), choose(asked)
    assert not hasty.proven
    assert hasty.bound_s <= thorough.best.estimate.effective_s <= hasty.best.estimate.effective_s


def test_what_was_rejected_and_the_runners_up() -> None:
    resources = cluster(node("a", FAST, 4), node("b", FAST, 4), memory=400 << 20)
    asked = problem(model(layer(params=10_000_000), order=(0,) * 8), resources, zeros=(0,), copies=(0,))
    choice = choose(asked)
    why = {r.what: r.why for r in choice.rejected}
    assert "slower" in why["replicas: 2"]
    tight = problem(model(layer(params=10_000_000), order=(0,) * 8), resources, zeros=(0, 3), pipelines=(1,), tensors=(1,))
    why = {r.what: r.why for r in choose(tight).rejected}
    assert why["ZeRO-0"] == "needs 1.3 GiB on a device of 0.4"
    assert all(r.count > 0 for r in choice.rejected)
    values = [o.estimate.effective_s for o in choice.runners_up]
    assert values == sorted(values)
    assert values[0] >= choice.best.estimate.effective_s
    shapes = [(o.strategy.data, o.strategy.tensors) for o in (choice.best, *choice.runners_up)]
    assert len(set(shapes)) == len(shapes)
    assert len(choose(asked, runners=2).runners_up) == 2


def after_losing(asked: Problem, strategy: Strategy, lost: str, *, steps_left: int) -> tuple[Problem, Parent]:
    nodes = tuple(replace(n, healthy=n.node_id != lost) for n in asked.resources.nodes)
    gone = [asked.resources.nodes[n].node_id == lost for n in asked.resources.node_of]
    devices = tuple(-1 if gone[d] else d for d in strategy.devices)
    parent = Parent(replace(strategy, devices=devices), steps_left, move_bandwidth=1e9)
    return replace(asked, resources=replace(asked.resources, nodes=nodes)), parent


def test_a_spare_node_takes_the_place_of_a_lost_one_and_nothing_else_moves() -> None:
    resources = cluster(*(node(f"n{k}") for k in range(3)))
    asked = problem(model(layer(params=10_000_000), order=(0,) * 4), resources, ranks_max=4, tensors=(2,))
    before = choose(asked).best.strategy
    used = {resources.node_of[d] for d in before.devices}
    less, parent = after_losing(asked, before, f"n{min(used)}", steps_left=10)
    after = choose(less, parent).best
    assert replace(after.strategy, devices=()) == replace(before, devices=())
    assert all(b in (a, -1) for a, b in zip(after.strategy.devices, parent.strategy.devices, strict=True))
    assert after.move_s > 0


def test_with_few_steps_left_little_moves_and_with_many_the_best_is_taken() -> None:
    resources = cluster(*(node(f"n{k}", devices=2, network=replace(node("x").network, bandwidth=1e8)) for k in range(3)))
    asked = problem(model(layer(params=20_000_000), order=(0,) * 6), resources, batch=6)
    before = choose(asked).best.strategy
    for steps in (1, 1_000_000):
        less, parent = after_losing(asked, before, "n2", steps_left=steps)
        choice = choose(less, parent)
        alone = choose(less)
        worth = choice.best.move_s + steps * choice.best.estimate.effective_s
        there = move(less, parent, alone.best.strategy).seconds + steps * alone.best.estimate.effective_s
        assert worth <= there * (1 + 1e-12), f"{steps} steps left"


def test_an_exact_replan_keeps_its_tensor_degree() -> None:
    resources = cluster(*(node(f"n{k}", devices=4) for k in range(3)))
    asked = problem(model(layer(), order=(0,) * 8), resources, batch=12, tensors=(2,))
    less, parent = after_losing(asked, choose(asked).best.strategy, "n1", steps_left=1000)
    assert set(choose(less, parent).best.strategy.tensors) == {2}


_PRINT = """
from tests.unit.core.planner.search.worlds import *
resources = cluster(*(node(f"n{k}", FAST if k % 3 else SLOW, 2, rack=f"r{k % 2}") for k in range(6)))
asked = problem(model(layer(), layer("heavy", flops=5e9), order=(0, 1) * 3), resources, batch=16, mixed_tensors=True)
from orchestrator.core.planner.search.choose import choose
print(choose(asked, effort=400.0))
"""


def test_the_same_choice_in_every_process() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", _PRINT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert "Choice(" in printed.pop()


@pytest.mark.parametrize(("names", "copies"), [("abcd", 0), (("a@x", "b@y", "c@x", "d@y"), 1)])
def test_copies_are_planned_for_beside_replicas_where_these_may_share_a_machine(names: Sequence[str], copies: int) -> None:
    nodes = cluster(*(node(name, devices=1) for name in names))
    of = problem(model(layer(), order=(0, 0, 0, 0)), nodes, pipelines=(1,), datas=(4,), tensors=(1,), zeros=(0,), copies=(1,))
    assert choose(of).best.strategy.copies == copies
    assert choose(replace(of, space=replace(of.space, copies=(0,)))).best.strategy.copies == 0


def test_a_plan_that_was_alone_on_a_node_has_copies_again_on_two() -> None:
    of = problem(
        model(layer(), order=(0, 0, 0, 0)),
        cluster(node("a", devices=1), node("b", devices=1)),
        pipelines=(1,),
        datas=(2,),
        tensors=(1,),
        zeros=(1,),
        copies=(1,),
    )
    bare = Strategy(2, (1,), (4,), PLAIN, 1, of.batch, 1, 2, 0, (False,), (0, -1))
    assert choose(of, Parent(bare, 1000, 1e9)).best.strategy.copies == 1


def test_replicas_of_a_stage_are_on_two_machines_where_these_fail() -> None:
    """Each of two machines has two nodes; a stage of which one machine holds both replicas is lost with it."""
    pods = [node(name, devices=1, failures_per_hour=0.1) for name in ("a@x", "b@x", "c@y", "d@y")]
    of = problem(model(layer(), order=(0, 0, 0, 0)), cluster(*pods), pipelines=(2,), datas=(2,), tensors=(1,), zeros=(0,))
    best = choose(of).best.strategy
    for stage in (best.devices[:2], best.devices[2:]):
        assert {of.resources.machines[d] for d in stage} == {0, 2}
