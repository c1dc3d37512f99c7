"""People's rights: who may view or edit a namespace may view or edit its jobs; nobody else writes what operator and agent report.

The roles of the manifests are folded into the cluster's own `view` and `edit` by a controller of Kubernetes, which runs here.
"""

from __future__ import annotations

import pytest

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeApi
from tests.kube.agents import LIMIT_S, until
from tests.kube.control_plane import ControlPlane
from tests.kube.rights import BINDINGS, Right, existing_account, granted_to, installed

VIEW = {
    *(Right(names.GROUP, "trainingjobs", verb) for verb in ("get", "list", "watch")),
    Right(names.GROUP, "trainingjobs/status", "get"),
    Right(names.GROUP, "trainingjobs/scale", "get"),
}
EDIT = VIEW | {
    *(Right(names.GROUP, "trainingjobs", verb) for verb in ("create", "update", "patch", "delete")),
    *(Right(names.GROUP, "trainingjobs/scale", verb) for verb in ("update", "patch")),
}


@pytest.mark.parametrize(("built_in", "wanted"), [("view", VIEW), ("edit", EDIT), ("admin", EDIT)])
def test_roles_of_the_cluster_reach_jobs(built_in: str, wanted: set[Right], plane: ControlPlane) -> None:
    installed(plane, "manifests/base")
    space = plane.namespace("users")
    binding = {
        "metadata": {"name": "somebody", "namespace": space},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": built_in},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": space}],
    }
    KubeApi(plane.api(), timeout_s=LIMIT_S).create(BINDINGS, binding)
    somebody = existing_account(plane, namespace=space, name="default")

    def of_jobs() -> set[Right]:
        return {right for right in granted_to(somebody, namespace=space) if right.group == names.GROUP}

    assert until(of_jobs, lambda got: got >= wanted, what=f"{built_in} reaches jobs") == wanted
