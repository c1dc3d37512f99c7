"""What a pod's process reads from its environment, the commands that it makes of it, and the child that it looks after."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.apps.kube import worker
from orchestrator.apps.kube.head import head_command, supervisor_settings
from orchestrator.apps.kube.pod import EXIT_STOPPED, Pod, PodError
from orchestrator.apps.kube.supervising import ShownLines
from orchestrator.apps.kube.worker import wait_for_head, worker_command
from orchestrator.core.job import DeviceKind
from orchestrator.runtime.ports import LogLine

ENV = {
    "ORCHESTRATOR_JOB": "my-job",
    "ORCHESTRATOR_NAMESPACE": "ns",
    "POD_NAME": "my-job-worker-0-1",
    "POD_IP": "10.0.0.7",
    "ORCHESTRATOR_SLOTS": "4",
    "ORCHESTRATOR_DEVICE": "cuda",
    "ORCHESTRATOR_GRACE_SECONDS": "60",
}


def test_what_the_operator_sets_is_read() -> None:
    pod = Pod.of(ENV)
    assert (pod.job, pod.slots, pod.device, pod.grace_s, pod.head) == ("my-job", 4, DeviceKind.CUDA, 60.0, "my-job-head")
    assert (str(pod.home), str(pod.tokens)) == ("/var/lib/orchestrator", "/var/run/orchestrator/token")
    assert (pod.gcs_address, pod.control_address) == ("my-job-head:6379", "my-job-head:7400")


@pytest.mark.parametrize(
    ("more", "head"),
    [
        ({"MY_JOB_HEAD_SERVICE_HOST": "10.96.0.9"}, "10.96.0.9"),
        ({"MY_JOB_HEAD_SERVICE_HOST": "10.96.0.9", "ORCHESTRATOR_HEAD": "elsewhere"}, "elsewhere"),
    ],
)
def test_the_head_is_found_without_dns_where_the_kubelet_or_a_person_says_where_it_is(more: dict[str, str], head: str) -> None:
    assert Pod.of({**ENV, **more}).head == head


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ORCHESTRATOR_JOB": ""}, "ORCHESTRATOR_JOB is not set"),
        ({"POD_IP": ""}, "POD_IP is not set"),
        ({"ORCHESTRATOR_SLOTS": "0"}, "no number of slots"),
        ({"ORCHESTRATOR_GRACE_SECONDS": "1m"}, "no number of seconds"),
        ({"ORCHESTRATOR_DEVICE": "tpu"}, "'tpu', not one of"),
    ],
)
def test_what_is_missing_or_wrong_is_named(change: dict[str, str], words: str) -> None:
    with pytest.raises(PodError, match=words):
        Pod.of({**ENV, **change})


def test_secrets_are_copied_into_a_private_file_and_are_in_no_command(tmp_path: Path) -> None:
    (tmp_path / "ray-token").write_text("s3cr3t-value\n")
    (tmp_path / "ray-token").chmod(0o444)
    (tmp_path / "control-token").write_text("c" * 43)
    pod = Pod.of({**ENV, "ORCHESTRATOR_TOKEN_DIR": str(tmp_path), "ORCHESTRATOR_SCRATCH_DIR": str(tmp_path / "scratch")})
    (tmp_path / "scratch").mkdir()
    environment = pod.ray_environment()
    held = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert held.read_text() == "s3cr3t-value"
    assert stat.S_IMODE(held.stat().st_mode) == 0o600
    said = " ".join([*head_command(pod), *worker_command(pod), *environment.values()])
    assert "s3cr3t-value" not in said
    assert "c" * 43 not in said
    settings = supervisor_settings(pod)
    assert "10.0.0.7" not in " ".join(settings.values()), "the next head has another address"
    (tmp_path / "control-token").write_text("")
    with pytest.raises(PodError, match="lacks a value for control-token"):
        pod.token("control-token")
    (tmp_path / "control-token").unlink()
    with pytest.raises(PodError, match="Secret has to be mounted"):
        pod.token("control-token")


def test_the_head_has_no_slots_and_a_worker_as_many_as_it_is_told() -> None:
    gpus, cpus = Pod.of(ENV), Pod.of({**ENV, "ORCHESTRATOR_DEVICE": "cpu"})
    assert {"--num-cpus=0", "--num-gpus=0", "--head", "--block"} <= set(head_command(gpus))
    assert {"--num-cpus=4", "--num-gpus=4", "--address=my-job-head:6379"} <= set(worker_command(gpus))
    assert {"--num-cpus=4", "--num-gpus=0", "--node-ip-address=10.0.0.7"} <= set(worker_command(cpus))


def test_a_worker_says_which_machine_it_shares() -> None:
    assert not [w for w in worker_command(Pod.of(ENV)) if w.startswith("--labels")]
    assert "--labels=orchestrator.dev/machine=node-7.example" in worker_command(Pod.of({**ENV, "NODE_NAME": "node-7.example"}))
    (long,) = (w for w in worker_command(Pod.of({**ENV, "NODE_NAME": "n" * 200})) if w.startswith("--labels"))
    assert len(long.rpartition("=")[2]) == 63


def test_a_head_that_never_comes_is_given_up() -> None:
    assert not wait_for_head("127.0.0.1:1", limit_s=0.0)


def test_sigterm_ends_a_node_that_still_waits_for_its_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ray-token").write_text("t")
    for name, value in {**ENV, "ORCHESTRATOR_TOKEN_DIR": str(tmp_path), "ORCHESTRATOR_SCRATCH_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as it is for process 1 of a container
    monkeypatch.setattr("orchestrator.apps.kube.worker.wait_for_head", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as ended:
            worker.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == EXIT_STOPPED


CHILD = """
    import sys, subprocess, time
    from orchestrator.apps.kube.pod import Child
    child = Child([sys.executable, "-c", {inner!r}], {{"PATH": "/usr/bin:/bin"}})
    print("up", flush=True)
    child.tend()
    child.end()
    print("stopping" if child.stopping else "ended", child.code, flush=True)
