"""Service accounts with the rights of a manifest, or with one verb less, and the API server's own record of what they did.

The record is its audit log. It tells every request of an account with the answer's code, so that "all that is used is granted"
and "all that is granted is used" are one comparison of two sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.adapters.kube.access import Options, connect
from orchestrator.adapters.kube.api import KubeApi
from orchestrator.adapters.kube.resources import Resource
from tests.kube.agents import LIMIT_S, until
from tests.kube.control_plane import ControlPlane
from tests.kube.kustomized import objects, of_kind
from tests.kube.manifest_checks import as_list

Json = dict[str, Any]
_RBAC = "rbac.authorization.k8s.io/v1"
ACCOUNTS = Resource("v1", "serviceaccounts", "ServiceAccount")
NAMESPACE_ROLES = Resource(_RBAC, "roles", "Role")
CLUSTER_ROLES = Resource(_RBAC, "clusterroles", "ClusterRole", namespaced=False)
BINDINGS = Resource(_RBAC, "rolebindings", "RoleBinding")
CLUSTER_BINDINGS = Resource(_RBAC, "clusterrolebindings", "ClusterRoleBinding", namespaced=False)
REVIEWS = Resource("authorization.k8s.io/v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview", namespaced=False)
ROLES = ("Role", "ClusterRole")
FORBIDDEN = 403
CREATED = 201


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One verb on one kind; `name` where a rule is limited to one object."""

    group: str
    resource: str  # with /subresource
    verb: str
    name: str = ""

    def __str__(self) -> str:
        kind, _, sub = self.resource.partition("/")
        return f"{self.verb}-{kind}{'.' + self.group if self.group else ''}{'/' + sub if sub else ''}"


def rights_of(rules: Iterable[Json]) -> list[Right]:
    """The single rights that rules give, in their order."""
    return [
        Right(group, resource, verb, name)
        for rule in rules
        for group in rule.get("apiGroups", [])
        for resource in rule.get("resources", [])
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    ]


def rules_of(rights: Iterable[Right]) -> list[Json]:
    """One rule for each right."""
    return [
        {"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]}
        | ({"resourceNames": [right.name]} if right.name else {})
        for right in rights
    ]


@dataclass(frozen=True, slots=True)
class Account:
    """A service account and a kubeconfig that speaks as it."""

    namespace: str
    name: str
    kubeconfig: Path

    @property
    def user(self) -> str:
        """Its name as the API server knows it."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"


@dataclass(frozen=True, slots=True)
class Grants:
    """What an account is given: in the whole cluster, and in its own namespace."""

    cluster: Sequence[Right] = ()
    namespaced: Sequence[Right] = ()

    def without(self, right: Right) -> Grants:
        """The same, less one right."""
        return Grants(
            cluster=[other for other in self.cluster if other != right],
            namespaced=[other for other in self.namespaced if other != right],
        )

    @property
    def rights(self) -> list[Right]:
        """All of them."""
        return [*self.cluster, *self.namespaced]


def make_account(plane: ControlPlane, *, namespace: str, name: str, grants: Grants) -> Account:
    """A new account with these grants; the names of its roles are its own."""
    api = KubeApi(plane.api(), timeout_s=LIMIT_S)
    subject = {"kind": "ServiceAccount", "namespace": namespace, "name": name}
    wide, own = {"name": f"{namespace}-{name}"}, {"name": name, "namespace": namespace}
    api.create(ACCOUNTS, {"metadata": own})
    for kind, place, rights in ((CLUSTER_ROLES, wide, grants.cluster), (NAMESPACE_ROLES, own, grants.namespaced)):
        api.create(kind, {"metadata": place, "rules": rules_of(rights)})
    for binding, kind, place in ((CLUSTER_BINDINGS, CLUSTER_ROLES, wide), (BINDINGS, NAMESPACE_ROLES, own)):
        of = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind.kind, "name": place["name"]}
        api.create(binding, {"metadata": place, "roleRef": of, "subjects": [subject]})
    account = existing_account(plane, namespace=namespace, name=name)
    wanted = set(grants.rights)
    until(  # the API server's authorizer learns of new roles by a watch of its own
        lambda: granted_to(account, namespace=namespace), lambda got: wanted <= got, what=f"the rights of {account.user}"
    )
    return account


def existing_account(plane: ControlPlane, *, namespace: str, name: str) -> Account:
    """An account that is there, or will be in a moment, with a token of an hour."""
    api = KubeApi(plane.api(), timeout_s=LIMIT_S)
    until(lambda: api.get(ACCOUNTS, name, namespace=namespace), bool, what=f"the account {name} in {namespace}")
    path = ACCOUNTS.path(namespace=namespace, name=name, subresource="token")
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    token = api.request("POST", path, body=request)["status"]["token"]
    kubeconfig = plane.root / f"{namespace}-{name}.kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(plane.kubeconfig_for(token, namespace=namespace))
    return Account(namespace=namespace, name=name, kubeconfig=kubeconfig)


@dataclass(slots=True)
class Record:
    """What one account asked for, read from the audit log as it grows."""

    log: Path
    user: str
    used: set[Right] = field(default_factory=set)
    denied: list[Right] = field(default_factory=list)
    _offset: int = 0

    def read(self) -> None:
        """Take in what is new."""
        mark = f'"username":"{self.user}"'
        with self.log.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # half a line: next time
                self._offset += len(line)
                if mark.encode() in line:
                    self._take(json.loads(line))

    def read_again(self) -> set[Right]:
        """The rights that were used, with what is new."""
        self.read()
        return self.used

    def _take(self, entry: Json) -> None:
        about = entry.get("objectRef")
        if about is None or about.get("apiGroup") == "authorization.k8s.io":
            return  # discovery and questions about one's own rights are everybody's
        resource = "/".join(part for part in (about["resource"], about.get("subresource")) if part)
        right = Right(about.get("apiGroup", ""), resource, entry["verb"])
        code = entry.get("responseStatus", {}).get("code", 0)
        if code == FORBIDDEN:
            # a server-side apply of something new is a patch that was allowed and a create that was not
            applied = entry.get("annotations", {}).get("authorization.k8s.io/decision") == "allow" and right.verb == "patch"
            self.denied.append(Right(right.group, right.resource, "create") if applied else right)
            return
        self.used.add(right)
        if code == CREATED and right.verb == "patch":
            self.used.add(Right(right.group, right.resource, "create"))


def anonymous(right: Right) -> Right:
    """A right without the name that limits it, as the audit log tells it."""
    return Right(right.group, right.resource, right.verb)


def installed(plane: ControlPlane, *folders: str) -> None:
    """Apply what folders of manifests say about namespaces, accounts and rights; nothing is started."""
    kinds = ("Namespace", "ServiceAccount", *ROLES, "RoleBinding", "ClusterRoleBinding")
    for folder in folders:
        plane.kubectl("apply", "--server-side", "-f", "-", input=as_list(of_kind(objects(folder), *kinds)))


def role(folder: str, kind: str, name: str) -> list[Right]:
    """The rights of a (Cluster)Role of a folder of manifests."""
    [found] = [m for m in of_kind(objects(folder), kind) if m["metadata"]["name"] == name]
    return rights_of(found["rules"])


def granted_to(account: Account, *, namespace: str) -> set[Right]:
    """What the API server itself says that an account may do in a namespace, as `kubectl auth can-i --list` asks it."""
    api = connect(Options(kubeconfig=str(account.kubeconfig)), timeout_s=LIMIT_S).api
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}}
    with closing(api.client):
        answer = api.request("POST", REVIEWS.path(), body=review)
    return set(rights_of(answer["status"]["resourceRules"]))
