"""When a place gets its next pod, where others delete pods or count them (Kueue, KubeRay); and what people are told meanwhile.

Kueue here does what its pod_controller.go does with the group of a job that it has admitted: of more pods of a role than it was
admitted with it deletes the newest that waits, and a pod counts unless it has failed, or goes and never had a node. Its finalizer
keeps a pod that has ended until another takes its place, or all of the group have ended and one says that this is the end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.events import timestamp
from orchestrator.adapters.kube.resources import RAY_CLUSTERS
from orchestrator.apps.operator.actions import Say
from orchestrator.apps.operator.reconcile import decide
from tests.unit.apps.operator.toy import SERVED, Toy

ADMITTED = {"head": 1, "worker": 2, "spare": 1}
FULL = ["j-head-1", "j-worker-0-1", "j-worker-1-1", "j-spare-0-1"]
OLD, NEW = "j-worker-0-1", "j-worker-0-2"


def running(*, queue: str | None = "q", **kubernetes: Any) -> Toy:
    """A job all of whose pods run, and whose agent reports; admitted by Kueue."""
    section = {**kubernetes, **({"queue": queue} if queue else {})}
    toy = Toy.of(served=replace(SERVED, kueue=True), kubernetes=section).turn().pods_run().turn()
    toy.agent_says("Running")
    return toy.turn()


def kueue(toy: Toy) -> None:
    """One look of Kueue's at the group."""
    roles: dict[str, list[str]] = {}
    for name in toy.pods:
        pod = toy.pod(name)
        going_unplaced = "deletionTimestamp" in pod["metadata"] and not pod["spec"].get("nodeName")
        if pod.get("status", {}).get("phase") != "Failed" and not going_unplaced:
            roles.setdefault(pod["metadata"]["labels"][names.LABEL_ROLE], []).append(name)
    for role, counted in roles.items():
        for name in sorted(counted, key=lambda name: bool(toy.pod(name)["spec"].get("nodeName")))[: -ADMITTED[role]]:
            assert not toy.pod(name)["spec"].get("nodeName")
            del toy.objects["Pod", name]

    pods = [toy.pod(name) for name in toy.pods]
    phases = [pod.get("status", {}).get("phase") for pod in pods]
    last = any((pod["metadata"].get("annotations") or {}).get("kueue.x-k8s.io/retriable-in-group") == "false" for pod in pods)
    if last and set(phases) <= {"Failed", "Succeeded"}:
        toy.ends()  # those that were asked to go


def made(toy: Toy) -> int:
    """Pods that were ever made."""
    return sum(line.startswith("+j-") for line in toy.log)


def stopped(toy: Toy, name: str) -> None:
    """It ends as a program does that was told to; Kueue's finalizer keeps it."""
    ended = {"exitCode": 143, "reason": "Error", "finishedAt": timestamp(toy.now)}
    toy.pod(name)["status"] = {
        "phase": "Failed",
        "containerStatuses": [{"name": "ray-worker", "state": {"terminated": ended}}],
    }


def pods_ready(toy: Toy) -> str:
    """What the condition says."""
    return next(str(c["message"]) for c in toy.status["conditions"] if c["type"] == "PodsReady")


# ---- Kueue


def test_a_drained_pod_is_replaced_when_it_has_failed_and_not_before_and_counts_as_no_failure() -> None:
    toy = running()
    for n in range(1, 4):
        old, new = f"j-worker-0-{n}", f"j-worker-0-{n + 1}"
        toy.asked_to_go(old)
        for _ in range(5):
            before = made(toy)
            toy.turn()
            kueue(toy)
            assert made(toy) == before
        assert f"{old} is being deleted, and Kueue keeps its place until it has failed" in pods_ready(toy)
        assert "fix" not in pods_ready(toy)
        stopped(toy, old)
        toy.turn()
        kueue(toy)
        assert new in toy.live  # at once
        assert names.NOTE_FAILURES not in toy.pod(new)["metadata"].get("annotations", {})
        assert (
            toy.said[-1]
            == f"PodReplaced: {new} takes the place of {old}: it is being deleted (ray-worker ended with 143 (Error))"
        )
        toy.ends()
        toy.pods_run(new).turn()
    assert not [said for said in toy.said if said.startswith("ReplacementWaits")]


