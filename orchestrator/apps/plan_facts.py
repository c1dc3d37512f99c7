"""What `orchestrator plan` tells, as values: text, page and picture are made of these and show the same.

A Preview joins the question (Problem), what would run (Option) and what a search takes (Choice). Nothing here knows about
terminals, HTML or SVG; words for quantities are those of the status.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

from orchestrator.apps.cluster_words import cluster_words, devices_words, levels
from orchestrator.apps.report_facts import numbers
from orchestrator.apps.units import count, duration, percent, plural, seconds, size
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.plan import PipelineSchedule, Plan
from orchestrator.core.planner.strategy import Choice, Estimate, Memory, Option, Problem, Strategy, Term

MEMORY_PARTS = ("weights", "gradients", "optimizer", "copies", "activations", "work", "buffers", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A plan that was asked for, and everything that is told of it."""

    name: str  # of the job, or of the model where there is no job
    problem: Problem
    fixed: bool  # the job's axes are fixed: `shown` is what they say; else it is the choice
    shown: Option  # what would run
    choice: Choice | None  # what a search takes; None: it finds nothing, and `no_choice` says why
    no_choice: str = ""
    plan: Plan | None = None  # of a job; None where a described model or too large a cluster leaves nobody to seat
    graph: GraphView | None = None
    findings: tuple[str, ...] = ()  # of the Plan's lint

    @property
    def runners_up(self) -> tuple[Option, ...]:
        """Other plans, best first, what is shown left out."""
        if self.choice is None:
            return ()
        every = (self.choice.best, *self.choice.runners_up) if self.fixed else self.choice.runners_up
        return tuple(o for o in every if o.strategy != self.shown.strategy)


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of the pipeline."""

    stage: int
    pipe: int  # pipeline rank
    layers: str  # their numbers
    kinds: str  # folded: "1 x embedding, 12 x block"
    ranks: str
    devices: str
    recompute: bool
    params: int  # trainable elements of the stage, before tensor parallelism cuts them
    share: float  # of the model's compute, by time where it was measured


def shape(strategy: Strategy) -> str:
    """The axes of a strategy: `pipeline 4 x data 2 x tensor 8`; `one rank` where there are none."""
    tensors = sorted(set(strategy.tensors))
    tensor = str(tensors[0]) if len(tensors) == 1 else f"{tensors[0]} to {tensors[-1]}"
    axes = (("pipeline", strategy.pipeline, str(strategy.pipeline)), ("data", strategy.data, str(strategy.data)))
    words = [f"{name} {told}" for name, number, told in (*axes, ("tensor", strategy.tensor, tensor)) if number > 1]
    return " x ".join(words) or "one rank"


def details(strategy: Strategy) -> str:
    """Everything else of a strategy but its devices, in words."""
    words = []
    if strategy.data > 1:
        group = f" in groups of {strategy.shard}" if strategy.zero and strategy.shard < strategy.data else ""
        words.append(f"ZeRO-{strategy.zero}{group}")
    if strategy.pipeline > 1:
        interleaved = strategy.schedule is PipelineSchedule.INTERLEAVED
        words.append(f"{strategy.schedule}" + (f" with {strategy.stages_per_rank} stages on each rank" if interleaved else ""))
        if len(set(strategy.cuts)) > 1 and len(strategy.cuts) <= 16:
            words.append(f"layers per stage {','.join(map(str, strategy.cuts))}")
    units = f" of {strategy.units} units" if strategy.units > 1 else ""
    words.append(f"{plural(strategy.micro_batches, 'micro-batch', 'es')}{units}")
    if strategy.shares and len(set(strategy.shares)) > 1 and len(strategy.shares) <= 16:
        words.append(f"shared out {','.join(map(str, strategy.shares))}")
    redone = [s for s, again in enumerate(strategy.recompute) if again]
    if redone:
        words.append("recomputation" + ("" if len(redone) == len(strategy.cuts) else f" in stages {numbers(redone)}"))
    if strategy.copies:
        words.append("a copy of each shard on another node")
    return ", ".join(words)


def against(option: Option, shown: Option) -> str:
    """How an option's steps that count compare with those of what is shown: `12 % slower`, `as quick`."""
    a, b = option.estimate.effective_s, shown.estimate.effective_s
    if not option.estimate.fits:
        return "does not fit"
    if math.inf in (a, b):
        return "as bad" if a == b else "never ends a step" if a > b else "better"
    ratio = a / b
    if abs(ratio - 1) < 0.0005:
        return "as quick"
    return f"{percent(ratio - 1)} slower" if ratio > 1 else f"{percent(1 - ratio)} quicker"


