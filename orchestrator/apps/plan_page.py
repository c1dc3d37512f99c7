"""The HTML page of a plan: its pictures, its prediction and what else was weighed, one file without any outside resource.

It shows what the text shows, and takes its rows from the same functions; the style is the report's.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from orchestrator.apps import plan_facts as facts
from orchestrator.apps import plan_svg as svg
from orchestrator.apps.pages import template
from orchestrator.apps.plan_facts import Preview
from orchestrator.apps.strategy_words import details, memory_words, shape, terms, too_large
from orchestrator.apps.units import percent, seconds, size

TEMPLATE = "plan.html.j2"
BAR = 220  # pixels of a whole
REJECTED_MAX = 100  # classes of strategies
IDS = ("cluster", "layers", "timeline")  # of the pictures, in order


def render_page(preview: Preview, pictures: Sequence[svg.Picture], *, alternatives: int) -> str:
    """The page as HTML text."""
    strategy, estimate = preview.shown.strategy, preview.shown.estimate
    return template(TEMPLATE).render(
        name=preview.name,
        shape=shape(strategy),
        details=details(strategy),
        too_large=too_large(estimate),
        findings=preview.findings,
        summary=[row for row in facts.summary(preview) if row[0] != "lint"],
        picture_style=Markup(svg.STYLE),
        pictures=[(i, p.title, svg.inline(p)) for i, p in zip(IDS, pictures, strict=False)],
        terms=[(t.name, seconds(t.seconds), percent(s), round(BAR * s)) for t, s in terms(estimate)],
        stages=facts.stage_rows(preview),
        memory=[
            {
                "pipe": pipe,
                "total": size(m.total),
                "limit": size(m.limit),
                "fits": m.total <= m.limit,
                "width": round(BAR * min(1.0, m.total / m.limit)),
                "parts": memory_words(m),
            }
            for pipe, m in enumerate(estimate.memory)
        ],
        search=facts.search_words(preview),
        others=facts.other_rows(preview, alternatives=alternatives),
        rejected=facts.rejected_rows(preview, most=REJECTED_MAX),
        model=preview.problem.costs.name,
        graph=facts.graph_rows(preview.problem.costs),
    )
