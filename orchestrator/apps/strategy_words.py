"""Strategies, estimates and choices in words: the axes of a plan, what else is of it, its terms, its memory, how sure it is."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import groupby

from orchestrator.apps.report_facts import numbers
from orchestrator.apps.units import duration, percent, plural, size
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.core.planner.strategy import Choice, Estimate, Memory, Option, Strategy, Term

RUNS_MAX = 4  # of equal layers, in a line of words
SEEN = 0.0005  # of the step time
RARE_S = 30 * 24 * 3600.0  # checkpoints further apart than that are not told as an interval
MEMORY_PARTS = tuple(part.name for part in fields(Memory) if part.name != "limit")


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
    if strategy.copies and strategy.shard == strategy.data:
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


def kinds_words(costs: ModelCosts, first: int, last: int) -> str:
    """Layers [first, last) folded: `embedding, 12 x block`; of many runs the first few."""
    runs = [(k, len(list(run))) for k, run in groupby(costs.order[first:last])]
    told = ", ".join(f"{n} x {costs.kinds[k].name}" if n > 1 else costs.kinds[k].name for k, n in runs[:RUNS_MAX])
    return told + (f" and {plural(sum(n for _, n in runs[RUNS_MAX:]), 'layer')} more" if len(runs) > RUNS_MAX else "")


def ranks_of(strategy: Strategy, pipe: int) -> range:
    """The ranks of one pipeline rank's block."""
    first = strategy.first_rank[pipe]
    return range(first, first + strategy.data * strategy.tensors[pipe])


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
    """The terms of the step time with their shares, largest first; those that cannot be seen are left out."""
    told = sorted((t for t in estimate.terms if t.seconds >= SEEN * estimate.step_s), key=lambda t: -t.seconds)
    return [(t, t.seconds / estimate.step_s) for t in told]


def checkpoint_words(estimate: Estimate) -> str:
    """How often a durable checkpoint pays."""
    apart_s = estimate.checkpoint_every * estimate.step_s
    if not 0 < apart_s < RARE_S:
        return "hardly ever worth its cost: it takes the loss of every holder of some state at once"
    return f"every {plural(estimate.checkpoint_every, 'step')}, {duration(apart_s)}"


def proof_words(choice: Choice) -> str:
    """How many strategies were weighed, and whether the best is proven to be that."""
    if choice.proven:
        return f"{choice.weighed:,} weighed, none of the space is better under this cost model"
    best = choice.best.estimate.effective_s
    gap = percent(1 - choice.bound_s / best)
    return f"{choice.weighed:,} weighed; not proven best: a better one could save {gap} at most"
