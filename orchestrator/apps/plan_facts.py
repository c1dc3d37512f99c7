"""What `orchestrator plan` tells, as values: text, page and picture are made of these and show the same.

A Preview joins the question (Problem), what would run (Option) and what a search takes (Choice). Nothing here knows about
terminals, HTML or SVG; words for quantities are those of the status.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from orchestrator.apps.cluster_words import cluster_words, devices_words, levels
from orchestrator.apps.report_facts import numbers
from orchestrator.apps.strategy_words import (
    against,
    checkpoint_words,
    details,
    fullest,
    kinds_words,
    proof_words,
    ranks_of,
    shape,
    too_large,
)
from orchestrator.apps.units import count, duration, flop, percent, plural, seconds, size
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.strategy import Choice, Option, Problem, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A plan that was asked for, and everything that is told of it."""

    name: str  # of the job, or of the model where there is no job
    problem: Problem
    fixed: bool  # the job's axes are fixed: `shown` is what they say; else it is the choice
    shown: Option  # what would run
    choice: Choice | None  # what a search takes; None: it finds nothing, and `no_choice` says why
    no_choice: str = ""
    plan: Plan | None = None  # of a job; None where nobody is seated, and `unseated` says why
    unseated: str = ""
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


def layer_weights(problem: Problem, strategy: Strategy) -> tuple[tuple[float, ...], bool]:
    """What each layer weighs in the compute of a step: seconds of a unit where every kind was measured, else its FLOPs.

    Measured means: on the type of device that rank 0 has. Returns the weights by layer and whether they are seconds.
    """
    costs, resources = problem.costs, problem.resources
    device = resources.type_of(strategy.devices[0]).name
    timed = [kind.timing(device) for kind in costs.kinds]
    if all(t is not None for t in timed):
        by_kind = [t.forward_s + t.backward_s for t in timed if t is not None]
    else:
        by_kind = [kind.forward_flops + kind.backward_flops for kind in costs.kinds]
    return tuple(by_kind[k] for k in costs.order), all(t is not None for t in timed)


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


def summary(preview: Preview) -> list[tuple[str, str]]:
    """What is planned, for what, on what, and what it promises: (label, words)."""
    shown, problem = preview.shown, preview.problem
    strategy, estimate = shown.strategy, shown.estimate
    rows = [
        ("for", preview.name),
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
        ("step", f"{seconds(estimate.step_s)} predicted for {throughput(preview)}"),
        ("goodput", f"{percent(estimate.goodput)} of the time in steps that count: one each {seconds(estimate.effective_s)}"),
        ("a node's loss", f"costs {duration(estimate.loss_s)} of the run"),
        ("checkpoint", checkpoint_words(estimate)),
    ]
    if too_large(estimate):
        rows.append(("memory", f"TOO MUCH: {too_large(estimate)}"))
    if preview.plan is not None:
        rows.append(("lint", "; ".join(preview.findings) or "nothing to complain about"))
    if preview.unseated:
        rows.append(("seats", f"none, and nothing is linted: {preview.unseated}"))
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


def rejected_rows(preview: Preview, *, most: int) -> list[tuple[str, ...]]:
    """What was not taken, why, and how many strategies that is; the first `most`, and a row that says how many are left out."""
    every = preview.choice.rejected if preview.choice is not None else ()
    rows: list[tuple[str, ...]] = [(r.what, r.why, f"{r.count:,}") for r in every[:most]]
    left = every[most:]
    return [*rows, (f"... {len(left)} more", "--json names them all", f"{sum(r.count for r in left):,}")] if left else rows


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
                flop(kind.forward_flops),
                flop(kind.backward_flops),
                size(kind.kept_bytes),
                size(kind.boundary_bytes),
                *("-" if t is None else f"{seconds(t.forward_s)} + {seconds(t.backward_s)}" for t in times),
            ]
        )
        at += layers
    forward, backward, kept = (
        sum(getattr(layer, name) for layer in costs.layers) for name in ("forward_flops", "backward_flops", "kept_bytes")
    )
    whole = ["all", str(len(costs.order)), count(costs.params), flop(forward), flop(backward), size(kept), ""]
    return [*rows, [*whole, *("" for _ in measured)]]


def throughput(preview: Preview) -> str:
    """What a step works on, and how much of it a second."""
    problem = preview.problem
    samples = problem.costs.samples_per_unit
    a_second = count(problem.batch * samples / preview.shown.estimate.step_s)
    each = f"{count(samples)} {'sample' if samples == 1 else 'samples'} (tokens, images)"
    return f"{plural(problem.batch, 'unit')} of {each}, {a_second} samples/s"