def layer_weights(problem: Problem, strategy: Strategy) -> tuple[tuple[float, ...], bool]:
    """What each layer weighs in the compute of a step: seconds where every kind was measured on the devices used, else FLOPs.

    Returns the weights by layer and whether they are seconds.
    """
    costs, resources = problem.costs, problem.resources
    device = resources.type_of(strategy.devices[0]).name
    timed = [kind.timing(device) for kind in costs.kinds]
    if all(t is not None for t in timed):
        by_kind = [t.forward_s + t.backward_s for t in timed if t is not None]
    else:
        by_kind = [kind.forward_flops + kind.backward_flops for kind in costs.kinds]
    return tuple(by_kind[k] * strategy.units for k in costs.order), all(t is not None for t in timed)


def stage_rows(preview: Preview) -> tuple[StageRow, ...]:
    """The stages in forward order."""
    strategy, costs = preview.shown.strategy, preview.problem.costs
    weights, _ = layer_weights(preview.problem, strategy)
    whole = sum(weights) or 1.0
    rows = []
    for s, (first, last) in enumerate(strategy.bounds):
        pipe = s % strategy.pipeline
        ranks = ranks_of(strategy, pipe)
        rows.append(
            StageRow(
                stage=s,
                pipe=pipe,
                layers=numbers(range(first, last)),
                kinds=kinds_words(costs, first, last),
                ranks=numbers(ranks),
                devices=devices_words(preview.problem.resources, [strategy.devices[r] for r in ranks]),
                recompute=strategy.recompute[s],
                params=sum(costs.kinds[k].params for k in costs.order[first:last]),
                share=sum(weights[first:last]) / whole,
            )
        )
    return tuple(rows)


def ranks_of(strategy: Strategy, pipe: int) -> range:
    """The ranks of one pipeline rank's block."""
    first = strategy.first_rank[pipe]
    return range(first, first + strategy.data * strategy.tensors[pipe])


def kinds_words(costs: ModelCosts, first: int, last: int) -> str:
    """Layers [first, last) folded: `embedding, 12 x block`."""
    runs = [(k, len(list(run))) for k, run in groupby(costs.order[first:last])]
    return ", ".join(f"{n} x {costs.kinds[k].name}" if n > 1 else costs.kinds[k].name for k, n in runs) or "none"


def fullest(estimate: Estimate) -> tuple[int, Memory]:
    """The pipeline rank whose memory is nearest to its limit."""
    return max(enumerate(estimate.memory), key=lambda pair: pair[1].total / max(1, pair[1].limit))


def memory_words(memory: Memory) -> str:
    """The parts of a rank's memory that are not nothing, largest first."""
    parts = sorted(((name, getattr(memory, name)) for name in MEMORY_PARTS), key=lambda p: -p[1])
    return ", ".join(f"{name} {size(value)}" for name, value in parts if value > 0)


def too_large(estimate: Estimate) -> str:
    """In words, which pipeline rank has no room; empty where all fit."""
    if estimate.fits:
        return ""
    pipe, memory = fullest(estimate)
    return f"pipeline rank {pipe} needs {size(memory.total)} on a device of {size(memory.limit)}"


def terms(estimate: Estimate) -> list[tuple[Term, float]]:
    """The terms of the step time with their shares, largest first."""
    told = sorted((t for t in estimate.terms if t.seconds > 0), key=lambda t: -t.seconds)
    return [(t, t.seconds / estimate.step_s) for t in told]


