"""What a pod's status says about why it does not run, in the words that people see."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.adapters.kube.observed import pod_facts

PLACED = {"conditions": [{"type": "PodScheduled", "status": "True"}]}


def facts_of(status: dict[str, Any]) -> tuple[str, str]:
    """(trouble, end) of a pod with this status."""
    seen = pod_facts({"metadata": {"name": "p", "uid": "u", "creationTimestamp": "2026-11-29T09:00:00Z"}, "status": status})
    return seen.trouble, seen.end


def container(waiting: dict[str, str], *, last: dict[str, Any] | None = None) -> dict[str, Any]:
    """The status of a pod whose container waits."""
    told = {"name": "ray-head", "state": {"waiting": waiting}, "lastState": {"terminated": last} if last else {}}
    return {**PLACED, "phase": "Pending", "containerStatuses": [told]}


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]},
            "Unschedulable: 0/3 nodes",
        ),
        (container({"reason": "ContainerCreating"}), ""),
        (container({"reason": "ImagePullBackOff", "message": "no such image"}), "ray-head: ImagePullBackOff: no such image"),
        (
            container({"reason": "ImagePullBackOff", "message": "no such image"}, last={"exitCode": 1}),
            "ray-head: ImagePullBackOff: no such image",
        ),
        (
            container({"reason": "CrashLoopBackOff", "message": "back-off 20s"}, last={"exitCode": 137, "reason": "OOMKilled"}),
            "ray-head: CrashLoopBackOff: ray-head ended with 137 (OOMKilled)",
        ),
        (
            container({"reason": "CreateContainerConfigError", "message": "secret x"}),
            "ray-head: CreateContainerConfigError: secret x",
        ),
    ],
)
def test_why_a_pod_does_not_start(status: dict[str, Any], trouble: str) -> None:
    assert facts_of(status) == (trouble, "")


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "Evicted: low on memory"),
        (
            {"phase": "Failed", "containerStatuses": [{"name": "ray-worker", "state": {"terminated": {"exitCode": 3}}}]},
            "ray-worker ended with 3",
        ),
        (
            {
                "phase": "Failed",
                "containerStatuses": [
                    {"name": "ray-worker", "state": {"terminated": {"exitCode": 3, "message": "waiting\nno head came\n"}}}
                ],
            },
            "ray-worker ended with 3: no head came",
        ),
    ],
)
def test_how_a_pod_ended(status: dict[str, Any], end: str) -> None:
    assert facts_of(status) == ("", end)
