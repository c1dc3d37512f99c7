"""What the agent asks of the supervisor, once each, whatever it hears twice and whoever was there before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.adapters.kube.notices import PodSeen, node_seen
from orchestrator.adapters.kube.watching import Picture
from orchestrator.apps.kube.acting import Acting
from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import ScaleRequested
from orchestrator.core.supervisor.state import JobPhase
from orchestrator.runtime.control import ControlError, Decided, NotFoundError, NotPossibleError, UnreachableError
from orchestrator.runtime.ports import Record
from orchestrator.runtime.status_types import JobStatus, NodeStatus
from tests.unit.adapters.kube.test_agent_words import STATUS, WORKER
from tests.unit.adapters.kube.test_notices import node
from tests.world.jobs import tiny_job

JOB = tiny_job("j", nodes=4)
PLACE = NodeStatus(node_id="ray1", address="10.0.0.1", healthy=True, schedulable=True, slots=1, workers=1)
RUNNING = replace(STATUS, nodes=(PLACE,), workers=(replace(WORKER, node_id="ray1"),))


class Client:
    """Remembers what it was asked; `refuses` some kinds of requests."""

    def __init__(self, status: JobStatus | None = RUNNING, *, submitted: Job = JOB, records: Sequence[Record] = ()) -> None:
        self._status = status
        self._submitted = submitted
        self._records = records
        self.asked: list[tuple[Any, ...]] = []
        self.refuses: dict[str, ControlError] = {}
        self.recorded: list[int] = []  # requests that had been made when it was written down what is submitted

    def get(self, name: str) -> JobStatus:
        if self._status is None:
            raise NotFoundError(f"there is no job called {name}")
        return self._status

    def submit(self, job: Job, *, yaml_text: str) -> str:
        if self._status is None:
            self.asked.append(("submit", job.cluster.nodes))
        elif job != self._submitted:
            raise NotPossibleError("another job called j is running; choose another name")
        return job.name

    def watch_events(self, name: str) -> Iterator[Record]:
        return iter(self._records)

    def drain(self, name: str, *, node_id: str, who: str, why: str) -> Decided:
        return self._decided("drain", node_id)

    def node_gone(self, name: str, *, node_id: str, who: str, evidence: str) -> Decided:
        return self._decided("gone", node_id)

    def scale(self, name: str, *, nodes: int, who: str) -> Decided:
        return self._decided("scale", nodes)

    def suspend(self, name: str, *, who: str, why: str) -> Decided:
        return self._decided("suspend")

    def go_on(self, name: str, *, who: str) -> Decided:
        return self._decided("go on")

    def _decided(self, *call: Any) -> Decided:
        self.asked.append(call)
        if call[0] in self.refuses:
            raise self.refuses[call[0]]
        return Decided(1, "so be it")


def acting(client: Client, job: Job = JOB) -> Acting:
    """An agent's, which has adopted or submitted the job."""
    made = Acting(client, job, agent="j-head-1")  # type: ignore[arg-type]
    made.adopt_or_submit(lambda: client.recorded.append(len(client.asked)))
    return made


def picture(*taints: str, over: str = "", complete: bool = True, **spec: Any) -> Picture:
    """One node with these taints, one pod on it, and a TrainingJob with this spec."""
    return Picture(
        job={"metadata": {}, "spec": {"cluster": {"nodes": 4}, **spec}},
        pods=(PodSeen("p1", "u1", "10.0.0.1", "n1", "", over),),
        nodes={"n1": node_seen(node(taints=taints))},
        unready_s={},
        complete=complete,
    )


SPOT = "aws-node-termination-handler/spot-itn"


def test_a_job_that_nobody_knows_is_submitted_and_one_that_runs_or_is_over_is_not() -> None:
    new, running = Client(None), Client()
    over = Client(replace(RUNNING, phase=JobPhase.SUCCEEDED))
    for client in (new, running, over):
        acting(client)
    assert (new.asked, running.asked, over.asked) == ([("submit", 4)], [], [])


def test_what_is_submitted_is_written_down_before_and_what_runs_already_only_where_it_is_the_same() -> None:
    new, same, another = Client(None), Client(), Client(submitted=tiny_job("j", nodes=4, steps=99))
    for client in (new, same, another):
        acting(client)
    assert (new.recorded, same.recorded, another.recorded) == ([0], [0], [])


def test_a_job_that_is_written_down_is_not_submitted_again_it_might_just_have_ended_and_would_begin_anew() -> None:
    class Ending(Client):
        def submit(self, job: Job, *, yaml_text: str) -> str:
            raise AssertionError("the job would begin anew")

    agent = Acting(Ending(), JOB, agent="j-head-1")  # type: ignore[arg-type]
    agent.adopt_or_submit(None)
    new = Client(None)
    Acting(new, JOB, agent="j-head-1").adopt_or_submit(None)  # type: ignore[arg-type]
    assert new.asked == [("submit", 4)]


def test_a_notice_is_acted_on_once_and_a_stronger_one_again() -> None:
    client = Client()
    agent = acting(client)
    for _ in range(3):
        agent.act(picture(SPOT), RUNNING)
    assert client.asked == [("drain", "ray1")]
    for _ in range(3):
        agent.act(picture(SPOT, over="OOMKilled"), RUNNING)
    assert client.asked == [("drain", "ray1"), ("gone", "ray1")]


def test_a_note_does_nothing_and_nothing_is_concluded_from_an_old_picture() -> None:
    client = Client()
    agent = acting(client)
    agent.act(picture("DeletionCandidateOfClusterAutoscaler"), RUNNING)
    agent.act(picture(SPOT, complete=False), RUNNING)
    assert client.asked == []
    agent.act(picture(SPOT), RUNNING)
    assert client.asked == [("drain", "ray1")], "a note does not hide what comes after it"


