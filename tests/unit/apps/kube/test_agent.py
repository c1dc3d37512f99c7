"""One whole agent without a cluster: whose pods are the ranks', what its successor writes, and what a bug in a thread does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.adapters.kube.notices import PodSeen
from orchestrator.adapters.kube.watching import Picture
from orchestrator.apps.kube.agent import Agent
from orchestrator.apps.kube.pod import Pod
from orchestrator.runtime.control import NotPossibleError
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
    access: Any = SimpleNamespace(api=api)
    return Agent(pod=pod, access=access, client=client, base_dir=str(tmp_path))


def test_the_next_agent_keeps_the_last_decision_and_seats_are_pods_that_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    def apply(_: Any, body: Any, **__: Any) -> None:
        written.append(body["status"])
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
    assert written[0]["seats"] == ["my-job-worker-0-2", "?"]
    assert written[0]["lastDecision"] == "#9 why so"


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
