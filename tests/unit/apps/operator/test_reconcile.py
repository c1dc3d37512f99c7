"""Every rule of the operator, as a conversation with a toy API server: what is there, what it then does and says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.objects.common import pod_limits
from orchestrator.adapters.kube.resources import RAY_CLUSTERS
from orchestrator.apps.operator.reconcile import LEAVE_LIMIT_S
from orchestrator.spec.training_job import from_training_job
from tests.unit.apps.operator.toy import SERVED, Toy

FULL = ["j-head-1", "j-worker-0-1", "j-worker-1-1", "j-spare-0-1"]


def running(**settings: Any) -> Toy:
    """A job all of whose pods run, and whose agent reports."""
    toy = Toy.of(**settings).turn().pods_run().turn()
    toy.agent_says("Running")
    return toy.turn()


# ---- begin


def test_everything_is_made_in_the_order_in_which_it_is_needed() -> None:
    toy = Toy.of().turn()
    assert toy.log == [
        f"finalizers {names.FINALIZER}",
        "tokens",
        "+PersistentVolumeClaim j-head",
        "+Service j-head",
        "+Service j-pods",
        "+PodDisruptionBudget j",
        *(f"+{name}" for name in FULL),
    ]
    assert toy.phase == "Pending/Waiting"
    assert toy.condition("Accepted") == "True/Accepted"
    assert toy.said == ["Accepted: a head, 2 worker and 1 spare pods are asked for"]


def test_a_large_job_is_made_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.apps.operator.running.MAKE_MAX", 3)
    toy = Toy.of().turn()
    assert (toy.live, toy.again_s) == (FULL[:3], 0)
    assert toy.turn().live == FULL
    assert toy.again_s != 0


def test_further_turns_do_nothing() -> None:
    toy = Toy.of().turn(2)
    done, status = list(toy.log), toy.status
    toy.turn(3)
    assert (toy.log, toy.status) == (done, status)


def test_every_object_belongs_to_the_job_and_pods_have_it_as_their_controller() -> None:
    toy = Toy.of().turn()
    for (kind, _), obj in toy.objects.items():
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["uid"], owner.get("controller", False)) == ("u", kind == "Pod")
        assert "blockOwnerDeletion" not in owner


@pytest.mark.parametrize("missing", FULL)
def test_what_is_missing_is_made(missing: str) -> None:
    toy = running()
    del toy.objects["Pod", missing]
    toy.turn()
    assert sorted(toy.pods) == sorted(f"{name[:-1]}2" if name == missing else name for name in FULL)


def test_phase_follows_the_pods_until_the_agent_speaks() -> None:
    toy = Toy.of().turn()
    toy.pods_run("j-head-1", "j-worker-0-1").turn()
    assert toy.phase == "Pending/Waiting"
    assert "2 of 3 pods have a node" in toy.status["message"]
    toy.pods_run("j-worker-1-1").turn()
    assert (toy.phase, toy.condition("Placed")) == ("Starting/Starting", "True/Placed")
    assert toy.condition("PodsReady") == "False/Waiting"  # the spare
    toy.pods_run().turn()
    assert (toy.condition("PodsReady"), toy.condition("HeadReady")) == ("True/Ready", "True/Ready")
    assert (toy.status["replicas"], toy.status["readyReplicas"]) == (2, 2)
    toy.agent_says("Running")
    toy.turn(2)
    assert toy.phase == "Running/Running"


def test_a_spec_that_cannot_be_run_is_refused_in_the_words_of_the_spec() -> None:
    toy = Toy.of()
    toy.obj["spec"]["checkpoint"] = {"uri": "/nowhere", "every": 1}
    toy.turn()
    assert toy.phase == "Failed/InvalidSpec"
    assert toy.condition("Accepted") == "False/InvalidSpec"
    assert "spec.checkpoint.uri" in toy.status["message"]
    assert (toy.objects, toy.log) == ({}, [])
    toy.turn(2)
    assert len(toy.said) == 1
    del toy.obj["spec"]["checkpoint"]
    toy.change().turn()
    assert (toy.phase, toy.live) == ("Pending/Waiting", FULL)


def test_a_running_job_stays_as_it_is_when_its_spec_becomes_wrong() -> None:
    toy = running()
    toy.obj["spec"]["checkpoint"] = {"uri": "/nowhere", "every": 1}
    done = list(toy.log)
    toy.change().turn(2)
    assert (toy.log, toy.phase, toy.condition("Accepted")) == (done, "Running/Running", "False/InvalidSpec")
    assert toy.condition("HeadReady") == "True/Ready"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"backend": "kuberay"}, "KubeRayMissing"),
        ({"queue": "q"}, "KueueMissing"),
        ({"scheduler": "volcano"}, "VolcanoMissing"),
    ],
)
def test_what_the_cluster_lacks_is_said_and_waited_for(asked: dict[str, str], reason: str) -> None:
    toy = Toy.of(kubernetes=asked).turn(2)
    assert (toy.phase, toy.objects) == (f"Pending/{reason}", {})
    assert toy.again_s is not None
    toy.served = replace(SERVED, kuberay=True, kueue=True, volcano=True)
    toy.turn()
    assert toy.condition("Accepted") == "True/Accepted"
    assert toy.objects


# ---- pods come and go


def test_a_failed_pod_is_replaced_at_once_and_then_removed() -> None:
    toy = running()
    toy.fails("j-worker-1-1", after_s=5)
    toy.turn()
    assert toy.live == ["j-head-1", "j-worker-0-1", "j-spare-0-1", "j-worker-1-2"]
    assert "j-worker-1-1" not in [n for n in toy.pods if "deletionTimestamp" not in toy.pod(n)["metadata"]]
    assert toy.said[-1] == "PodReplaced: j-worker-1-2 takes the place of j-worker-1-1: ray-worker ended with 4 (Error)"


def test_a_pod_that_keeps_failing_is_waited_with_longer_each_time_up_to_a_limit() -> None:
    toy = running()
    waits = []
    for incarnation in range(1, 13):
        toy.fails(f"j-worker-0-{incarnation}", after_s=1)
        toy.turn()
        waits.append(toy.again_s if f"j-worker-0-{incarnation + 1}" not in toy.pods else 0.0)
        toy.pass_s(waits[-1] or 0).turn()
        assert f"j-worker-0-{incarnation + 1}" in toy.pods
        toy.pods_run()
    assert waits == [0, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_a_pod_that_lived_long_is_replaced_at_once() -> None:
    toy = running()
    for incarnation in range(1, 5):
        toy.fails(f"j-worker-0-{incarnation}", after_s=3600)
        toy.turn().pods_run()
        assert f"j-worker-0-{incarnation + 1}" in toy.live


def test_pods_that_were_drained_or_lost_are_no_failures_of_the_next() -> None:
    toy = running()
    for n in range(1, 9):
        toy.asked_to_go(f"j-worker-0-{n}")
        toy.turn().pods_run().ends()
    toy.fails("j-worker-0-9")
    toy.turn()
    assert "j-worker-0-10" in toy.live  # at once: it is the first that failed by itself


def test_a_pod_that_stays_terminating_blocks_nothing() -> None:
    toy = running()
    toy.answering.discard("a")
    toy.asked_to_go("j-worker-0-1")
    for _ in range(3):
        toy.turn()
    assert toy.live == ["j-head-1", "j-worker-1-1", "j-spare-0-1", "j-worker-0-2"]
    assert "j-worker-0-1" in toy.pods  # its node may come back and end it
    toy.asked_to_go("j-worker-0-2")
    toy.turn()
    assert "j-worker-0-3" in toy.live


def test_no_second_head_beside_one_that_may_still_write() -> None:
    toy = running()
    toy.asked_to_go("j-head-1", grace_s=60)
    toy.turn()
    assert "j-head-2" not in toy.pods
    assert (toy.again_s, toy.seen().services["j-head"]) == (2, 1)
    toy.answering.discard("a")  # now nobody will end it, and the volume is not its any more
    toy.turn(2)
    assert "j-head-2" in toy.live
    assert toy.log[-2:] == ["+Service j-head", "+j-head-2"]  # workers find the new one only, while the dead one is still listed
    assert toy.seen().services == {"j-head": 2, "j-pods": 0}


def test_a_head_that_its_node_cannot_end_is_not_waited_for_for_ever() -> None:
    toy = running()
    toy.asked_to_go("j-head-1", grace_s=60)
    toy.pass_s(60).turn()
    assert "j-head-2" not in toy.pods
    toy.pass_s(31).turn()
    assert "j-head-2" in toy.live


def test_a_lost_head_is_said_once_and_left_to_the_agent_when_it_is_back() -> None:
    toy = running()
    toy.unready("j-head-1")
    toy.turn(2)
    assert (toy.phase, toy.condition("HeadReady")) == ("Recovering/HeadLost", "False/HeadLost")
    (said,) = [s for s in toy.said if s.startswith("HeadLost")]
    assert "it had been ready since 09:00:00 UTC" in said  # so that another loss is another Event
    toy.pods_run("j-head-1").turn()
    assert (toy.phase, toy.condition("HeadReady")) == ("Recovering/HeadLost", "True/Ready")  # nobody knows better yet
    toy.agent_says("Running")
    toy.turn()
    assert toy.phase == "Running/Running"


def test_an_agent_that_starts_again_is_no_loss_of_the_head() -> None:
    toy = running()
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"}]
    containers = [{"name": "ray-head", "ready": True}, {"name": "agent", "ready": False}]
    toy.pod("j-head-1")["status"] |= {"conditions": conditions, "containerStatuses": containers}
    toy.turn()
    assert (toy.phase, toy.condition("HeadReady")) == ("Running/Running", "True/Ready")
    conditions[1]["status"] = "True"  # so it looks when the node is lost
    toy.turn()
    assert toy.condition("HeadReady") == "False/HeadLost"


def test_scaling_makes_and_removes_workers_and_follows_with_the_budget() -> None:
    toy = running().change(nodes=4).turn()
    assert toy.live == [*FULL, "j-worker-2-1", "j-worker-3-1"]
    assert toy.log[-3:] == ["+PodDisruptionBudget j", "+j-worker-2-1", "+j-worker-3-1"]
    toy.pods_run().turn()
    assert toy.status["readyReplicas"] == 4
    toy.change(nodes=1).turn()
    assert toy.live == ["j-head-1", "j-worker-0-1", "j-spare-0-1"]
    assert toy.said[-1] == "ScaledDown: the job has become smaller: j-worker-1-1, j-worker-2-1, j-worker-3-1 can go"


def test_what_is_too_much_goes_before_anything_new_is_asked_for() -> None:
    toy = running()
    toy.fails("j-worker-0-1", after_s=10)
    toy.change(nodes=1).turn()
    assert toy.log[-3:] == ["-j-worker-1-1", "+j-worker-0-2", "-j-worker-0-1"]  # a quota may have room for one only


def test_a_place_that_waits_for_its_next_pod_says_why() -> None:
    toy = running()
    toy.fails("j-worker-0-1")
    toy.turn().pods_run()
    toy.fails("j-worker-0-2")
    toy.turn()
    message = next(c["message"] for c in toy.status["conditions"] if c["type"] == "PodsReady")
    assert message == "3 of 4 pods are ready; j-worker-0-2: ray-worker ended with 4 (Error)"


def test_the_number_of_workers_is_said_in_every_state() -> None:
    toy = running()
    counted = {"replicas": 2, "readyReplicas": 2, "selector": "orchestrator.dev/job=j,orchestrator.dev/role=worker"}
    assert toy.status == {**toy.status, **counted}
    toy.obj["spec"]["checkpoint"] = {"uri": "/nowhere", "every": 1}
    toy.change().turn()
    assert (toy.condition("Accepted"), toy.status) == ("False/InvalidSpec", {**toy.status, **counted})
    del toy.obj["spec"]["checkpoint"]
    toy.change(suspend=True).turn()
    assert (toy.phase, toy.status) == ("Suspending/Suspending", {**toy.status, **counted})


# ---- all or none


def test_pods_that_were_given_back_are_not_what_their_agent_said_last() -> None:
    toy = Toy.of(kubernetes={"gangTimeout": "2m"}).turn().pods_run("j-head-1", "j-worker-0-1").turn()
    toy.agent_says("Starting")
    toy.turn().pass_s(120).turn()
    assert (toy.phase, toy.condition("Placed")) == ("Starting/Starting", "Unknown/GangTimeout")  # its agent would say it again
    toy.ends()
    toy.turn()
    assert toy.phase == "Pending/GangTimeout"


def test_pods_that_do_not_all_find_a_place_are_given_back_and_asked_for_again() -> None:
    toy = Toy.of(kubernetes={"gangTimeout": "2m"}).turn().pods_run("j-head-1", "j-worker-0-1").turn()
    assert toy.again_s == 120
    toy.pass_s(119).turn()
    assert toy.live == FULL
    toy.pass_s(1).turn()
    assert toy.live == []
    assert (toy.phase, toy.condition("Placed")) == ("Pending/GangTimeout", "Unknown/GangTimeout")
    assert toy.said[-1].startswith("GangTimeout: 2 of 3 pods have a node, 120 s after they were asked for at 09:00:00 UTC")
    toy.ends()
    toy.pass_s(119).turn()
    assert (toy.pods, toy.again_s) == ([], 1)
    assert (toy.phase, toy.condition("HeadReady")) == ("Pending/GangTimeout", "False/Starting")
    toy.pass_s(1).turn()
    assert (len(toy.live), toy.condition("Placed")) == (4, "False/Waiting")
    toy.pods_run().turn()
    assert toy.condition("Placed") == "True/Placed"


def test_a_job_that_was_placed_once_is_never_given_back() -> None:
    toy = running(kubernetes={"gangTimeout": "1m"})
    toy.fails("j-worker-0-1", after_s=10)
    toy.turn().pass_s(3600).turn()
    assert "j-worker-0-2" in toy.live
    assert toy.condition("Placed") == "True/Placed"


def test_spares_are_not_waited_for() -> None:
    toy = Toy.of(kubernetes={"gangTimeout": "1m"}).turn().pods_run(*FULL[:3]).turn().pass_s(3600).turn()
    assert (toy.live, toy.condition("Placed")) == (FULL, "True/Placed")


@pytest.mark.parametrize("elsewhere", [{"queue": "q"}, {"scheduler": "volcano"}])
def test_where_somebody_else_places_all_or_none_nothing_is_given_back(elsewhere: dict[str, str]) -> None:
    served = replace(SERVED, kueue=True, volcano=True)
    toy = Toy.of(served=served, kubernetes={"gangTimeout": "1m", **elsewhere}).turn().pass_s(86400).turn()
    assert toy.live == FULL
    assert ("PodGroup", "j") in toy.objects or "queue" in elsewhere


# ---- suspend and resume


def test_a_suspended_job_keeps_its_pods_until_its_state_is_saved() -> None:
    toy = running().change(suspend=True).turn()
    assert (toy.live, toy.phase, toy.condition("Suspended")) == (FULL, "Suspending/Suspending", "False/Suspending")
    toy.agent_says("Suspending", Checkpointed="False")
    toy.pass_s(5).turn()
    assert toy.live == FULL
    toy.agent_says("Suspending", Checkpointed="True")
    toy.turn()
    assert (toy.live, toy.condition("Suspended")) == (["j-head-1"], "False/Suspending")  # whom the others ask what to hand over
    toy.ends()
    toy.turn()
    assert (toy.live, toy.condition("Suspended")) == ([], "False/Suspending")
    toy.ends()
    toy.turn()
    assert (toy.phase, toy.condition("Suspended")) == ("Suspended/Suspended", "True/Suspended")
    assert "startTime" not in toy.status
    assert ("PersistentVolumeClaim", "j-head") in toy.objects
    toy.pass_s(10**6).turn(2)
    assert (toy.pods, toy.said.count("Suspended: all pods are gone, as spec.suspend asks")) == ([], 1)


def test_a_saved_state_of_an_earlier_suspension_does_not_count() -> None:
    toy = running()
    toy.agent_says("Running", Checkpointed="True")
    toy.change(suspend=True).turn()
    assert toy.live == FULL


def test_a_suspended_job_whose_agent_is_silent_goes_after_a_limit() -> None:
    toy = running().change(suspend=True).turn()
    job, _, _ = from_training_job(toy.obj)
    assert toy.again_s == pod_limits(job).suspend_s
    toy.pass_s(toy.again_s).turn()
    assert toy.live == []
    assert toy.said[-1].startswith("NotCheckpointed")
    said = list(toy.said)
    toy.pass_s(10).turn(3)  # the pods have the time to go that they are given
    assert (toy.phase, toy.said) == ("Suspending/Suspending", said)


def test_a_job_that_holds_no_state_is_suspended_at_once() -> None:
    toy = Toy.of().turn().pods_run("j-worker-0-1").change(suspend=True).turn()
    assert toy.live == []
    toy.ends()
    assert toy.turn().phase == "Suspended/Suspended"


def test_a_job_that_is_born_suspended_makes_no_pods() -> None:
    toy = Toy.of()
    toy.change(suspend=True).turn(2)
    assert (toy.phase, toy.pods) == ("Suspended/Suspended", [])


def test_a_resumed_job_gets_pods_and_a_new_start() -> None:
    toy = running().change(suspend=True).turn()
    toy.agent_says("Suspending", Checkpointed="True")
    toy.winds_up().turn().pass_s(1000).change(suspend=False).turn()
    assert (len(toy.live), toy.phase, toy.condition("Suspended")) == (4, "Pending/Waiting", "")
    assert toy.status["startTime"] == "2026-11-29T09:16:40Z"
    assert toy.said[-1].startswith("Resumed")
    toy.pods_run().turn()
    toy.agent_says("Running")
    assert toy.turn().phase == "Running/Running"


def test_a_stuck_pod_does_not_keep_a_job_from_being_suspended() -> None:
    toy = running().change(suspend=True).turn()
    toy.agent_says("Suspending", Checkpointed="True")
    toy.turn()
    toy.answering.clear()
    assert toy.turn(2).phase == "Suspended/Suspended"


def test_pods_that_have_ended_and_are_held_by_a_finalizer_do_not_either() -> None:
    toy = running().change(suspend=True).turn()
    toy.agent_says("Suspending", Checkpointed="True")
    toy.turn()
    for name in sorted(toy.pods, reverse=True):  # the head last
        assert toy.turn().phase == "Suspending/Suspending"
        toy.pod(name)["status"] = {"phase": "Succeeded"}
    assert toy.turn().phase == "Suspended/Suspended"


# ---- the end


def test_a_job_that_is_over_gives_its_pods_back_whatever_its_spec_says_now() -> None:
    toy = running()
    toy.obj["spec"]["checkpoint"] = {"uri": "/nowhere", "every": 1}
    toy.change().turn()
    toy.agent_says("Succeeded")
    toy.winds_up().turn()
    assert (list(toy.objects), toy.phase) == ([("PersistentVolumeClaim", "j-head")], "Succeeded/Succeeded")


def test_a_job_that_is_over_does_not_look_all_the_time_at_a_pod_that_nobody_ends() -> None:
    toy = running()
    toy.answering.clear()
    toy.agent_says("Succeeded")
    toy.turn(3)
    assert (len(toy.pods), toy.again_s) == (4, None)


@pytest.mark.parametrize("end", ["Succeeded", "Failed", "Cancelled"])
def test_a_job_that_is_over_keeps_its_volume_and_tokens_only(end: str) -> None:
    toy = running()
    toy.agent_says(end)
    toy.turn()
    assert (toy.live, ("Service", "j-head") in toy.objects) == (["j-head-1"], True)  # whom the others ask what to hand over
    toy.ends()
    toy.winds_up().turn(2)
    assert (list(toy.objects), toy.phase) == ([("PersistentVolumeClaim", "j-head")], f"{end}/{end}")
    assert toy.status["completionTime"] == "2026-11-29T09:00:00Z"
    assert "no tokens" not in toy.log
    toy.pass_s(10**7).turn()
    assert not toy.gone


def test_a_job_is_deleted_when_its_time_after_the_end_is_over() -> None:
    toy = running(kubernetes={"ttlAfterFinished": "1h"})
    toy.agent_says("Succeeded")
    toy.winds_up().turn()
    assert toy.again_s == 3600
    toy.pass_s(3599).turn()
    assert "delete job" not in toy.log
    toy.pass_s(1).turn(3)
    assert (toy.objects, toy.gone) == ({}, True)


def test_a_job_that_is_late_fails_and_no_agent_can_say_otherwise() -> None:
    toy = running(kubernetes={"activeDeadline": "1h"})
    assert toy.again_s == 3600
    toy.pass_s(3600).turn()
    assert (toy.live, toy.condition("Failed")) == ([], "True/DeadlineExceeded")
    assert toy.phase == "Running/Running"  # the head is still there, and its agent would write over it
    toy.agent_says("Running")
    toy.turn().ends()
    toy.turn(2)
    assert (toy.phase, toy.condition("Failed")) == ("Failed/DeadlineExceeded", "True/DeadlineExceeded")
    assert list(toy.objects) == [("PersistentVolumeClaim", "j-head")]
    assert len([s for s in toy.said if s.startswith("DeadlineExceeded")]) == 1


def test_the_deadline_counts_from_the_resumption() -> None:
    toy = Toy.of(kubernetes={"activeDeadline": "1h"}).change(suspend=True).turn()
    toy.pass_s(7200).turn().change(suspend=False).turn()
    assert (toy.live, toy.again_s) == (FULL, 600)  # gangTimeout
    toy.pods_run().turn().pass_s(3599).turn()
    assert toy.condition("Failed") == ""
    toy.pass_s(1).turn()
    assert toy.condition("Failed") == "True/DeadlineExceeded"


def test_a_deleted_job_leaves_nothing_behind() -> None:
    toy = running().delete().turn()
    assert (toy.live, toy.gone) == ([], False)
    toy.turn()
    assert not toy.gone
    toy.ends()
    toy.turn()
    assert (toy.objects, toy.gone) == ({}, True)
    assert toy.log[-2:] == ["no tokens", "finalizers -"]
    assert toy.log.count("-j-head") == 2  # the Service and the claim, each asked once


def test_a_deleted_job_forces_pods_whose_node_is_gone() -> None:
    toy = running()
    toy.answering.clear()
    toy.delete().turn(3)
    assert (toy.objects, toy.gone) == ({}, True)


def test_a_deleted_job_is_let_go_in_the_end() -> None:
    toy = running().delete().turn().pass_s(LEAVE_LIMIT_S)
    done = list(toy.log)
    toy.turn()
    assert toy.gone
    assert toy.log[len(done) :] == ["no tokens", "finalizers -"]  # nothing first whose refusal would keep it for ever


def test_finalizers_of_others_stay() -> None:
    toy = Toy.of()
    toy.obj["metadata"]["finalizers"] = ["x/y"]
    toy.turn()
    assert toy.obj["metadata"]["finalizers"] == ["x/y", names.FINALIZER]
    toy.delete().turn(3)
    assert toy.obj["metadata"]["finalizers"] == ["x/y"]


# ---- KubeRay


def test_kuberay_makes_the_pods_where_it_is_installed() -> None:
    served = replace(SERVED, kuberay=True)
    toy = Toy.of(served=served).turn()
    assert toy.pods == []
    (cluster,) = toy.of_kind(RAY_CLUSTERS)
    assert [(g["groupName"], g["replicas"]) for g in cluster["spec"]["workerGroupSpecs"]] == [("worker", 2), ("spare", 1)]
    assert Toy.of(served=served, kubernetes={"backend": "pods"}).turn().live == FULL
    toy.change(nodes=3).turn()
    (cluster,) = toy.of_kind(RAY_CLUSTERS)
    assert cluster["spec"]["workerGroupSpecs"][0]["replicas"] == 3
    toy.change(suspend=True).turn()
    assert toy.of_kind(RAY_CLUSTERS) == []
    toy.change(suspend=False).turn()
    assert len(toy.of_kind(RAY_CLUSTERS)) == 1
    toy.delete().turn(2)
    assert (toy.objects, toy.gone) == ({}, True)


def test_no_second_raycluster_beside_a_head_that_may_still_write() -> None:
    toy = Toy.of(served=replace(SERVED, kuberay=True)).turn()
    (cluster,) = toy.of_kind(RAY_CLUSTERS)
    template = cluster["spec"]["headGroupSpec"]["template"]
    labels = {names.LABEL_ROLE: names.HEAD, names.LABEL_JOB: "j"}
    toy.objects["Pod", "j-head-x7"] = {
        "metadata": {
            "name": "j-head-x7",
            "uid": "x7",
            "labels": labels,
            "creationTimestamp": cluster["metadata"]["creationTimestamp"],
        },
        "spec": {**template["spec"], "nodeName": "a"},
    }
    del toy.objects["RayCluster", "j"]
    toy.asked_to_go("j-head-x7")
    toy.turn()
    assert toy.of_kind(RAY_CLUSTERS) == []
    toy.ends()
    toy.turn()
    assert len(toy.of_kind(RAY_CLUSTERS)) == 1


def test_a_job_with_pods_keeps_to_them_when_kuberay_is_installed_later() -> None:
    toy = running()
    toy.served = replace(SERVED, kuberay=True)
    toy.fails("j-worker-0-1", after_s=10)
    toy.turn()
    assert "j-worker-0-2" in toy.live
    assert toy.of_kind(RAY_CLUSTERS) == []