def test_a_node_that_is_drained_already_is_not_drained_again_by_another_agent() -> None:
    client = Client()
    acting(client).act(picture(SPOT), replace(RUNNING, nodes=(replace(PLACE, schedulable=False),)))
    assert client.asked == []


def test_who_does_not_answer_is_asked_again_and_who_refuses_is_not() -> None:
    client = Client()
    agent = acting(client)
    client.refuses["drain"] = UnreachableError("no supervisor answers")
    agent.act(picture(SPOT), RUNNING)
    agent.act(picture(SPOT), RUNNING)
    assert len(client.asked) == 2
    client.refuses["drain"] = NotPossibleError("not now")
    agent.act(picture(SPOT), RUNNING)
    agent.act(picture(SPOT), RUNNING)
    assert len(client.asked) == 3


def test_a_supervisor_that_does_not_answer_is_not_asked_for_each_node() -> None:
    client = Client()
    agent = acting(client)
    client.refuses["drain"] = UnreachableError("no supervisor answers")
    second = replace(PLACE, node_id="ray2", address="10.0.0.2")
    both = replace(picture(SPOT), pods=tuple(PodSeen(p, p, f"10.0.0.{p}", "n1", "", "") for p in "12"))
    agent.act(both, replace(RUNNING, nodes=(PLACE, second)))
    assert client.asked == [("drain", "ray1")]
    client.refuses.clear()
    agent.act(both, replace(RUNNING, nodes=(PLACE, second)))
    assert client.asked[1:] == [("drain", "ray1"), ("drain", "ray2")]


def test_suspend_and_continue_follow_the_spec() -> None:
    client = Client()
    agent = acting(client)
    agent.act(picture(suspend=False), RUNNING)
    agent.act(picture(suspend=True), RUNNING)
    suspended = replace(RUNNING, suspended="me")
    agent.act(picture(suspend=True), suspended)
    agent.act(picture(suspend=False), suspended)
    assert client.asked == [("suspend",), ("go on",)]


def test_another_number_of_nodes_scales_once() -> None:
    client = Client()
    agent = acting(client)
    agent.act(picture(), RUNNING)
    for _ in range(2):
        agent.act(picture(cluster={"nodes": 2}), RUNNING)
    agent.act(picture(cluster={"nodes": 4}), RUNNING)
    assert client.asked == [("scale", 2), ("scale", 4)]


def test_a_scale_that_is_refused_is_not_repeated_until_the_wish_changes() -> None:
    client = Client()
    agent = acting(client)
    client.refuses["scale"] = NotPossibleError("fewer than the least")
    for nodes in (1, 1, 3, 3):
        agent.act(picture(cluster={"nodes": nodes}), RUNNING)
    assert client.asked == [("scale", 1), ("scale", 3)]


def scaling(agent: Acting, nodes: int) -> tuple[int | None, int | None]:
    """What the agent says of a spec with so many nodes: how many train, and how many are refused."""
    said = agent.scaling({"spec": {"cluster": {"nodes": nodes}}})
    assert said.refused is None or "fewer than the least" in said.why
    return said.nodes, said.refused


def test_why_a_scale_is_refused_is_known_as_long_as_it_is_wished() -> None:
    client = Client()
    agent = acting(client)
    client.refuses["scale"] = NotPossibleError("fewer than the least")
    agent.act(picture(cluster={"nodes": 1}), RUNNING)
    assert (scaling(agent, 1), scaling(agent, 3)) == ((4, 1), (4, None))
    client.refuses["scale"] = UnreachableError("no supervisor answers")
    agent.act(picture(cluster={"nodes": 3}), RUNNING)
    assert scaling(agent, 3) == (4, None), "of another number nothing is known yet"
    client.refuses.clear()
    agent.act(picture(cluster={"nodes": 3}), RUNNING)
    assert (scaling(agent, 3), scaling(agent, 1)) == ((3, None), (3, None))


def test_the_next_agent_knows_of_a_refusal_and_does_not_ask_again() -> None:
    granted = scaled(3, "orchestrator-agent (j-head-1)")
    refused = scaled(1, "orchestrator-agent (j-head-1)", reason="scale by x refused: fewer than the least")
    client = Client(records=[granted, refused])
    agent = acting(client)
    agent.act(picture(cluster={"nodes": 1}), RUNNING)
    assert (client.asked, scaling(agent, 1)) == ([], (3, 1))


def scaled(nodes: int, who: str, *, reason: str = "x") -> Record:
    """Somebody scaled the job."""
    event = ScaleRequested(0, nodes, (), who)
    return Record(seq=3, at_ms=0, wall_s=0.0, event=event, commands=(), reason=reason, phase="running", epoch=1, committed_step=1)


@pytest.mark.parametrize(
    ("now", "records", "asked"),
    [
        (4, [], []),  # nothing has changed
        (2, [], [("scale", 2)]),  # it was changed while no agent was there
        (2, [scaled(2, "orchestrator-agent (j-head-1)")], []),  # an agent before this one has asked already
        (4, [scaled(2, "orchestrator-agent (j-head-1)")], [("scale", 4)]),  # and it was changed back since
        (4, [scaled(2, "a person")], []),  # a person's word by the command line stands
    ],
)
def test_an_agent_that_comes_later_knows_what_was_asked_for(now: int, records: list[Record], asked: list[Any]) -> None:
    client = Client(records=records)
    agent = acting(client, replace(JOB, cluster=replace(JOB.cluster, nodes=now)))
    agent.act(picture(cluster={"nodes": now}), RUNNING)
    assert client.asked == asked
