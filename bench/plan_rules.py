"""`make bench-plan-rules`: what the planner chooses, beside the rules that people use, on public models and clusters.

The rules (takeaways of Narayanan et al., arXiv 2104.04473, section 3, and Paddle's order of axes): tensor parallel inside a
machine, then a pipeline across machines, each as small as fits; what is left are replicas; every stage has as many blocks;
activations are recomputed where the model does not fit otherwise; one forward, one backward. The rules leave some things to taste
(units of a micro-batch, ZeRO-0 or 1, replicas or stages side by side, where narrow modules go): all of these are tried, and the
best is what ours is held against. One cost model judges both, and the planner does not look at this file.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

from bench.harness import figures, say
from bench.plan_cases import TITAN, TITAN_NPU, TWO_SPEED, Case, cases
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.cost.estimate import Costing
from orchestrator.core.planner.search.choose import choose
from orchestrator.core.planner.strategy import Choice, Option, Problem, Strategy

SAME = 1e-9  # relative: less is rounding


@dataclass(frozen=True, slots=True)
class Taste:
    """What the rules leave open."""

    units: int
    zero: int
    replicas_inside: bool  # replicas side by side, then stages; else stages side by side, then replicas
    narrow_last: bool  # stages share the main blocks evenly, and what follows goes to the last; else all blocks count alike


@dataclass(frozen=True, slots=True)
class Rival:
    """What a taste leads to."""

    taste: Taste
    option: Option


def blocks_of(costs: ModelCosts, *, main_only: bool) -> tuple[int, ...]:
    """The layers that people count: those of kinds that repeat, or of the kind with the most parameters in all."""
    counts = [costs.order.count(k) for k in range(len(costs.kinds))]
    main = max(range(len(costs.kinds)), key=lambda k: counts[k] * costs.kinds[k].params)
    return tuple(i for i, k in enumerate(costs.order) if (k == main if main_only else counts[k] > 1))


def equal_cuts(costs: ModelCosts, stages: int, *, main_only: bool) -> tuple[int, ...]:
    """As many blocks for each stage, as even as can be; other layers go with the block before them, the first with the first."""
    blocks = blocks_of(costs, main_only=main_only)
    starts = [0, *(blocks[len(blocks) * s // stages] for s in range(1, stages)), len(costs.order)]
    return tuple(b - a for a, b in pairwise(starts))


def shapes(problem: Problem, blocks: int) -> Iterator[tuple[int, int]]:
    """(tensor, pipeline) in the order in which the rules try them: first inside a machine, then across."""
    inside = min(n.devices for n in problem.resources.nodes if n.healthy)
    degrees = [t for t in range(1, inside + 1) if inside % t == 0 and problem.costs.tensor_max % t == 0]
    yield from ((t, 1) for t in degrees)
    yield from ((degrees[-1], p) for p in range(2, blocks + 1))


def strategy(problem: Problem, taste: Taste, *, tensor: int, pipeline: int, recompute: bool) -> Strategy | None:
    """All devices, in their order, as these axes use them; None where there are too few devices."""
    healthy = [d for d, n in enumerate(problem.resources.node_of) if problem.resources.nodes[n].healthy]
    micro_batches = problem.batch // taste.units
    data = min(len(healthy) // (tensor * pipeline), micro_batches)
    if data < 1:
        return None
    mesh = product(range(pipeline), range(data), range(tensor))
    if taste.replicas_inside:
        devices = [(p * data + d) * tensor + t for p, d, t in mesh]
    else:
        devices = [(d * pipeline + p) * tensor + t for p, d, t in mesh]
    return Strategy(
        data=data,
        tensors=(tensor,) * pipeline,
        cuts=equal_cuts(problem.costs, pipeline, main_only=taste.narrow_last),
        schedule=PipelineSchedule.ONE_F_ONE_B,
        units=taste.units,
        micro_batches=micro_batches,
        zero=taste.zero if data > 1 else 0,
        shard=data if taste.zero else 1,
        copies=0,
        recompute=(recompute,) * pipeline,
        devices=tuple(healthy[d] for d in devices),
    )


def by_the_rules(problem: Problem, costing: Costing, taste: Taste) -> Rival | None:
    """The smallest model parallelism that fits, without recomputation if that fits."""
    for tensor, pipeline in shapes(problem, len(blocks_of(problem.costs, main_only=taste.narrow_last))):
        for recompute in (False, True):
            found = strategy(problem, taste, tensor=tensor, pipeline=pipeline, recompute=recompute)
            if found is None:
                return None
            estimate = costing.estimate(found)
            if estimate.fits:
                return Rival(taste, Option(found, estimate))
    return None


def rivals(problem: Problem) -> tuple[Rival, ...]:
    """What the rules lead to, for every taste."""
    costing = Costing(problem)
    unlike = blocks_of(problem.costs, main_only=True) != blocks_of(problem.costs, main_only=False)
    tastes = product(problem.space.units, (0, 1), (True, False), (False, True) if unlike else (False,))
    return tuple(r for t in tastes if (r := by_the_rules(problem, costing, Taste(*t))) is not None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case: the rules' strategies, and what the planner chooses with all schedules and with theirs only."""

    case: Case
    rivals: tuple[Rival, ...]
    choice: Choice
    seconds: float  # of the search for `choice`
    alike: Choice

    @property
    def rival(self) -> Rival:
        """The best by the rules."""
        return min(self.rivals, key=lambda r: r.option.estimate.step_s)

    @property
    def gain(self) -> float:
        """Its step over ours."""
        return gain(self.rivals, self.choice)

    @property
    def gain_alike(self) -> float:
        """Its step over that of ours with the same schedule."""
        return gain(self.rivals, self.alike)

    @property
    def slower(self) -> bool:
        """Whether any of the rules' strategies has a shorter step than ours, or ours does not fit."""
        return not self.choice.best.estimate.fits or self.gain < 1 - SAME


