"""`make bench-plan-regret`: the planner's choice beside the best of all strategies, under the same cost model.

300 seeded problems: up to 8 devices of up to three kinds in up to four nodes, up to 10 unlike layers, little memory. The
exhaustive search is written without the planner's: plain loops over every factorisation, ZeRO stage, shard, schedule, cut,
recomputation, dealing of micro-batches and assignment of devices, up to devices that are interchangeable. Spaces are drawn so
that all of their strategies can be weighed. Regret is how much longer an effective step of the choice takes than one of the
best.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, pairwise, permutations, product
from statistics import median, quantiles

from bench.harness import figures, say
from orchestrator.core.cluster.resources import DeviceType, Link, NodeResources, Resources
from orchestrator.core.graph.costs import LayerCost, ModelCosts
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.estimate import Costing
from orchestrator.core.planner.cost.programs import DEEPSPEED, MEGATRON, OURS
from orchestrator.core.planner.errors import PlanError
from orchestrator.core.planner.search.choose import choose
from orchestrator.core.planner.strategy import Problem, Reliability, Space, Strategy

PROBLEMS = 300
STRATEGIES_MIN, STRATEGIES_MAX = 200, 6000
REGRET_MAX = 0.02
MIB = 1 << 20


# ---------------------------------------------------------------------------------------------------- problems


def problem_of(rng: random.Random) -> Problem:
    """A random cluster, model and space."""
    devices, costs = _resources(rng), _costs(rng)
    space = Space(
        zeros=tuple(sorted(rng.sample((0, 1, 2, 3), rng.randint(1, 3)))),
        groups=rng.random() < 0.5,
        units=rng.choice([(1,), (1, 2), (2,)]),
        schedules=tuple(rng.sample(tuple(PipelineSchedule), rng.randint(1, 2))),
        stages_per_rank_max=2,
        recompute=rng.choice([(False,), (False, True), (False, True)]),
        copies=rng.choice([(0,), (0, 1)]),
        uneven=rng.random() < 0.9,
        datas=tuple(sorted(rng.sample(range(1, 9), rng.randint(2, 5)))),
        pipelines=tuple(sorted(rng.sample(range(1, 6), rng.randint(2, 4)))),
        tensors=rng.choice([(1,), (1,), (1, 2)]),
        ranks_min=rng.choice([1, devices.size // 2, devices.size]),
    )
    reliability = Reliability(
        detect_s=rng.uniform(1, 10),
        restart_s=rng.uniform(1, 30),
        checkpoint_s=rng.uniform(0, 5),
        load_s=rng.uniform(10, 100),
    )
    program = rng.choice([OURS, MEGATRON, DEEPSPEED])
    program = replace(program, rank_bytes=16 * MIB, bucket_bytes=8 * MIB)
    return Problem(costs, devices, program, rng.choice([4, 6, 8, 12]), space, reliability)


def _resources(rng: random.Random) -> Resources:
    kinds = tuple(
        DeviceType(f"k{k}", "cpu", rng.uniform(0.5e12, 3e12), rng.uniform(1e10, 5e10), rng.randint(60, 500) * MIB)
        for k in range(rng.randint(1, 3))
    )
    nodes: list[NodeResources] = []
    left = rng.randint(2, 8)
    while left and len(nodes) < 4:
        here = left if len(nodes) == 3 else rng.randint(1, left)
        kind, network = rng.choice(kinds), rng.choice([1e8, 1e9, 1e10])
        inside = Link(rng.choice([1e9, 2e10]), 2e-6)
        pace = rng.choice([1.0, 1.0, 1.0, 1.7])
        link = Link(network, 2e-5)
        rack = f"r{rng.randint(0, 1)}"
        nodes.append(
            NodeResources(f"n{len(nodes)}", kind.name, here, rack, inside, link, network * 2, pace, rng.choice([0.0, 0.02]))
        )
        left -= here
    return Resources("random", kinds, tuple(nodes), uplink=rng.choice([None, Link(1e9, 5e-5)]))


def _costs(rng: random.Random) -> ModelCosts:
    kinds = []
    for k in range(rng.randint(1, 4)):
        flops, params, kept = rng.uniform(0.2e9, 5e9), rng.randint(10_000, 3_000_000), rng.uniform(1e5, 2e7)
        cut = rng.choice([0.0, 0.9])
        kinds.append(
            LayerCost(
                name=f"kind {k}",
                params=params,
                cut_params=int(cut * params),
                buffers=0,
                forward_flops=flops,
                cut_forward_flops=cut * flops,
                backward_flops=2 * flops,
                cut_backward_flops=2 * cut * flops,
                moved_bytes=kept / 4,
                kept_bytes=kept,
                cut_kept_bytes=cut * kept,
                work_bytes=rng.uniform(0, 4e6),
                boundary_bytes=rng.uniform(1e4, 2e6),
                reduced_bytes=rng.uniform(1e5, 2e6) if cut else 0.0,
            )
        )
    order = tuple(rng.randrange(len(kinds)) for _ in range(rng.randint(2, 10)))
    return ModelCosts("random", tuple(kinds), order, 1.0, tensor_max=2, splits=True)


# ------------------------------------------------------------------------------------------- exhaustive search


def everything(problem: Problem) -> Iterator[Strategy]:
    """Every strategy of the space, each set of interchangeable ones once."""
    space, size, layers = problem.space, problem.resources.size, len(problem.costs.order)
    for tensor, pipeline, data, units in product(space.tensors, space.pipelines, space.datas, space.units):
        ranks = tensor * pipeline * data
        if not space.ranks_min <= ranks <= size or problem.batch % units or pipeline > layers:
            continue
        micro_batches = problem.batch // units
        if data > micro_batches or (not space.uneven and micro_batches % data):
            continue
        words = list(_assignments(problem.resources, ranks))
        for (schedule, stages), (zero, shard) in product(
            _pipelines(problem, pipeline, data, micro_batches), _shards(space, data)
        ):
            alone = data == shard or data == 1
            for copies, cuts in product(_copies(problem, space, ranks, alone), _cuts(layers, stages, space.uneven)):
                for recompute in product(space.recompute, repeat=stages):
                    for devices in words:
                        if copies and len({problem.resources.node_of[d] for d in devices}) == 1:
                            continue  # a copy lies on another node
                        made = Strategy(
                            data=data,
                            tensors=(tensor,) * pipeline,
                            cuts=cuts,
                            schedule=schedule,
                            units=units,
                            micro_batches=micro_batches,
                            zero=zero,
                            shard=shard,
                            copies=copies,
                            recompute=recompute,
                            devices=devices,
                        )
                        yield made
                        if space.uneven and zero < 2 and data > 1 and _unlike(problem.resources, made):
                            for inner in combinations(range(1, micro_batches), data - 1):
                                ends = (0, *inner, micro_batches)
                                yield replace(made, shares=tuple(b - a for a, b in pairwise(ends)))


def _assignments(resources: Resources, ranks: int) -> Iterator[tuple[int, ...]]:
    """Devices of each rank: one of all that differ by devices of a node, or by nodes that are alike, only."""
    seen: set[tuple[tuple[int, int], ...]] = set()
    alike = [replace(n, node_id="") for n in resources.nodes]
    for devices in permutations(range(resources.size), ranks) if ranks <= 5 else _orders(resources, ranks):
        names: dict[int, int] = {}
        word = []
        for d in devices:
            node = resources.node_of[d]
            if node not in names:
                names[node] = sum(1 for other in names if alike[other] == alike[node])
            word.append((alike.index(alike[node]), names[node]))
        if tuple(word) not in seen:
            seen.add(tuple(word))
            yield devices


def _orders(resources: Resources, ranks: int) -> Iterator[tuple[int, ...]]:
    """The same without the devices of one node in any but ascending order."""

    def extend(taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(taken) == ranks:
            yield taken
            return
        nodes = set()
        for d in range(resources.size):
            if d not in taken and resources.node_of[d] not in nodes:
                nodes.add(resources.node_of[d])
                yield from extend((*taken, d))

    return extend(())


def _pipelines(problem: Problem, pipeline: int, data: int, micro_batches: int) -> list[tuple[PipelineSchedule, int]]:
    """Schedules and numbers of stages."""
    space, layers = problem.space, len(problem.costs.order)
    if pipeline == 1:
        return [(next((s for s in space.schedules if s is not PipelineSchedule.INTERLEAVED), space.schedules[0]), 1)]
    out: list[tuple[PipelineSchedule, int]] = []
    for schedule in space.schedules:
        if schedule is not PipelineSchedule.INTERLEAVED:
            out.append((schedule, pipeline))
        elif micro_batches % (data * pipeline) == 0:
            out += [(schedule, v * pipeline) for v in range(2, space.stages_per_rank_max + 1) if v * pipeline <= layers]
    return [(s, n) for s, n in out if space.uneven or layers % n == 0]


def _shards(space: Space, data: int) -> list[tuple[int, int]]:
    if data == 1:
        return [(min(space.zeros), 1)]
    out = []
    for zero in space.zeros:
        for shard in range(1, data + 1):
            whole = shard == 1 if zero == 0 else shard == data or (space.groups and shard > 1)
            if data % shard == 0 and whole:
                out.append((zero, shard))
    return out


def _copies(problem: Problem, space: Space, ranks: int, alone: bool) -> list[int]:
    return [c for c in space.copies if c == 0 or (alone and ranks > 1 and len(problem.resources.nodes) > 1)] or [0]


def _cuts(layers: int, stages: int, uneven: bool) -> Iterator[tuple[int, ...]]:
    if not uneven:
        if layers % stages == 0:
            yield (layers // stages,) * stages
        return
    for inner in combinations(range(1, layers), stages - 1):
        ends = (0, *inner, layers)
        yield tuple(b - a for a, b in pairwise(ends))


def _unlike(resources: Resources, s: Strategy) -> bool:
    """Whether two replicas have devices of other speeds somewhere."""
    speed = [(resources.nodes[n].device, resources.nodes[n].pace) for n in resources.node_of]
    rows = set()
    for replica in range(s.data):
        places = [[s.devices[s.rank_at(p, replica, c)] for c in range(s.tensors[p])] for p in range(s.pipeline)]
        rows.add(tuple(frozenset(speed[d] for d in place) for place in places))
    return len(rows) > 1


# ------------------------------------------------------------------------------------------------------- bench


@dataclass(frozen=True, slots=True)
class Compared:
    """One problem."""

    seed: int
    strategies: int
    fitting: int
    best_s: float
    chosen_s: float
    weighed: int
    proven: bool
    exhaustive_s: float
    choose_s: float

    @property
    def regret(self) -> float:
        """How much longer the choice takes."""
        return self.chosen_s / self.best_s - 1


def draw(seed: int) -> Problem:
    """The seed's problem: the first drawn whose space is neither trivial nor too large."""
    rng = random.Random(seed)
    while True:
        problem = problem_of(rng)
        count = sum(1 for _ in islice(everything(problem), STRATEGIES_MAX + 1))
        if STRATEGIES_MIN <= count <= STRATEGIES_MAX:
            return problem


