"""What a worker has to say while nobody may be listening: bounded, in order, said again after a break.

gRPC does not tell which messages a broken stream still delivered. So reports are kept after they were sent, and a welcome (which
carries the newest committed step of the supervisor's journal) decides which are said again; the core takes repeated facts in its
stride. Log lines are said once. No locks here: the link has one.
"""

from __future__ import annotations

from collections import deque

from orchestrator.adapters.grpc.convert import LogLines, Stacks
from orchestrator.core.supervisor.events import CheckpointReported, DigestReported, EvalReported, StepCommitted, WorkerMeasured
from orchestrator.runtime.ports import LogLine
from orchestrator.runtime.worker import WorkerReport

REPORTS_MAX = 4096
LINES_MAX = 2000
LINES_PER_MESSAGE = 100


class Outbox:
    """Reports, stacks and log lines of one worker."""

    def __init__(self, *, reports_max: int = REPORTS_MAX, lines_max: int = LINES_MAX) -> None:
        self._reports_max = reports_max
        self._lines_max = lines_max
        self._waiting: deque[WorkerReport] = deque()
        self._said: deque[WorkerReport] = deque(maxlen=reports_max)
        self._stacks: deque[Stacks] = deque(maxlen=1)  # the newest tells most
        self._lines: deque[LogLine] = deque()
        self._lines_lost = 0
        self.reports_lost = 0

    def __bool__(self) -> bool:
        """Whether something waits to be said."""
        return bool(self._waiting or self._stacks or self._lines)

    def report(self, report: WorkerReport) -> None:
        """Add a report. When too many wait, the oldest committed step goes first: its curve point is what can be missed."""
        if len(self._waiting) >= self._reports_max:
            victim = next((r for r in self._waiting if isinstance(r, StepCommitted)), self._waiting[0])
            self._waiting.remove(victim)
            self.reports_lost += 1
        self._waiting.append(report)

    def stacks(self, text: str) -> None:
        """Add stacks; they replace older ones that still wait."""
        self._stacks.append(Stacks(text))

    def line(self, line: LogLine) -> None:
        """Add a log line. When too many wait, the oldest goes, and a line will say so."""
        if len(self._lines) >= self._lines_max:
            self._lines.popleft()
            self._lines_lost += 1
        self._lines.append(line)

    def rewind(self, *, committed_step: int) -> None:
        """A new stream was welcomed: say again what may not have been heard, before what still waits.

        Of committed steps those after `committed_step`. Of evaluations, digests and checkpoints those from that step on, and the
        newest of each kind; the newest measuring. Of what concerns an epoch or the end of it, all of the newest epoch.
        """
        kept = [*self._said, *self._waiting]
        newest_epoch = max((r.epoch for r in kept if not isinstance(r, WorkerMeasured)), default=0)
        newest = {type(r): r for r in kept}
        said = [r for r in self._said if _again(r, committed_step, newest_epoch, newest[type(r)])]
        waiting = [r for r in self._waiting if not isinstance(r, StepCommitted) or r.step > committed_step]
        self._said.clear()
        self._waiting = deque([*said, *waiting])

    def take(self) -> WorkerReport | Stacks | LogLines | None:
        """The next thing to say, reports first; None when there is nothing."""
        if self._waiting:
            report = self._waiting.popleft()
            self._said.append(report)
            return report
        if self._stacks:
            return self._stacks.popleft()
        if not self._lines:
            return None
        lines = [self._lines.popleft()]
        while self._lines and len(lines) < LINES_PER_MESSAGE and self._lines[0].rank == lines[0].rank:
            lines.append(self._lines.popleft())
        if self._lines_lost:
            lines.insert(0, LogLine(lines[0].worker_id, lines[0].rank, f"... {self._lines_lost} lines left out ..."))
            self._lines_lost = 0
        return LogLines(tuple(lines))


def _again(report: WorkerReport, committed_step: int, newest_epoch: int, newest_of_kind: WorkerReport) -> bool:
    match report:
        case StepCommitted(step=step):
            return step > committed_step
        case EvalReported(step=step) | DigestReported(step=step) | CheckpointReported(step=step):
            return step >= committed_step or report is newest_of_kind
        case WorkerMeasured():
            return report is newest_of_kind
        case _:
            return report.epoch == newest_epoch
