"""The planner's choices as stories: a model, a cluster, and what anybody would expect of the best plan."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.cluster.resources import DeviceType, Level, Link, NodeResources, Resources
from orchestrator.core.graph.costs import LayerCost, ModelCosts
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.programs import OURS
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.search.choose import choose
from orchestrator.core.planner.strategy import Choice, Parent, Problem, Reliability, Space, Strategy

MIB = 1 << 20
FAST, SLOW = Link(10e9, 1e-5), Link(20e6, 1e-4)
CPU = DeviceType("cpu", "cpu", 1e10, 1e10, 4096 * MIB)


def layer(name: str = "block", *, params: int = 2 * MIB, gflops: float = 0.1, kept: int = MIB, tensor: bool = False) -> LayerCost:
    """A layer whose forward pass takes gflops / 10 of a second."""
    flops = gflops * 1e9
    cut = 1 if tensor else 0
    return LayerCost(
        name=name,
        params=params,
        cut_params=params * cut,
        buffers=0,
        forward_flops=flops,
        cut_forward_flops=flops * cut,
        backward_flops=2 * flops,
        cut_backward_flops=2 * flops * cut,
        moved_bytes=0.0,
        kept_bytes=kept,
        cut_kept_bytes=kept * cut / 2,
        work_bytes=kept,
        boundary_bytes=65536.0,
        reduced_bytes=131072.0 * cut,
    )


def model(layers: Sequence[LayerCost], *, tensor_max: int = 1) -> ModelCosts:
    """Layers in this order."""
    kinds = tuple(dict.fromkeys(layers))
    return ModelCosts("model", kinds, tuple(kinds.index(one) for one in layers), 1.0, tensor_max, True)


def machines(count: int, *, devices: int = 1, network: Link = FAST, device: DeviceType = CPU) -> Resources:
    """Equal machines, fast inside."""
    nodes = tuple(NodeResources(f"n{i}", device.name, devices, "", FAST, network, network.bandwidth * 2) for i in range(count))
    return Resources("cluster", (device,), nodes)


def problem(costs: ModelCosts, resources: Resources, *, batch: int = 12, **space: Any) -> Problem:
    """Nothing is asked but what `space` says."""
    asked = Space(**{"copies": (0,), **space})
    return Problem(costs, resources, OURS, batch, asked, Reliability(1.0, 2.0, 1.0, 10.0))


def node_of(p: Problem, s: Strategy, pipe: int, replica: int, coordinate: int = 0) -> str:
    """Where a rank of the mesh is."""
    resources = p.resources
    return resources.nodes[resources.node_of[s.devices[s.rank_at(pipe, replica, coordinate)]]].node_id


def best(p: Problem) -> Strategy:
    """What is chosen; it fits and is as good as it is said to be."""
    choice = choose(p)
    check(p, choice)
    return choice.best.strategy


def check(p: Problem, choice: Choice) -> None:
    """What holds of every choice."""
    s = choice.best.strategy
    assert choice.best.estimate.fits
    assert len(set(s.devices)) == s.ranks == len(s.devices)
    assert all(p.resources.nodes[p.resources.node_of[d]].healthy for d in s.devices)
    assert sum(s.cuts) == len(p.costs.order)
    assert s.units * s.micro_batches == p.batch
    assert sum(s.share(r) for r in range(s.data)) == s.micro_batches
    assert choice.bound_s <= choice.best.estimate.effective_s * (1 + 1e-9)
    assert all(o.estimate.effective_s >= choice.best.estimate.effective_s * (1 - 1e-9) for o in choice.runners_up)
    assert choice.reason


def test_small_layers_on_fast_links_are_replicated() -> None:
    s = best(problem(model([layer(params=1000)] * 4), machines(2, devices=2)))
    assert (s.data, s.pipeline, s.tensor) == (4, 1, 1)


def test_over_a_slow_link_go_boundaries_and_not_gradients() -> None:
    """Two nodes of two: replicas exchange all gradients, stages a boundary; so stages are what lies on the two nodes."""
    p = problem(model([layer(params=4 * MIB)] * 8), machines(2, devices=2, network=SLOW))
    s = best(p)
    assert s.pipeline >= 2
    for pipe in range(s.pipeline):
        replicas = {node_of(p, s, pipe, r) for r in range(s.data)}
        assert len(replicas) == 1, "replicas of a stage share a node"
    assert sum(node_of(p, s, q, 0) != node_of(p, s, q + 1, 0) for q in range(s.pipeline - 1)) == 1, "one boundary is slow"


def test_matrices_are_cut_inside_a_node() -> None:
    """Sums of activations, layer by layer, are what must not cross a slow link."""
    p = problem(model([layer(params=1000, tensor=True)] * 2, tensor_max=2), machines(2, devices=2, network=SLOW), tensors=(2,))
    s = best(p)
    assert s.ranks == 4
    for pipe in range(s.pipeline):
        for replica in range(s.data):
            a, b = (s.devices[s.rank_at(pipe, replica, c)] for c in range(2))
            assert p.resources.level(a, b) is Level.NODE


def test_a_slow_node_gets_fewer_micro_batches() -> None:
    fair = machines(2)
    slow = replace(fair, nodes=(fair.nodes[0], replace(fair.nodes[1], pace=2.0)))
    costs = model([layer(params=1000)] * 2)
    even = best(problem(costs, fair, pipelines=(1,)))
    assert [even.share(r) for r in range(even.data)] == [6, 6]
    p = problem(costs, slow, pipelines=(1,))
    uneven = best(p)
    assert {node_of(p, uneven, 0, r): uneven.share(r) for r in range(uneven.data)} == {"n0": 8, "n1": 4}


def test_a_slow_node_gets_fewer_layers() -> None:
    fair = machines(2)
    slow = replace(fair, nodes=(fair.nodes[0], replace(fair.nodes[1], pace=2.0)))
    p = problem(model([layer()] * 6), slow, pipelines=(2,), stages_per_rank_max=1)
    s = best(p)
    layers = {node_of(p, s, pipe, 0): s.cuts[pipe] for pipe in range(2)}
    assert layers == {"n0": 4, "n1": 2}


def test_unlike_layers_are_cut_by_what_they_cost() -> None:
    """Four blocks and eight heads that cost next to nothing: not six layers each, but two blocks each."""
    costs = model([layer()] * 4 + [layer("head", params=1000, gflops=0.001)] * 8)
    s = best(problem(costs, machines(2, network=SLOW), pipelines=(2,), stages_per_rank_max=1))
    assert s.cuts[0] == 2


def test_activations_are_recomputed_only_where_memory_is_short() -> None:
    costs = model([layer(kept=200 * MIB)] * 4)
    roomy, tight = (machines(1, device=replace(CPU, memory_bytes=m * MIB)) for m in (4096, 1024))
    assert best(problem(costs, roomy)).recompute == (False,)
    assert best(problem(costs, tight)).recompute == (True,)


def test_what_fits_nowhere_is_refused_in_words() -> None:
    tiny = machines(2, device=replace(CPU, memory_bytes=400 * MIB))
    with pytest.raises(PlanError, match=r"[GM]iB"):
        choose(problem(model([layer(params=100 * MIB)] * 2), tiny))


def test_a_state_that_does_not_fit_whole_is_sharded() -> None:
    """Sixteen bytes a parameter and more: 64 M parameters are 1 GiB, half of which is the optimizer's and can be shared out."""
    device = replace(CPU, memory_bytes=1600 * MIB)
    s = best(problem(model([layer(params=16 * MIB)] * 4), machines(4, device=device), pipelines=(1,)))
    assert s.zero >= 1
    assert s.shard > 1


