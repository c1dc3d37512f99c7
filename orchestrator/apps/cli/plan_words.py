"""Plans as text, for `orchestrator plan` and `explain plan`: predicted step, memory, what else was weighed, the graph view.

Plain lines without colour, like everything that the program prints on stdout; bars are of `#`, a length one can compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.apps import plan_facts as facts
from orchestrator.apps import prediction_words
from orchestrator.apps.cli.render import table
from orchestrator.apps.plan_facts import Preview
from orchestrator.apps.report_facts import numbers
from orchestrator.apps.strategy_words import against, details, memory_words, proof_words, ranks_of, shape, terms
from orchestrator.apps.units import count, percent, seconds, size
from orchestrator.core.graph.costs import ModelCosts
from orchestrator.runtime.explain import EpochStory

BAR = 30  # characters of a whole
ROWS_MAX = 12  # of a table; more are folded in the middle
REJECTED_MAX = 8  # classes of strategies


def preview_lines(preview: Preview, *, alternatives: int) -> list[str]:
    """Everything about a plan, with up to that many others beside it."""
    parts = (step_lines(preview), stage_lines(preview), memory_lines(preview), search_lines(preview, alternatives=alternatives))
    lines = table(facts.summary(preview))
    for part in parts:
        lines += ["", *part]
    return lines


def step_lines(preview: Preview) -> list[str]:
    """The predicted step time in its terms, as bars."""
    parts = terms(preview.shown.estimate)
    return table([("STEP TIME", "", "", ""), *((t.name, seconds(t.seconds), percent(share), bar(share)) for t, share in parts)])


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
            numbers(ranks_of(strategy, pipe)),
            size(m.total),
            size(m.limit),
            "TOO MUCH" if m.total > m.limit else bar(m.total / m.limit, length=BAR // 3),
            memory_words(m),
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
    rejected = facts.rejected_rows(preview, most=REJECTED_MAX)
    if rejected:
        lines += ["", *table([("REJECTED", "WHY", "STRATEGIES"), *rejected])]
    return lines


def graph_lines(costs: ModelCosts) -> list[str]:
    """The graph view: equal layers in a row folded, costs of one layer and one unit."""
    told = [f"graph view of {costs.name}: of one layer and one unit (a micro-batch of the task, or a sample of a model file)"]
    if not any(kind.timings for kind in costs.kinds):
        told.append("no kind of layer was measured: FLOPs and bytes are what the trace or the formulas say")
    return [*told, "", *table(facts.graph_rows(costs))]


def story_lines(story: EpochStory) -> list[str]:
    """The plan of one epoch of a job: why, what was expected of it, what else was weighed, what came of it."""
    lines = [f"epoch {story.plan.epoch}, record #{story.seq}: {story.plan.reason}"]
    if story.reason:
        lines.append(f"  decided because: {story.reason}")
    expected = story.expected
    if expected is None:
        return [*lines, f"  {prediction_words.NOTHING}"]
    estimate = expected.estimate
    parts = ", ".join(f"{term.name} {percent(share)}" for term, share in terms(estimate))
    lines.append(f"  expected: {seconds(estimate.step_s)} a step ({parts}), goodput {percent(estimate.goodput)}")
    if expected.moved_bytes:
        lines.append(f"  getting there: {size(expected.moved_bytes)} move, {seconds(expected.move_s)}")
    if story.prediction is not None:
        lines.append(f"  step time: {prediction_words.step_words(story.prediction)}")
    if story.choice is None:
        return [*lines, "  it was not chosen among others: the same plan with other workers, or one made by a rule"]
    lines.append(f"  search: {proof_words(story.choice)}")
    lines += [f"  instead: {shape(o.strategy)}, {details(o.strategy)}: {against(o, expected)}" for o in story.choice.runners_up]
    lines += [f"  rejected: {r.what}: {r.why} ({r.count:,})" for r in story.choice.rejected[:REJECTED_MAX]]
    left = len(story.choice.rejected) - REJECTED_MAX
    return [*lines, f"  rejected: {left} more, named by --json"] if left > 0 else lines


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
