"""`orchestrator plan` as text: the plan, its predicted step, memory, failures, what else was weighed, and the graph view.

Plain lines without colour, like everything that the program prints on stdout; bars are of `#`, a length one can compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.apps import plan_facts as facts
from orchestrator.apps.cli.render import table
from orchestrator.apps.plan_facts import Preview
from orchestrator.apps.report_facts import numbers
from orchestrator.apps.units import count, percent, seconds, size
from orchestrator.core.graph.costs import ModelCosts

BAR = 30  # characters of a whole
ROWS_MAX = 24  # of a table; more are folded in the middle


def preview_lines(preview: Preview, *, alternatives: int) -> list[str]:
    """Everything about a plan, with up to that many others beside it."""
    parts = (step_lines(preview), stage_lines(preview), memory_lines(preview), search_lines(preview, alternatives=alternatives))
    lines = table(facts.summary(preview))
    for part in parts:
        lines += ["", *part]
    return lines


def step_lines(preview: Preview) -> list[str]:
    """The predicted step time in its terms, as bars."""
    terms = facts.terms(preview.shown.estimate)
    return table([("STEP TIME", "", "", ""), *((t.name, seconds(t.seconds), percent(share), bar(share)) for t, share in terms)])


def stage_lines(preview: Preview) -> list[str]:
    """Stages with their layers and devices."""
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
    return table([("STAGE", "LAYERS", "WHAT", "COMPUTE", "RANKS", "DEVICES", "RECOMPUTES"), *folded(rows)])


def memory_lines(preview: Preview) -> list[str]:
    """Memory of the fullest device of each pipeline rank, against its limit."""
    strategy = preview.shown.strategy
    rows = [
        (
            f"pipeline {pipe}",
            numbers(facts.ranks_of(strategy, pipe)),
            size(m.total),
            size(m.limit),
            "TOO MUCH" if m.total > m.limit else bar(m.total / m.limit, length=BAR // 3),
            facts.memory_words(m),
        )
        for pipe, m in enumerate(preview.shown.estimate.memory)
    ]
    return table([("MEMORY", "RANKS", "PEAK", "LIMIT", "", "CONSISTS OF"), *folded(rows)])


def search_lines(preview: Preview, *, alternatives: int) -> list[str]:
    """What a search says: what it would take instead, runners-up, what was rejected and why, and how sure that is."""
    lines = facts.search_words(preview)
    others = facts.other_rows(preview, alternatives=alternatives)
    if others:
        lines += ["", *table([("INSTEAD", "", "STEP", "GOODPUT", "MEMORY", "HOW"), *others])]
    rejected = preview.choice.rejected if preview.choice is not None else ()
    if rejected:
        lines += ["", *table([("REJECTED", "WHY", "STRATEGIES"), *((r.what, r.why, f"{r.count:,}") for r in rejected)])]
    return lines


def graph_lines(costs: ModelCosts) -> list[str]:
    """The graph view: equal layers in a row folded, costs of one layer and one unit."""
    told = [f"graph view of {costs.name}: of one layer and one unit (a micro-batch of the task, or a sample of a model file)"]
    if not any(kind.timings for kind in costs.kinds):
        told.append("no kind of layer was measured: FLOPs and bytes are what the trace or the formulas say")
    return [*told, "", *table(facts.graph_rows(costs))]


def bar(share: float, *, length: int = BAR) -> str:
    """A share of a whole as a bar."""
    return "#" * round(length * min(1.0, max(0.0, share)))


def folded(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """At most ROWS_MAX rows: the first and the last of more, and a line that says how many are left out."""
    if len(rows) <= ROWS_MAX:
        return list(rows)
    half = ROWS_MAX // 2
    gap = (f"... {len(rows) - 2 * half} more", *("" for _ in rows[0][1:]))
    return [*rows[:half], gap, *rows[-half:]]