def gain(some: Sequence[Rival], choice: Choice) -> float:
    """The best step of some rivals over ours."""
    return min(r.option.estimate.step_s for r in some) / choice.best.estimate.step_s


def words(s: Strategy) -> str:
    """A strategy in a few letters: replicas, pipeline ranks (times stages on each), tensor degree, and so on."""
    stages = f"{s.pipeline}" + (f"x{s.stages_per_rank}" if s.stages_per_rank > 1 else "")
    tensor = str(s.tensor) if len(set(s.tensors)) == 1 else "/".join(str(t) for t in sorted(set(s.tensors)))
    cuts = f"{min(s.cuts)}" if len(set(s.cuts)) == 1 else f"{min(s.cuts)}-{max(s.cuts)}"
    again = sum(s.recompute)
    zero = f" zero {s.zero}" + (f"/{s.shard}" if s.shard < s.data else "") if s.zero else ""
    uneven = " uneven shares" if len({s.share(r) for r in range(s.data)}) > 1 else ""
    schedule = f" {s.schedule.value}" if s.pipeline > 1 else ""
    recompute = f" recompute {again}/{len(s.cuts)}" if again else ""
    return f"d{s.data} p{stages} t{tensor} u{s.units} cuts {cuts}{schedule}{zero}{recompute}{uneven}"


def weigh(case: Case) -> Outcome:
    """Both ways to plan."""
    theirs = rivals(case.problem)
    began = time.perf_counter()
    choice = choose(case.problem)
    seconds = time.perf_counter() - began
    plain = replace(case.problem.space, schedules=(PipelineSchedule.ONE_F_ONE_B,))
    return Outcome(case, theirs, choice, seconds, choose(replace(case.problem, space=plain)))


def table(outcome: Outcome) -> str:
    """A case in the report."""
    case = outcome.case
    lines = [f"{case.name} on {case.problem.resources.size} devices ({case.source})"]
    shown = (("rules", outcome.rival.option), ("ours", outcome.choice.best), ("1f1b", outcome.alike.best))
    for who, option in shown:
        terms = ", ".join(f"{t.name} {t.seconds:.2f}" for t in option.estimate.terms if t.seconds >= 0.005)
        lines.append(f"  {who:<6}{option.estimate.step_s:>8.2f} s  {words(option.strategy)}")
        lines.append(f"  {'':<18}{terms}")
    proven = "proven" if outcome.choice.proven else f"nothing takes less than {outcome.choice.bound_s:.2f} s"
    lines.append(
        f"  gain {outcome.gain:.3f}, with the rules' schedule {outcome.gain_alike:.3f}; "
        f"searched {outcome.seconds:.2f} s, {outcome.choice.weighed} weighed, {proven}"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The bench; 1 when ours is slower anywhere."""
    parser = argparse.ArgumentParser(prog="bench.plan_rules", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    args = parser.parse_args(argv)
    found: dict[str, Outcome] = {}
    for case in cases():
        if args.only in case.name:
            found[case.name] = weigh(case)
            say(table(found[case.name]))
    slower = sum(o.slower for o in found.values())
    values: dict[str, float | int | str | None] = {
        "cases": len(found),
        "slower_cases": slower,
        "gain_median": round(statistics.median(o.gain for o in found.values()), 3),
        "gain_1f1b_median": round(statistics.median(o.gain_alike for o in found.values()), 3),
        "gain_1f1b_min": round(min(o.gain_alike for o in found.values()), 3),
        "lost_in_width": sum(o.gain_alike > o.gain * (1 + SAME) for o in found.values()),  # more to choose from, worse choice
        "search_seconds_max": round(max(o.seconds for o in found.values()), 2),
    }
    for name, key in ((TITAN, "titan"), (TITAN_NPU, "titan_npu"), (TWO_SPEED, "two_speed")):
        if name not in found:
            continue
        outcome = found[name]
        equal = [r for r in outcome.rivals if not r.taste.narrow_last]
        values[f"{key}_gain"] = round(gain(equal, outcome.choice), 3)
        values[f"{key}_gain_1f1b"] = round(gain(equal, outcome.alike), 3)
        if len(equal) < len(outcome.rivals):  # against somebody who knows to leave narrow modules to the last stage
            values[f"{key}_gain_over_main_cuts"] = round(outcome.gain, 3)
    figures("plan-rules", **values)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