def test_a_drained_pod_is_no_warning_and_one_that_failed_by_itself_is() -> None:
    for asked in (True, False):
        toy = running()
        if asked:
            toy.asked_to_go(OLD)
        stopped(toy, OLD)
        (said,) = (a for a in decide(toy.seen(), toy.now).actions if isinstance(a, Say))
        assert (said.reason, said.warning) == ("PodReplaced", not asked)


def test_a_dead_nodes_pod_keeps_its_place_and_people_are_told_once_what_to_do() -> None:
    toy = running()
    toy.answering.discard("a")
    toy.asked_to_go(OLD)
    for _ in range(40):
        toy.turn()
        kueue(toy)
        toy.pass_s(30)
    assert made(toy) == 4
    words = f"{OLD} is being deleted, and Kueue keeps its place until it has failed, but its node a does not answer"
    fix = "kubectl taint node a node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, once its machine is off"
    fix += ", or delete the Node"
    assert [said for said in toy.said if said.startswith("ReplacementWaits")] == [f"ReplacementWaits: {words}; fix: {fix}"]
    assert f"{words}; fix: {fix}" in pods_ready(toy)
    toy.pod(OLD)["status"] = {"phase": "Failed"}  # as the garbage collector does of a node that is tainted so, or deleted
    toy.turn()
    kueue(toy)
    assert NEW in toy.live
    assert "fix" not in pods_ready(toy)


def test_of_several_pods_that_keep_their_places_the_first_that_somebody_has_to_mend_is_told() -> None:
    toy = running()
    toy.pod("j-worker-1-1")["spec"]["nodeName"] = "dead"
    toy.asked_to_go(OLD)
    toy.asked_to_go("j-worker-1-1")
    toy.turn(5)
    assert "j-worker-1-1 is being deleted" in pods_ready(toy)
    assert pods_ready(toy).endswith("or delete the Node (and 1 more wait)")
    assert len([said for said in toy.said if said.startswith("ReplacementWaits")]) == 1


def test_a_pod_that_has_to_end_first_is_looked_at_again_should_nobody_say_that_it_has() -> None:
    toy = running()
    toy.asked_to_go(OLD, grace_s=60)
    assert toy.turn().again_s == 90
    assert toy.pass_s(3600).turn().again_s == 30


def test_a_pod_that_ended_without_an_error_keeps_its_place_and_the_way_out_is_told() -> None:
    toy = running()
    toy.pod(OLD)["status"] = {"phase": "Succeeded"}
    for _ in range(20):
        toy.turn()
        kueue(toy)
    assert made(toy) == 4
    fix = f"kubectl -n n delete pod {OLD} --wait=false, and remove its finalizer kueue.x-k8s.io/managed"
    assert toy.said[-1] == f"ReplacementWaits: {OLD} ended without an error, and Kueue gives its place to no other; fix: {fix}"
    toy.asked_to_go(OLD)
    toy.ends()
    assert NEW in toy.turn().live


def test_a_head_keeps_its_place_too() -> None:
    toy = running()
    toy.answering.discard("a")
    toy.asked_to_go("j-head-1")
    toy.turn(20)
    kueue(toy)
    assert made(toy) == 4
    toy.pod("j-head-1")["status"] = {"phase": "Failed"}
    assert "j-head-2" in toy.turn().live


def all_end(toy: Toy) -> None:
    """All that were asked to go do, and then the head; Kueue and the operator look after each."""
    while going := [
        n for n in toy.pods if "deletionTimestamp" in toy.pod(n)["metadata"] and toy.pod(n)["status"]["phase"] == "Running"
    ]:
        stopped(toy, going[0])
        kueue(toy)
        toy.turn()


