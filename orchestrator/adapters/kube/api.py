"""Calls of the API server on plain dicts: list, create, server-side apply, delete, discovery.

The generated client brings connection, certificates and tokens; its models are left aside, because custom resources have none
and because what is sent should be what is written here. Every call has a limit, and every refusal becomes one KubeError that
carries the API server's own words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import client

from orchestrator.adapters.kube.resources import APPLY, JSON, MERGE, Resource

Object: TypeAlias = dict[str, Any]

REQUEST_TIMEOUT_S = 15.0


class KubeError(Exception):
    """The API server refused, or did not answer (`status` 0). `reason` is its CamelCase word, `message` its sentence.

    `details` is what its Status object says beyond that: causes by field, kind and name.
    """

    def __init__(self, *, status: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        self.status, self.reason, self.message = status, reason, message
        self.details: Mapping[str, Any] = details or {}
        super().__init__(f"{reason or 'Error'} ({status}): {message}" if status else message)


class KubeApi:
    """A connection to one API server. Safe to use from several threads."""

    def __init__(self, api: client.ApiClient, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._api = api
        self._timeout_s = timeout_s

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = JSON,
    ) -> Object:
        """One call; the answer's JSON object. Raises KubeError."""
        headers = {"Accept": JSON} | ({"Content-Type": content_type} if body is not None else {})
        target = quote(path, safe="/") + (f"?{urlencode(query)}" if query else "")
        serialized = self._api.param_serialize(
            method=method, resource_path=target, header_params=headers, auth_settings=["BearerToken"]
        )
        method, url, headers, _, _ = serialized
        text = None if body is None else json.dumps(body)
        try:
            answer = self._api.rest_client.pool_manager.request(
                method, url, body=text, headers=headers, timeout=urllib3.Timeout(total=self._timeout_s), preload_content=True
            )
        except urllib3.exceptions.HTTPError as silence:
            raise KubeError(status=0, reason="Unreachable", message=f"{self.server} does not answer: {silence}") from silence
        if not 200 <= answer.status <= 299:
            raise failure(answer.status, answer.data)
        return _object(answer.data)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._api.configuration.host)

    @property
    def client(self) -> client.ApiClient:
        """The generated client, for watches."""
        return self._api

    def get(self, resource: Resource, name: str, *, namespace: str = "") -> Object | None:
        """The object, None where there is none."""
        try:
            return self.request("GET", resource.path(namespace=namespace, name=name))
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def list(self, resource: Resource, *, namespace: str = "", labels: str = "", fields: str = "") -> list[Object]:
        """All that match, as they are now: no resourceVersion, so nothing that is out of date.

        Not page by page: pages are read from etcd, where such a list as a whole is answered by the API server itself (since
        Kubernetes 1.31), and etcd would go through all objects of the namespace for the few that match.
        """
        query = {key: value for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}
        return list(self.request("GET", resource.path(namespace=namespace), query=query).get("items") or [])

    def create(self, resource: Resource, obj: Object) -> bool:
        """False where an object of that name is there already."""
        try:
            self.request("POST", resource.path(namespace=obj["metadata"].get("namespace", "")), body=obj)
        except KubeError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                return False
            raise
        return True

    def apply(self, resource: Resource, obj: Object, *, manager: str, subresource: str = "") -> Object:
        """Server-side apply, taking fields from other managers where they disagree."""
        meta = obj["metadata"]
        return self.request(
            "PATCH",
            resource.path(namespace=meta.get("namespace", ""), name=meta["name"], subresource=subresource),
            query={"fieldManager": manager, "force": "true"},
            body={"apiVersion": resource.group_version, "kind": resource.kind, **obj},
            content_type=APPLY,
        )

    def merge(self, resource: Resource, name: str, patch: Object, *, namespace: str = "") -> Object:
        """A JSON merge patch; with `metadata.resourceVersion` in it, it is refused (409) where the object changed meanwhile."""
        return self.request("PATCH", resource.path(namespace=namespace, name=name), body=patch, content_type=MERGE)

    def replace(self, resource: Resource, obj: Object) -> Object:
        """PUT of a whole object with its resourceVersion."""
        meta = obj["metadata"]
        return self.request("PUT", resource.path(namespace=meta.get("namespace", ""), name=meta["name"]), body=obj)

    def delete(self, resource: Resource, name: str, *, namespace: str = "", uid: str = "", grace_s: int | None = None) -> bool:
        """False where it is gone already, or where its name belongs to an object of another uid by now."""
        options: Object = {"propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            self.request("DELETE", resource.path(namespace=namespace, name=name), body=options)
        except KubeError as error:
            if error.status == 404 or (error.status == 409 and uid):
                return False
            raise
        return True

    def groups(self) -> dict[str, tuple[str, ...]]:
        """What the API server serves beside the core group: group -> versions."""
        listing = self.request("GET", "/apis").get("groups") or []
        return {group["name"]: tuple(version["version"] for version in group.get("versions") or []) for group in listing}

    def serves(self, resource: Resource) -> bool:
        """Whether the API server knows a kind."""
        try:
            served = self.request("GET", f"/apis/{resource.group_version}" if "/" in resource.group_version else "/api/v1")
        except KubeError as error:
            if error.status == 404:
                return False
            raise
        return any(entry.get("name") == resource.plural for entry in served.get("resources") or [])


def failure(status: int, body: bytes | str) -> KubeError:
    """The KubeError of an answer, whose body is a Status object where the API server itself wrote it."""
    content = _object(body)
    said = body if isinstance(body, str) else body.decode("utf-8", "replace")
    message = str(content.get("message") or said[:500])
    return KubeError(status=status, reason=str(content.get("reason", "")), message=message, details=content.get("details"))


def _object(body: bytes | str) -> Object:
    """The JSON object of an answer; empty where it is none."""
    try:
        content = json.loads(body or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
