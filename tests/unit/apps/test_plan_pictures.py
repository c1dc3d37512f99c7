"""Text, pictures and page of a plan: what they say, that they are sound and safe, and that large clusters are folded."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from orchestrator.apps import plan_facts as facts
from orchestrator.apps.cli.plan_words import ROWS_MAX, bar, graph_lines, preview_lines, story_lines
from orchestrator.apps.cluster_words import cluster_words
from orchestrator.apps.plan_facts import Preview
from orchestrator.apps.plan_making import spans_of
from orchestrator.apps.plan_page import render_page
from orchestrator.apps.plan_svg import (
    NODES_MAX,
    RACKS_MAX,
    Picture,
    cluster_picture,
    document,
    layers_picture,
    pictures,
    timeline_picture,
)
from orchestrator.apps.report_svg import WIDTH
from orchestrator.apps.strategy_words import against, checkpoint_words, details, kinds_words, shape, too_large
from orchestrator.core.plan.pipeline import FORWARD
from orchestrator.core.plan.plan import PipelineSchedule
from orchestrator.runtime.explain import plan_stories
from tests.unit.apps import planned
from tests.unit.apps.test_report import Page
from tests.unit.apps.world import HTML_IN_REASON, expecting, story

SVG = "{http://www.w3.org/2000/svg}"


def all_pictures(preview: Preview) -> list[Picture]:
    """With the timeline where there is one."""
    spans, drawn = spans_of(preview)
    return pictures(preview, spans, micro_batches=drawn)


def parsed(preview: Preview) -> ET.Element:
    """All pictures as one parsed SVG document."""
    return ET.fromstring(document(all_pictures(preview), title=preview.name))


def large() -> Preview:
    """8,192 of 10,000 devices in 50 racks."""
    strategy = planned.strategy(pipeline=16, data=64, tensor=8, layers=98, micro_batches=512)
    problem = planned.problem(costs=planned.costs(blocks=96), resources=planned.resources(1250, 8, racks=50), batch=512)
    return planned.preview(problem=problem, shown=planned.option(strategy))


def test_the_text_tells_everything() -> None:
    text = "\n".join(preview_lines(planned.preview(), alternatives=2))
    for words in (
        "pipeline 2 x data 2 on 4 devices, chosen",
        "it is the quickest that fits",
        "lab: 8 x cpu in 4 nodes",
        "between nodes: 1 GB/s, 10 us, 2 GB/s for a whole node",
        "100 ms predicted for 8 units of 64 samples (tokens, images), 5.12 k samples/s",
        "98.0 % of the time in steps that count",
        "costs 7.5 s of the run",
        "every 500 steps, 50 s",
        "backward   40 ms  40 %",
        "embedding, 3 x block (11 k parameters)",
        "weights 537 MB, activations 537 MB",
        "1,234 weighed, none of the space is better",
        "data 4      20 % slower   120 ms",
        "tensor 2  at least 12 % slower  40",
    ):
        assert words in text, words


def test_a_fixed_job_is_told_what_would_be_better() -> None:
    text = "\n".join(preview_lines(planned.preview(fixed=True), alternatives=3))
    assert "as the job asks" in text
    assert "`parallel: auto` would take data 4 (ZeRO-1, 8 micro-batches): it is the quickest that fits" in text
    assert "data 4      20 % quicker" in text
    same = planned.preview(fixed=True, choice=planned.choice(planned.preview().shown))
    assert "would take the same plan" in "\n".join(preview_lines(same, alternatives=3))
    none = planned.preview(fixed=True, choice=None, no_choice="nothing fits")
    assert preview_lines(none, alternatives=3)[-1] == "no plan could be chosen: nothing fits"


def test_an_unproven_choice_says_how_far_it_may_be_from_the_best() -> None:
    best = planned.preview().shown
    text = "\n".join(preview_lines(planned.preview(choice=planned.choice(best, proven=False)), alternatives=0))
    assert "1,234 weighed; not proven best: a better one could save 5.0 % at most" in text
    assert "INSTEAD" not in text


def test_too_much_memory_is_said() -> None:
    shown = planned.option(planned.strategy(), total=5 * planned.GIB)
    assert too_large(shown.estimate) == "pipeline rank 0 needs 5.37 GB on a device of 4.29 GB"
    text = "\n".join(preview_lines(planned.preview(shown=shown), alternatives=0))
    assert text.count("TOO MUCH") == 3  # in the summary, and once for each pipeline rank
    assert against(shown, planned.preview().shown) == "does not fit"


def test_many_rows_are_folded() -> None:
    lines = preview_lines(large(), alternatives=0)
    assert lines.count(f"... {16 - ROWS_MAX} more") == 2
    assert "64 nodes n0 .. n63 (512 x cpu)" in "\n".join(lines)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "ZeRO-1, 1f1b, 8 micro-batches"),
        ({"zero": 3, "shard": 1}, "ZeRO-3 in groups of 1, 1f1b, 8 micro-batches"),
        ({"units": 4, "recompute": (True, True)}, "ZeRO-1, 1f1b, 8 micro-batches of 4 units, recomputation"),
        ({"recompute": (True, False), "copies": 1}, "recomputation in stages 0, a copy of each shard on another node"),
        ({"cuts": (3, 5), "shares": (3, 5)}, "layers per stage 3,5, 8 micro-batches, shared out 3,5"),
        (
            {"cuts": (2, 2, 2, 2), "schedule": PipelineSchedule.INTERLEAVED, "recompute": (False,) * 4},
            "interleaved with 2 stages on each rank",
        ),
    ],
)
def test_a_strategy_in_words(changes: dict[str, object], words: str) -> None:
    assert words in details(replace(planned.strategy(), **changes))  # type: ignore[arg-type]


def test_shapes_in_words() -> None:
    assert shape(planned.strategy(pipeline=1, data=1)) == "one rank"
    assert shape(planned.strategy(pipeline=2, data=3, tensor=4)) == "pipeline 2 x data 3 x tensor 4"
    assert shape(replace(planned.strategy(), tensors=(2, 4))) == "pipeline 2 x data 2 x tensor 2 to 4"


def test_checkpoints_in_words() -> None:
    estimate = planned.preview().shown.estimate
    assert checkpoint_words(replace(estimate, checkpoint_every=36_000)) == "every 36,000 steps, 1:00:00"
    for never in (0, 10**12):
        assert "hardly ever" in checkpoint_words(replace(estimate, checkpoint_every=never))


def test_layers_are_folded() -> None:
    costs = planned.costs(blocks=6)
    assert kinds_words(costs, 0, 8) == "embedding, 6 x block, head"
    unlike = replace(costs, order=(0, 1, 0, 1, 0, 2, 2))
    assert kinds_words(unlike, 0, 7) == "embedding, block, embedding, block and 3 layers more"


def test_the_graph_view() -> None:
    measured = graph_lines(planned.costs(measured=True))
    assert measured[2].split() == [
        "LAYERS",
        "COUNT",
        "x",
        "KIND",
        "PARAMETERS",
        "FORWARD",
        "BACKWARD",
        "KEPT",
        "BOUNDARY",
        "ON",
        "cpu",
    ]
    assert "1-6     6 x block      2 k         2 GFLOP   4 GFLOP   2 MB   500 kB    4 ms + 8 ms" in measured
    assert measured[-1].split()[:6] == ["all", "8", "22", "k", "16", "GFLOP"]
    assert "no kind of layer was measured" in graph_lines(planned.costs())[1]


def test_layers_weigh_their_seconds_where_all_were_measured_and_else_their_flops() -> None:
    strategy = planned.strategy()
    timed = planned.problem(costs=planned.costs(measured=True))
    assert facts.layer_weights(timed, strategy) == ((0.003, *[0.012] * 6, 0.006), True)
    assert facts.layer_weights(planned.problem(), strategy) == ((6e9,) * 8, False)
    assert layers_picture(planned.preview(problem=timed)).title == "Layers by measured time"


def test_a_bar_is_as_long_as_its_share() -> None:
    assert (bar(0.5, length=10), bar(1.7, length=10), bar(-1, length=10)) == ("#####", "##########", "")


def test_the_picture_is_sound_and_for_everybody() -> None:
    root = parsed(planned.preview())
    assert root.tag == f"{SVG}svg"
    assert (root.find(f"{SVG}title"), root.find(f"{SVG}desc")) != (None, None)
    desc = root.findtext(f"{SVG}desc") or ""
    assert "stage 0 on ranks 0-1, n0 (2 x cpu)" in desc
    text = ET.tostring(root, encoding="unicode")
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(href|src)=|url\(|@import|<script", text)


def test_each_device_has_the_colour_of_its_pipeline_rank_and_the_number_of_its_rank() -> None:
    root = ET.fromstring(document([cluster_picture(planned.preview())], title="t"))
    boxes = {t.text: r.get("class") for r in root.iter(f"{SVG}rect") if (t := r.find(f"{SVG}title")) is not None}
    assert boxes["n0 device 1: rank 1, pipeline rank 0"] == "p0"
    assert boxes["n1 device 0: rank 2, pipeline rank 1"] == "p1"
    assert boxes["n3 device 1: not used"] == "idle"
    assert len(boxes) == 8


def test_nodes_that_are_slow_or_ill_are_marked() -> None:
    made = planned.resources()
    nodes = (made.nodes[0], replace(made.nodes[1], pace=1.5), replace(made.nodes[2], healthy=False), made.nodes[3])
    preview = planned.preview(problem=planned.problem(resources=replace(made, nodes=nodes)))
    body = cluster_picture(preview).body
    assert "1.5 x as long" in body
    assert "box lost" in body
    assert "slow: n1 (1.5 x as long); not healthy: n2" in "\n".join(preview_lines(preview, alternatives=0))


def test_racks_are_counted_and_nodes_without_a_rack_share_one() -> None:
    made = planned.resources(4, racks=2)
    assert "in 4 nodes, 2 racks" in cluster_words(made)
    partly = replace(made, nodes=tuple(replace(n, rack=n.rack.removeprefix("r0")) for n in made.nodes))
    assert {n.rack for n in partly.nodes} == {"", "r1"}
    assert "in 4 nodes, 2 racks" in cluster_words(partly)
    assert "rack" not in cluster_words(planned.resources(4))


def test_large_clusters_are_folded() -> None:
    picture = cluster_picture(large())
    assert picture.body.count(f"... {25 - NODES_MAX} more nodes") == RACKS_MAX
    assert f"... {50 - RACKS_MAX} more racks with {25 * (50 - RACKS_MAX):,} nodes" in picture.body
    assert picture.body.count('class="box"') == RACKS_MAX * NODES_MAX
    assert len(picture.body) < 100_000


@pytest.mark.parametrize("schedule", list(PipelineSchedule))
def test_the_timeline_has_every_act_inside_its_frame(schedule: PipelineSchedule) -> None:
    cuts = (1,) * 8 if schedule is PipelineSchedule.INTERLEAVED else (2,) * 4
    strategy = replace(
        planned.strategy(pipeline=4, data=1, micro_batches=4), cuts=cuts, schedule=schedule, recompute=(False,) * len(cuts)
    )
    preview = planned.preview(shown=planned.option(strategy))
    spans, drawn = spans_of(preview)
    assert drawn == 4
    assert sum(s.act.kind == FORWARD for s in spans) == 4 * len(cuts)
    root = ET.fromstring(document([timeline_picture(preview, spans, micro_batches=drawn)], title="t"))
    acts = [r for r in root.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert len(acts) == len(spans)
    for r in acts:
        assert 0 <= float(r.get("x", "")) <= float(r.get("x", "")) + float(r.get("width", "")) <= WIDTH


def test_a_long_step_is_cut_short_and_says_so() -> None:
    preview = planned.preview(shown=planned.option(planned.strategy(data=1, micro_batches=4096)))
    assert all_pictures(preview)[2].title == "One step of the slowest replica with 4 micro-batches of 4096"


def test_one_rank_has_no_timeline() -> None:
    preview = planned.preview(shown=planned.option(planned.strategy(pipeline=1, data=4)))
    assert spans_of(preview) == ((), 0)
    assert len(all_pictures(preview)) == 2


def test_the_page_is_sound_and_needs_nothing_from_outside() -> None:
    preview = planned.preview(name=HTML_IN_REASON, findings=("two seats <b>clash</b>",))
    page = Page(render_page(preview, all_pictures(preview), alternatives=3))
    assert page.ids == ["summary", "cluster", "layers", "timeline", "step", "stages", "memory", "alternatives", "graph"]
    assert page.outside == []
    assert "script" not in page.tags
    assert HTML_IN_REASON in page.text
    for words in ("two seats <b>clash</b>", "pipeline 2 x data 2", "100 % slower", "at least 12 % slower", "6 x block"):
        assert words in page.text


def test_the_story_of_a_plan_in_words() -> None:
    told = story()
    shown = planned.option(planned.strategy(pipeline=1, data=4), step_s=0.110)
    other = planned.option(planned.strategy(), step_s=0.220)
    first, second = plan_stories(expecting(told.records, shown, planned.choice(shown, other)))
    text = "\n".join(story_lines(first))
    for words in (
        "epoch 1, record #",
        "expected: 110 ms a step (backward 40 %",
        "step time: 110 ms predicted, 100 ms measured (median of 1 step): 10 % too long",
        "instead: pipeline 2 x data 2, ZeRO-1, 1f1b, 8 micro-batches: 100 % slower",
        "rejected: tensor 2: at least 12 % slower (40)",
    ):
        assert words in text, words
    assert "not chosen among others" in "\n".join(story_lines(second))
    assert "nothing was predicted" in "\n".join(story_lines(plan_stories(told.records)[0]))
