"""run and launch: exit codes, what is stopped, what Ctrl-C does, and what comes out on stdout."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.supervisor.events import Fault
from orchestrator.core.supervisor.state import JobPhase, Outcome
from orchestrator.runtime.control import NotPossibleError, UnreachableError
from tests.unit.apps import planned
from tests.unit.apps.world import EXAMPLE, FakeClient, NotRunning, cli, ended, expecting, install, running_status, statuses, story

CODES = {
    Outcome.COMPLETED: 0,
    Outcome.USER_ERROR: 1,
    Outcome.BUDGET_SPENT: 3,
    Outcome.CORRUPT_STATE: 3,
    Outcome.UNRECOVERABLE: 3,
    Outcome.CANCELLED: 130,
}


@pytest.mark.parametrize(("outcome", "code"), CODES.items())
def test_the_exit_code_is_the_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, code: int) -> None:
    fake = install(monkeypatch, FakeClient(statuses(running_status(), ended(outcome))))
    result = cli("run", EXAMPLE, home=tmp_path)
    assert result.exit_code == code, result.output
    assert f"because {outcome}" in result.stdout
    assert fake.session is not None
    assert fake.session.stopped == 1


def test_every_outcome_has_a_code() -> None:
    assert set(CODES) == set(Outcome) - {Outcome.NONE}


def test_json_on_stdout_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = story()
    install(monkeypatch, FakeClient(statuses(told.status()), records=told.records))
    result = cli("run", EXAMPLE, "--json", "--name", "other", home=tmp_path)
    out = json.loads(result.stdout)
    assert result.exit_code == out["exit_code"] == 0
    assert out["status"]["outcome"] == "completed"
    assert out["digest"] == "d" * 64
    assert out["report"] == str(tmp_path / "jobs/other/report.html")
    assert "Where the time went" in Path(out["report"]).read_text()
    assert "starting the cluster" in result.stderr


def test_the_ending_holds_the_prediction_against_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = story()
    option = planned.option(planned.strategy(pipeline=1, data=4), step_s=0.090)
    workers = tuple(replace(w, rss_bytes=1 << 29) for w in told.status().workers)
    before = replace(told.status(), phase=JobPhase.RUNNING, workers=workers)
    install(monkeypatch, FakeClient(statuses(before, told.status()), records=expecting(told.records, option)))
    result = cli("run", EXAMPLE, "--json", home=tmp_path)
    held = json.loads(result.stdout)["status"]["prediction"]
    assert (held["epoch"], held["step_ms"], held["measured_step_ms"]) == (2, 90.0, 100.0)
    assert (held["memory_bytes"], held["measured_memory_bytes"]) == (1 << 30, 1 << 29)
    assert (held["step_error"], held["memory_error"]) == (pytest.approx(-0.1), pytest.approx(1.0))


def test_the_report_goes_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = story()
    install(monkeypatch, FakeClient(statuses(told.status()), records=told.records))
    result = cli("run", EXAMPLE, "--report", tmp_path / "new/r.html", home=tmp_path)
    assert result.exit_code == 0
    assert (tmp_path / "new/r.html").exists()
    assert str(tmp_path / "new/r.html") in result.stdout


def test_a_report_that_cannot_be_written_does_not_change_the_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = story()
    install(monkeypatch, FakeClient(statuses(told.status()), records=told.records))
    (tmp_path / "file").write_text("")
    result = cli("run", EXAMPLE, "--report", tmp_path / "file/r.html", home=tmp_path)
    assert result.exit_code == 0
    assert "report could not be written" in result.stderr


def test_a_bad_file_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeClient())
    assert cli("run", tmp_path / "none.yaml", home=tmp_path).exit_code == 2
    assert fake.calls == []


@pytest.mark.parametrize(
    ("broken", "hint"),
    [
        (RuntimeError("the raylet did not come up"), "doctor"),
        (ConnectionError("no Ray cluster can be joined"), "doctor"),
        (NotRunning("the cluster local runs already: end it with orchestrator down"), "orchestrator down"),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("launch", "--address", "auto"), ("launch", "--address", "auto", "--detach")])
def test_a_cluster_that_does_not_start_is_infrastructure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], broken: Exception, hint: str
) -> None:
    install(monkeypatch, FakeClient()).broken = broken
    result = cli(*command, EXAMPLE, home=tmp_path)
    assert result.exit_code == 3
    assert str(broken) in result.stderr
    assert hint in result.stderr
    assert "Traceback" not in result.stderr


def test_a_refused_job_stops_what_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeClient(fails=NotPossibleError("job j runs already")))
    result = cli("run", EXAMPLE, home=tmp_path)
    assert result.exit_code == 2
    assert "job j runs already" in result.stderr
    assert fake.session is not None
    assert fake.session.stopped == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cancels_the_job_and_stops_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    cancelled = threading.Event()

    def interrupt() -> None:
        os.kill(os.getpid(), number)
        assert cancelled.wait(30)

    client = FakeClient(statuses(running_status(), ended(Outcome.CANCELLED)), on_watch=interrupt, on_cancel=cancelled.set)
    fake = install(monkeypatch, client)
    before = signal.getsignal(number)
    result = cli("run", EXAMPLE, home=tmp_path)
    assert result.exit_code == 130, result.output
    assert [a[0] for a in client.asked] == ["submit", "cancel"]
    assert fake.session is not None
    assert fake.session.stopped == 1
    assert signal.getsignal(number) is before


def test_a_second_interrupt_does_not_wait_for_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(60)

    client = FakeClient(
        statuses(running_status(), ended(Outcome.CANCELLED)),
        on_watch=interrupt,
        on_cancel=lambda: os.kill(os.getpid(), signal.SIGINT),
    )
    fake = install(monkeypatch, client)
    try:
        result = cli("run", EXAMPLE, home=tmp_path)
    finally:
        release.set()
    assert result.exit_code == 130, result.output
    assert fake.session is not None
    assert fake.session.stopped == 1


def test_an_interrupt_while_the_cluster_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeClient())

    def interrupted_start() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(30)

    fake.on_start = interrupted_start
    result = cli("run", EXAMPLE, home=tmp_path)
    assert result.exit_code == 130, result.output
    assert fake.client.asked == []


def test_a_supervisor_that_goes_and_comes_back_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.apps.cli.follow.PAUSE_S", 0.0)
    script = statuses(running_status(), UnreachableError("no supervisor answers"), ended(Outcome.COMPLETED))
    install(monkeypatch, FakeClient(script))
    assert cli("run", EXAMPLE, home=tmp_path).exit_code == 0


def test_chaos_is_handed_to_the_worker_of_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Semaphore(0)

    def wait_for_both() -> None:
        assert both.acquire(timeout=30)
        assert both.acquire(timeout=30)

    script = statuses(running_status(), ended(Outcome.COMPLETED))
    client = FakeClient(script, on_watch=wait_for_both, on_inject=both.release)
    install(monkeypatch, client)
    result = cli("run", EXAMPLE, "--chaos", "kill-node@30", "--chaos", "slow@5:1:300ms", home=tmp_path)
    assert result.exit_code == 0, result.output
    given = [a[2] for a in client.asked if a[0] == "inject"]
    assert given == [Fault("kill-node", 3, "", 30, 1, 0), Fault("slow", 1, "", 5, 1, 300)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kill-node", "KIND@STEP"),
        ("kill@3", "no fault; known"),
        ("kill-node@0", "not among the job's steps"),
        ("kill-node@61", "1 to 60"),
        ("kill-node@3:4", "ranks 0 to 3"),
        ("slow@3:1", "needs an amount"),
        ("hang@3:1:4parsecs", "no duration"),
    ],
)
def test_bad_chaos_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    fake = install(monkeypatch, FakeClient())
    result = cli("run", EXAMPLE, "--chaos", text, home=tmp_path)
    assert result.exit_code == 2
    assert words in result.stderr
    assert fake.calls == []


def test_launch_detached_submits_and_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeClient())
    result = cli("launch", EXAMPLE, "--address", "127.0.0.1:6379", "--detach", "--json", home=tmp_path)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"job": "gpt-docs", "supervisor": "127.0.0.1:7070"}
    assert fake.calls == [("attach", "127.0.0.1:6379", tmp_path)]
    submitted = [a for a in fake.client.asked if a[0] == "submit"]
    assert submitted == [("submit", "gpt-docs", EXAMPLE.read_text())]


def test_launch_stays_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeClient(statuses(ended(Outcome.USER_ERROR))))
    assert cli("launch", EXAMPLE, "--address", "auto", home=tmp_path).exit_code == 1


def test_launch_without_an_address_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeClient())
    assert cli("launch", EXAMPLE, home=tmp_path).exit_code == 2