def test_a_suspended_job_gives_its_quota_back_and_is_another_size_when_it_is_resumed() -> None:
    toy = running().change(suspend=True).turn()
    toy.agent_says("Suspending", Checkpointed="True")
    toy.turn()
    assert toy.live == ["j-head-1"]
    all_end(toy)
    assert (toy.pods, toy.phase) == ([], "Suspended/Suspended")
    toy.change(nodes=3, suspend=False).turn()
    assert len(toy.live) == 5


def test_a_job_that_is_over_or_deleted_leaves_no_pod_to_kueue() -> None:
    over = running()
    over.agent_says("Succeeded")
    for toy in (over.turn(), running().delete().turn()):
        assert len(toy.pods) == 4
        all_end(toy)
        assert toy.pods == []


def test_a_job_that_kueue_preempts_asks_for_its_pods_again_as_they_end() -> None:
    toy = running()
    for name in FULL:
        toy.asked_to_go(name)
    toy.turn()
    assert toy.live == []
    all_end(toy)
    assert sorted(toy.live) == sorted(f"{name[:-1]}2" for name in FULL)


def test_a_pod_that_never_had_a_node_is_replaced_while_it_still_goes() -> None:
    toy = Toy.of(served=replace(SERVED, kueue=True), kubernetes={"queue": "q"}).turn()
    toy.asked_to_go(OLD)
    assert NEW in toy.turn().live


def test_without_a_queue_nothing_is_waited_for() -> None:
    toy = running(queue=None)
    toy.asked_to_go(OLD)
    assert NEW in toy.turn().live


@pytest.mark.parametrize("lacking", ["kueue.x-k8s.io/managed", "kueue.x-k8s.io/pod-group-name"])
def test_where_kueue_does_not_manage_the_pods_as_a_group_nothing_is_waited_for(lacking: str) -> None:
    toy = running()
    for name in toy.pods:  # its webhook leaves some namespaces alone, and has queues for pods that name none: each for itself
        del toy.pod(name)["metadata"]["labels"][lacking]
    toy.asked_to_go(OLD)
    assert NEW in toy.turn().live


def test_a_queue_that_is_named_later_leaves_a_job_as_it_is() -> None:
    toy = running(queue=None).agent_submits().turn()
    toy.change(kubernetes={"queue": "q"})
    toy.asked_to_go(OLD)
    assert NEW in toy.turn().live
    assert "kueue.x-k8s.io/queue-name" not in toy.pod(NEW)["metadata"]["labels"], "alone in its group it would wait for ever"


def test_a_queued_job_that_grows_asks_for_more_pods_ever_more_seldom_and_says_how_it_gets_them() -> None:
    toy = running().change(nodes=4)
    for _ in range(90):
        toy.turn()
        kueue(toy)
        toy.pass_s(40)
    assert 4 + 2 * 10 < made(toy) < 4 + 2 * 20
    toy.turn()
    assert "which was deleted before it had a node" in pods_ready(toy)
    assert "suspend and resume it" in pods_ready(toy)
    assert set(FULL) <= set(toy.live)


# ---- whoever deletes


def test_where_somebody_deletes_every_new_pod_at_once_few_are_made() -> None:
    for gone_for_good in (True, False):
        toy = running(queue=None)
        known = set(toy.pods)
        toy.asked_to_go(OLD)  # and its node never ends it
        for _ in range(90):
            toy.turn()
            for name in set(toy.pods) - known:
                if gone_for_good:
                    del toy.objects["Pod", name]
                elif "deletionTimestamp" not in toy.pod(name)["metadata"]:  # a finalizer keeps it
                    toy.asked_to_go(name, grace_s=0)
            toy.pass_s(40)
        assert 10 < made(toy) - 4 < 20
        waited = [said for said in toy.said if "which was deleted before it had a node" in said]
        assert waited[0] == "PodReplaced: j-worker-0-3 takes the place of j-worker-0-2, which was deleted before it had a node"
        assert "(2 times in a row)" in waited[1]


