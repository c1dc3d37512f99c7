"""A client of the API server in two hundred lines of nothing but the standard library, for the kubelets of the lab.

Objects are the JSON that the server speaks. A kubelet must start at once and cost next to nothing, and the official client takes
a second of CPU to import; tests use that one. Every request has a limit, and a connection whose other end is unreachable is
given up within seconds, because nodes here lose their network all the time.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

Object = dict[str, Any]
LIMIT_S: Final = 3.0
RETRY_S: Final = 0.5
STRATEGIC: Final = "application/strategic-merge-patch+json"
GONE: Final = 410


class ApiError(Exception):
    """The server's answer was no."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Api:
    """One API server. Safe for use by many threads; each keeps one connection."""

    def __init__(self, kubeconfig: Path) -> None:
        document = json.loads(kubeconfig.read_text())
        server = urlsplit(document["clusters"][0]["cluster"]["server"])
        assert server.hostname is not None
        self._address = (server.hostname, server.port or 443)
        self._context = ssl.create_default_context(cafile=document["clusters"][0]["cluster"]["certificate-authority"])
        self._headers = {"Authorization": f"Bearer {document['users'][0]['user']['token']}"}
        self._mine = threading.local()

    def get(self, path: str) -> Object:
        """Raises ApiError, OSError."""
        return self.request("GET", path)

    def request(self, verb: str, path: str, body: Object | None = None, *, kind: str = "application/json") -> Object:
        """One request, over this thread's connection. Raises ApiError for a refusal, OSError for a server that is away."""
        connection: http.client.HTTPSConnection | None = getattr(self._mine, "connection", None)
        for fresh in (False, True) if connection is not None else (True,):
            if fresh:
                connection = self._connect(LIMIT_S)
                self._mine.connection = connection
            assert connection is not None
            try:
                data = None if body is None else json.dumps(body)
                connection.request(verb, path, data, {**self._headers, "Content-Type": kind})
                answer = connection.getresponse()
                text = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._mine.connection = None
                # one that was idle may have been closed by the server, a fresh one not; a time-out is an answer too
                if fresh or isinstance(error, TimeoutError):
                    raise error if isinstance(error, OSError) else OSError(str(error)) from error
                continue
            if answer.status >= 300:
                raise ApiError(answer.status, text.decode(errors="replace"))
            found: Object = json.loads(text)
            return found
        raise AssertionError("a fresh connection answers or raises")

    def follow(
        self, path: str, *, query: dict[str, str], listed: Callable[[list[Object]], None], event: Callable[[str, Object], None]
    ) -> None:
        """List, then watch, for ever: `listed` gets all there is, after each gap again; `event` each change. Never returns."""
        while True:
            try:
                found = self.get(f"{path}?{urlencode(query)}")
                listed(found.get("items") or [])
                self._watch(path, {**query, "watch": "1", "resourceVersion": found["metadata"]["resourceVersion"]}, event)
            except (OSError, http.client.HTTPException, ApiError):
                time.sleep(RETRY_S)

    def _watch(self, path: str, query: dict[str, str], event: Callable[[str, Object], None]) -> None:
        connection = self._connect(LIMIT_S)
        try:
            connection.request("GET", f"{path}?{urlencode(query)}", headers=self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise ApiError(answer.status, answer.read().decode(errors="replace"))
            assert connection.sock is not None
            connection.sock.settimeout(None)  # from here on keep-alive tells whether the other end is there
            while line := answer.readline():
                change = json.loads(line)
                if change["type"] == "ERROR":
                    raise ApiError(GONE, str(change["object"]))
                event(change["type"], change["object"])
        finally:
            connection.close()

    def _connect(self, limit_s: float) -> http.client.HTTPSConnection:
        made = http.client.HTTPSConnection(*self._address, timeout=limit_s, context=self._context)
        made.connect()
        for option, value in (
            (socket.TCP_KEEPIDLE, 2),
            (socket.TCP_KEEPINTVL, 1),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, 5000),
        ):
            made.sock.setsockopt(socket.IPPROTO_TCP, option, value)
        made.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return made


def name_of(thing: Object) -> str:
    """metadata.name."""
    found: str = thing["metadata"]["name"]
    return found


def namespace_of(thing: Object) -> str:
    """metadata.namespace."""
    found: str = thing["metadata"]["namespace"]
    return found


def uid_of(thing: Object) -> str:
    """metadata.uid."""
    found: str = thing["metadata"]["uid"]
    return found


def now() -> str:
    """The time as objects hold it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