def test_nobody_runs_on_a_node_that_is_not_healthy() -> None:
    fair = machines(3)
    sick = replace(fair, nodes=(fair.nodes[0], replace(fair.nodes[1], healthy=False), fair.nodes[2]))
    p = problem(model([layer(params=1000)] * 2), sick)
    s = best(p)
    assert {node_of(p, s, 0, r) for r in range(s.data)} == {"n0", "n2"}


def test_copies_are_kept_where_failures_would_cost_more() -> None:
    """A pipeline without replicas: a lost rank's state is in a copy, or in a checkpoint that takes long to load."""
    safe = machines(2)
    often = replace(safe, nodes=tuple(replace(n, failures_per_hour=1.0) for n in safe.nodes))
    slow_to_load = Reliability(detect_s=1.0, restart_s=2.0, checkpoint_s=30.0, load_s=600.0)
    never, likely = (
        replace(problem(model([layer()] * 4), on, pipelines=(2,), copies=(0, 1)), reliability=slow_to_load)
        for on in (safe, often)
    )
    assert best(never).copies == 0
    assert best(likely).copies == 1
    without = choose(replace(likely, space=replace(likely.space, copies=(0,)))).best.estimate
    assert choose(likely).best.estimate.goodput > without.goodput


def test_copies_that_are_asked_for_are_no_use_beside_replicas() -> None:
    asked = problem(model([layer()] * 4), machines(2), pipelines=(2,), copies=(1,))
    assert best(asked).copies == 1
    replicas = best(problem(model([layer(params=1000)] * 4), machines(2), zeros=(0,), pipelines=(1,), copies=(1,)))
    assert (replicas.data, replicas.copies) == (2, 0)


def test_a_copy_is_on_another_node() -> None:
    """Three devices on two nodes, room for two ranks: not side by side, though that were quicker."""
    two = machines(2, devices=2, network=SLOW)
    uneven = replace(two, nodes=(two.nodes[0], replace(two.nodes[1], devices=1)))
    p = problem(model([layer()] * 4), uneven, pipelines=(2,), tensors=(1,), datas=(1,), copies=(1,), ranks_max=2)
    s = best(p)
    assert s.copies == 1
    assert {node_of(p, s, pipe, 0) for pipe in range(2)} == {"n0", "n1"}


