"""The lease on a toy API server with a clock of the test's: who may act, and for how long."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest

from orchestrator.adapters.kube.api import KubeError
from orchestrator.adapters.kube.resources import Resource
from orchestrator.apps.operator.lease import CALL_S, HOLD_S, LEASE_S, Lease

Object = dict[str, Any]


class Server:
    """One lease, with versions as the API server keeps them."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.lease: Object | None = None
        self.away = False
        self.overtaken = False  # somebody writes between our look and our write
        self._version = 0

    def get(self, resource: Resource, name: str, *, namespace: str = "") -> Object | None:
        self._answer()
        return copy.deepcopy(self.lease)

    def create(self, resource: Resource, obj: Object) -> bool:
        self._answer()
        if self.lease is not None:
            return False
        self._store(obj)
        return True

    def replace(self, resource: Resource, obj: Object) -> None:
        self._answer()
        assert self.lease is not None
        if self.overtaken or obj["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise KubeError(status=409, reason="Conflict", message="changed")
        self._store(obj)

    def _store(self, obj: Object) -> None:
        self._version += 1
        self.lease = copy.deepcopy(obj)
        self.lease["metadata"]["resourceVersion"] = str(self._version)
        self.lease["spec"]["renewTime"] += f"#{self._version}"  # the clock of the test's machine may stand

    def _answer(self) -> None:
        if self.away:
            raise KubeError(status=0, reason="Unreachable", message="away")


@pytest.fixture
def server() -> Server:
    return Server()


def lease(server: Server, identity: str) -> Lease:
    """Of one operator."""
    return Lease(server, namespace="n", identity=identity, clock_s=lambda: server.now_s)  # type: ignore[arg-type]


def test_the_first_takes_it_and_the_second_waits(server: Server) -> None:
    a, b = lease(server, "a"), lease(server, "b")
    assert (a.attempt(), b.attempt()) == (True, False)
    assert (a.held, b.held) == (True, False)


def test_a_holder_stops_before_another_may_begin(server: Server) -> None:
    a, b = lease(server, "a"), lease(server, "b")
    a.attempt()
    b.attempt()
    server.now_s += HOLD_S - 0.1
    assert a.held
    server.now_s += 0.1
    assert not a.held
    server.now_s += CALL_S  # a call that was begun in time has ended
    assert not b.attempt()
    server.now_s += 0.1
    assert b.attempt()
    assert not a.attempt()
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1


def test_a_lease_that_is_renewed_never_lapses(server: Server) -> None:
    a, b = lease(server, "a"), lease(server, "b")
    for _ in range(20):
        assert (a.attempt(), b.attempt()) == (True, False)
        server.now_s += LEASE_S / 2


def test_the_same_one_again_takes_it_at_once(server: Server) -> None:
    lease(server, "a").attempt()
    again = lease(server, "a")
    assert again.attempt()


def test_whatever_goes_wrong_it_is_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    a, stop = lease(server, "a"), threading.Event()
    tries = iter([KeyError("token"), KubeError(status=0, reason="Unreachable", message="away")])

    def attempt() -> bool:
        error = next(tries, None)
        if error is None:
            stop.set()
            return True
        raise error

    monkeypatch.setattr(a, "attempt", attempt)
    monkeypatch.setattr("orchestrator.apps.operator.lease.RENEW_S", 0.001)
    a.run(stop)
    assert next(tries, None) is None


def test_what_is_given_back_is_free(server: Server) -> None:
    a, b = lease(server, "a"), lease(server, "b")
    a.attempt()
    a.release()
    assert not a.held
    assert b.attempt()
    a.release()  # it is not its any more
    assert not a.attempt()


def test_of_two_who_try_at_once_one_loses(server: Server) -> None:
    a, b = lease(server, "a"), lease(server, "b")
    a.attempt()
    b.attempt()
    server.now_s += LEASE_S + 1
    server.overtaken = True
    assert not b.attempt()
    assert not b.held


def test_a_server_that_is_away_ends_the_hold_in_time(server: Server) -> None:
    a = lease(server, "a")
    a.attempt()
    server.away = True
    with pytest.raises(KubeError):
        a.attempt()
    assert a.held
    server.now_s += HOLD_S
    assert not a.held
    server.away = False
    assert a.attempt()
