"""Service accounts with the rights of a manifest, or with one verb less, and the API server's own record of what they did.

The record is its audit log. It tells every request of an account with the answer's code, so that "all that is used is granted"
and "all that is granted is used" are one comparison of two sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client

from tests.kube.control_plane import ControlPlane

Json = dict[str, Any]
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
        for group in rule["apiGroups"]
        for resource in rule["resources"]
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
    api = plane.api()
    core, rbac = client.CoreV1Api(api), client.RbacAuthorizationV1Api(api)
    core.create_namespaced_service_account(namespace, {"metadata": {"name": name}})
    subject = {"kind": "ServiceAccount", "namespace": namespace, "name": name}
    wide, own = f"{namespace}-{name}", name
    group = "rbac.authorization.k8s.io"
    rbac.create_cluster_role({"metadata": {"name": wide}, "rules": rules_of(grants.cluster)})
    rbac.create_cluster_role_binding(
        {"metadata": {"name": wide}, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": wide}, "subjects": [subject]}
    )
    rbac.create_namespaced_role(namespace, {"metadata": {"name": own}, "rules": rules_of(grants.namespaced)})
    rbac.create_namespaced_role_binding(
        namespace,
        {"metadata": {"name": own}, "roleRef": {"apiGroup": group, "kind": "Role", "name": own}, "subjects": [subject]},
    )
    return existing_account(plane, namespace=namespace, name=name)


def existing_account(plane: ControlPlane, *, namespace: str, name: str) -> Account:
    """An account that is there, with a token of an hour."""
    request = {"spec": {"audiences": None, "expirationSeconds": 3600}}
    answer = client.CoreV1Api(plane.api()).create_namespaced_service_account_token(name, namespace, request)
    kubeconfig = plane.root / f"{namespace}-{name}.kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(plane.kubeconfig_for(answer.status.token, namespace=namespace))
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


def granted_to(account: Account, *, namespace: str) -> set[Right]:
    """What the API server itself says that an account may do in a namespace, as `kubectl auth can-i --list` asks it."""
    from kubernetes import config

    with config.new_client_from_config(str(account.kubeconfig)) as api:
        review = {"spec": {"namespace": namespace}}
        answer = client.AuthorizationV1Api(api).create_self_subject_rules_review(review)
    return {
        Right(group, resource, verb, name)
        for rule in answer.status.resource_rules
        for group in rule.api_groups or []
        for resource in rule.resources or []
        for verb in rule.verbs
        for name in rule.resource_names or [""]
    }
