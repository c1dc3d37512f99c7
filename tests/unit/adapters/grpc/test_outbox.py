"""What is said again after a break, and what gives way when too much waits."""

from __future__ import annotations

from orchestrator.adapters.grpc.convert import LogLines, Stacks
from orchestrator.adapters.grpc.outbox import LINES_PER_MESSAGE, Outbox
from orchestrator.core.supervisor.events import (
    CheckpointReported,
    DigestReported,
    EpochReady,
    EvalReported,
    LeftEpoch,
    RankFinished,
    StepCommitted,
    WorkerMeasured,
)
from orchestrator.runtime.ports import LogLine
from orchestrator.runtime.worker import WorkerReport
from orchestrator.testkit.jobs import make_costs, make_graph, make_measure


def committed(step: int, epoch: int = 1) -> StepCommitted:
    return StepCommitted(0, "w1", epoch, step, 2.0, 0.5, 1.0, 1e-3, 12.0, 64, False, 2.0)


def digest(step: int) -> DigestReported:
    return DigestReported(0, "w1", 1, step, "d")


def drained(outbox: Outbox) -> list[object]:
    out: list[object] = []
    while (item := outbox.take()) is not None:
        out.append(item)
    assert not outbox
    return out


def test_things_are_said_once_and_in_order_while_the_stream_holds() -> None:
    outbox = Outbox()
    reports: list[WorkerReport] = [EpochReady(0, "w1", 1), committed(1), digest(1)]
    for report in reports:
        outbox.report(report)
    assert drained(outbox) == reports
    assert drained(outbox) == []


def test_committed_steps_are_said_again_after_the_journals_newest() -> None:
    outbox = Outbox()
    for step in (1, 2, 3):
        outbox.report(committed(step))
    assert len(drained(outbox)) == 3
    outbox.report(committed(4))
    outbox.rewind(committed_step=1)
    assert drained(outbox) == [committed(2), committed(3), committed(4)]
    outbox.rewind(committed_step=4)
    assert drained(outbox) == []


def test_the_newest_digest_and_checkpoint_are_said_again_even_when_they_are_old() -> None:
    outbox = Outbox()
    old, new = (CheckpointReported(0, "w1", 1, s, f"u{s}", True, "") for s in (10, 20))
    other = EvalReported(0, "w1", 1, 30, 2.0)
    for report in (digest(10), old, new, digest(25), other):
        outbox.report(report)
    drained(outbox)
    outbox.rewind(committed_step=28)
    assert drained(outbox) == [new, digest(25), other]


def test_what_never_left_is_said_whatever_its_step() -> None:
    outbox = Outbox()
    outbox.report(digest(1))
    outbox.report(committed(1))
    outbox.rewind(committed_step=5)
    assert drained(outbox) == [digest(1)]


def test_of_epochs_only_the_newest_is_said_again() -> None:
    outbox = Outbox()
    done = RankFinished(0, "w1", 2, 9, "d")
    for report in (EpochReady(0, "w1", 1), LeftEpoch(0, "w1", 1, True, None, ""), EpochReady(0, "w1", 2), done):
        outbox.report(report)
    drained(outbox)
    outbox.rewind(committed_step=9)
    assert drained(outbox) == [EpochReady(0, "w1", 2), done]
    outbox.rewind(committed_step=9)  # and again, as often as the stream breaks
    assert drained(outbox) == [EpochReady(0, "w1", 2), done]


def test_the_newest_measuring_is_said_again() -> None:
    outbox = Outbox()
    graph = make_graph(6)
    reports = [WorkerMeasured(0, "w1", make_measure(slowness=s), make_costs(graph)) for s in (1.0, 2.0)]
    for report in reports:
        outbox.report(report)
    drained(outbox)
    outbox.report(EpochReady(0, "w1", 1))
    outbox.rewind(committed_step=0)
    assert drained(outbox) == [reports[1], EpochReady(0, "w1", 1)]


def test_when_too_many_wait_the_oldest_committed_step_gives_way() -> None:
    outbox = Outbox(reports_max=3)
    for report in (EpochReady(0, "w1", 1), committed(1), committed(2), digest(2), committed(3)):
        outbox.report(report)
    assert drained(outbox) == [EpochReady(0, "w1", 1), digest(2), committed(3)]
    assert outbox.reports_lost == 2


def test_log_lines_come_last_in_groups_of_one_rank() -> None:
    outbox = Outbox()
    lines = [LogLine("w1", rank, str(n)) for n, rank in enumerate([-1, -1, 0, 0, 0])]
    for line in lines:
        outbox.line(line)
    outbox.stacks("old")
    outbox.stacks("new")
    outbox.report(committed(1))
    assert drained(outbox) == [committed(1), Stacks("new"), LogLines(tuple(lines[:2])), LogLines(tuple(lines[2:]))]


def test_a_flood_of_log_lines_is_cut_and_says_so() -> None:
    outbox = Outbox(lines_max=LINES_PER_MESSAGE)
    for n in range(LINES_PER_MESSAGE + 7):
        outbox.line(LogLine("w1", 0, str(n)))
    (said,) = drained(outbox)
    assert isinstance(said, LogLines)
    assert said.lines[0].text == "... 7 lines left out ..."
    assert [line.text for line in said.lines[1:]] == [str(n) for n in range(7, LINES_PER_MESSAGE + 7)]
