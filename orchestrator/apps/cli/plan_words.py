"""`orchestrator plan` as text: the plan, its predicted step, memory, failures, what else was weighed, and the graph view.

Plain lines without colour, like everything that the program prints on stdout; bars are of `#`, a length one can compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.apps import plan_facts as facts
from orchestrator.apps.cli.render import count, duration, size, table
from orchestrator.apps.plan_facts import Preview, percent, plural, seconds
from orchestrator.apps.report_facts import numbers
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.planner.strategy import Memory

BAR = 30  # characters of a whole
STAGES_MAX = 24  # rows; more are folded in the middle


def preview_lines(preview: Preview, *, alternatives: int) -> list[str]:
    """Everything about a plan, with up to that many others beside it."""
    lines = [*head_lines(preview), "", *step_lines(preview), "", *stage_lines(preview), "", *memory_lines(preview)]
    lines += ["", *search_lines(preview, alternatives=alternatives)]
    return lines


def head_lines(preview: Preview) -> list[str]:
    """What is planned, for what, on what, and what it promises."""
    shown, problem = preview.shown, preview.problem
    strategy, estimate = shown.strategy, shown.estimate
    what = f"{facts.shape(strategy)} on {plural(strategy.ranks, 'device')} ({'the job fixes it' if preview.fixed else 'chosen'})"
    per_sample = facts.throughput(preview)
    rows = [
        ("job" if preview.plan is not None else "model", preview.name),
        ("plan", what),
        ("", facts.details(strategy)),
        ("model", f"{count(problem.costs.params)} parameters, {facts.kinds_words(problem.costs, 0, len(problem.costs.order))}"),
        ("cluster", facts.cluster_words(problem.resources)),
        *(("", f"{level}: {link}") for level, link in facts.levels(problem.resources)),
        ("step", f"{seconds(estimate.step_s)} predicted, {per_sample} samples"),
        ("goodput", f"{percent(estimate.goodput)} of the time in steps that count: one each {seconds(estimate.effective_s)}"),
        ("a node's loss", f"costs {duration(estimate.loss_s)} of the run"),
        (
            "checkpoint",
            f"every {plural(estimate.checkpoint_every, 'step')}" if estimate.checkpoint_every else "not worth its cost",
        ),
    ]
    if preview.choice is not None and not preview.fixed:
        rows.append(("why", preview.choice.reason))
    if preview.plan is not None:
        rows.append(("lint", "; ".join(preview.findings) or "nothing to complain about"))
    return table(rows)


def step_lines(preview: Preview) -> list[str]:
    """The predicted step time in its terms, as bars."""
    estimate = preview.shown.estimate
    rows = [("STEP TIME", "", "", "")]
    for term in sorted(estimate.terms, key=lambda t: -t.seconds):
        if term.seconds > 0:
            share = term.seconds / estimate.step_s
            rows.append((term.name, seconds(term.seconds), percent(share), bar(share)))
    return table(rows)


def stage_lines(preview: Preview) -> list[str]:
    """Stages with their layers and devices."""
    head = ("STAGE", "LAYERS", "WHAT", "COMPUTE", "RANKS", "DEVICES", "RECOMPUTES")
    rows = [
        (
            str(r.stage),
            r.layers,
            f"{r.kinds} ({count(r.params)} parameters)",
            percent(r.share),
            r.ranks,
            r.devices,
            "yes" if r.recompute else "no",
        )
        for r in facts.stage_rows(preview)
    ]
    return table([head, *folded(rows)])


def memory_lines(preview: Preview) -> list[str]:
    """Memory of the fullest device of each pipeline rank, against its limit."""
    head = ("MEMORY", "RANKS", "PEAK", "LIMIT", "", "CONSISTS OF")
    strategy = preview.shown.strategy
    rows = [
        (
            f"pipeline {pipe}",
            numbers(facts.ranks_of(strategy, pipe)),
            size(m.total),
            size(m.limit),
            "TOO MUCH" if m.total > m.limit else bar(m.total / m.limit, length=BAR // 3),
            memory_words(m),
        )
        for pipe, m in enumerate(preview.shown.estimate.memory)
    ]
    return table([head, *folded(rows)])


def memory_words(memory: Memory) -> str:
    """The parts, largest first."""
    parts = sorted(facts.memory_parts(memory), key=lambda p: -p[1])
    return ", ".join(f"{name} {size(value)}" for name, value in parts)


def search_lines(preview: Preview, *, alternatives: int) -> list[str]:
    """What a search says: what it would take instead, runners-up, what was rejected and why, and how sure that is."""
    choice = preview.choice
    if choice is None:
        return [f"no plan could be chosen: {preview.no_choice}"]
    lines = [f"search: {facts.proof_words(choice)}"]
    if preview.fixed and choice.best.strategy != preview.shown.strategy:
        best = choice.best
        lines.append(
            f"`parallel: auto` would take {facts.shape(best.strategy)} ({facts.details(best.strategy)}): {choice.reason}"
        )
    elif preview.fixed:
        lines.append("`parallel: auto` would take the same plan")
    others = preview.runners_up[:alternatives]
    if others:
        rows = [("INSTEAD", "", "STEP", "GOODPUT", "MEMORY", "HOW")]
        for o in others:
            _, memory = facts.fullest(o.estimate)
            rows.append(
                (
                    facts.shape(o.strategy),
                    facts.against(o, preview.shown),
                    seconds(o.estimate.step_s),
                    percent(o.estimate.goodput),
                    size(memory.total),
                    facts.details(o.strategy),
                )
            )
        lines += ["", *table(rows)]
    if choice.rejected:
        rejected = [("REJECTED", "WHY", "STRATEGIES"), *((r.what, r.why, f"{r.count:,}") for r in choice.rejected)]
        lines += ["", *table(rejected)]
    return lines


def graph_lines(costs: ModelCosts) -> list[str]:
    """The graph view: equal layers in a row folded, costs of one layer and one unit."""
    measured = list(dict.fromkeys(t.device for kind in costs.kinds for t in kind.timings))
    head = [
        "LAYERS",
        "COUNT x KIND",
        "PARAMETERS",
        "FORWARD",
        "BACKWARD",
        "KEPT",
        "BOUNDARY",
        *(f"ON {d.upper()}" for d in measured),
    ]
    rows = [head]
    for block in facts.blocks(costs):
        kind = costs.kinds[block.kind]
        times = [kind.timing(d) for d in measured]
        rows.append(
            [
                numbers(range(block.first, block.first + block.layers)),
                f"{block.layers} x {kind.name}",
                count(kind.params),
                f"{count(kind.forward_flops)}FLOP",
                f"{count(kind.backward_flops)}FLOP",
                size(kind.kept_bytes),
                size(kind.boundary_bytes),
                *("-" if t is None else f"{seconds(t.forward_s)} + {seconds(t.backward_s)}" for t in times),
            ]
        )
    forward = sum(costs.kinds[k].forward_flops for k in costs.order)
    backward = sum(costs.kinds[k].backward_flops for k in costs.order)
    kept = sum(costs.kinds[k].kept_bytes for k in costs.order)
    last = ["all", str(len(costs.order)), count(costs.params), f"{count(forward)}FLOP", f"{count(backward)}FLOP", size(kept), ""]
    rows.append([*last, *("" for _ in measured)])
    unit = "one unit (a micro-batch of the task, or a sample of a model file)"
    told = [f"graph view of {costs.name}: of one layer and {unit}"]
    told += [] if measured else ["no kind of layer was measured: FLOPs and bytes are what the formulas or the trace say"]
    return [*told, "", *table(rows)]


def bar(share: float, *, length: int = BAR) -> str:
    """A share of a whole as a bar."""
    return "#" * round(length * min(1.0, max(0.0, share)))


def folded(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """At most STAGES_MAX rows: the first and the last of more, and a line that says how many are left out."""
    if len(rows) <= STAGES_MAX:
        return list(rows)
    half = STAGES_MAX // 2
    gap = (f"... {len(rows) - 2 * half} more", *("" for _ in rows[0][1:]))
    return [*rows[:half], gap, *rows[-half:]]
