"""What the operator makes of a job: the real API server takes it all, and no pod has more than it needs.

The jobs are the examples and one that uses every key of its `kubernetes` section, so that no setting of a user opens what the
defaults close.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.gang import pod_group
from orchestrator.adapters.kube.kuberay import ray_cluster
from orchestrator.adapters.kube.objects import support
from orchestrator.adapters.kube.objects.common import Target
from orchestrator.adapters.kube.objects.pods import head_pod, training_pod
from orchestrator.adapters.kube.resources import BUDGETS, BUDGETS_BETA
from orchestrator.spec.training_job import from_training_job, training_job
from tests.kube import foreign
from tests.kube.control_plane import ControlPlane
from tests.kube.kustomized import EXAMPLES, ROOT, Manifest, objects, of_kind
from tests.kube.manifest_checks import as_list, dry_run, missing, selects
from tests.kube.pod_security import violations
from tests.kube.rights import installed

EVERYTHING: Final = ROOT / "tests/unit/spec/good/kubernetes.yaml"
FILES: Final = [*sorted(EXAMPLES.glob("job*.yaml")), EVERYTHING]
SPACE: Final = "training"


def target(path: Path) -> Target:
    """The job of a file, as the operator takes it up."""
    made = training_job(path.read_text(), file=path.name, namespace=SPACE)
    job, kubernetes, _ = from_training_job(made)
    return Target(job=job, kubernetes=kubernetes, namespace=SPACE, uid="6e4c7f0e-0000-4000-8000-000000000000")


def pods(of: Target) -> dict[str, Manifest]:
    """A head, a worker and a spare of a job, by role."""
    made = {role: training_pod(of, role=role, ordinal=0, incarnation=1) for role in (names.WORKER, names.SPARE)}
    return {names.HEAD: head_pod(of, incarnation=1), **made}


def templates(of: Target) -> dict[str, Manifest]:
    """The same pods as KubeRay is asked for them."""
    spec = ray_cluster(of)["spec"]
    workers = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {names.HEAD: spec["headGroupSpec"]["template"], **workers}


MADE: Final = [
    pytest.param(role, pod, id=f"{path.stem}-{way}-{role}")
    for path in FILES
    for way, made in (("pods", pods), ("kuberay", templates))
    for role, pod in made(target(path)).items()
]
TARGETS: Final = [pytest.param(target(path), id=path.stem) for path in FILES]


def values(found: Any) -> Iterator[str]:
    """All texts in an object."""
    if isinstance(found, dict):
        for item in found.values():
            yield from values(item)
    elif isinstance(found, list):
        for item in found:
            yield from values(item)
    elif isinstance(found, str):
        yield found


# ------------------------------------------------------------------------------------------------------------------ pods


@pytest.mark.parametrize(("role", "pod"), MADE)
def test_every_pod_passes_restricted_and_our_own_rules(role: str, pod: Manifest) -> None:
    assert violations(pod["metadata"], pod["spec"]) == []
    spec = pod["spec"]
    context = spec["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"]) == (True, 1000, 1000)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
        assert {"/tmp", "/dev/shm"} <= set(writable)
        assert container["command"][:2] == ["python", "-m"], "no shell stands between"


@pytest.mark.parametrize(("role", "pod"), MADE)
def test_only_the_agent_gets_a_token_of_the_api(role: str, pod: Manifest) -> None:
    """User code runs in the other containers, also beside the agent."""
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == (names.AGENT if role == names.HEAD else names.WORKER_ACCOUNT)
    carriers = {
        volume["name"]
        for volume in spec["volumes"]
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", ()))
    }
    mounting = {c["name"] for c in spec["containers"] if carriers & {m["name"] for m in c["volumeMounts"]}}
    assert mounting == ({names.AGENT_CONTAINER} if role == names.HEAD else set())


@pytest.mark.parametrize(("role", "pod"), MADE)
def test_the_jobs_own_tokens_are_files_that_others_cannot_read(role: str, pod: Manifest) -> None:
    [volume] = [v for v in pod["spec"]["volumes"] if "secret" in v]
    assert volume["secret"]["defaultMode"] == 0o440
    for container in pod["spec"]["containers"]:
        assert {m["mountPath"]: m["readOnly"] for m in container["volumeMounts"] if m["name"] == volume["name"]} == {
            names.TOKEN_PATH: True
        }
        assert not [e for e in container["env"] if "secretKeyRef" in e.get("valueFrom", {})]


@pytest.mark.parametrize("of", TARGETS)
def test_tokens_are_fresh_and_appear_in_the_secret_alone(of: Target) -> None:
    first, second = support.token_secret(of)["stringData"], support.token_secret(of)["stringData"]
    tokens = [*first.values(), *second.values()]
    assert len(set(tokens)) == 4
    assert all(len(token) >= 43 for token in tokens)
    others = [*pods(of).values(), support.head_service(of), support.pods_service(of), support.head_claim(of)]
    assert not set(tokens) & {text for other in others for text in values(other)}


# --------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize(("role", "pod"), MADE)
def test_the_network_policy_holds_for_every_pod(role: str, pod: Manifest) -> None:
    [policy] = of_kind(objects("manifests/namespace"), "NetworkPolicy")
    assert selects(policy["spec"]["podSelector"], pod["metadata"]["labels"])


@pytest.mark.parametrize("of", TARGETS)
def test_evictions_take_one_training_pod_at_a_time_and_heads_are_not_counted(of: Target) -> None:
    budget = support.disruption_budget(of, BUDGETS)
    assert budget["spec"]["minAvailable"] == of.job.cluster.nodes + of.job.cluster.spares - 1
    taken = {role for role, pod in pods(of).items() if selects(budget["spec"]["selector"], pod["metadata"]["labels"])}
    assert taken == {names.WORKER, names.SPARE}


# ---------------------------------------------------------------------------------------------------------- the API server


@pytest.fixture(scope="module")
def ready(plane: ControlPlane) -> Iterator[ControlPlane]:
    """The API server with the namespace of the jobs, its accounts, and the kinds of KubeRay and Volcano."""
    installed(plane, "manifests/base", "manifests/namespace")
    a_class = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1}
    classes = [{**a_class, "metadata": {"name": name}} for name in ("training", "training-worker", "training-spare", "spares")]
    plane.kubectl("apply", "--server-side", "-f", "-", input=as_list(classes))
    with foreign.installed(plane, [*foreign.KUBERAY, *foreign.VOLCANO]):
        yield plane
    plane.kubectl("delete", "-f", "-", input=as_list(classes))  # their values cannot be changed by whoever comes next


@pytest.mark.parametrize("of", TARGETS)
def test_the_api_server_takes_every_object_of_a_job_whole(of: Target, ready: ControlPlane) -> None:
    sent = [
        *pods(of).values(),
        support.head_service(of),
        support.pods_service(of),
        support.head_claim(of),
        support.disruption_budget(of, BUDGETS_BETA),
        pod_group(of),
        ray_cluster(of),
    ]
    got = dry_run(ready, [*sent, support.token_secret(of)])
    for manifest, answer in zip(sent, got, strict=False):
        assert missing(manifest, answer) == [], f"{manifest['kind']} {manifest['metadata']['name']}"
