"""The operator's rules on a real API server: what it makes, replaces, gives back and says. operators.py runs the pods by hand.

Each test has a job of its own in one namespace that all share, and one operator looks after them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.resources import PODS, SECRETS, SERVICES
from tests.kube.control_plane import ControlPlane
from tests.kube.operators import ACCOUNTS, OURS, TAINT, Operator, Yard


@pytest.fixture(scope="module")
def operator_root(kube_root: Path) -> Path:
    """For logs."""
    made = kube_root / "operator"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def yard(plane: ControlPlane) -> Iterator[Yard]:
    """A namespace, with nodes that are run by hand."""
    with Yard(plane) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def operator(plane: ControlPlane, yard: Yard, operator_root: Path) -> Iterator[Operator]:
    """At work there."""
    with Operator(plane, root=operator_root, namespace=yard.namespace) as made:
        yield made
        assert made.lives, made.said
        assert made.end() == 0, made.said
        assert "Traceback" not in made.said, made.said


def full(name: str, *, nodes: int = 2) -> list[str]:
    """The pods of a job that nothing has happened to."""
    workers = [f"{name}-worker-{n}-1" for n in range(nodes)]
    return sorted([f"{name}-head-1", *workers, f"{name}-spare-0-1"])


def begin(yard: Yard, name: str, **settings: object) -> None:
    """A job whose pods all run and whose agent reports."""
    yard.submit(name, **settings)  # type: ignore[arg-type]
    yard.until(lambda: yard.condition(name, "PodsReady"), "True/Ready")
    yard.agent_says(name, "Running")


def test_a_job_gets_all_of_its_objects_in_order_and_owns_them(yard: Yard, operator: Operator) -> None:
    begin(yard, "make")
    assert yard.live("make") == full("make")
    assert yard.left("make") == sorted(
        [
            *(f"Pod/{pod}" for pod in full("make")),
            "PersistentVolumeClaim/make-head",
            "PodDisruptionBudget/make",
            "Secret/make-token",
            "Service/make-head",
            "Service/make-pods",
        ]
    )
    job = yard.job("make")
    assert job is not None
    assert job["metadata"]["finalizers"] == [names.FINALIZER]
    for pod in yard.api.list(PODS, namespace=yard.namespace, labels=f"{names.LABEL_JOB}=make"):
        (owner,) = pod["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (job["metadata"]["uid"], True)
    made = re.findall(rf"{yard.namespace}/make: (\w+ \S+) is (?:made|applied)", operator.said)
    assert made == [
        "PersistentVolumeClaim make-head",
        "Service make-head",
        "Service make-pods",
        "PodDisruptionBudget make",
        *(f"Pod make-{pod}" for pod in ("head-1", "worker-0-1", "worker-1-1", "spare-0-1")),
    ]
    status = yard.status("make")
    assert (status["observedGeneration"], status["replicas"], status["readyReplicas"]) == (1, 2, 2)
    assert [yard.condition("make", c) for c in ("Accepted", "HeadReady", "Placed")] == [
        "True/Accepted",
        "True/Ready",
        "True/Placed",
    ]
    assert yard.phase("make") == "Running/Running"
    assert yard.said("make") == ["Accepted: a head, 2 worker and 1 spare pods are asked for"]


def test_another_head_finds_the_tokens_and_gets_the_address(yard: Yard) -> None:
    begin(yard, "tokens")
    address = yard.api.get(SERVICES, "tokens-head", namespace=yard.namespace)
    assert address is not None
    before = yard.api.get(SECRETS, "tokens-token", namespace=yard.namespace)
    yard.api.delete(PODS, "tokens-head-1", namespace=yard.namespace)
    yard.until(lambda: yard.live("tokens"), lambda live: "tokens-head-2" in live)
    assert yard.api.get(SECRETS, "tokens-token", namespace=yard.namespace) == before
    after = yard.api.get(SERVICES, "tokens-head", namespace=yard.namespace)
    assert after is not None
    assert after["spec"]["clusterIP"] == address["spec"]["clusterIP"]
    led = [service["spec"]["selector"][names.LABEL_INCARNATION] for service in (address, after)]
    assert led == ["1", "2"]  # a dead head that stays Terminating is no end of the way any more


def test_a_spec_that_only_we_can_judge_is_refused_with_the_text_of_the_spec(yard: Yard) -> None:
    yard.submit("bad", change={"checkpoint": {"uri": "/nowhere", "every": 5}})
    yard.until(lambda: yard.phase("bad"), "Failed/InvalidSpec")
    assert yard.condition("bad", "Accepted") == "False/InvalidSpec"
    assert "spec.checkpoint.uri" in yard.status("bad")["message"]
    assert yard.left("bad") == []
    yard.edit("bad", {"checkpoint": None})
    yard.until(lambda: yard.live("bad"), full("bad"))


def test_an_edit_that_does_not_act_is_said_and_one_of_pods_reaches_new_ones(yard: Yard, operator: Operator) -> None:
    yard.submit(
        "edit", kubernetes={"env": {"EMPTY": ""}}, change={"task": {"target": "gpt", "options": {"a": "", "b": {"c": []}}}}
    )
    yard.until(lambda: yard.condition("edit", "PodsReady"), "True/Ready")
    yard.agent_submits("edit")
    yard.agent_says("edit", "Running")
    yard.until(lambda: yard.condition("edit", "SpecApplied"), "True/AsSubmitted")
    job = yard.job("edit")
    assert job is not None
    assert job["status"]["submitted"] == job["spec"], "nothing of it is lost on the way"
    yard.edit("edit", {"train": {"steps": 77}})
    yard.until(lambda: yard.condition("edit", "SpecApplied"), "False/EditIgnored")
    operator.kill()
    operator.start()
    yard.edit("edit", {"train": {"steps": job["spec"]["train"]["steps"]}, "kubernetes": {"image": "example.org/x:2"}})
    yard.until(lambda: yard.condition("edit", "SpecApplied"), "True/ForNewPods")
    yard.hands.fail("edit-worker-1-1")
    yard.until(lambda: yard.live("edit"), lambda live: "edit-worker-1-2" in live)
    images = {
        pod["metadata"]["name"]: pod["spec"]["containers"][0]["image"]
        for pod in yard.api.list(PODS, namespace=yard.namespace, labels=f"{names.LABEL_JOB}=edit")
    }
    assert (images["edit-worker-0-1"], images["edit-worker-1-2"]) == ("example.org/x:1", "example.org/x:2")
    words = yard.until(lambda: yard.said("edit"), lambda said: "PodReplaced" in said[-1])
    assert [said.partition(":")[0] for said in words] == ["Accepted", "EditIgnored", "ForNewPods", "PodReplaced"]
    assert f"spec.train.steps ({job['spec']['train']['steps']} before, 77 now)" in words[1]
    yard.edit("edit", {"kubernetes": {"image": "example.org/x:1"}})
    yard.until(lambda: yard.condition("edit", "SpecApplied"), "True/AsSubmitted")
    assert "podSettings" not in yard.status("edit")


def test_a_running_job_is_cared_for_though_its_spec_cannot_be_run_any_more(yard: Yard) -> None:
    yard.submit("worse")
    yard.until(lambda: yard.condition("worse", "PodsReady"), "True/Ready")
    yard.agent_submits("worse")
    yard.agent_says("worse", "Running")
    twice = [{"claim": "a", "path": "/a"}, {"claim": "b", "path": "/a"}]
    yard.edit("worse", {"checkpoint": {"uri": "/nowhere", "every": 5}, "kubernetes": {"volumes": twice}})
    yard.until(lambda: yard.condition("worse", "SpecApplied"), "False/InvalidSpec")
    assert (yard.phase("worse"), yard.condition("worse", "Accepted")) == ("Running/Running", "True/Accepted")
    yard.api.delete(PODS, "worse-head-1", namespace=yard.namespace)
    yard.until(lambda: yard.live("worse"), lambda live: "worse-head-2" in live)
    yard.edit("worse", {"cluster": {"nodes": 3}})
    yard.until(lambda: yard.live("worse"), lambda live: "worse-worker-2-1" in live)
    yard.edit("worse", {"checkpoint": None, "kubernetes": {"volumes": None}})
    yard.until(lambda: yard.condition("worse", "SpecApplied"), "True/AsSubmitted")


def test_scaling_by_the_scale_subresource(yard: Yard) -> None:
    begin(yard, "scale")
    yard.plane.kubectl("-n", yard.namespace, "scale", "trainingjob", "scale", "--replicas=4")
    yard.until(lambda: yard.live("scale"), full("scale", nodes=4))
    yard.until(lambda: yard.status("scale").get("readyReplicas"), 4)
    yard.plane.kubectl("-n", yard.namespace, "scale", "trainingjob", "scale", "--replicas=1")
    yard.until(lambda: yard.live("scale"), full("scale", nodes=1))
    yard.until(lambda: yard.status("scale").get("replicas"), 1)


def test_workers_go_when_the_supervisor_agrees_and_stay_when_it_refuses(yard: Yard) -> None:
    begin(yard, "less")
    yard.agent_says("less", "Running", numbers={"nodes": 2})
    yard.edit("less", {"cluster": {"nodes": 1}})
    yard.until(lambda: yard.status("less")["observedGeneration"], 2)
    assert yard.live("less") == full("less")
    yard.agent_says("less", "Running", numbers={"nodes": 2, "nodesRefused": 1})
    yard.hands.fail("less-worker-1-1")
    yard.until(lambda: yard.live("less"), lambda live: "less-worker-1-2" in live)
    yard.agent_says("less", "Running", numbers={"nodes": 1})
    yard.until(lambda: yard.live("less"), full("less", nodes=1))


def test_a_failed_pod_and_a_deleted_one_are_replaced(yard: Yard) -> None:
    begin(yard, "replace")
    yard.hands.fail("replace-worker-1-1")
    yard.until(lambda: yard.live("replace"), lambda live: "replace-worker-1-2" in live)
    yard.until(lambda: [p.name for p in yard.pods("replace") if not p.live], [])
    yard.until(lambda: yard.status("replace").get("readyReplicas"), 2)
    assert yard.said("replace")[-1] == (
        "PodReplaced: replace-worker-1-2 takes the place of replace-worker-1-1: ray-worker ended with 4 (Error)"
    )


def test_a_pod_that_stays_terminating_blocks_nothing(yard: Yard) -> None:
    begin(yard, "stuck")
    (worker,) = [pod for pod in yard.pods("stuck") if pod.name == "stuck-worker-0-1"]
    held = {"metadata": {"finalizers": ["example.org/never"]}}
    yard.api.merge(PODS, worker.name, held, namespace=yard.namespace)
    yard.api.delete(PODS, worker.name, namespace=yard.namespace)
    yard.until(lambda: yard.live("stuck"), lambda live: "stuck-worker-0-2" in live)
    yard.api.delete(PODS, "stuck-worker-0-2", namespace=yard.namespace)
    yard.until(lambda: yard.live("stuck"), lambda live: "stuck-worker-0-3" in live)
    yard.until(lambda: [p.name for p in yard.pods("stuck") if p.terminating], ["stuck-worker-0-1"])
    yard.api.merge(PODS, worker.name, {"metadata": {"finalizers": None}}, namespace=yard.namespace)


def test_a_lost_node_costs_its_pods_and_they_come_back_elsewhere(yard: Yard) -> None:
    begin(yard, "node", detect_within="1s")
    (worker,) = [pod for pod in yard.pods("node") if pod.name == "node-worker-0-1"]
    others = {pod.name for pod in yard.pods("node") if pod.node != worker.node}
    yard.power_off(worker.node)
    try:
        # the controllers of Kubernetes taint the node and evict after 2 x detect_within; nobody ends the pod
        yard.until(lambda: yard.live("node"), lambda live: "node-worker-0-2" in live)
        assert next(p for p in yard.pods("node") if p.name == "node-worker-0-1").terminating
        assert others <= set(yard.live("node"))
        yard.until(lambda: yard.condition("node", "PodsReady"), "True/Ready")
    finally:
        yard.power_on(worker.node)
    yard.until(lambda: [p.name for p in yard.pods("node") if p.terminating], [])


def test_a_lost_head_is_said_and_the_agent_has_the_last_word(yard: Yard) -> None:
    begin(yard, "head")
    yard.hands.unready("head-head-1")
    yard.until(lambda: yard.phase("head"), "Recovering/HeadLost")
    assert yard.condition("head", "HeadReady") == "False/HeadLost"
    yard.hands.unready("head-head-1", "True")
    yard.until(lambda: yard.condition("head", "HeadReady"), "True/Ready")
    yard.agent_says("head", "Running")
    yard.hands.fail("head-worker-0-1")
    yard.until(lambda: yard.status("head").get("readyReplicas"), 2)
    assert yard.phase("head") == "Running/Running"


def test_pods_without_a_place_are_given_back_and_asked_for_again(yard: Yard) -> None:
    yard.hands.held = lambda pod: pod.name.startswith("gang-worker-1")
    try:
        yard.submit("gang", kubernetes={"gangTimeout": "10s"})
        yard.until(lambda: yard.phase("gang"), "Pending/GangTimeout")
        yard.until(lambda: yard.pods("gang"), [])
    finally:
        yard.hands.held = lambda pod: False
    yard.until(lambda: yard.condition("gang", "PodsReady"), "True/Ready")
    assert yard.condition("gang", "Placed") == "True/Placed"
    assert [said.partition(":")[0] for said in yard.said("gang")] == ["Accepted", "GangTimeout"]


def test_suspend_and_resume(yard: Yard) -> None:
    begin(yard, "rest")
    yard.edit("rest", {"suspend": True})
    yard.until(lambda: yard.condition("rest", "Suspended"), "False/Suspending")
    assert yard.live("rest") == full("rest")
    yard.agent_says("rest", "Suspending", Checkpointed="True")
    yard.until(lambda: yard.phase("rest"), "Suspended/Suspended")
    assert [left for left in yard.left("rest") if left.startswith("Pod/")] == []
    assert "PersistentVolumeClaim/rest-head" in yard.left("rest")
    yard.edit("rest", {"suspend": False})
    yard.until(lambda: yard.condition("rest", "PodsReady"), "True/Ready")
    assert yard.condition("rest", "Suspended") == ""
    assert yard.phase("rest") == "Starting/Starting"
    yard.agent_says("rest", "Running")
    assert yard.phase("rest") == "Running/Running"
    assert [said.partition(":")[0] for said in yard.said("rest")] == ["Accepted", "Suspended", "Resumed"]


def test_a_deadline_fails_the_job(yard: Yard) -> None:
    begin(yard, "late")
    passed_s = int((datetime.now(UTC) - datetime.fromisoformat(yard.status("late")["startTime"])).total_seconds())
    yard.edit("late", {"kubernetes": {"activeDeadline": f"{passed_s + 5}s"}})
    yard.until(lambda: yard.phase("late"), "Failed/DeadlineExceeded")
    assert yard.condition("late", "Failed") == "True/DeadlineExceeded"
    yard.until(lambda: yard.left("late"), ["PersistentVolumeClaim/late-head", "Secret/late-token"])
    assert "completionTime" in yard.status("late")


def test_what_is_left_of_a_finished_job_goes_after_its_time(yard: Yard) -> None:
    begin(yard, "done")
    yard.agent_says("done", "Succeeded", Succeeded="True")
    yard.until(lambda: yard.left("done"), ["PersistentVolumeClaim/done-head", "Secret/done-token"])
    assert yard.phase("done") == "Succeeded/Succeeded"
    passed_s = int((datetime.now(UTC) - datetime.fromisoformat(yard.status("done")["completionTime"])).total_seconds())
    yard.edit("done", {"kubernetes": {"ttlAfterFinished": f"{passed_s + 5}s"}})
    yard.until(lambda: yard.job("done"), None, what="the job is gone")
    yard.until(lambda: yard.left("done"), [])


def test_a_deleted_job_leaves_nothing_behind(yard: Yard) -> None:
    begin(yard, "gone")
    (worker,) = [pod for pod in yard.pods("gone") if pod.name == "gone-worker-0-1"]
    yard.power_off(worker.node)  # its kubelet will never end it
    try:
        yard.delete("gone")
        yard.until(lambda: yard.job("gone"), None, what="the job is gone")
        yard.until(lambda: yard.left("gone"), [])
    finally:
        yard.power_on(worker.node)


def test_a_namespace_without_our_accounts_is_told_what_it_lacks(yard: Yard) -> None:
    yard.api.delete(ACCOUNTS, names.WORKER_ACCOUNT, namespace=yard.namespace)
    try:
        yard.submit("lack")
        yard.until(lambda: yard.phase("lack"), "Pending/ServiceAccountMissing")
        assert "kubectl apply --server-side -k manifests/namespace" in yard.status("lack")["message"]
        assert yard.condition("lack", "PodsReady") == "False/ServiceAccountMissing"
    finally:
        yard.api.create(ACCOUNTS, {"metadata": {"name": names.WORKER_ACCOUNT, "namespace": yard.namespace}})
    yard.until(lambda: yard.condition("lack", "PodsReady"), "True/Ready")


def test_an_api_server_that_was_away_finds_everything_as_it_was(yard: Yard, operator: Operator, plane: ControlPlane) -> None:
    begin(yard, "away")
    before = [(pod.name, pod.uid) for pod in yard.pods("away")]
    told = len(operator.said)
    plane.stop_api()
    try:
        yard.until(lambda: operator.said, lambda said: "does not answer" in said)
    finally:
        plane.start_api()
    yard.hands.fail("away-worker-0-1")
    yard.until(lambda: yard.live("away"), lambda live: "away-worker-0-2" in live)
    after = {(pod.name, pod.uid) for pod in yard.pods("away")}
    assert {pod for pod in before if pod[0] != "away-worker-0-1"} <= after
    done = yard.until(lambda: re.findall(r"away: Pod (\S+) is (made|asked to go)", operator.said[told:]), bool)
    assert done[0] == ("away-worker-0-2", "made")


def test_of_two_operators_one_acts(plane: ControlPlane, operator_root: Path) -> None:
    with Yard(plane) as yard:
        first = Operator(plane, root=operator_root, namespace=yard.namespace, pod="first")
        second = Operator(plane, root=operator_root, namespace=yard.namespace, pod="second")
        with first, second:
            yard.until(yard.holder, lambda holder: holder in ("first", "second"))
            leader, other = (first, second) if yard.holder() == "first" else (second, first)
            begin(yard, "two")
            assert "is made" in leader.said
            assert "is made" not in other.said
            yard.until(lambda: other.said, lambda said: "waiting: the operator at work is" in said)
            leader.kill()  # its lease lapses
            yard.hands.fail("two-worker-0-1")
            yard.until(lambda: yard.live("two"), lambda live: "two-worker-0-2" in live)
            yard.until(lambda: other.said, lambda said: "two-worker-0-2 is made" in said)
            leader.start()
            yard.until(lambda: leader.said.count("waiting: the operator at work is"), lambda times: times >= 1)
            ended, awaited = ("second", "first") if leader is first else ("first", "second")
            assert other.end() == 0
            assert yard.holder() != ended  # the lease is given back
            yard.until(yard.holder, awaited)


def test_the_real_scheduler_leaves_a_node_with_one_worker_and_nothing_else(plane: ControlPlane, operator_root: Path) -> None:
    with Yard(plane) as yard, Operator(plane, root=operator_root, namespace=yard.namespace, pod="spread"):
        yard.hands.held = lambda pod: True  # they place nothing
        theirs = [{"key": TAINT["key"], "operator": "Exists"}]
        worker = {"tolerations": theirs, "nodeSelector": {OURS: yard.namespace}, "cpu": "1", "memory": "2Gi"}
        yard.submit("spread", nodes=4, kubernetes={"scheduler": "default-scheduler", "worker": worker})
        training = (names.WORKER, names.SPARE)
        placed = yard.until(
            lambda: [pod for pod in yard.pods("spread") if pod.role in training and pod.node],
            lambda pods: len(pods) == 5,
            what="all are placed",
        )
        on = {node: sorted(pod.role for pod in placed if pod.node == node) for node in yard.nodes}
        assert sorted(len(roles) for roles in on.values()) == [1, 2, 2], on
        assert [names.WORKER] in on.values(), on


def test_kubectl_shows_how_a_job_is(yard: Yard) -> None:
    begin(yard, "show")
    line = yard.plane.kubectl("-n", yard.namespace, "get", "tj", "show", "--no-headers")
    assert "Running" in line
    described = yard.plane.kubectl("-n", yard.namespace, "describe", "tj", "show")
    assert "the operator has taken the job on" in described
