"""The operator's rights are the least set: with all it is refused nothing, and without any one of them something named breaks.

The life of a job is told once with the rights of the manifests, and once without each of them; what the operator asked for and
was refused is read in the API server's own record, its audit log. The rights that KubeRay and Volcano need likewise.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeError
from tests.kube import foreign
from tests.kube.agents import Objects, until
from tests.kube.control_plane import ControlPlane
from tests.kube.operator_story import HEARD, KUBERAY, PODS, VOLCANO, Step, Story
from tests.kube.rights import Grants, Right, anonymous, existing_account, granted_to, installed, role

pytestmark = pytest.mark.timeout(1800)  # all stories are told before the first test

AT_ONCE: Final = 6
BASE: Final = Grants(
    cluster=role("manifests/base", "ClusterRole", names.OPERATOR), namespaced=role("manifests/base", "Role", names.OPERATOR)
)
NOTHING: Final = "the job cannot go unnoticed"  # the first thing that is done to a job
BREAKS: Final[dict[Right, str]] = {
    Right("coordination.k8s.io", "leases", "get"): "the lease is kept",
    Right("coordination.k8s.io", "leases", "create"): "the lease is kept",
    Right("coordination.k8s.io", "leases", "update"): "the lease is kept",
    Right(names.GROUP, "trainingjobs", "list"): NOTHING,
    Right(names.GROUP, "trainingjobs", "watch"): HEARD,
    Right(names.GROUP, "trainingjobs", "get"): NOTHING,
    Right(names.GROUP, "trainingjobs", "patch"): NOTHING,
    Right(names.GROUP, "trainingjobs", "delete"): "a job that is over goes in its time",
    Right(names.GROUP, "trainingjobs/status", "patch"): "the status says how it is",
    Right("", "pods", "list"): NOTHING,
    Right("", "pods", "watch"): HEARD,
    Right("", "pods", "create"): "the pods are made",
    Right("", "pods", "delete"): "a surplus pod goes",
    Right("", "nodes", "get"): "a pod on a lost node is replaced",
    Right("", "services", "list"): NOTHING,
    Right("", "services", "create"): "the services are there",
    Right("", "services", "patch"): "the services are there",
    Right("", "services", "delete"): "services go",
    Right("", "persistentvolumeclaims", "list"): NOTHING,
    Right("", "persistentvolumeclaims", "create"): "the head has a volume",
    Right("", "persistentvolumeclaims", "delete"): "the volume goes",
    Right("", "secrets", "create"): "the tokens are made",
    Right("", "secrets", "delete"): "nothing is left",
    Right("policy", "poddisruptionbudgets", "list"): NOTHING,
    Right("policy", "poddisruptionbudgets", "create"): "the budget is there",
    Right("policy", "poddisruptionbudgets", "patch"): "the budget is there",
    Right("policy", "poddisruptionbudgets", "delete"): "the budget goes",
    Right("", "events", "create"): "it is told that the job is accepted",
}
BREAKS_VOLCANO: Final[dict[Right, str]] = {
    Right("scheduling.volcano.sh", "podgroups", "list"): NOTHING,
    Right("scheduling.volcano.sh", "podgroups", "create"): "the PodGroup is there",
    Right("scheduling.volcano.sh", "podgroups", "patch"): "the PodGroup is there",
    Right("scheduling.volcano.sh", "podgroups", "delete"): "the PodGroup goes",
}
BREAKS_KUBERAY: Final[dict[Right, str]] = {
    Right("ray.io", "rayclusters", "list"): NOTHING,
    Right("ray.io", "rayclusters", "create"): "the RayCluster is there",
    Right("ray.io", "rayclusters", "patch"): "the RayCluster is there",
    Right("ray.io", "rayclusters", "delete"): "the RayCluster goes",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of install: its rights beyond the base, what breaks without each right, and the story that shows it."""

    name: str
    extra: Sequence[Right]
    breaks: dict[Right, str]
    steps: Sequence[Step]
    kubernetes: dict[str, Any]

    @property
    def grants(self) -> Grants:
        """All of its rights."""
        return Grants(cluster=[*BASE.cluster, *self.extra], namespaced=BASE.namespaced)

    @property
    def tested(self) -> list[Right]:
        """The rights that are taken away in turn."""
        return list(self.extra) or BASE.rights


