"""A spec that is edited while its job runs: what the operator does about it, and what it says until the edit is undone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.kuberay import sizes
from orchestrator.adapters.kube.resources import RAY_CLUSTERS
from tests.unit.apps.operator.toy import SERVED, Toy

TWICE = [{"claim": "a", "path": "/a"}, {"claim": "b", "path": "/a"}]


def running(**settings: Any) -> Toy:
    """A job that was submitted and runs."""
    toy = Toy.of(**settings).turn().pods_run().turn().agent_submits()
    toy.agent_says("Running")
    toy.turn()
    toy.said.clear()
    return toy


def applied(toy: Toy) -> tuple[str, str]:
    """status/reason and message of the condition."""
    found = next(c for c in toy.status["conditions"] if c["type"] == "SpecApplied")
    return toy.condition("SpecApplied"), found["message"]


def image(toy: Toy, pod: str) -> str:
    """That a pod was made of."""
    return str(toy.pod(pod)["spec"]["containers"][0]["image"])


def test_before_a_job_is_submitted_nothing_is_said_of_edits() -> None:
    toy = Toy.of().turn().pods_run().turn()
    toy.change(train={"seed": 9}).turn()
    assert toy.condition("SpecApplied") == ""
    toy.agent_submits().turn()
    assert applied(toy) == ("True/AsSubmitted", "the job runs as the spec says")
    assert [said.partition(":")[0] for said in toy.said] == ["Accepted"]


def test_an_edit_that_does_not_act_is_said_once_with_the_keys_and_the_fix_until_it_is_undone() -> None:
    toy = running()
    before = toy.obj["spec"]["train"]
    toy.change(train={"steps": 77}).turn(3)
    words = (
        "spec.train.steps (12 before, 77 now): the job goes on as it was submitted;"
        " fix: undo the edit, or delete the job and make it anew"
    )
    assert applied(toy) == ("False/EditIgnored", words)
    assert toy.said == [f"EditIgnored: {words}"]
    toy.change(train=before).turn(2)
    assert applied(toy)[0] == "True/AsSubmitted"
    assert toy.said[1:] == ["AsSubmitted: the job runs as the spec says"]
    assert (toy.phase, toy.condition("Accepted")) == ("Running/Running", "True/Accepted")


def test_each_edit_is_said_and_what_acts_by_itself_is_none() -> None:
    toy = running()
    toy.change(nodes=3).turn(2)
    assert (applied(toy)[0], toy.condition("PodsReady")) == ("True/AsSubmitted", "False/Waiting")
    assert toy.said == []
    toy.change(train={"steps": 77}).turn()
    toy.change(train={"seed": 9}).turn()
    toy.change(suspend=True).turn()
    assert [said.partition(":")[0] for said in toy.said] == ["EditIgnored", "EditIgnored"]
    assert applied(toy)[0] == "False/EditIgnored", "also while it is being suspended"


def test_settings_of_pods_are_for_new_ones_and_that_is_said() -> None:
    toy = running()
    toy.change(kubernetes={"image": "x:2"}).turn(2)
    words = 'spec.kubernetes.image ("x:1" before, "x:2" now): for pods that are made from now on'
    assert applied(toy) == ("True/ForNewPods", words)
    assert toy.said == [f"ForNewPods: {words}"]
    assert image(toy, "j-worker-0-1") == "x:1"
    toy.fails("j-worker-0-1")
    toy.turn()
    assert image(toy, "j-worker-0-2") == "x:2"
    toy.change(kubernetes={"image": "x:1"}).turn()
    assert (applied(toy)[0], "podSettings" in toy.status) == ("True/AsSubmitted", False)


def test_the_spares_of_a_job_stay_as_they_were_submitted() -> None:
    toy = running()
    toy.change(cluster={**toy.obj["spec"]["cluster"], "spares": 3}).turn()
    assert [name for name in toy.live if "spare" in name] == ["j-spare-0-1"]
    assert applied(toy)[0] == "False/EditIgnored"


def test_a_spec_that_cannot_be_run_does_not_keep_a_running_job_from_being_cared_for() -> None:
    toy = running()
    toy.change(kubernetes={"image": "x:2"}).turn()
    toy.change(kubernetes={"image": "x:3", "volumes": TWICE}).turn(2)
    value, words = applied(toy)
    assert value == "False/InvalidSpec"
    assert words.startswith(
        "the spec as it is now cannot be run, and the job goes on without it: trainingjob/j: spec.kubernetes:"
    )
    assert 'two volumes have the path "/a"' in words
    assert [said.partition(":")[0] for said in toy.said] == ["ForNewPods", "InvalidSpec"]
    assert (toy.phase, toy.condition("Accepted")) == ("Running/Running", "True/Accepted")
    toy.fails("j-head-1")
    toy.turn()
    assert image(toy, "j-head-2") == "x:2", "as it could be read last"
    toy.change(nodes=3).turn()
    assert "j-worker-2-1" in toy.live
    toy.change(suspend=True).turn()
    assert toy.condition("Suspended") == "False/Suspending"
    del toy.obj["spec"]["kubernetes"]["volumes"]
    toy.change(suspend=False).turn()
    assert (applied(toy)[0], toy.status["podSettings"]["image"]) == ("True/ForNewPods", "x:3")


def test_a_job_whose_own_sections_cannot_be_run_goes_on_with_those_that_were_submitted() -> None:
    toy = running()
    toy.change(checkpoint={"uri": "/nowhere", "every": 1}).turn(2)
    value, words = applied(toy)
    assert value == "False/InvalidSpec"
    assert "spec.checkpoint.uri: /nowhere is on no volume" in words
    assert words.endswith("fix: undo the edit, or delete the job and make it anew")
    toy.fails("j-worker-1-1")
    toy.turn()
    assert "j-worker-1-2" in toy.live


def test_a_deadline_that_is_set_while_the_job_runs_acts() -> None:
    toy = running()
    toy.change(kubernetes={"activeDeadline": "60s"}).turn()
    assert (applied(toy)[0], toy.said) == ("True/AsSubmitted", [])
    toy.pass_s(61).turn()
    assert toy.condition("Failed") == "True/DeadlineExceeded"


def test_what_was_edited_is_told_of_a_job_that_is_over_but_nothing_new() -> None:
    toy = running()
    toy.change(train={"steps": 77}).turn()
    toy.agent_says("Succeeded", Succeeded="True")
    toy.turn()
    toy.change(train={"steps": 78}).turn(2)
    value, words = applied(toy)
    assert (value, "77 now" in words, len(toy.said)) == ("False/EditIgnored", True, 1)


def test_a_record_that_another_version_wrote_is_not_relied_on() -> None:
    toy = running()
    toy.obj["status"]["submitted"]["train"]["a key of later"] = 1
    toy.change(train={"steps": 77}).turn()
    assert toy.said == []
    assert toy.condition("Accepted") == "True/Accepted"


def test_workers_go_only_once_the_supervisor_has_agreed_to_fewer() -> None:
    toy = running(nodes=3).agent_scales(3)
    toy.change(nodes=2).turn(2)
    assert [name for name in toy.live if "worker" in name] == ["j-worker-0-1", "j-worker-1-1", "j-worker-2-1"]
    toy.agent_scales(2).turn()
    assert [name for name in toy.live if "worker" in name] == ["j-worker-0-1", "j-worker-1-1"]


@pytest.mark.parametrize("nodes", [1, 9])
def test_a_number_of_nodes_that_the_supervisor_refuses_leaves_a_job_as_strong_as_it_was(nodes: int) -> None:
    toy = running().agent_scales(2)
    toy.change(nodes=nodes).agent_scales(2, refused=nodes).turn(2)
    toy.fails("j-worker-1-1")
    toy.turn()
    assert sorted(name for name in toy.live if "worker" in name) == ["j-worker-0-1", "j-worker-1-2"]
    toy.change(nodes=3).turn()
    assert "j-worker-2-1" in toy.live, "the wish is another"


def test_a_job_that_is_resumed_on_fewer_nodes_gets_so_many_pods() -> None:
    toy = running(nodes=3).agent_scales(3)
    toy.change(suspend=True).turn()
    toy.agent_says("Suspending", Checkpointed="True")
    toy.winds_up().turn()
    assert toy.condition("Suspended") == "True/Suspended"
    toy.change(nodes=2, suspend=False).turn(3)
    assert sorted(name for name in toy.live if "worker" in name) == ["j-worker-0-2", "j-worker-1-2"]


def test_a_raycluster_becomes_smaller_once_the_supervisor_has_agreed() -> None:
    toy = Toy.of(served=replace(SERVED, kuberay=True), nodes=3).turn().agent_submits().agent_scales(3)
    toy.agent_says("Running")
    toy.turn().change(nodes=2).turn()
    (before,) = toy.of_kind(RAY_CLUSTERS)
    toy.agent_scales(2).turn()
    (after,) = toy.of_kind(RAY_CLUSTERS)
    assert (sizes(before)[names.WORKER], sizes(after)[names.WORKER]) == (3, 2)


@pytest.mark.parametrize("edit", [{"image": "x:2"}, {"image": "x:1"}])
def test_a_raycluster_is_told_of_settings_for_new_pods_once(edit: dict[str, str]) -> None:
    toy = Toy.of(served=replace(SERVED, kuberay=True)).turn().agent_submits()
    toy.agent_says("Running")
    toy.turn()
    toy.log.clear()
    toy.change(kubernetes=edit).turn(3)
    (cluster,) = toy.of_kind(RAY_CLUSTERS)
    assert toy.log.count(f"+{RAY_CLUSTERS.kind} {cluster['metadata']['name']}") == (edit["image"] == "x:2")
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert (head["name"], head["image"]) == (names.HEAD_CONTAINER, edit["image"])
