"""The preStop hook: it hands over what is on its node, waits no longer than the pod may, and never waits for nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.apps.kube import leave as hook
from orchestrator.apps.kube.pod import Pod
from orchestrator.core.job import DeviceKind
from orchestrator.core.supervisor.state import JobPhase, WorkerPhase
from orchestrator.runtime.control import Decided, NotFoundError, NotPossibleError, UnreachableError
from orchestrator.runtime.status_types import JobStatus, NodeStatus
from tests.unit.adapters.kube.test_agent_words import STATUS, WORKER

POD = Pod(
    job="j",
    namespace="n",
    name="j-worker-0-1",
    address="10.0.0.1",
    slots=1,
    device=DeviceKind.CPU,
    grace_s=65.0,
    home=Path("/h"),
    tokens=Path("/t"),
    scratch=Path("/s"),
    head="head",
    machine="",
)
NODE = NodeStatus(node_id="ray0", address="10.0.0.1", healthy=True, schedulable=True, slots=1, workers=1)
THERE = replace(STATUS, nodes=(NODE,), workers=(replace(WORKER, node_id="ray0", rank=2),))
MOVED = replace(STATUS, nodes=(NODE,), workers=(replace(WORKER, node_id="ray1", rank=2),))


class Client:
    """Answers, one after another; the last one for ever."""

    def __init__(self, *answers: JobStatus | Exception, drain: Exception | None = None) -> None:
        self._answers = list(answers)
        self._drain = drain
        self.drained: list[dict[str, Any]] = []

    def get(self, name: str) -> JobStatus:
        assert name == "j"
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def drain(self, name: str, **request: Any) -> Decided:
        if self._drain is not None:
            raise self._drain
        self.drained.append(request)
        return Decided(5, "its ranks move as soon as they can")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


def left(client: Client, *, second: float = 0.25) -> tuple[bool, list[str]]:
    """What the hook returns and says; every look at the clock takes `second`."""

    def clock() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += second

    said: list[str] = []
    ticks = clock()
    return hook.leave(client, POD, say=said.append, now_s=lambda: next(ticks)), said  # type: ignore[arg-type]


def test_it_drains_its_node_and_waits_until_no_rank_is_there() -> None:
    client = Client(THERE, THERE, THERE, MOVED)
    done, said = left(client)
    assert done
    assert client.drained == [{"node_id": "ray0", "who": "pod j-worker-0-1", "why": "its pod has to go"}]
    assert said[2:] == ["rank(s) 2 are still here, at step 42", "no rank is here any more: the pod may go"]


def test_who_gave_its_rank_away_is_waited_for_until_its_state_is_not_needed_any_more() -> None:
    keeps = replace(THERE, workers=(replace(WORKER, node_id="ray0", rank=-1, phase=WorkerPhase.LEFT),))
    ended = replace(THERE, workers=(replace(WORKER, node_id="ray0", rank=-1, phase=WorkerPhase.ENDED),))
    done, said = left(Client(THERE, THERE, keeps, keeps, ended))
    assert done
    assert said[2:] == [
        "rank(s) 2 are still here, at step 42",
        "the rank(s) have moved, and their state stays until the others run, at step 42",
        "no rank is here any more: the pod may go",
    ]


def test_a_spare_goes_at_once() -> None:
    spare = replace(THERE, workers=(replace(WORKER, node_id="ray0", rank=-1, phase=WorkerPhase.SPARE),))
    assert left(Client(spare))[0]


@pytest.mark.parametrize("phase", [JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.CANCELLED])
def test_of_a_job_that_is_over_nothing_is_asked(phase: JobPhase) -> None:
    client = Client(replace(THERE, phase=phase))
    assert left(client)[0]
    assert client.drained == []


def test_a_node_that_the_supervisor_does_not_know_has_nothing_to_hand_over() -> None:
    client = Client(replace(THERE, nodes=(replace(NODE, address="10.0.0.2"), replace(NODE, healthy=False))))
    assert left(client)[0]
    assert client.drained == []


def test_it_waits_no_longer_than_the_pod_may() -> None:
    done, said = left(Client(THERE), second=10.0)
    assert not done
    assert "grace period of 65 s is nearly over" in said[-1]


def test_a_supervisor_that_is_away_for_a_moment_is_waited_for() -> None:
    away = UnreachableError("no supervisor answers")
    client = Client(THERE, away, away, MOVED)
    assert left(client)[0]
    assert len(client.drained) == 1


def test_nobody_is_waited_for_who_never_answers() -> None:
    with pytest.raises(UnreachableError):
        left(Client(UnreachableError("no supervisor answers")))


def test_refusals_end_it() -> None:
    assert left(Client(NotFoundError("no job")))[0]
    assert not left(Client(THERE, drain=NotPossibleError("job j is over")))[0]
