"""Floors are no higher than estimates; sketches come near enough to them to say what to look at first."""

from __future__ import annotations

import random

import pytest

from orchestrator.core.planner.cost.estimate import Costing
from orchestrator.core.planner.search.arrange import Ground
from orchestrator.core.planner.search.cuts import even_cut
from orchestrator.core.planner.search.floors import Floors
from orchestrator.core.planner.search.leaves import Leaves
from orchestrator.core.planner.search.shapes import meshes, shapes, strategy_of
from orchestrator.core.planner.search.sketch import Sketches
from orchestrator.core.planner.search.weigh import Scale
from tests.unit.core.planner.cost.problems import random_problem
from tests.unit.core.planner.search.worlds import FAST, cluster, layer, model, node, problem


@pytest.mark.parametrize("seed", range(25))
def test_no_strategy_is_below_its_floor_or_that_of_its_mesh(seed: int) -> None:
    rng = random.Random(seed)
    asked = random_problem(rng)
    scale = Scale(asked, None, 1e9)
    floors = Floors(asked, scale.costing)
    leaves = Leaves(scale, Ground(asked.resources), floors)
    found = list(meshes(asked))
    for mesh in rng.sample(found, min(10, len(found))):
        listed = list(shapes(asked, mesh))
        for shape in rng.sample(listed, min(3, len(listed))):
            several = leaves.all(shape, 2000) or []
            for floor, (devices, cuts, shares) in rng.sample(several, min(5, len(several))):
                step_s = scale.costing.estimate(leaves.strategy(shape, devices, cuts, shares=shares)).step_s
                assert floor <= step_s * (1 + 1e-9), f"seed {seed}: {shape}"
                assert floors.mesh_s(mesh) <= step_s * (1 + 1e-9), f"seed {seed}: {mesh}"


def test_sketches_put_shapes_in_about_the_right_order() -> None:
    resources = cluster(*(node(f"n{k}", FAST, 4) for k in range(4)))
    asked = problem(model(layer(), order=(0,) * 8), resources, batch=32, ranks_min=16, uneven=False)
    scale = Scale(asked, None, 1e9)
    floors, ground = Floors(asked, scale.costing), Ground(resources)
    sketches = Sketches(scale, floors, Leaves(scale, ground, floors))
    costing = Costing(asked)
    pairs = []
    for mesh in meshes(asked):
        for shape in shapes(asked, mesh):
            cuts = even_cut(8, shape.stages)
            several = [strategy_of(shape, d, cuts, (False,) * shape.stages) for d in ground.arrangements(mesh)]
            pairs.append((sketches.shape_s(shape), min(costing.estimate(s).step_s for s in several)))
    ratios = sorted(sketch / real for sketch, real in pairs)
    assert ratios[len(ratios) // 10] > 0.8
    assert ratios[9 * len(ratios) // 10] < 1.25
    best = min(real for _, real in pairs)
    assert min(real for sketch, real in pairs if sketch <= 1.25 * min(pairs)[0]) == best
