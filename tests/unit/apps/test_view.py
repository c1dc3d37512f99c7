"""The live view: what a picture holds, when plain lines are printed, and which of the two is chosen."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from orchestrator.apps import units
from orchestrator.apps.cli.view import LiveView, PlainView, make_view, picture
from orchestrator.core.supervisor.state import JobPhase, Outcome
from orchestrator.runtime.status_types import JobStatus
from tests.unit.apps.world import ended, running_status, story


def screen(width: int = 110) -> Console:
    """A terminal that can be read."""
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def printed(console: Console) -> str:
    """What it shows."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(status: JobStatus, *, bytewise: bool = False) -> str:
    """One picture as text."""
    console = screen()
    console.print(picture(status, bytewise=bytewise))
    return printed(console)


def test_a_picture_holds_what_people_look_for() -> None:
    status = replace(running_status(), eval_loss=1.0, tokens_per_s=12_345.0, eta_s=75.0)
    text = shown(status, bytewise=True)
    for words in (
        "step 1/20",
        "2.0000 nats (2.885 bits/byte)",
        "1.0000 nats (1.443 bits/byte)",
        "12.3 k tokens/s, ETA 1:15",
        "0 recoveries",
        "budget 3 of 3 left",
        "every rank has its state",
        "rank 0",
        "spare",
    ):
        assert words in text
    assert len([line for line in text.splitlines() if " ok " in line]) == 5


def test_nats_alone_where_a_token_is_no_byte() -> None:
    assert "bits/byte" not in shown(running_status())


def test_a_lost_node_and_the_last_word_are_shown() -> None:
    status = ended(Outcome.BUDGET_SPENT)
    nodes = (replace(status.nodes[0], healthy=False), *status.nodes[1:])
    text = shown(replace(status, nodes=nodes))
    assert "LOST" in text
    assert "because budget-spent" in text
    assert "failed (budget-spent)" in text


def test_many_nodes_are_summed_up() -> None:
    status = running_status()
    nodes = tuple(replace(status.nodes[0], node_id=f"n{i:03}") for i in range(100))
    text = shown(replace(status, nodes=nodes))
    assert "60 more nodes, 60 of them ok" in text


def test_markup_in_a_reason_is_text() -> None:
    status = running_status()
    assert status.decision is not None
    told = replace(status, decision=replace(status.decision, reason="[red]boom[/red]"))
    assert "[red]boom[/red]" in shown(told)


def test_plain_lines_come_every_few_seconds_and_at_each_decision() -> None:
    now = [0.0]
    console = Console(file=io.StringIO(), width=80)
    view = PlainView(console, bytewise=False, clock_s=lambda: now[0])
    status = running_status()
    assert status.decision is not None
    view.update(status)
    view.update(replace(status, step=2))  # too soon
    now[0] = 6.0
    view.update(replace(status, step=3))
    view.update(replace(status, step=3, decision=replace(status.decision, seq=99, reason="a spare takes over")))
    view.update(replace(status, step=4, phase=JobPhase.FENCING))  # a new phase is told at once
    view.note("a note")
    lines = printed(console).splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [
        "step 1/20",
        "step 3/20",
        "#99 a spare takes over",
        "step 4/20",
        "a note",
    ]
    assert lines[0].startswith(f"#{status.decision.seq} ")


def test_the_live_view_draws_in_place_and_stays() -> None:
    console = screen()
    with make_view(console, live=True, bytewise=False) as view:
        assert isinstance(view, LiveView)
        view.note("starting 5 nodes")
        view.update(story().status())
        view.note("a note")
    text = printed(console)
    assert "succeeded (completed)" in text
    assert "a note" in text
    assert "\x1b[?25h" in text  # the cursor is given back


@pytest.mark.parametrize(("terminal", "live"), [(True, False), (False, True)])
def test_plain_lines_are_chosen(terminal: bool, live: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    assert isinstance(make_view(console, live=live, bytewise=False), PlainView)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (61, "1:01"),
        (3600, "1:00:00"),
        (7384.6, "2:03:05"),
        (5.2 * 86_400, "5.2 days"),
        (float("inf"), "inf days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1234, "1.23 k"), (1_050_000, "1.05 M"), (3e15, "3 P"), (2e22, "2e+04 E")]
)
def test_counts(number: float, text: str) -> None:
    assert units.count(number) == text