def summary(preview: Preview) -> list[tuple[str, str]]:
    """What is planned, for what, on what, and what it promises: (label, words)."""
    shown, problem = preview.shown, preview.problem
    strategy, estimate = shown.strategy, shown.estimate
    rows = [
        ("job" if preview.plan is not None else "model", preview.name),
        (
            "plan",
            f"{shape(strategy)} on {plural(strategy.ranks, 'device')}, " + ("as the job asks" if preview.fixed else "chosen"),
        ),
        ("", details(strategy)),
    ]
    if preview.choice is not None and not preview.fixed:
        rows.append(("because", preview.choice.reason))
    folded = kinds_words(problem.costs, 0, len(problem.costs.order))
    rows += [
        ("layers", f"{folded}; {count(problem.costs.params)} parameters"),
        ("cluster", cluster_words(problem.resources)),
        *(("", f"{level}: {link}") for level, link in levels(problem.resources)),
        ("step", f"{seconds(estimate.step_s)} predicted, {throughput(preview)}"),
        ("goodput", f"{percent(estimate.goodput)} of the time in steps that count: one each {seconds(estimate.effective_s)}"),
        ("a node's loss", f"costs {duration(estimate.loss_s)} of the run"),
        ("checkpoint", checkpoint_words(estimate)),
    ]
    if too_large(estimate):
        rows.append(("memory", f"TOO MUCH: {too_large(estimate)}"))
    if preview.plan is not None:
        rows.append(("lint", "; ".join(preview.findings) or "nothing to complain about"))
    return rows


def search_words(preview: Preview) -> list[str]:
    """What a search says, line by line: how sure it is, and what it takes where the job fixes something else."""
    choice = preview.choice
    if choice is None:
        return [f"no plan could be chosen: {preview.no_choice}"]
    lines = [f"search: {proof_words(choice)}"]
    if preview.fixed and choice.best.strategy == preview.shown.strategy:
        lines.append("`parallel: auto` would take the same plan")
    elif preview.fixed:
        taken = f"{shape(choice.best.strategy)} ({details(choice.best.strategy)})"
        lines.append(f"`parallel: auto` would take {taken}: {choice.reason}")
    return lines


def other_rows(preview: Preview, *, alternatives: int) -> list[tuple[str, ...]]:
    """Up to that many other plans: shape, how it compares, step, goodput, memory, details."""
    return [
        (
            shape(o.strategy),
            against(o, preview.shown),
            seconds(o.estimate.step_s),
            percent(o.estimate.goodput),
            size(fullest(o.estimate)[1].total),
            details(o.strategy),
        )
        for o in preview.runners_up[:alternatives]
    ]


def graph_rows(costs: ModelCosts) -> list[list[str]]:
    """The graph view as rows, headings first: runs of equal layers with what one layer costs, then all of them together."""
    measured = list(dict.fromkeys(t.device for kind in costs.kinds for t in kind.timings))
    columns = ["LAYERS", "COUNT x KIND", "PARAMETERS", "FORWARD", "BACKWARD", "KEPT", "BOUNDARY"]
    rows = [[*columns, *(f"ON {d}" for d in measured)]]
    at = 0
    for k, run in groupby(costs.order):
        layers, kind = len(list(run)), costs.kinds[k]
        times = [kind.timing(d) for d in measured]
        rows.append(
            [
                numbers(range(at, at + layers)),
                f"{layers} x {kind.name}",
                count(kind.params),
                f"{count(kind.forward_flops)}FLOP",
                f"{count(kind.backward_flops)}FLOP",
                size(kind.kept_bytes),
                size(kind.boundary_bytes),
                *("-" if t is None else f"{seconds(t.forward_s)} + {seconds(t.backward_s)}" for t in times),
            ]
        )
        at += layers
    forward, backward, kept = (
        sum(getattr(layer, name) for layer in costs.layers) for name in ("forward_flops", "backward_flops", "kept_bytes")
    )
    whole = ["all", str(len(costs.order)), count(costs.params), f"{count(forward)}FLOP", f"{count(backward)}FLOP", size(kept), ""]
    return [*rows, [*whole, *("" for _ in measured)]]


def proof_words(choice: Choice) -> str:
    """How many strategies were weighed, and whether the best is proven to be that."""
    if choice.proven:
        return f"{choice.weighed:,} weighed, none of the space is better under this cost model"
    best = choice.best.estimate.effective_s
    gap = percent(1 - choice.bound_s / best)
    return f"{choice.weighed:,} weighed; not proven best: a better one could save {gap} at most"


def checkpoint_words(estimate: Estimate) -> str:
    """How often a durable checkpoint pays."""
    return f"every {plural(estimate.checkpoint_every, 'step')}" if estimate.checkpoint_every else "not worth its cost"


def throughput(preview: Preview) -> str:
    """Samples a second: tokens or images, as the model counts them."""
    problem = preview.problem
    return f"{count(problem.batch * problem.costs.samples_per_unit / preview.shown.estimate.step_s)} samples/s"
