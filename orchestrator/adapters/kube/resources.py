"""The kinds of objects that this project reads or writes, as the API server names them.

A kind is a value with its path, so that one client does for all of them and the verbs that are used can be read off the calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from orchestrator.adapters.kube import names

# forms of what is sent
JSON: Final = "application/json"
MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind: `group_version` is `v1` for the core group, else `group/version`."""

    group_version: str
    plural: str
    kind: str
    namespaced: bool = True

    def path(self, *, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL's path. Without a namespace a namespaced kind means all namespaces."""
        root = "/apis/" if "/" in self.group_version else "/api/"
        inside = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        tail = "".join(f"/{part}" for part in (name, subresource) if part)
        return f"{root}{self.group_version}{inside}/{self.plural}{tail}"


TRAINING_JOBS: Final = Resource(names.API_VERSION, names.PLURAL, names.KIND)
PODS: Final = Resource("v1", "pods", "Pod")
NODES: Final = Resource("v1", "nodes", "Node", namespaced=False)
SERVICES: Final = Resource("v1", "services", "Service")
SECRETS: Final = Resource("v1", "secrets", "Secret")
CLAIMS: Final = Resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim")
ACCOUNTS: Final = Resource("v1", "serviceaccounts", "ServiceAccount")
NAMESPACES: Final = Resource("v1", "namespaces", "Namespace", namespaced=False)
EVENTS: Final = Resource("v1", "events", "Event")
LEASES: Final = Resource("coordination.k8s.io/v1", "leases", "Lease")
BUDGETS: Final = Resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget")
BUDGETS_BETA: Final = Resource("policy/v1beta1", "poddisruptionbudgets", "PodDisruptionBudget")  # before Kubernetes 1.21
RAY_CLUSTERS: Final = Resource("ray.io/v1", "rayclusters", "RayCluster")
STORAGE_CLASSES: Final = Resource("storage.k8s.io/v1", "storageclasses", "StorageClass", namespaced=False)
CRDS: Final = Resource("apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
OWN_RIGHTS: Final = Resource("authorization.k8s.io/v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False)
POD_GROUPS: Final = Resource("scheduling.volcano.sh/v1beta1", "podgroups", "PodGroup")

KUEUE_GROUP: Final = "kueue.x-k8s.io"
