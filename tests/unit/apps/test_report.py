"""The report: what it is made of, that it is one sound and safe HTML page, and that it replaces an old one in one instant."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.apps import report_facts as facts
from orchestrator.apps.report import DECISIONS_MAX, render_report, write_report
from orchestrator.apps.report_svg import loss_chart, nice_ticks, thin
from orchestrator.core.job import Action, FailureClass
from orchestrator.core.supervisor.events import CancelRequested, DrainRequested, StepCommitted, WorkerGone
from orchestrator.spec.policies import policies
from tests.scenarios.story import make_job
from tests.unit.apps import planned
from tests.unit.apps.world import HTML_IN_REASON, Recorded, expecting, losses, story

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects text, ids and whatever leads out of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: dict[str, int] = {}
        self.outside: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "style") or name.startswith("on"):
                self.outside.append(f"{tag} {name}={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(told: Recorded, *, undisturbed: Recorded | None = None, verdict: tuple[tuple[str, str], ...] = ()) -> Page:
    """The parsed report of a story."""
    records = undisturbed.records if undisturbed else ()
    text = render_report(job=told.state.job, records=told.records, status=told.status(), undisturbed=records, verdict=verdict)
    assert "url(" not in text
    assert "@import" not in text
    return Page(text)


def test_the_page_is_sound_and_needs_nothing_from_outside() -> None:
    shown = page(story(), undisturbed=story(fail_at=None), verdict=(("steps lost", "0"), ("digest equal", "yes")))
    assert shown.ids == ["verdict", "summary", "loss", "failures", "ledger", "plan", "prediction", "decisions"]
    assert shown.outside == []
    assert "script" not in shown.tags
    for words in ("steps lost", "digest equal", "equal, bit for bit", "Failure 1: epoch 1 broke after step 3", "Goodput"):
        assert words in shown.text


def test_predictions_are_held_against_what_was_measured() -> None:
    told = story()
    assert "Nothing was predicted: the job fixes its plan" in page(told).text
    option = planned.option(planned.strategy(pipeline=1, data=4), step_s=0.090)
    text = render_report(
        job=told.state.job,
        records=expecting(told.records, option),
        status=told.status(),
        peak_rss_bytes={2: {told.plan.seats[1].worker_id: 1 << 29}},
    )
    shown = Page(text)
    assert "Nothing was predicted" not in shown.text
    assert "90 ms predicted, 100 ms measured (median of 1 step): 10 % too short" in shown.text
    assert "1.07 GB predicted, none measured" in shown.text  # of epoch 1
    assert "1.07 GB predicted, 537 MB measured: 100 % too much" in shown.text


def test_text_from_outside_is_escaped() -> None:
    told = story()
    shown = page(told, verdict=(("<b>bold</b>", "<img src=x>"),))
    assert HTML_IN_REASON in shown.text
    assert "<img src=x>" in shown.text
    assert "b" not in shown.tags


def test_a_run_without_failures_says_so() -> None:
    shown = page(story(fail_at=None))
    assert "Nothing failed." in shown.text
    assert "undisturbed run" not in shown.text
    assert "verdict" not in shown.ids


def test_a_run_that_never_began() -> None:
    told = Recorded(make_job())
    told.tell(CancelRequested(0, "me"))
    shown = page(told)
    assert "No loss was reported." in shown.text
    assert "No epoch was started." in shown.text
    text = render_report(job=told.state.job, records=(), status=told.status())
    assert "0 decisions" in Page(text).text


def test_every_decision_has_its_reason_and_long_journals_are_cut_in_the_middle() -> None:
    told = story()
    reasons = [r for r in told.records if r.reason]
    assert all(r.reason in page(told).text for r in reasons)
    many = [replace(told.records[0], seq=n + 1, reason=f"reason {n}") for n in range(DECISIONS_MAX + 7)]
    text = render_report(job=told.state.job, records=many, status=told.status())
    assert "7 decisions in the middle are left out" in text
    assert ">reason 0<" in text
    assert f">reason {DECISIONS_MAX + 6}<" in text
    assert f">reason {DECISIONS_MAX // 4}<" not in text


def test_the_curve_is_the_losses_by_step() -> None:
    told = story()
    assert facts.loss_curve(told.records) == tuple(enumerate(losses(told.records), start=1))
    assert facts.held_out_curve(told.records) == ((6, 1.5),)


def test_a_step_that_was_done_again_counts_once() -> None:
    told = story()
    again = next(r for r in told.records if isinstance(r.event, StepCommitted))
    assert isinstance(again.event, StepCommitted)
    later = replace(again, event=replace(again.event, loss=0.5))
    assert facts.loss_curve([*told.records, later])[0] == (1, 0.5)


def test_losses_that_are_no_number_do_not_break_the_page() -> None:
    told = story()
    broken = [
        replace(r, event=replace(r.event, loss=float("nan"))) if isinstance(r.event, StepCommitted) else r for r in told.records
    ]
    text = render_report(job=told.state.job, records=broken, status=told.status())
    assert "No loss was reported." in Page(text).text
    assert ">nan" not in text


def test_the_timeline_of_a_failure() -> None:
    told = story()
    (failure,) = facts.failures(told.records)
    assert (failure.number, failure.epoch, failure.at_step, failure.over) == (1, 1, 3, True)
    assert [name for name, _ in failure.milestones] == [
        *("last step before", "first sign", "detected", "fenced", "planned", "state restored", "first step"),
    ]
    # The story's clock moves 10 ms an event; 90 ms pass before the first sign and 30 ms between planning and readiness.
    assert dict(failure.milestones) == {
        "last step before": -110,
        "first sign": -10,
        "detected": 0,
        "fenced": 30,
        "planned": 30,
        "state restored": 100,
        "first step": 110,
    }
    assert failure.span_ms == 220
    assert "rank 2" in failure.reason


def test_a_failure_that_waits_for_a_spare_and_one_without_an_end() -> None:
    job = make_job(spares=0)
    waiting = policies({FailureClass.WORKER_EXITED: (Action.SWAP, Action.WAIT)})
    told = Recorded(replace(job, resilience=replace(job.resilience, policies=waiting)))
    told.launch(4)
    told.ready()
    told.commit(1)
    lost = told.plan.seats[1].worker_id
    told.tell(WorkerGone(0, lost, "exited"))
    told.leave_all(1, but=(lost,))
    (failure,) = facts.failures(told.records)
    assert not failure.over
    assert failure.ms("fenced") == 30
    assert failure.ms("planned") is None
    assert "no new step followed" in page(told).text


def test_a_planned_change_is_told_from_a_failure() -> None:
    told = Recorded(make_job(steps=20))
    told.launch(5)
    told.ready()
    told.commit(1)
    told.tell(DrainRequested(0, told.plan.seats[2].node_id, "me", "maintenance"))
    told.commit(2)
    told.leave_all(2)
    told.ready()
    told.commit(3)
    told.loses(1, at=3)
    first, second = facts.failures(told.records)
    assert (first.planned, first.epoch, first.at_step, first.over) == (True, 1, 2, True)
    assert (second.planned, second.epoch, second.at_step) == (False, 2, 3)
    text = page(told).text
    assert "Planned change 1: epoch 1 was left after step 2" in text
    assert "Failure 2: epoch 2 broke after step 3" in text


def test_a_planned_change_during_which_a_worker_dies_is_a_failure() -> None:
    told = Recorded(make_job(steps=20, spares=2))
    told.launch(6)
    told.ready()
    told.commit(1)
    told.tell(DrainRequested(0, told.plan.seats[2].node_id, "me", ""))
    lost = told.plan.seats[1].worker_id
    told.tell(WorkerGone(0, lost, "exited"))
    told.leave_all(1, but=(lost,))
    assert [f.planned for f in facts.failures(told.records)] == [False]


def test_two_failures_one_after_the_other() -> None:
    told = Recorded(make_job(steps=20, spares=2))
    told.launch(6)
    told.ready()
    told.commit(1)
    told.loses(1, at=1)
    told.commit(3)
    told.loses(3, at=3)
    found = facts.failures(told.records)
    assert [(f.number, f.epoch, f.at_step, f.over) for f in found] == [(1, 1, 1, True), (2, 2, 3, True)]


def test_a_failure_during_a_recovery_is_one_of_its_own() -> None:
    told = Recorded(make_job(steps=20, spares=2))
    told.launch(6)
    told.ready()
    told.commit(1)
    first = told.plan.seats[1].worker_id
    told.tell(WorkerGone(0, first, "exited"))
    told.leave_all(1, but=(first,))
    told.loses(3, at=1)
    found = facts.failures(told.records)
    assert [(f.number, f.epoch, f.at_step, f.over) for f in found] == [(1, 1, 1, False), (2, 2, 1, True)]
    assert found[0].ms("planned") is not None
    assert found[0].ms("state restored") is None


def test_comparison_tells_the_first_difference() -> None:
    a = ((1, 2.0), (2, 1.5), (3, 1.0))
    assert facts.compare(a, a) == "the losses of all 3 common steps are equal, bit for bit"
    assert "1 of 3 common steps differ, first at step 2: 1.5 and 1.25" in facts.compare(a, ((1, 2.0), (2, 1.25), (3, 1.0)))
    assert facts.compare(a, ((9, 1.0),)) == "the two runs have no step in common"


def test_writing_makes_folders_and_replaces(tmp_path: Path) -> None:
    told = story()
    path = tmp_path / "a/b/report.html"
    for name in ("one", "two"):
        write_report(path, job=told.state.job, records=told.records, status=told.status(), verdict=(("name", name),))
    assert ">two<" in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_an_old_report_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = story()
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        write_report(path, job=told.state.job, records=told.records, status=told.status())
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_enclose_their_range(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-6 * max(1, abs(low))
    assert ticks[-1] >= high - 1e-6 * max(1, abs(high))
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300), st.integers(8, 60))
def test_thinning_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    points = tuple(enumerate(values))
    kept = thin(points, most)
    assert len(kept) <= most
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert {min(values), max(values)} <= {v for _, v in kept}
    assert set(kept) <= set(points)


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(-1e3, 1e3)), min_size=1, max_size=20, unique_by=lambda p: p[0]))
def test_a_chart_stays_inside_its_frame(points: list[tuple[int, float]]) -> None:
    chart = loss_chart(run=tuple(sorted(points)), undisturbed=(), held_out=(), marks=())
    path = chart.split('class="line run" d="M')[1].split('"')[0]
    for x, y in (pair.split() for pair in path.split("L")):
        assert 0 <= float(x) <= 860
        assert 0 <= float(y) <= 300
