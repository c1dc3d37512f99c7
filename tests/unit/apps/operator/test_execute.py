"""What is sent to the API server for a decision, and what becomes of its refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeError
from orchestrator.adapters.kube.events import event
from orchestrator.adapters.kube.resources import RAY_CLUSTERS, Resource
from orchestrator.apps.operator.actions import Apply, Decision, Say
from orchestrator.apps.operator.execute import NotLeaderError, carry_out
from orchestrator.apps.operator.reconcile import decide
from tests.unit.apps.operator.toy import BEGIN, SERVED, Toy

Object = dict[str, Any]


class Server:
    """Notes what it is asked for; refuses to make what a test says."""

    def __init__(self, refusals: dict[str, KubeError] | None = None) -> None:
        self.refusals = refusals or {}
        self.asked: list[str] = []
        self.there: set[str] = set()
        self.status: Object = {}

    def create(self, resource: Resource, obj: Object) -> bool:
        name = obj["metadata"]["name"]
        self.asked.append(f"create {resource.kind} {name if resource.kind != 'Event' else obj['reason']}")
        refused = self.refusals.get("events" if resource.kind == "Event" else name)
        if refused is not None:
            raise refused
        return name not in self.there

    def apply(self, resource: Resource, obj: Object, *, manager: str, subresource: str = "") -> Object:
        self.asked.append(f"apply {resource.kind} {obj['metadata']['name']} {subresource}".strip())
        assert manager == names.OPERATOR
        if not subresource and (refused := self.refusals.get(obj["metadata"]["name"])) is not None:
            raise refused
        if subresource == "status":
            self.status = obj
        return obj

    def merge(self, resource: Resource, name: str, patch: Object, *, namespace: str = "") -> Object:
        assert patch["metadata"]["resourceVersion"] == "1"
        self.asked.append(f"merge {resource.kind} {name}")
        return {"metadata": {"resourceVersion": "2"}}


def new() -> tuple[Toy, Decision]:
    """A new job and the first decision about it."""
    toy = Toy.of()
    return toy, decide(toy.seen(), BEGIN)


def ignore(_: object) -> None:
    """Nobody wants to know."""


def condition(server: Server, kind: str) -> Object:
    """Of the status that was applied."""
    return next(c for c in server.status["status"]["conditions"] if c["type"] == kind)


def test_the_status_is_applied_last_and_only_to_what_was_looked_at() -> None:
    toy, decision = new()
    server = Server()
    made: list[str] = []
    carry_out(
        server,  # type: ignore[arg-type]
        toy.obj,
        decision,
        now=BEGIN,
        may=lambda: True,
        made=lambda pod: made.append(pod["metadata"]["labels"][names.LABEL_ROLE]),
    )
    assert made == [names.HEAD, names.WORKER, names.WORKER, names.SPARE]
    assert server.asked[:3] == ["merge TrainingJob j", "create Event Accepted", "create Secret j-token"]
    assert server.asked[-1] == "apply TrainingJob j status"
    assert server.status["metadata"] == {"name": "j", "namespace": "n", "uid": "u", "resourceVersion": "2"}


def test_a_status_without_a_phase_is_applied_whatever_the_agent_wrote_meanwhile() -> None:
    toy = Toy.of().turn().pods_run().turn()
    toy.agent_says("Running")
    toy.pod("j-worker-0-1")["status"]["conditions"] = []
    server = Server()
    carry_out(server, toy.obj, decide(toy.seen(), BEGIN), now=BEGIN, may=lambda: True, made=ignore)  # type: ignore[arg-type]
    assert server.asked == ["apply TrainingJob j status"]
    assert "resourceVersion" not in server.status["metadata"]


@pytest.mark.parametrize(
    ("said", "reason", "fix"),
    [
        ('error looking up service account n/x: serviceaccount "x" not found', "ServiceAccountMissing", "manifests/namespace"),
        ("exceeded quota: q, requested: pods=1", "QuotaExceeded", "ResourceQuota"),
        ("violates PodSecurity", "Forbidden", "violates PodSecurity"),
    ],
)
def test_a_refused_pod_is_told_in_the_status_and_ends_the_turn(said: str, reason: str, fix: str) -> None:
    toy, decision = new()
    server = Server({"j-worker-0-1": KubeError(status=403, reason="Forbidden", message=said)})
    with pytest.raises(KubeError):
        carry_out(server, toy.obj, decision, now=BEGIN, may=lambda: True, made=ignore)  # type: ignore[arg-type]
    assert server.asked[-2:] == ["create Pod j-worker-0-1", "apply TrainingJob j status"]
    assert (condition(server, "PodsReady")["reason"], server.status["status"]["reason"]) == (reason, reason)
    assert "Pod j-worker-0-1 is refused" in server.status["status"]["message"]
    assert fix in server.status["status"]["message"]


def test_tokens_that_are_refused_are_told_in_the_status_too() -> None:
    toy, decision = new()
    server = Server({"j-token": KubeError(status=403, reason="Forbidden", message="exceeded quota: q")})
    with pytest.raises(KubeError):
        carry_out(server, toy.obj, decision, now=BEGIN, may=lambda: True, made=ignore)  # type: ignore[arg-type]
    assert server.asked[-2:] == ["create Secret j-token", "apply TrainingJob j status"]
    assert "Secret j-token is refused: exceeded quota" in server.status["status"]["message"]


def test_a_raycluster_that_was_refused_its_new_settings_is_asked_for_again() -> None:
    toy = Toy.of(served=replace(SERVED, kuberay=True)).turn().agent_submits()
    toy.agent_says("Running")
    toy.turn().change(kubernetes={"image": "x:2"})
    decision = decide(toy.seen(), BEGIN)
    server = Server({"j": KubeError(status=403, reason="Forbidden", message="denied")})
    with pytest.raises(KubeError):
        carry_out(server, toy.obj, decision, now=BEGIN, may=lambda: True, made=ignore)  # type: ignore[arg-type]
    assert "podSettings" not in server.status["status"], "it would pass for done"
    toy.obj["status"] |= server.status["status"]
    assert any(isinstance(action, Apply) and action.resource is RAY_CLUSTERS for action in decide(toy.seen(), BEGIN).actions)


def test_what_is_said_again_about_another_generation_is_another_event() -> None:
    about = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "j", "namespace": "n", "uid": "u"}}
    told = {"reason": "Suspended", "message": "all pods are gone", "warning": False, "component": names.OPERATOR, "now": BEGIN}
    made = []
    for generation in (2, 2, 4):
        about["metadata"] |= {"generation": generation}  # type: ignore[operator]
        made.append(event(about, **told)["metadata"]["name"])  # type: ignore[arg-type]
    assert made[0] == made[1] != made[2]


def test_what_was_said_before_is_not_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    toy, decision = new()
    server = Server()
    caplog.set_level("INFO")
    for _ in range(2):  # the second time as after a turn that was cut off
        carry_out(server, toy.obj, Decision(actions=decision.actions[1:2], draft=None), now=BEGIN, may=lambda: True, made=ignore)  # type: ignore[arg-type]
        (told,) = [a for a in decision.actions if isinstance(a, Say)]
        about = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": toy.obj["metadata"]}
        made = event(about, reason=told.reason, message=told.message, warning=False, component=names.OPERATOR, now=BEGIN)
        server.there.add(made["metadata"]["name"])
    assert caplog.text.count("Accepted: a head, 2 worker and 1 spare pods are asked for") == 1


def test_a_job_does_not_depend_on_events() -> None:
    toy, decision = new()
    server = Server({"events": KubeError(status=403, reason="Forbidden", message="events are not for you")})
    carry_out(server, toy.obj, decision, now=BEGIN, may=lambda: True, made=ignore)  # type: ignore[arg-type]
    assert server.asked[-1] == "apply TrainingJob j status"
    assert server.status["status"]["phase"] == "Pending"


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_a_server_that_is_away_is_no_news_about_the_job(status: int) -> None:
    toy, decision = new()
    server = Server({"j-head": KubeError(status=status, reason="", message="away")})
    with pytest.raises(KubeError):
        carry_out(server, toy.obj, decision, now=BEGIN, may=lambda: True, made=ignore)  # type: ignore[arg-type]
    assert server.status == {}


def test_nothing_more_is_done_once_another_operator_may_act() -> None:
    toy, decision = new()
    server = Server()
    with pytest.raises(NotLeaderError):
        carry_out(server, toy.obj, decision, now=BEGIN, may=lambda: len(server.asked) < 4, made=ignore)  # type: ignore[arg-type]
    assert len(server.asked) == 4
