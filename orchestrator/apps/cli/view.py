"""The live view of a job: a picture that is redrawn where stderr is a terminal, plain lines every few seconds where it is not.

It shows what the status says and decides nothing. Both forms show the newest decision with its reason as soon as it is known,
because that is what a person who looks at a stalled job wants to see first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from orchestrator.apps import units
from orchestrator.apps.cli import render
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.runtime.status_types import JobStatus

PLAIN_EVERY_S = 5.0
REDRAWS_PER_S = 8
NOTES_MAX = 4
NODES_MAX = 40  # lines; more nodes are summed up
_COLOURS = {
    JobPhase.RUNNING: "green",
    JobPhase.SUCCEEDED: "green",
    JobPhase.FENCING: "yellow",
    JobPhase.FORMING: "yellow",
    JobPhase.WAITING: "yellow",
    JobPhase.FAILED: "red",
    JobPhase.CANCELLED: "red",
}


class View(Protocol):
    """What a command shows while it waits."""

    def __enter__(self) -> View:
        """Take the screen."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Give it back."""
        ...

    def update(self, status: JobStatus) -> None:
        """The newest status."""
        ...

    def note(self, text: str) -> None:
        """Something to tell that is no status: a cluster that starts, a supervisor that does not answer."""
        ...


def make_view(console: Console, *, live: bool, bytewise: bool) -> View:
    """The live view when that is wanted and `console` is a terminal, else plain lines. `bytewise`: a token is a byte."""
    if live and console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, bytewise=bytewise)
    return PlainView(console, bytewise=bytewise)


class PlainView:
    """Lines: one every PLAIN_EVERY_S with the progress, one for each new decision, phase or note."""

    def __init__(self, console: Console, *, bytewise: bool, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._bytewise = bytewise
        self._clock_s = clock_s
        self._told_s = float("-inf")
        self._told = ""
        self._decision = 0
        self._phase: JobPhase | None = None

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return

    def update(self, status: JobStatus) -> None:
        """Print what is new."""
        decision = status.decision
        if decision is not None and decision.seq > self._decision:
            self._decision = decision.seq
            self._print(f"#{decision.seq} {decision.reason}")
        now_s = self._clock_s()
        text = render.progress_text(status, bytewise=self._bytewise)
        due = now_s - self._told_s >= PLAIN_EVERY_S or status.phase is not self._phase
        if due and text != self._told:
            self._told_s, self._told, self._phase = now_s, text, status.phase
            self._print(text)

    def note(self, text: str) -> None:
        """Print it."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """A picture that is redrawn in place and stays on the screen when the job is over."""

    def __init__(self, console: Console, *, bytewise: bool) -> None:
        self._bytewise = bytewise
        self._status: JobStatus | None = None
        self._notes: deque[str] = deque(maxlen=NOTES_MAX)
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self.picture,
            console=console,
            refresh_per_second=REDRAWS_PER_S,
            redirect_stdout=False,
            vertical_overflow="crop",
        )

    def __enter__(self) -> View:
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def update(self, status: JobStatus) -> None:
        """Show it at the next redraw."""
        self._status = status

    def note(self, text: str) -> None:
        """Show it below the picture; the newest NOTES_MAX stay."""
        self._notes.append(text)

    def picture(self) -> RenderableType:
        """What the screen shows now."""
        parts: list[RenderableType] = []
        if self._status is not None:
            parts.append(picture(self._status, bytewise=self._bytewise))
        notes = [Text(f"  {n}", style="dim", overflow="ellipsis", no_wrap=True) for n in self._notes]
        if self._status is None and self._notes:
            self._spinner.update(text=Text(notes.pop().plain.strip()))
            parts += [*notes, self._spinner]
        else:
            parts += notes
        return Group(*parts)


def picture(status: JobStatus, *, bytewise: bool) -> RenderableType:
    """One status as a panel: progress, losses, pace, a line per node, the last decision, the budget."""
    colour = _COLOURS[status.phase]
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(
        ProgressBar(total=max(1, status.steps), completed=status.step, complete_style=colour, finished_style=colour),
        Text(f"step {status.step}/{status.steps}  {100 * status.step // max(1, status.steps)} %"),
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("loss", Text(render.loss(status.loss, bytewise=bytewise)))
    facts.add_row("held out", Text(render.loss(status.eval_loss, bytewise=bytewise)))
    rate = "-" if status.tokens_per_s is None else f"{units.count(status.tokens_per_s)} tokens/s"
    facts.add_row("throughput", Text(rate if status.eta_s is None else f"{rate}, ETA {units.duration(status.eta_s)}"))
    facts.add_row("plan", Text(render.plan_text(status), style="yellow" if status.shrunk else ""))
    if status.change is not None:
        facts.add_row("change", Text(render.change_text(status.change), style="yellow"))
    facts.add_row("failures", Text(render.resilience_text(status)))
    if status.decision is not None:
        facts.add_row("decision", Text(f"#{status.decision.seq} {status.decision.reason}", style="bold"))
    if status.last_word:
        facts.add_row("last word", Text(status.last_word.strip().splitlines()[-1], style=colour))
    ended = f" ({status.outcome})" if status.outcome else ""
    title = Text.assemble((status.name, "bold"), " ", (f"{status.phase}{ended}", colour), f" epoch {status.epoch}")
    return Panel(Group(bar, facts, Text(), _nodes(status)), title=title, title_align="left", border_style=colour)


def _nodes(status: JobStatus) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="ellipsis", no_wrap=True)
    rows = render.node_rows(status)
    for node, condition, workers in rows[:NODES_MAX]:
        style = "green" if condition == "ok" else "red"
        grid.add_row(Text(node), Text(condition, style=style), Text(workers, style="yellow" if "SUSPECT" in workers else ""))
    if len(rows) > NODES_MAX:
        healthy = sum(condition == "ok" for _, condition, _ in rows[NODES_MAX:])
        grid.add_row("...", "", Text(f"{len(rows) - NODES_MAX} more nodes, {healthy} of them ok"))
    return grid