"""


def looked_after(inner: str) -> subprocess.Popen[str]:
    """A process of ours that looks after a child which runs `inner`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD).format(inner=inner)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])},
    )


def test_a_child_that_ends_is_noticed_with_its_code() -> None:
    with looked_after("raise SystemExit(7)") as process:
        assert process.communicate(timeout=120)[0].splitlines() == ["up", "ended 7"]


def test_sigterm_is_passed_on_and_the_child_may_take_its_time() -> None:
    end = "signal.signal(15, lambda *_: (time.sleep(0.5), sys.exit(0)))"
    inner = f"import signal, sys, time; {end}; print('child', flush=True); time.sleep(60)"
    with looked_after(inner) as process:
        assert process.stdout is not None
        assert {process.stdout.readline().strip(), process.stdout.readline().strip()} == {"up", "child"}
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=120)[0].splitlines()[-1] == "stopping 0"


def test_lines_that_were_shown_are_not_shown_again_by_the_next_agent_or_stream(tmp_path: Path) -> None:
    now = [0.0]
    seen: list[str] = []

    def stream(texts: str, *, late: str = "") -> None:
        lines = ShownLines(tmp_path / "lines.json", lambda line: seen.append(line.text), now_s=lambda: now[0])
        lines.begin()
        for text in texts:
            lines.take(LogLine("j/w0", 0, text))
        now[0] += 10.0
        for text in late:
            lines.take(LogLine("j/w0", 0, text))
        lines.save()

    stream("abc")
    stream("abcd")
    assert "".join(seen) == "abcd"
    stream("cd", late="e")  # the oldest were rotated away: what comes late is new all the same
    assert "".join(seen) == "abcde"
