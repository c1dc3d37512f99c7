"""Predictions of `make bench-plan-accuracy` held against what was measured: one plan, and the figures of many."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from bench.plan_accuracy_models import Case
from bench.plan_accuracy_world import COUNTED_FROM, Place, RankRun, plan_of, run, seats
from orchestrator.core.cluster.resources import Resources
from orchestrator.core.graph.costs import ModelCosts, Timing
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job, TrainSettings
from orchestrator.core.planner.auto import problem_of, strategy_of
from orchestrator.core.planner.cost.estimate import estimate
from orchestrator.core.planner.strategy import Estimate
from orchestrator.engine.describe import describe

LOW = 0.2  # percentile
MIB = 1 << 20
COUNTED_S = 1.2  # of steps that count, in a round
STEPS_MIN, STEPS_MAX = 3, 12


@cache
def graph_of(job: Job) -> GraphView:
    """What a model's state consists of, looked at once."""
    return describe(job)


def predict(case: Case, costs: ModelCosts, resources: Resources, places: Sequence[Place]) -> Estimate:
    """What the planner says of a plan; device n of the resources is places[n]."""
    job = case.job
    plan = plan_of(job, graph_of(case.model.job()), places)
    return estimate(problem_of(job, costs=costs, resources=resources), strategy_of(plan, seats(plan)))


def merged(profiles: Sequence[ModelCosts], by: Callable[[Sequence[float]], float]) -> ModelCosts:
    """One of several profiles of a model on one type of device: the mean, the median ... of their timings."""
    kinds = []
    for same in zip(*(p.kinds for p in profiles), strict=True):
        timings = [k.timings[-1] for k in same]
        one = Timing(timings[0].device, by([t.forward_s for t in timings]), by([t.backward_s for t in timings]))
        kinds.append(replace(same[0], timings=(one,)))
    return replace(profiles[0], kinds=tuple(kinds))


@dataclass
class Outcome:
    """One plan: predicted, then measured."""

    case: Case
    predicted: Estimate
    step_s: list[float] = field(default_factory=list)
    memory: list[tuple[int, ...]] = field(default_factory=list)  # by rank, of each round
    phases: dict[str, float] = field(default_factory=dict)
    base: int = 0  # bytes of a process that trains next to nothing

    @property
    def name(self) -> str:
        """Of the model and of the plan."""
        return f"{self.case.model.name} {self.case.words}"

    @property
    def measured_s(self) -> float:
        """Seconds of an undisturbed step."""
        return percentile(self.step_s, LOW)

    @property
    def step_error(self) -> float:
        """Relative and signed: above zero it was slower than predicted."""
        return self.measured_s / self.predicted.step_s - 1

    @property
    def fullest(self) -> tuple[tuple[float, float], ...]:
        """Predicted and measured bytes of each pipeline rank's process at its peak: of the fullest of its ranks."""
        per_pipe = self.case.job.parallel.data * self.case.job.parallel.tensor
        out = []
        for pipe, memory in enumerate(self.predicted.memory):
            ranks = range(pipe * per_pipe, (pipe + 1) * per_pipe)
            out.append((memory.total, max(statistics.median(m[r] for m in self.memory) for r in ranks)))
        return tuple(out)

    @property
    def memory_errors(self) -> tuple[float, ...]:
        """Relative and signed: above zero it needed more than predicted."""
        return tuple(measured / predicted - 1 for predicted, measured in self.fullest)

    @property
    def beside_errors(self) -> tuple[float, ...]:
        """The same for what there is beside a process that trains next to nothing."""
        return tuple((measured - self.base) / (predicted - self.base) - 1 for predicted, measured in self.fullest)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of them is below."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: Pearson's of the places."""

    def places(values: Sequence[float]) -> list[float]:
        order = sorted(values)
        return [float(order.index(v)) for v in values]

    return statistics.correlation(places(a), places(b))


def measure(outcome: Outcome, places: Sequence[Place], base: int) -> None:
    """One round of a plan."""
    counted = max(STEPS_MIN, min(STEPS_MAX, round(COUNTED_S / outcome.predicted.step_s)))
    job = outcome.case.job
    train: TrainSettings = replace(job.train, steps=COUNTED_FROM - 1 + counted)
    runs: list[RankRun] = run(replace(job, train=train), places)
    outcome.base = base
    outcome.step_s += runs[0].step_s
    outcome.memory.append(tuple(r.peak_bytes for r in runs))
    for phase, seconds in runs[0].phases.items():
        per_step = seconds / len(runs[0].step_s)
        outcome.phases[phase] = min(per_step, outcome.phases.get(phase, per_step))


def table(outcomes: Sequence[Outcome], *, detail: bool) -> str:
    """For people."""
    lines = [
        f"{'model':5} {'plan':30} {'predicted':>10} {'measured':>10} {'error':>7}   {'memory':>9} {'measured':>9} {'error':>7}"
    ]
    for o in outcomes:
        (predicted, measured), error = max(zip(o.fullest, o.memory_errors, strict=True), key=lambda x: abs(x[1]))
        lines.append(
            f"{o.case.model.name:5} {o.case.words:30} {o.predicted.step_s * 1e3:7.1f} ms {o.measured_s * 1e3:7.1f} ms "
            f"{o.step_error:+7.1%}   {predicted / MIB:5.0f} MiB {measured / MIB:5.0f} MiB {error:+7.1%}"
        )
        if detail:
            terms = ", ".join(f"{t.name} {t.seconds * 1e3:.1f}" for t in o.predicted.terms if t.seconds > 1e-4)
            phases = ", ".join(f"{name} {s * 1e3:.1f}" for name, s in o.phases.items() if s > 1e-4)
            lines.append(f"      predicted ms: {terms}")
            lines.append(f"      rank 0's ms:  {phases}")
            parts = ("weights", "gradients", "optimizer", "copies", "activations", "work", "buffers")
            for memory, (predicted, measured) in zip(o.predicted.memory, o.fullest, strict=True):
                shown = ", ".join(f"{p} {getattr(memory, p) / MIB:.0f}" for p in parts)
                lines.append(f"      memory MiB:   {shown}: {predicted / MIB:.0f}, measured {measured / MIB:.0f}")
    return "\n".join(lines)


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The figures of some plans."""
    step = [abs(o.step_error) for o in outcomes]
    memory = [error for o in outcomes for error in o.memory_errors]
    return {
        "step_error_median": round(statistics.median(step), 4),
        "step_error_p90": round(percentile(step, 0.9), 4),
        "rank_correlation": round(rank_correlation([o.predicted.step_s for o in outcomes], [o.measured_s for o in outcomes]), 4),
        "memory_error_median": round(statistics.median(map(abs, memory)), 4),
        "memory_under_max": round(max(0.0, *memory), 4),
        "memory_beside_error_median": round(statistics.median(abs(e) for o in outcomes for e in o.beside_errors), 4),
        "plans": len(outcomes),
        "models": len({o.case.model.name for o in outcomes}),
    }
