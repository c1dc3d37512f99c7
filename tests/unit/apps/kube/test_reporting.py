"""When the agent writes the status: news at once, mere progress seldom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.apps.kube.reporting import HEARTBEAT_S, PAUSE_S, StatusWriter
from orchestrator.core.supervisor.state import JobPhase
from tests.unit.adapters.kube.test_agent_words import STATUS


class Api:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def apply(self, resource: Any, body: Any, **_: Any) -> None:
        self.written.append(body["status"])


def test_news_are_written_after_a_pause_and_progress_with_the_heartbeat() -> None:
    api: Any = Api()
    now_s = [100.0]
    writer = StatusWriter(api, now_s=lambda: now_s[0])
    job = {"metadata": {"name": "j", "namespace": "n", "generation": 1}, "status": {"phase": "Running"}}

    def write(seq: int = 1, **changes: Any) -> bool:
        return writer.write(job, replace(STATUS, **changes), decision=(seq, f"decision {seq}"), digest="", pods={})

    assert write(step=1)
    now_s[0] += PAUSE_S
    assert not write(2, step=2, loss=2.0), "it only got on"
    assert write(3, step=2, recoveries=2)
    assert not write(4, step=3, recoveries=2, phase=JobPhase.WAITING), "the pause is not over"
    now_s[0] += PAUSE_S
    assert write(4, step=3, recoveries=2, phase=JobPhase.WAITING)
    now_s[0] += HEARTBEAT_S
    assert write(5, step=4, recoveries=2, phase=JobPhase.WAITING)
    assert [s["step"] for s in api.written] == [1, 2, 3, 4]
