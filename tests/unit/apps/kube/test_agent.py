"""One whole agent without a cluster: whose pods are the ranks', what its successor writes, and what a bug in a thread does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeError
from orchestrator.adapters.kube.notices import PodSeen
from orchestrator.adapters.kube.watching import Picture
from orchestrator.apps.kube.agent import Agent
from orchestrator.apps.kube.pod import Pod
from orchestrator.runtime.control import ControlError, NotFoundError, NotPossibleError, UnreachableError
from orchestrator.runtime.status_types import NodeStatus
from tests.unit.adapters.kube.test_agent_words import STATUS, WORKER
from tests.unit.apps.kube.test_pod import ENV

HERE = NodeStatus(node_id="n0", address="10.0.0.7", slots=1, healthy=True, schedulable=True, workers=1)
SEATED = replace(STATUS, nodes=(HERE,), workers=(replace(WORKER, rank=0), replace(WORKER, rank=1, node_id="unknown")))
SPEC = {"task": {"target": "gpt"}, "train": {"steps": 9, "micro_batches": 8}, "kubernetes": {"image": "i"}}


class Supervisor:
    """Has the job at step 42 and tells nothing new."""

    def get(self, name: str) -> Any:
        return SEATED

    def submit(self, job: Any, *, yaml_text: str) -> str:
        return str(job.name)

    def watch_status(self, name: str) -> Iterator[Any]:
        yield SEATED
        time.sleep(60)

    def watch_events(self, name: str, **_: Any) -> Iterator[Any]:
        return iter(())

    def tail_logs(self, name: str, **_: Any) -> Iterator[Any]:
        return iter(())


def agent_in(tmp_path: Path, api: Any) -> Agent:
    """An agent whose files are in a folder of the test."""
    pod = Pod.of({**ENV, "ORCHESTRATOR_SCRATCH_DIR": str(tmp_path)})
    client: Any = Supervisor()
    access: Any = SimpleNamespace(api=api, server="https://here")
    return Agent(pod=pod, access=access, client=client, base_dir=str(tmp_path))


def test_the_next_agent_keeps_the_last_decision_and_seats_are_pods_that_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    def apply(_: Any, body: Any, **__: Any) -> None:
        written.append(body["status"])
        if "seats" in body["status"]:
            agent.stop()

    agent = agent_in(tmp_path, SimpleNamespace(apply=apply))
    pods = (
        PodSeen("my-job-worker-0-2", "b", "10.0.0.7", "n", "", ""),
        PodSeen("my-job-worker-0-1", "a", "10.0.0.7", "n", "", "OOMKilled"),  # had the same address, and has ended
        PodSeen("my-job-worker-1-1", "c", "", "", "", ""),  # has no address yet
    )
    job = {"metadata": {"name": "my-job", "namespace": "ns", "uid": "u"}, "spec": SPEC, "status": {"lastDecision": "#9 why so"}}
    picture = Picture(job=job, pods=pods, nodes={}, unready_s={}, complete=False)
    watching = SimpleNamespace(start=lambda: None, picture=lambda: picture)
    monkeypatch.setattr(agent, "_watching", watching)
    agent.run()
    assert written[0] == {"submitted": SPEC}
    assert written[1]["seats"] == ["my-job-worker-0-2", "?"]
    assert written[1]["lastDecision"] == "#9 why so"


def test_a_job_that_is_refused_is_said_as_an_event_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    agent = agent_in(tmp_path, SimpleNamespace(create=lambda _, told: made.append(told)))
    tries: list[str] = []

    def refuse(name: str) -> Any:
        tries.append(name)
        if len(tries) == 3:
            agent.stop()
        raise NotPossibleError("the journal cannot be used")

    monkeypatch.setattr(agent, "_client", SimpleNamespace(get=refuse))
    job = {"apiVersion": "v", "kind": "TrainingJob", "metadata": {"name": "my-job", "namespace": "ns", "uid": "u"}, "spec": SPEC}
    picture = Picture(job=job, pods=(), nodes={}, unready_s={}, complete=False)
    monkeypatch.setattr(agent, "_watching", SimpleNamespace(start=lambda: None, picture=lambda: picture))
    monkeypatch.setattr("orchestrator.apps.kube.agent.RETRY_S", 0.01)
    agent.run()
    assert [(e["reason"], e["type"], e["message"]) for e in made] == [
        ("NotSubmitted", "Warning", "the job cannot be submitted: the journal cannot be used")
    ]


def submitting(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, *, knows: Any, errors: Sequence[Exception] = (), **status: Any
) -> list[Any]:
    """Let an agent submit a job whose object has this status; the jobs that the supervisor was given, in spite of its errors."""
    given: list[Any] = []

    def submit(job: Any, *, yaml_text: str) -> str:
        given.append(job)
        if len(given) <= len(errors):
            raise errors[len(given) - 1]
        agent.stop()
        return str(job.name)

    def get(name: str) -> Any:
        if knows is None:
            raise NotFoundError(f"there is no job called {name}")
        return knows

    client = SimpleNamespace(get=get, submit=submit, watch_events=lambda name: iter(()))
    monkeypatch.setattr(agent, "_client", client)
    kind = {"apiVersion": "v", "kind": "TrainingJob"}
    job = {**kind, "metadata": {"name": "my-job", "namespace": "ns", "uid": "u"}, "spec": SPEC, "status": status}
    picture = Picture(job=job, pods=(), nodes={}, unready_s={}, complete=False)
    monkeypatch.setattr(agent, "_watching", SimpleNamespace(start=lambda: None, picture=lambda: picture))
    monkeypatch.setattr("orchestrator.apps.kube.agent.RETRY_S", 0.01)
    agent._until_submitted()
    return given


def test_the_spec_is_written_down_before_the_job_is_submitted_and_waits_for_an_api_server_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Any] = []

    def apply(_: Any, body: Any, *, manager: str, subresource: str) -> None:
        tries.append((body["status"], manager, subresource))
        if len(tries) < 3:
            raise KubeError(status=0, reason="Unreachable", message="it does not answer")

    agent = agent_in(tmp_path, SimpleNamespace(apply=apply))
    (job,) = submitting(agent, monkeypatch, knows=None)
    assert tries == [({"submitted": SPEC}, names.SUBMITTER, "status")] * 3
    assert job.train.steps == 9


@pytest.mark.parametrize(
    "refusal",
    [
        (403, "not for you"),
        (500, "etcdserver: request is too large"),
        (500, "failed to create typed patch object: .status.submitted: field not declared in schema"),
    ],
)
def test_a_job_whose_spec_cannot_be_written_down_is_submitted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: tuple[int, str]
) -> None:
    def apply(*_: Any, **__: Any) -> None:
        raise KubeError(status=refusal[0], reason="", message=refusal[1])

    agent = agent_in(tmp_path, SimpleNamespace(apply=apply))
    assert len(submitting(agent, monkeypatch, knows=None)) == 1


def test_what_was_written_down_is_the_job_whatever_the_spec_says_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_in(tmp_path, SimpleNamespace())  # which writes nothing
    written = {**SPEC, "train": {"steps": 7, "micro_batches": 8}}
    (job,) = submitting(agent, monkeypatch, knows=None, submitted=written)
    assert job.train.steps == 7
    assert submitting(agent_in(tmp_path, SimpleNamespace()), monkeypatch, knows=SEATED, submitted=written) == []


@pytest.mark.parametrize("error", [ControlError("no bucket of that name"), NotPossibleError("the volume is full")])
def test_a_job_that_the_supervisor_would_not_take_is_submitted_as_its_spec_is_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ControlError
) -> None:
    written: list[Any] = []
    api = SimpleNamespace(apply=lambda _, body, **__: written.append(body["status"]), create=lambda *_: True)
    agent = agent_in(tmp_path, api)
    wrong = {**SPEC, "train": {"steps": 7, "micro_batches": 8}}
    jobs = submitting(agent, monkeypatch, knows=None, errors=[UnreachableError("away"), error], submitted=wrong)
    assert [job.train.steps for job in jobs] == [7, 7, 9], "one that may have heard it is asked for the same again"
    assert written == [{"submitted": SPEC}]


def test_what_another_version_wrote_down_and_this_one_cannot_read_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    agent = agent_in(tmp_path, SimpleNamespace(apply=lambda _, body, **__: written.append(body["status"])))
    (job,) = submitting(agent, monkeypatch, knows=None, submitted={**SPEC, "a key of later": 1})
    assert (job.train.steps, written) == (9, [{"submitted": SPEC}])


def test_a_thread_that_fails_ends_the_agent_unless_it_ends_anyway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    agent = agent_in(tmp_path, SimpleNamespace())
    monkeypatch.setattr("orchestrator.apps.kube.agent.os._exit", codes.append)
    monkeypatch.setattr(threading, "excepthook", agent.thread_failed)

    def fails() -> None:
        raise KeyError("a bug")

    for _ in range(2):
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
        agent.stop()
    assert codes == [1]
