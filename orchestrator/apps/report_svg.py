"""The report's pictures as inline SVG, made by hand: a loss curve, a timeline of one failure, a bar that shows where time went.

Colours are classes that the page's style sheet defines for light and dark, so a picture holds no colour of its own. Long runs are
thinned so that every bucket keeps its lowest and highest point: a spike never disappears.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from orchestrator.apps.report_facts import DETECTED, FENCED, FIRST_SIGN, FIRST_STEP, LAST_STEP, PLANNED, RESTORED, Failure, Points

WIDTH, HEIGHT = 860, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 22, 34
POINTS_MAX = 1500  # of a line
HOVER_MAX = 400  # points that show their value under the mouse
TICKS = 5
BAR_HEIGHT = 26

# Segments of a failure's timeline: from one milestone to the next, with the class that colours it.
SEGMENTS = (
    (LAST_STEP, DETECTED, "s6", "until it was detected"),
    (DETECTED, FENCED, "s2", "survivors leave the epoch"),
    (FENCED, PLANNED, "s3", "waiting for a spare"),
    (PLANNED, RESTORED, "s4", "groups and state"),
    (RESTORED, FIRST_STEP, "s1", "first step"),
)


def loss_chart(*, run: Points, undisturbed: Points, held_out: Points, marks: Sequence[Failure]) -> Markup:
    """Loss in nats over steps; the undisturbed run dashed on top, a vertical line for each failure."""
    every = [*run, *undisturbed, *held_out]
    if not every:
        return Markup("")
    steps = [s for s, _ in every]
    losses = [v for _, v in every]
    x0, x1 = min(steps), max(max(steps), min(steps) + 1)
    ticks = nice_ticks(min(losses), max(losses))
    y0, y1 = min(ticks[0], min(losses)), max(ticks[-1], max(losses))

    def x(step: float) -> float:
        return LEFT + (step - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (y1 - loss) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss over steps">']
    for tick in ticks:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in sorted({round(t) for t in nice_ticks(x0, x1) if x0 <= t <= x1}):
        out.append(f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick}</text>')
    out.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">step</text>')
    out.append(f'<text class="tick" x="{LEFT - 40}" y="12">nats</text>')
    for failure in marks:
        at = x(min(max(failure.at_step, x0), x1))
        out.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        told = escape(f"{'planned change' if failure.planned else 'failure'} {failure.number} after step {failure.at_step}")
        out.append(f'<text class="marktext" x="{at + 4:.1f}" y="{TOP + 10}">{failure.number}<title>{told}</title></text>')
    for points, css in ((run, "line run"), (undisturbed, "line other")):
        if points:
            path = "M" + "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in thin(points, POINTS_MAX))
            out.append(f'<path class="{css}" d="{path}"/>')
    for step, loss in thin(held_out, HOVER_MAX):
        told = f"held out after step {step}: {loss:.4f} nats"
        out.append(f'<circle class="dot" cx="{x(step):.1f}" cy="{y(loss):.1f}" r="4"><title>{told}</title></circle>')
    for step, loss in thin(run, HOVER_MAX):
        told = f"step {step}: {loss:.4f} nats"
        out.append(f'<circle class="hover" cx="{x(step):.1f}" cy="{y(loss):.1f}" r="7"><title>{told}</title></circle>')
    out.append("</svg>")
    return Markup("".join(out))


def failure_chart(failure: Failure, *, longest_ms: int) -> Markup:
    """One failure as a bar of segments; `longest_ms` is the whole width, so that failures can be compared."""
    start = failure.milestones[0][1]
    scale = (WIDTH - 2) / max(1, longest_ms)
    out = [f'<svg viewBox="0 0 {WIDTH} {BAR_HEIGHT}" role="img" aria-label="timeline of failure {failure.number}">']
    for begin, end, css, told in SEGMENTS:
        a, b = failure.ms(begin), failure.ms(end)
        if begin == LAST_STEP and a is None:
            a = failure.ms(FIRST_SIGN)
        if a is None or b is None or b <= a:
            continue
        width = max(1.0, (b - a) * scale - 2)  # two pixels of surface between neighbours
        at = 1 + (a - start) * scale
        out.append(
            f'<rect class="{css}" x="{at:.1f}" y="2" width="{width:.1f}" height="{BAR_HEIGHT - 4}" rx="3">'
            f"<title>{escape(told)}: {b - a} ms</title></rect>"
        )
        if width > 60:
            out.append(f'<text class="inbar" x="{at + 6:.1f}" y="{BAR_HEIGHT / 2 + 4:.0f}">{b - a} ms</text>')
    out.append("</svg>")
    return Markup("".join(out))


def share_bar(parts: Sequence[tuple[str, int, str]]) -> Markup:
    """(name, milliseconds, class) as one bar that is full."""
    whole = sum(ms for _, ms, _ in parts)
    if not whole:
        return Markup("")
    out = [f'<svg viewBox="0 0 {WIDTH} {BAR_HEIGHT}" role="img" aria-label="where the time went">']
    at = 1.0
    for name, ms, css in parts:
        width = ms / whole * (WIDTH - 2)
        if ms:
            told = escape(f"{name}: {ms} ms, {100 * ms / whole:.1f} %")
            shown = max(0.5, width - 2)
            out.append(f'<rect class="{css}" x="{at:.1f}" y="2" width="{shown:.1f}" height="{BAR_HEIGHT - 4}" rx="3">')
            out.append(f"<title>{told}</title></rect>")
        at += width
    out.append("</svg>")
    return Markup("".join(out))


def nice_ticks(low: float, high: float) -> list[float]:
    """About TICKS round numbers that enclose [low, high]."""
    flat = 1e-9 * max(1.0, abs(low), abs(high))
    if high - low <= flat:  # a line without a slope still gets a frame around it
        low, high = low - 0.5 - flat, high + 0.5 + flat
    raw = (high - low) / TICKS
    magnitude = 10.0 ** math.floor(math.log10(raw))
    pace = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw)
    first, last = math.floor(low / pace), math.ceil(high / pace)
    return [round(i * pace, 12) for i in range(first, last + 1)]


def thin(points: Points, most: int) -> Points:
    """At most `most` points: of each bucket the lowest and the highest, in order of steps; the ends stay."""
    if len(points) <= most:
        return points
    buckets = max(1, most // 2 - 1)
    kept = {points[0], points[-1]}
    for i in range(buckets):
        bucket = points[len(points) * i // buckets : len(points) * (i + 1) // buckets]
        kept.add(min(bucket, key=lambda p: p[1]))
        kept.add(max(bucket, key=lambda p: p[1]))
    return tuple(sorted(kept))