@pytest.mark.parametrize("narrow", [{"schedules": (PipelineSchedule.ONE_F_ONE_B,)}, {"zeros": (0,)}, {"recompute": (False,)}])
def test_more_to_choose_from_is_never_a_worse_choice(narrow: dict[str, Any]) -> None:
    assert chosen_of_all() <= seconds_within(**narrow) * (1 + 1e-9)


@functools.cache
def chosen_of_all() -> float:
    """With nothing ruled out."""
    return seconds_within()


def seconds_within(**space: Any) -> float:
    """Of a step that counts, by the best choice in this space."""
    costs = model([layer("embedding", gflops=0.01)] + [layer(tensor=True)] * 10 + [layer("head", gflops=0.05)], tensor_max=2)
    return choose(problem(costs, machines(3, devices=3, network=SLOW), **space)).best.estimate.effective_s


def after_a_loss(*, steps_left: int, tensors: tuple[int, ...] = ()) -> tuple[Problem, Strategy, Choice]:
    """Four nodes of two run; the last is lost."""
    costs = model([layer(params=8 * MIB, tensor=True)] * 8, tensor_max=2)
    before = problem(costs, machines(4, devices=2), tensors=(2,), pipelines=(2,), stages_per_rank_max=1)
    old = best(before)
    left = replace(before.resources, nodes=before.resources.nodes[:3])
    survivors = replace(old, devices=tuple(d if d < left.size else -1 for d in old.devices))
    p = replace(before, resources=left, space=Space(tensors=tensors, copies=(0,)))
    choice = choose(p, Parent(survivors, steps_left=steps_left, move_bandwidth=50e6))
    check_replan(p, choice)
    return p, survivors, choice


def check_replan(p: Problem, choice: Choice) -> None:
    """What holds of every choice with a parent (runners-up may be quicker to run and dearer to move to)."""
    s = choice.best.strategy
    assert choice.best.estimate.fits
    assert len(set(s.devices)) == s.ranks == len(s.devices)
    assert max(s.devices) < p.resources.size


def test_an_exact_job_keeps_its_tensor_degree_when_a_node_is_lost() -> None:
    """Another degree would change the order of sums; `Space.tensors` is how an exact job says so."""
    _, old, choice = after_a_loss(steps_left=1000, tensors=(2,))
    assert set(choice.best.strategy.tensors) == {2} == set(old.tensors)
    assert choice.best.strategy.ranks == 6, "all that are left"


def test_the_fewer_steps_are_left_the_less_is_moved() -> None:
    """Near the end a plan that runs a little slower and leaves more state where it is takes less time in all."""
    _, _, soon = after_a_loss(steps_left=3, tensors=(2,))
    _, _, late = after_a_loss(steps_left=100_000, tensors=(2,))
    assert soon.best.moved_bytes < late.best.moved_bytes
    assert soon.best.move_s + 3 * soon.best.estimate.effective_s < late.best.move_s + 3 * late.best.estimate.effective_s
    assert late.best.estimate.effective_s <= soon.best.estimate.effective_s
    assert "to move" in soon.reason


def test_replicas_that_are_left_stay_as_they_are() -> None:
    costs = model([layer(params=1000)] * 2)
    four = problem(costs, machines(4), pipelines=(1,), zeros=(0,))
    old = best(four)
    assert old.data == 4
    three = replace(four, resources=replace(four.resources, nodes=four.resources.nodes[:3]))
    lost = old.devices.index(3)
    survivors = replace(old, devices=tuple(-1 if d == 3 else d for d in old.devices))
    choice = choose(three, Parent(survivors, steps_left=1000, move_bandwidth=50e6))
    check_replan(three, choice)
    assert choice.best.strategy.data == 3
    assert set(choice.best.strategy.devices) == {d for r, d in enumerate(old.devices) if r != lost}
    assert choice.best.moved_bytes == 0


def test_a_fresh_node_takes_the_place_of_the_lost_one() -> None:
    """The stage that survives stays where it is; the other one's state goes to the newcomer."""
    p = problem(model([layer()] * 4), machines(3), pipelines=(2,), tensors=(1,), stages_per_rank_max=1, zeros=(0,), ranks_max=2)
    two = replace(p, resources=replace(p.resources, nodes=p.resources.nodes[:2]))
    old = best(two)
    assert sorted(old.devices) == [0, 1]
    kept = old.devices.index(0)
    lost = replace(p.resources, nodes=tuple(replace(n, healthy=n.node_id != "n1") for n in p.resources.nodes))
    after = replace(p, resources=lost)
    survivors = replace(old, devices=tuple(d if d == 0 else -1 for d in old.devices))
    choice = choose(after, Parent(survivors, steps_left=10, move_bandwidth=50e6))
    check_replan(after, choice)
    new = choice.best.strategy
    assert (new.cuts, new.devices[kept], new.devices[1 - kept]) == (old.cuts, 0, 2)


def test_the_same_question_has_the_same_answer() -> None:
    p = problem(model([layer()] * 4 + [layer("head", gflops=0.03)]), machines(2, devices=2, network=SLOW))
    assert choose(p) == choose(p)
