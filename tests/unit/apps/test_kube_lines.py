"""Workers' lines out of the agent's log: whose they are, resumed where a stream broke, once also from another head pod."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from orchestrator.adapters.kube.refusals import InvalidError, QuietError
from orchestrator.adapters.kube.seen import job_seen
from orchestrator.apps.cli.base import CliError
from orchestrator.apps.cli.kube import lines as module
from orchestrator.apps.cli.kube.lines import Lines
from orchestrator.runtime.control import ControlError, UnreachableError

RUNNING: dict[str, Any] = {"metadata": {"name": "j", "namespace": "t", "uid": "u"}, "status": {"phase": "Running"}}
OVER = {**RUNNING, "status": {"phase": "Succeeded"}}
A, B, C = "[rank 0 j/w0] a", "[rank 1 j/w1] b", "[spare j/w2] c"
AGENT = "agent: 2026-11-29 INFO the job is adopted"


def pod(role: str, number: int, *, container: str = "agent", up: bool = True) -> dict[str, Any]:
    name = f"j-{role}-{number}"
    state = {"running": {}} if up else {"waiting": {"reason": "ContainerCreating"}}
    labels = {"orchestrator.dev/job": "j", "orchestrator.dev/role": role, "orchestrator.dev/incarnation": str(number)}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels},
        "status": {"containerStatuses": [{"name": container, "state": state}]},
    }


def stamped(*texts: str, second: int = 0) -> list[bytes]:
    """Lines as the kubelet stamps them: nanoseconds without closing zeros."""
    return [f"2026-11-29T09:00:{second:02}.{n + 1}Z {text}".encode() for n, text in enumerate(texts)]


class Server:
    """Answers from scripts: the job and the pods (the last one again and again), and logs, each once."""

    def __init__(self, *, jobs: list[Any], pods: list[list[Any]], logs: list[Any]) -> None:
        self.jobs, self.pods, self.logs = jobs, pods, logs
        self.asked: list[tuple[str, dict[str, str]]] = []

    def get(self, path: str, *, query: Mapping[str, str] | None = None) -> Any:
        """The job, or the pods that the selector means."""
        if path.endswith("/trainingjobs/j"):
            found = self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]
            if isinstance(found, ControlError):
                raise found
            return found
        found = self.pods.pop(0) if len(self.pods) > 1 else self.pods[0]
        wanted = (query or {})["labelSelector"].partition("role=")[2]
        return {"items": [p for p in found if not wanted or p["metadata"]["labels"]["orchestrator.dev/role"] == wanted]}

    @contextmanager
    def lines(self, path: str, *, query: Mapping[str, str], quiet_s: float) -> Iterator[Iterator[bytes]]:
        """The next log."""
        self.asked.append((path.rpartition("/pods/")[2], dict(query)))
        found = self.logs.pop(0)
        if isinstance(found, ControlError):
            raise found

        def told() -> Iterator[bytes]:
            for item in found:
                if isinstance(item, ControlError):
                    raise item
                yield item

        yield told()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.apps.cli.kube.lines.time.sleep", lambda _: None)


def of(server: Server, *, rank: int | None = None) -> Lines:
    access: Any = server
    return Lines(access, job_seen(RUNNING), rank=rank)


def plain(*texts: str) -> list[bytes]:
    return [t.encode() for t in texts]


def test_the_agents_own_words_are_left_out_and_a_rank_can_be_chosen() -> None:
    for rank, expected in ((None, [A, B, C]), (1, [B]), (7, [])):
        server = Server(jobs=[RUNNING], pods=[[pod("head", 1)]], logs=[plain(AGENT, A, B, "[rank x] no", C)])
        assert list(of(server, rank=rank).now()) == expected
        assert server.asked == [("j-head-1/log", {"container": "agent"})]


def test_the_newest_head_is_read() -> None:
    server = Server(jobs=[RUNNING], pods=[[pod("head", 9), pod("head", 10)]], logs=[plain(A)])
    assert list(of(server).now()) == [A]
    assert server.asked[0][0] == "j-head-10/log"


def test_a_broken_stream_is_resumed_by_its_time_stamps(capsys: pytest.CaptureFixture[str]) -> None:
    again = stamped(A, B, C)
    server = Server(
        jobs=[RUNNING, OVER],
        pods=[[pod("head", 1)]],
        logs=[[*again[:2], UnreachableError("cut off")], again],
    )
    assert list(of(server).follow()) == [A, B, C]
    follow = {"container": "agent", "follow": "true", "timestamps": "true"}
    assert [query for _, query in server.asked] == [follow, {**follow, "sinceTime": "2026-11-29T09:00:00Z"}]
    assert capsys.readouterr().err == "cut off (trying again)\n"


def test_another_head_pod_begins_again_and_nothing_is_shown_twice() -> None:
    server = Server(
        jobs=[RUNNING, OVER],
        pods=[[pod("head", 1)], [pod("head", 1), pod("head", 2)]],
        logs=[stamped(A, B), stamped(AGENT, A, B, B, second=30)],
    )
    assert list(of(server).follow()) == [A, B, B]
    assert [path for path, _ in server.asked] == ["j-head-1/log", "j-head-2/log"]
    assert "sinceTime" not in server.asked[1][1]


def test_a_new_head_pod_that_kept_less_than_was_shown_skips_no_new_line() -> None:
    server = Server(
        jobs=[RUNNING, OVER],
        pods=[[pod("head", 1)], [pod("head", 2)]],
        logs=[stamped(A, A, A), [*stamped(A, second=30), *stamped(A, B, second=45)]],
    )
    assert list(of(server).follow()) == [A, A, A, A, B]


def test_following_waits_for_the_head_and_ends_with_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(
        jobs=[RUNNING, RUNNING, RUNNING, RUNNING, OVER],
        pods=[[], [pod("head", 1, up=False)], [pod("head", 1)]],
        logs=[InvalidError("container is waiting to start", ()), stamped(A), stamped(A)],
    )
    assert list(of(server).follow()) == [A]
    assert capsys.readouterr().err == "the head of job j is not up yet; waiting for it\n"


def test_a_quiet_log_of_a_job_that_is_over_ends() -> None:
    server = Server(
        jobs=[RUNNING, OVER], pods=[[pod("head", 1)]], logs=[[*stamped(A), QuietError("quiet")], [QuietError("quiet")]]
    )
    assert list(of(server).follow()) == [A]


def test_an_api_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr("orchestrator.apps.cli.kube.lines.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(UnreachableError, match="nobody"):
        list(of(Server(jobs=[UnreachableError("nobody")], pods=[[]], logs=[])).follow())


def test_where_no_head_is_up_the_workers_pods_speak(capsys: pytest.CaptureFixture[str]) -> None:
    pods = [pod("head", 1, up=False), pod("worker", 2, container="ray-worker"), pod("spare", 1, container="ray-worker", up=False)]
    server = Server(jobs=[RUNNING], pods=[pods], logs=[plain("joining", "no head")])
    assert list(of(server).now()) == ["[j-worker-2] joining", "[j-worker-2] no head"]
    assert server.asked == [("j-worker-2/log", {"container": "ray-worker"})]
    assert "its head is not up; these are the worker pods' own logs" in capsys.readouterr().err
    with pytest.raises(CliError, match="leave --rank out"):
        list(of(Server(jobs=[RUNNING], pods=[pods], logs=[]), rank=0).now())
    with pytest.raises(CliError, match="there are no logs of job j to read: it has no head pod, and no worker pod runs"):
        list(of(Server(jobs=[RUNNING], pods=[[]], logs=[])).now())


def test_time_stamps_compare_with_and_without_fractions() -> None:
    ordered = ["2026-11-29T09:00:00Z", "2026-11-29T09:00:00.000000001Z", "2026-11-29T09:00:00.1Z", "2026-11-29T09:00:01Z"]
    moments = [module._moment(s) for s in ordered]
    assert moments == sorted(moments)
    assert len(set(moments)) == len(moments)
    assert module._whole("2026-11-29T09:00:00.123456789+01:00") == "2026-11-29T09:00:00+01:00"
    assert module._whole("2026-11-29T09:00:00Z") == "2026-11-29T09:00:00Z"