def component(name: str) -> list[Right]:
    """The rights that an overlay adds."""
    return role(f"manifests/overlays/{name}", "ClusterRole", f"{names.OPERATOR}-{name}")


CASES: Final = (
    Case("base", (), BREAKS, PODS, {"backend": "pods"}),
    Case("volcano", component("volcano"), BREAKS_VOLCANO, VOLCANO, {"backend": "pods", "scheduler": "volcano"}),
    Case("kuberay", component("kuberay"), BREAKS_KUBERAY, KUBERAY, {"backend": "kuberay"}),
)
TOLD: Final = [(case, right) for case in CASES for right in (None, *case.tested)]
Told = dict[tuple[str, Right | None], tuple[Story, str]]


def tell(plane: ControlPlane, number: int, case: Case, lacking: Right | None) -> tuple[Story, str]:
    """One story, and what was wrong with it."""
    grants = case.grants if lacking is None else case.grants.without(lacking)
    story = Story.begin(plane, f"rbac-operator-{number}", grants=grants, kubernetes=case.kubernetes)
    try:
        story.tell(case.steps, lacking=lacking, broken=case.breaks[anonymous(lacking)] if lacking else "")
    except (AssertionError, KubeError, subprocess.TimeoutExpired) as error:
        return story, f"{type(error).__name__}: {error}\n{story.said}"
    return story, ""


@pytest.fixture(scope="module")
def told(plane: ControlPlane) -> Told:
    """All stories, several at a time. The kinds of others are there only for their case: where they are, rights are needed."""
    Objects(plane, "default").install()
    found: Told = {}
    numbered = list(enumerate(TOLD))
    for case in CASES:
        definitions = {"volcano": foreign.VOLCANO, "kuberay": foreign.KUBERAY}.get(case.name, [])
        with foreign.installed(plane, definitions), ThreadPoolExecutor(AT_ONCE) as threads:
            mine = [(number, right) for number, (of, right) in numbered if of is case]
            stories = threads.map(lambda one, case=case: tell(plane, one[0], case, one[1]), mine)
            found |= {(case.name, right): story for (_, right), story in zip(mine, stories, strict=True)}
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_with_the_rights_of_the_manifests_a_whole_life_is_refused_nothing(case: Case, told: Told) -> None:
    story, wrong = told[case.name, None]
    assert not wrong
    assert story.done == [step.name for step in case.steps]
    assert story.record.denied == []
    assert story.hears, story.said


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_that_is_granted_is_used(case: Case, told: Told) -> None:
    record = told[case.name, None][0].record
    wanted = {anonymous(right) for right in case.tested}
    used = until(record.read_again, lambda used: used >= wanted, what="the record is whole")  # it is written after the answers
    assert used <= {anonymous(right) for right in case.grants.rights}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_right_has_a_step_that_hangs_on_it(case: Case) -> None:
    assert case.breaks.keys() == {anonymous(right) for right in case.tested}
    assert set(case.breaks.values()) <= {HEARD, *(step.name for step in case.steps)}


@pytest.mark.parametrize(
    ("case", "right"),
    [(case, right) for case, right in TOLD if right is not None],
    ids=[f"{case.name}-{right}" for case, right in TOLD if right is not None],
)
def test_without(case: Case, right: Right, told: Told) -> None:
    """One right less: the API server has refused exactly that one, and a step of the story was not done."""
    story, wrong = told[case.name, right]
    assert not wrong
    assert set(story.record.denied) == {anonymous(right)}


def test_the_installed_account_holds_these_rights(plane: ControlPlane) -> None:
    """What the manifests really bind, as the API server tells it to the account."""
    installed(plane, "manifests/base")
    space = names.SYSTEM_NAMESPACE
    common = granted_to(existing_account(plane, namespace=space, name="default"), namespace=space)
    account = existing_account(plane, namespace=space, name=names.OPERATOR)
    wanted = common | set(BASE.rights)
    assert until(lambda: granted_to(account, namespace=space), lambda got: got >= wanted, what="they are bound") == wanted
    assert granted_to(account, namespace="default") == common | set(BASE.cluster), "the lease is in its own namespace only"
