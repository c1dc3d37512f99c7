"""The command line on Kubernetes without an API server: which options fit where, words, exit codes, places of what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.adapters.kube.access import Options
from orchestrator.adapters.kube.refusals import ForbiddenError, InvalidError
from orchestrator.adapters.kube.seen import Phase, event_seen, in_order, job_seen
from orchestrator.apps.cli.kube import found, launch, patient, progress, words
from orchestrator.runtime.control import NotFoundError, UnreachableError
from tests.unit.apps.world import EXAMPLE, cli

JOB: dict[str, Any] = {
    "metadata": {"name": "gpt", "namespace": "t", "uid": "u1", "generation": 2, "creationTimestamp": "2026-11-29T09:00:00Z"},
    "spec": {"cluster": {"nodes": 2}, "resilience": {"detect_within": "1s"}},
    "status": {"phase": "Running", "step": 17, "steps": 40, "message": None, "goodput": None},
}
SEEN = job_seen(JOB)


# ---- options


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("status", "--on", "kubernetes", "--cluster", "x"), "--cluster means nothing on kubernetes; leave --cluster out"),
        (("status", "-n", "t"), "--namespace means nothing on ray; add --on kubernetes"),
        (("events", "--all", "--on", "kubernetes"), "--all means nothing on kubernetes"),
        (("launch", "j.yaml", "--wait", "--address", "a:1"), "--wait means nothing on ray; add --on kubernetes"),
        (("launch", "j.yaml", "--dry-run", "--image", "i"), "--image and --dry-run mean nothing on ray"),
        (("launch", "j.yaml"), "name the Ray cluster with --address host:port (or auto), or say --on kubernetes"),
        (("launch", "j.yaml", "--on", "kubernetes", "--detach"), "--detach means nothing on kubernetes"),
        (("launch", str(EXAMPLE), "--on", "kubernetes", "--dry-run", "--wait"), "--dry-run makes no job to wait for"),
        (("scale", "j", "--on", "kubernetes"), "say how many nodes: --nodes N"),
        (("scale", "j", "--on", "kubernetes", "--layers-per-stage", "2,2"), "--layers-per-stage means nothing on kubernetes"),
        (("suspend", "j"), "only jobs on Kubernetes are suspended and resumed; add --on kubernetes"),
        (("resume", "j"), "only jobs on Kubernetes are suspended and resumed; add --on kubernetes"),
        (("cancel", "j", "--on", "kubernetes"), "orchestrator suspend j"),
        (("down", "--on", "kubernetes"), "name the job to delete"),
        (("down", "j"), "the job j means nothing on ray; add --on kubernetes"),
        (("list", "--on", "kubernetes", "--kubeconfig", "/none"), "there is no kubeconfig at /none; fix:"),
        (("launch", "none.yaml", "--on", "kubernetes"), "none.yaml"),
    ],
)
def test_options_that_do_not_fit_are_bad_input(tmp_path: Path, typed: tuple[str, ...], told: str) -> None:
    result = cli(*typed, home=tmp_path)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stdout == ""


def test_the_place_may_be_set_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_ON", "kubernetes")
    assert "there is no kubeconfig at /none" in cli("list", "--kubeconfig", "/none", home=tmp_path).stderr


@pytest.mark.parametrize(
    "typed", [("drain", "j", "n"), ("explain", "3"), ("replace", "j", "--rank", "1"), ("checkpoint", "now", "j")]
)
def test_a_command_that_asks_a_supervisor_says_that_it_finds_none_in_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_ON", "kubernetes")
    result = cli(*typed, home=tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "kubectl drain" in result.stderr
    monkeypatch.delenv("ORCHESTRATOR_ON")
    result = cli(*typed, home=tmp_path)
    assert (result.exit_code, "kubectl" in result.stderr) == (3, False)


def test_without_the_client_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.apps.cli.options.find_spec", lambda _: None)
    result = cli("list", "--on", "kubernetes", home=tmp_path)
    assert result.exit_code == 3
    assert "pip install 'orchestrator[kubernetes]'" in result.stderr


def test_a_client_side_dry_run_needs_no_cluster(tmp_path: Path) -> None:
    path = tmp_path / "j.yaml"
    path.write_text("name: gpt\ntask: gpt\n")
    result = cli(
        *("launch", path, "--on", "kubernetes", "--dry-run=client", "--json", "--kubeconfig", "/none"),
        *("--image", "r/i@sha256:" + "0" * 64, "--name", "mine", "-n", "team"),
        home=tmp_path,
    )
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert (made["kind"], made["metadata"]) == ("TrainingJob", {"name": "mine", "namespace": "team"})
    assert made["spec"] == {"task": {"target": "gpt"}, "kubernetes": {"image": "r/i@sha256:" + "0" * 64}}


def test_a_job_without_an_image_says_where_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "j.yaml"
    path.write_text("name: gpt\n")
    result = cli("launch", path, "--on", "kubernetes", "--dry-run=client", home=tmp_path)
    assert result.exit_code == 2
    assert f"{path} has 1 problem" in result.stderr
    assert "kubernetes.image: required key is missing" in result.stderr


# ---- what the server refuses


def test_causes_are_placed_in_a_bare_file(tmp_path: Path) -> None:
    error = InvalidError("is invalid", (("spec.train.steps", "must be at most 20"), ("spec.cluster.nodes", "no"), ("", "whole")))
    told = launch._placed(error, text="name: a\ntrain:\n  steps: 40\n", file=Path("job.yaml"))
    assert "job.yaml:3:10: spec.train.steps: must be at most 20\n    fix: see `kubectl explain tj.spec.train.steps`" in told
    assert "job.yaml:1:1: spec.cluster.nodes: no" in told
    assert "whole" in told


def test_a_refusal_without_causes_is_told_as_it_is() -> None:
    told = launch._placed(InvalidError("no, by a rule", ()), text="name: a\n", file=Path("job.yaml"))
    assert told.startswith("the API server refuses the job of job.yaml: no, by a rule;")


# ---- words


@pytest.mark.parametrize(
    ("phase", "reason", "code"),
    [
        (Phase.SUCCEEDED, "Completed", 0),
        (Phase.FAILED, "UserError", 1),
        (Phase.FAILED, "InvalidSpec", 2),
        (Phase.FAILED, "CorruptState", 3),
        (Phase.FAILED, "", 3),
        (Phase.CANCELLED, "Cancelled", 130),
    ],
)
def test_the_end_of_a_job_is_an_exit_code(phase: Phase, reason: str, code: int) -> None:
    assert words.code_of(replace(SEEN, phase=phase, reason=reason)) == code


def test_nulls_of_the_status_are_nothing() -> None:
    assert (SEEN.message, SEEN.goodput, SEEN.reason) == ("", "", "")
    assert "None" not in "\n".join(words.status_lines(SEEN))


def test_failures_that_count_are_told_and_none_is_not() -> None:
    failed = job_seen({**JOB, "status": {"phase": "Running", "recoveries": 3, "failures": 2}})
    assert any("3 recoveries, 0 steps lost, 2 failures counted" in line for line in words.status_lines(failed))
    assert "counted" not in "\n".join(words.status_lines(SEEN))


def test_a_command_in_a_message_reaches_the_same_cluster() -> None:
    there = Options(kubeconfig="/my files/k", context="lab")
    assert (
        words.command("down", "gpt", there, namespace="t")
        == "orchestrator down gpt --on kubernetes --kubeconfig '/my files/k' --context lab -n t"
    )


def test_a_phase_of_a_newer_operator_is_no_crash() -> None:
    assert job_seen({**JOB, "status": {"phase": "Dreaming"}}).phase is Phase.PENDING


def _event(name: str, second: int, *, source: str = "orchestrator-agent") -> dict[str, Any]:
    when = f"2026-11-29T09:00:{second:02}Z"
    return {"metadata": {"name": name}, "lastTimestamp": when, "source": {"component": source}, "reason": "R", "message": "m"}


def test_events_of_the_journal_keep_its_order_among_the_others() -> None:
    items = [_event("j.u.000002", 1), _event("j.u.000001", 5), _event("j.f00d1234", 9, source="orchestrator-operator")]
    assert [(e.seq, e.name) for e in in_order(map(event_seen, items))] == [
        (1, "j.u.000001"),
        (2, "j.u.000002"),
        (0, "j.f00d1234"),
    ]
    assert event_seen(_event("j.0123456789012345", 1, source="orchestrator-operator")).seq == 0  # digits of a digest


def test_progress_tells_each_change_at_once_and_steps_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    told = progress.Progress(now_s=lambda: now[0])
    for second, job in (
        (0.0, SEEN),
        (1.0, replace(SEEN, step=18)),
        (2.0, replace(SEEN, step=19, phase=Phase.RECOVERING, message="rank 1 is lost\nmore")),
        (3.0, replace(SEEN, step=20, epoch=2)),
        (9.0, replace(SEEN, step=30, epoch=2)),
    ):
        now[0] = second
        told.job(job)
    assert capsys.readouterr().err.splitlines() == [
        "Running, step 17/40",
        "Recovering, step 19/40: rank 1 is lost",
        "Running, step 20/40",
        "Running, step 30/40",
    ]


# ---- operator


def lease(**spec: Any) -> Any:
    """An Access that finds this lease, or raises what it is given."""

    def get(path: str) -> Any:
        assert path.endswith("/namespaces/orchestrator-system/leases/orchestrator-operator")
        if "error" in spec:
            raise spec["error"]
        return {"spec": spec}

    return SimpleNamespace(get=get)


@pytest.mark.parametrize(
    ("spec", "presence", "told"),
    [
        ({"holderIdentity": "p", "leaseDurationSeconds": 15, "renewTime": "NOW"}, "works", "p, lease renewed"),
        ({"holderIdentity": "p", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.123456Z"}, "away", "days ago"),
        ({"holderIdentity": "", "leaseDurationSeconds": 15, "renewTime": "NOW"}, "away", "given its lease back"),
        ({"holderIdentity": "p"}, "away", "and not since"),
        ({"error": NotFoundError("no")}, "away", "no operator is installed"),
        ({"error": ForbiddenError("no")}, "hidden", "you may not read"),
    ],
)
def test_the_operators_lease_in_words(monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], presence: str, told: str) -> None:
    monkeypatch.setattr("orchestrator.apps.cli.kube.found.time.time", lambda: 1_795_943_000.0)
    spec = {k: "2026-11-29T09:03:15.5Z" if v == "NOW" else v for k, v in spec.items()}
    seen = found.operator(lease(**spec))
    assert (seen.presence, told in seen.words) == (presence, True), seen
    assert bool(seen.fix) == (presence != "works")


def test_who_waits_is_reminded_once_and_only_when_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    reminder = patient.Reminder(lease(error=NotFoundError("no")), generation=2, now_s=lambda: now[0])
    for second in (0.0, 4.9, 5.0, 6.0):  # 5 * detect_within
        now[0] = second
        reminder.look(SEEN)
    (told,) = capsys.readouterr().err.splitlines()
    assert "for 5 s the operator has not looked at it: no operator is installed" in told
    calm = patient.Reminder(lease(error=NotFoundError("no")), generation=2, now_s=lambda: now[0])
    now[0] = 100.0
    calm.look(replace(SEEN, observed_generation=2))
    away = patient.Reminder(lease(error=UnreachableError("no")), generation=2, now_s=lambda: now[0])
    now[0] = 200.0
    away.look(SEEN)  # whoever follows the job says that
    assert capsys.readouterr().err == ""
