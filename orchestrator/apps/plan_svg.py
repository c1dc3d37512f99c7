"""Pictures of a plan as SVG, made by hand: who sits where, which layers each stage has, and one step of the pipeline in time.

The same pictures serve the HTML page and a file of their own, which brings its style sheet along. A pipeline rank has one colour
in all of them; colours are classes for light and dark, as in report_svg. Large clusters are folded: the first nodes, then how
many more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from markupsafe import Markup

from orchestrator.apps import plan_facts as facts
from orchestrator.apps.cluster_words import cluster_words, levels
from orchestrator.apps.plan_facts import Preview
from orchestrator.apps.report_svg import BAR_HEIGHT, WIDTH, nice_ticks
from orchestrator.apps.strategy_words import kinds_words, ranks_of, shape
from orchestrator.apps.units import percent, plural, seconds
from orchestrator.core.cluster.resources import Resources
from orchestrator.core.plan.pipeline import BACKWARD, FORWARD, INPUT, WEIGHT
from orchestrator.core.planner.cost.timeline import Timed

COLOURS = 8  # classes p0 .. p7; pipeline ranks take them in turn
RACKS_MAX = 3  # drawn
NODES_MAX = 8  # drawn of a rack
DEVICES_MAX = 16  # drawn of a node
ACROSS = 4  # node boxes in a row
CELL, GAP, PAD = 40, 4, 8  # of a device's box
ROWS_MAX = 32  # pipeline ranks drawn in the timeline
LABEL_MIN, ROOMY = 18, 62  # pixels of a box that a number fits in, and that a word and a number do

STYLE = """
svg.plan { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; --ink: #0b0b0b; --soft: #52514e; --rule: #c3c2b7;
  --page: #fcfcfb; --box: #f1f0ec; --f: #c6cdd6; --b: #6b7480; --w: #c9a227; --on: #ffffff;
  --p0: #2a78d6; --p1: #c2541f; --p2: #12805a; --p3: #946200; --p4: #6a4fc4; --p5: #c23b3a; --p6: #0f7c8a; --p7: #8a5a7b; }
@media (prefers-color-scheme: dark) { svg.plan { --ink: #ffffff; --soft: #c3c2b7; --rule: #55544f; --page: #1a1a19;
  --box: #262624; --f: #4a525c; --b: #a3acb8; --w: #dcb93a; --on: #0b0b0b;
  --p0: #5b9ce6; --p1: #ee8a5f; --p2: #3fc08f; --p3: #dca62e; --p4: #a598f0; --p5: #ee8080; --p6: #4fb9c9; --p7: #cf9dbf; } }
svg.plan text { fill: var(--ink); } svg.plan .soft { fill: var(--soft); } svg.plan .on { fill: var(--on); font-weight: 600; }
svg.plan .page { fill: var(--page); } svg.plan .box { fill: var(--box); stroke: var(--rule); }
svg.plan .rack { fill: none; stroke: var(--rule); } svg.plan .wire { stroke: var(--soft); stroke-width: 1.5; fill: none; }
svg.plan .idle { fill: none; stroke: var(--rule); stroke-dasharray: 3 3; } svg.plan .grid { stroke: var(--rule); }
svg.plan .lost { stroke: #e34948; stroke-width: 2; } svg.plan .forward { fill: var(--f); } svg.plan .backward { fill: var(--b); }
svg.plan .input { fill: var(--b); } svg.plan .weight { fill: var(--w); }
svg.plan .p0 { fill: var(--p0); } svg.plan .p1 { fill: var(--p1); }
svg.plan .p2 { fill: var(--p2); } svg.plan .p3 { fill: var(--p3); }
svg.plan .p4 { fill: var(--p4); } svg.plan .p5 { fill: var(--p5); }
svg.plan .p6 { fill: var(--p6); } svg.plan .p7 { fill: var(--p7); }
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """The inside of an SVG and how high it is."""

    title: str
    told: str  # for those who cannot see it
    height: float
    body: str


def document(pictures: Sequence[Picture], *, title: str) -> str:
    """Pictures, one below the other, as an SVG file that needs nothing else."""
    height = sum(p.height + 44 for p in pictures) + 16
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plan" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" ',
        f'height="{height:.0f}" role="img" aria-labelledby="plan-title plan-desc"><title id="plan-title">{escape(title)}</title>',
        f'<desc id="plan-desc">{escape(" ".join(p.told for p in pictures))}</desc><style>{STYLE}</style>',
        f'<rect class="page" width="{WIDTH}" height="{height:.0f}"/>',
    ]
    at = 8.0
    for p in pictures:
        out.append(f'<text x="8" y="{at + 18:.1f}" font-size="15" font-weight="600">{escape(p.title)}</text>')
        out.append(f'<g transform="translate(0 {at + 30:.1f})">{p.body}</g>')
        at += p.height + 44
    return "".join(out) + "</svg>\n"


def inline(picture: Picture) -> Markup:
    """A picture for an HTML page that has STYLE."""
    head = f'<svg class="plan" viewBox="0 0 {WIDTH} {picture.height:.0f}" role="img">'
    return Markup(f"{head}<title>{escape(picture.title)}</title><desc>{escape(picture.told)}</desc>{picture.body}</svg>")


def pictures(preview: Preview, spans: Sequence[Timed], *, micro_batches: int) -> list[Picture]:
    """All pictures of a plan. `spans`: a replica's step, with so many of its micro-batches; no picture where there are none."""
    made = [cluster_picture(preview), layers_picture(preview)]
    return [*made, timeline_picture(preview, spans, micro_batches=micro_batches)] if spans else made


def cluster_picture(preview: Preview) -> Picture:
    """Racks, nodes and devices; a device has the colour of its pipeline rank and the number of its rank, links their speed."""
    resources, strategy = preview.problem.resources, preview.shown.strategy
    rank_at = {device: rank for rank, device in enumerate(strategy.devices)}
    pipe_of = {rank: pipe for pipe in range(strategy.pipeline) for rank in ranks_of(strategy, pipe)}
    first_device = _first_devices(resources)

    def soonest(n: int) -> tuple[int, int]:
        mine = range(first_device[n], first_device[n] + resources.nodes[n].devices)
        return min((rank_at.get(d, resources.size) for d in mine), default=resources.size), n

    racks: dict[str, list[int]] = {}
    for n in sorted(range(len(resources.nodes)), key=soonest):
        racks.setdefault(resources.nodes[n].rack, []).append(n)
    out: list[str] = []
    y = 0.0
    for level, link in levels(resources):
        out.append(f'<text class="soft" x="8" y="{y + 14:.1f}">{escape(f"{level}: {link}")}</text>')
        y += 18
    several = len(racks) > 1
    trunk: list[float] = []
    for rack, nodes in list(racks.items())[:RACKS_MAX]:
        shown = nodes[:NODES_MAX]
        y += 8
        top = y
        label = escape((f"rack {rack}: " if rack else "") + plural(len(nodes), "node"))
        out.append(f'<text class="soft" x="26" y="{y + 18:.1f}">{label}</text>')
        y += 26
        bus = y
        for start in range(0, len(shown), ACROSS):
            boxes = [
                _node(resources, n, first_device[n], rank_at, pipe_of, x=26 + i * (WIDTH - 40) / ACROSS, y=y + 12)
                for i, n in enumerate(shown[start : start + ACROSS])
            ]
            right = 26 + (len(boxes) - 1) * (WIDTH - 40) / ACROSS + 20
            bus = y + 4
            out.append(f'<path class="wire" d="M18 {bus:.1f}H{right:.1f}"/>')
            out += [body for body, _ in boxes]
            y += 18 + max(height for _, height in boxes)
        if len(nodes) > len(shown):
            out.append(f'<text x="26" y="{y + 14:.1f}">... {len(nodes) - len(shown):,} more nodes</text>')
            y += 20
        out.append(f'<rect class="rack" x="10" y="{top:.1f}" width="{WIDTH - 18}" height="{y - top:.1f}" rx="8"/>')
        out.append(f'<path class="wire" d="M18 {top + 30:.1f}V{bus:.1f}"/>')
        if several:
            out.append(f'<path class="wire" d="M4 {top + 30:.1f}H18"/>')
            trunk.append(top + 30)
    if several:
        out.append(f'<path class="wire" d="M4 {trunk[0]:.1f}V{y + 12 if len(racks) > RACKS_MAX else trunk[-1]:.1f}"/>')
    if len(racks) > RACKS_MAX:
        rest = sum(len(nodes) for nodes in list(racks.values())[RACKS_MAX:])
        out.append(f'<text x="10" y="{y + 18:.1f}">... {len(racks) - RACKS_MAX:,} more racks with {rest:,} nodes</text>')
        y += 24
    told = f"{cluster_words(resources)}. {shape(strategy)}: " + "; ".join(
        f"stage {r.stage} on ranks {r.ranks}, {r.devices}" for r in facts.stage_rows(preview)[:ROWS_MAX]
    )
    return Picture("Ranks on devices", told + ".", y + 8, "".join(out))


def layers_picture(preview: Preview) -> Picture:
    """The model's layers as one bar, as wide as they take time, in the colour of the pipeline rank that has them."""
    strategy, costs = preview.shown.strategy, preview.problem.costs
    weights, timed = facts.layer_weights(preview.problem, strategy)
    whole = sum(weights) or 1.0
    scale = (WIDTH - 16) / whole
    out, at, told = [], 8.0, []
    roomy = all(sum(weights[first:last]) * scale > ROOMY for first, last in strategy.bounds)
    for row, (first, last) in zip(facts.stage_rows(preview), strategy.bounds, strict=True):
        width = sum(weights[first:last]) * scale
        told.append(f"stage {row.stage}: {row.kinds}, {percent(row.share)}")
        x = at
        for kind, run in groupby(range(first, last), key=lambda layer: costs.order[layer]):
            layers = list(run)
            each = weights[layers[0]] * scale
            hint = f"{kinds_words(costs, layers[0], layers[-1] + 1)}: {percent(each * len(layers) / scale / whole)}"
            narrow = each < 3
            for _ in range(1 if narrow else len(layers)):
                shown = each * len(layers) if narrow else each
                out.append(
                    f'<rect class="{_colour(row.pipe)}" x="{x:.1f}" y="22" width="{max(0.5, shown - 1):.1f}" '
                    f'height="{BAR_HEIGHT}"><title>{escape(f"stage {row.stage}, {hint}")}</title></rect>'
                )
                if each > 8 + 8 * len(costs.kinds[kind].name):
                    out.append(f'<text class="on" x="{x + 4:.1f}" y="{BAR_HEIGHT + 13}">{escape(costs.kinds[kind].name)}</text>')
                x += shown
        name = f"stage {row.stage}" if roomy else str(row.stage) if width > LABEL_MIN else ""
        out.append(f'<text class="soft" x="{at:.1f}" y="15">{name}</text>')
        share = f"{percent(row.share)}{', recomputes' if row.recompute and width > 110 else ''}" if width > 40 else ""
        out.append(f'<text class="soft" x="{at:.1f}" y="{BAR_HEIGHT + 40}">{share}</text>')
        at += width
    by = "measured time" if timed else "FLOPs"
    return Picture(f"Layers by {by}", f"The layers of each stage by {by}: {'; '.join(told)}.", BAR_HEIGHT + 50, "".join(out))


def timeline_picture(preview: Preview, spans: Sequence[Timed], *, micro_batches: int) -> Picture:
    """Forward and backward passes of each pipeline rank in one step of one replica; what is empty is the bubble."""
    strategy = preview.shown.strategy
    end = max(s.end_s for s in spans)
    left, row_height, top = 44, 22, 26
    scale = (WIDTH - left - 12) / end
    rows = min(strategy.pipeline, ROWS_MAX)
    bottom = top + rows * row_height
    least = min(strategy.share(r) for r in range(strategy.data))
    out = []
    at = 8.0
    for css, name in ((FORWARD, "forward"), (BACKWARD, "backward"), (INPUT, "gradient of the input"), (WEIGHT, "of the weights")):
        if any(s.act.kind == css for s in spans):
            out.append(
                f'<rect class="{css}" x="{at:.1f}" y="2" width="14" height="12" rx="2"/>'
                f'<text x="{at + 19:.1f}" y="13">{name}</text>'
            )
            at += 40 + 7 * len(name)
    for tick in nice_ticks(0.0, end):
        if 0 <= tick <= end:
            x = left + tick * scale
            out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{bottom + 4}"/>')
            label, anchor = seconds(tick) if tick else "0", "end" if x > WIDTH - 30 else "middle"
            out.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 18}" text-anchor="{anchor}">{label}</text>')
    for pipe in range(rows):
        y = top + pipe * row_height
        out.append(f'<rect class="{_colour(pipe)}" x="8" y="{y + 1}" width="30" height="{row_height - 3}" rx="3"/>')
        out.append(f'<text class="on" x="23" y="{y + 15}" text-anchor="middle">{pipe}</text>')
    for s in spans:
        if s.rank >= rows:
            continue
        x, width, y = left + s.start_s * scale, (s.end_s - s.start_s) * scale, top + s.rank * row_height
        hint = f"stage {s.act.stage}, micro-batch {s.act.index}, {s.act.kind}: {seconds(s.end_s - s.start_s)}"
        shown = max(0.4, width - 1)
        out.append(
            f'<rect class="{s.act.kind}" x="{x:.1f}" y="{y + 1}" width="{shown:.1f}" height="{row_height - 3}" rx="2">'
            f"<title>{escape(hint)}</title></rect>"
        )
        if width > LABEL_MIN:
            css = "" if s.act.kind == FORWARD else "on"
            out.append(f'<text class="{css}" x="{x + width / 2:.1f}" y="{y + 15}" text-anchor="middle">{s.act.index}</text>')
    part = f" with {plural(micro_batches, 'micro-batch', 'es')}" + ("" if micro_batches == least else f" of {least}")
    note = f"{strategy.pipeline - rows} more pipeline ranks" if strategy.pipeline > rows else ""
    if note:
        out.append(f'<text x="8" y="{bottom + 34}">... {note}</text>')
    busy = [sum(s.end_s - s.start_s for s in spans if s.rank == pipe) / end for pipe in range(strategy.pipeline)]
    told = f"Pipeline ranks over {seconds(end)}{part}; busy " + ", ".join(percent(b) for b in busy[:ROWS_MAX])
    return Picture(f"One step of the slowest replica{part}", told + ".", bottom + (42 if note else 26), "".join(out))


def _node(
    resources: Resources, n: int, first_device: int, rank_at: dict[int, int], pipe_of: dict[int, int], *, x: float, y: float
) -> tuple[str, float]:
    """One node's box and its height."""
    node = resources.nodes[n]
    width = (WIDTH - 40) / ACROSS - 12
    columns = max(1, int((width - 2 * PAD + GAP) // (CELL + GAP)))
    shown = min(node.devices, DEVICES_MAX)
    rows = -(-shown // columns)
    height = 38 + rows * (24 + GAP) + (16 if node.devices > shown else 0)
    state = "not healthy" if not node.healthy else f"{node.pace:.3g} x as long" if node.pace > 1.0 else ""
    box = "box" if node.healthy else "box lost"
    label = f"{node.node_id[:16]}: {node.device}"[:30]
    out = [
        f'<path class="wire" d="M{x + 20:.1f} {y - 8:.1f}V{y:.1f}"/>',
        f'<rect class="{box}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" rx="6"/>',
        f'<text x="{x + PAD:.1f}" y="{y + 16:.1f}">{escape(label)}</text>',
    ]
    if state:
        out.append(f'<text class="soft" x="{x + PAD:.1f}" y="{y + 29:.1f}">{escape(state)}</text>')
    for i in range(shown):
        left, top = x + PAD + i % columns * (CELL + GAP), y + 33 + i // columns * (24 + GAP)
        rank = rank_at.get(first_device + i)
        css = "idle" if rank is None else _colour(pipe_of[rank])
        what = f"{node.node_id} device {i}: " + ("not used" if rank is None else f"rank {rank}, pipeline rank {pipe_of[rank]}")
        out.append(f'<rect class="{css}" x="{left:.1f}" y="{top:.1f}" width="{CELL}" height="24" rx="4">')
        out.append(f"<title>{escape(what)}</title></rect>")
        if rank is not None:
            out.append(f'<text class="on" x="{left + CELL / 2:.1f}" y="{top + 16:.1f}" text-anchor="middle">{rank}</text>')
    if node.devices > shown:
        out.append(f'<text class="soft" x="{x + PAD:.1f}" y="{y + height - 5:.1f}">... {node.devices - shown:,} more</text>')
    return "".join(out), height


def _first_devices(resources: Resources) -> list[int]:
    out, at = [], 0
    for node in resources.nodes:
        out.append(at)
        at += node.devices
    return out


def _colour(pipe: int) -> str:
    return f"p{pipe % COLOURS}"