def compare(seed: int, *, effort: float = 0.0) -> Compared | None:
    """Both searches on one problem; None where both find that nothing fits."""
    problem = draw(seed)
    began = time.perf_counter()
    costing, best_s, count, fitting = Costing(problem), float("inf"), 0, 0
    for strategy in everything(problem):
        found = costing.estimate(strategy)
        count += 1
        if found.fits:
            fitting += 1
            best_s = min(best_s, found.effective_s)
    middle = time.perf_counter()
    try:
        choice = choose(problem, effort=effort)
    except PlanError:
        assert not fitting, f"seed {seed}: {fitting} strategies fit, and the planner finds none"
        return None
    ended = time.perf_counter()
    assert fitting, f"seed {seed}: the planner found a strategy where there is none"
    chosen = choice.best.estimate.effective_s
    return Compared(seed, count, fitting, best_s, chosen, choice.weighed, choice.proven, middle - began, ended - middle)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=PROBLEMS)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--effort", type=float, default=0.0, help="of the planner; 0: the usual one")
    args = parser.parse_args(argv)
    found: list[Compared] = []
    nothing, seed = 0, args.first
    while len(found) < args.problems:
        one = compare(seed, effort=args.effort)
        seed += 1
        if one is None:
            nothing += 1
            continue
        found.append(one)
        if one.regret > 1e-9 or one.regret < -1e-9:
            say(f"seed {one.seed}: regret {one.regret:.4%}, {one.strategies} strategies, proven {one.proven}")
    regrets = sorted(c.regret for c in found)
    sizes = [c.strategies for c in found]
    deciles = ", ".join(f"{q:.0f}" for q in quantiles(sizes, n=10))
    say(f"{len(found)} problems, {nothing} more in which nothing fits; strategies: deciles {deciles}, most {max(sizes)}")
    say(f"of {sum(sizes)} strategies {sum(c.fitting for c in found)} fit")
    say(f"the planner weighed or bounded {sum(c.weighed for c in found)}; {sum(c.proven for c in found)} choices proven")
    say(f"seconds: exhaustive {sum(c.exhaustive_s for c in found):.1f}, planner {sum(c.choose_s for c in found):.1f}")
    say(f"not the best: {sum(r > 1e-9 for r in regrets)}; regrets from the largest: {[round(r, 5) for r in regrets[::-1][:5]]}")
    wrong = sum(c.proven and c.regret > 1e-9 for c in found)
    figures(
        "plan-regret",
        regret_median=round(max(0.0, median(regrets)), 6),
        regret_max=round(max(0.0, *regrets), 6),
        problems=len(found),
        proven_wrongly=wrong,
    )
    return 0 if median(regrets) <= 1e-9 and max(regrets) <= REGRET_MAX and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