def test_no_time_no_storm() -> None:
    toy = running(queue=None)
    toy.asked_to_go(OLD)
    for _ in range(50):
        toy.turn()
        for name in [name for name in toy.pods if not toy.pod(name)["spec"].get("nodeName")]:
            del toy.objects["Pod", name]
    assert made(toy) == 4 + 2
    assert toy.again_s == 2
    assert (
        "j-worker-0-3, which was deleted before it had a node (2 times in a row): the next is made after a pause"
        in pods_ready(toy)
    )


def test_a_head_that_others_delete_before_it_has_a_node_is_waited_with_too() -> None:
    toy = Toy.of()
    for _ in range(50):
        toy.turn()
        toy.objects.pop(("Pod", next((name for name in toy.pods if "head" in name), "")), None)
    assert sum("+j-head" in line for line in toy.log) == 2
    assert toy.seen().services["j-head"] == 2  # as before, while there is none
    toy.pass_s(2).turn()
    assert "j-head-3" in toy.live


def test_a_pod_that_had_a_node_ends_the_row() -> None:
    toy = running(queue=None)
    for n in range(1, 4):
        del toy.objects["Pod", f"j-worker-0-{n}"]
        toy.pass_s(60).turn()
    toy.pods_run().turn()
    del toy.objects["Pod", "j-worker-0-4"]
    toy.turn()
    assert names.NOTE_FAILURES not in toy.pod("j-worker-0-5")["metadata"].get("annotations", {})


def test_what_the_operator_itself_gives_back_is_asked_for_again_without_a_further_pause() -> None:
    toy = Toy.of(kubernetes={"gangTimeout": "10s"})
    rounds = 12
    for _ in range(4 * rounds):
        toy.turn()
        toy.pass_s(5)
    places = Counter(line.rpartition("-")[0] for line in toy.log if line.startswith("+j-"))
    assert set(places.values()) == {rounds}


def test_nor_does_it_count_against_them_while_a_finalizer_keeps_what_was_given_back() -> None:
    toy = Toy.of(served=replace(SERVED, kueue=True), kubernetes={"queue": "q"}).turn().change(suspend=True)
    kept = {name: toy.objects["Pod", name] for name in toy.pods}
    toy.turn()
    for name, pod in kept.items():
        toy.objects["Pod", name] = pod
        toy.asked_to_go(name)
    toy.turn().change(suspend=False).turn()
    assert len(toy.live) == 4
    assert not [name for name in toy.live if names.NOTE_FAILURES in toy.pod(name)["metadata"]["annotations"]]


def test_an_operator_that_starts_again_forgets_the_row_and_makes_two_more() -> None:
    toy = running(queue=None)
    del toy.objects["Pod", OLD]
    counts = []
    for _ in range(3):
        before = made(toy)
        for _ in range(10):
            toy.turn()
            for name in [name for name in toy.pods if not toy.pod(name)["spec"].get("nodeName")]:
                del toy.objects["Pod", name]
        counts.append(made(toy) - before)
        toy.highest.clear()
    assert counts == [2, 2, 2]


# ---- KubeRay


def test_kuberays_pod_on_a_dead_node_is_removed_by_force_and_one_that_its_node_will_end_is_not() -> None:
    toy = Toy.of(served=replace(SERVED, kuberay=True)).turn()
    (cluster,) = toy.of_kind(RAY_CLUSTERS)
    for name, node in (("x-dead", "dead"), ("x-well", "a"), ("x-works", "dead")):
        labels = {names.LABEL_ROLE: names.WORKER, names.LABEL_JOB: "j"}
        meta = {"name": name, "uid": name, "labels": labels, "creationTimestamp": cluster["metadata"]["creationTimestamp"]}
        toy.objects["Pod", name] = {"metadata": meta, "spec": {"nodeName": node}, "status": {"phase": "Running"}}
    toy.asked_to_go("x-dead")
    toy.asked_to_go("x-well")
    toy.turn(3)
    assert [line for line in toy.log if "x-" in line] == ["-x-dead by force"]
    assert toy.pods == ["x-well", "x-works"]
