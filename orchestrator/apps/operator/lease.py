"""One operator acts, others wait: the lease that tells which.

Whoever holds it renews it all the time, and stops acting well before another may take it over: a lease is as long as that and one
call to the API server together. A holder's silence is measured by our own clock alone, never by comparing clocks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.api import KubeApi, KubeError, Object
from orchestrator.adapters.kube.resources import LEASES
from orchestrator.core.timeouts import DETECT_WITHIN_MS, derive

LEASE_S: Final = derive(DETECT_WITHIN_MS).measure_ms // 1000
HOLD_S: Final = LEASE_S / 2  # from a renewal until we stop acting
CALL_S: Final = LEASE_S / 2  # the longest call: what was begun in time has ended when another takes over
RENEW_S: Final = derive(DETECT_WITHIN_MS).suspect_ms / 1000

log = logging.getLogger(__name__)


class Lease:
    """`run` in a thread; `held` from any."""

    def __init__(self, api: KubeApi, *, namespace: str, identity: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._clock_s = clock_s
        self._held_until_s = -1.0
        self._other: tuple[object, ...] = ()
        self._other_since_s = 0.0
        self._said = ""

    @property
    def held(self) -> bool:
        """Whether we may act now."""
        return self._clock_s() < self._held_until_s

    def run(self, stop: threading.Event) -> None:
        """Take it, keep it, and in the end give it back, so that the next one need not wait."""
        while not stop.is_set():
            try:
                self.attempt()
            except Exception as error:  # also credentials that cannot be read: without this thread nobody would act again
                self._say(f"the lease {self._namespace}/{names.OPERATOR} cannot be had: {error}")
            stop.wait(RENEW_S)
        self.release()

    def attempt(self) -> bool:
        """Take or renew it, if it is ours to take. Raises KubeError."""
        began_s = self._clock_s()
        found = self._api.get(LEASES, names.OPERATOR, namespace=self._namespace)
        if found is None:
            taken = self._api.create(LEASES, self._lease({}, self._identity, transitions=0))
        else:
            spec = found.get("spec") or {}
            holder = spec.get("holderIdentity") or ""
            if holder not in ("", self._identity) and not self._lapsed(spec, began_s):
                self._say(f"waiting: the operator at work is {holder}")
                return False
            transitions = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
            taken = self._replace(self._lease(found, self._identity, transitions=transitions))
        if taken:
            self._held_until_s = began_s + HOLD_S
            self._say(f"at work as {self._identity}")
        return taken

    def release(self) -> None:
        """Give it back, if it is ours."""
        if not self.held:
            return
        self._held_until_s = -1.0
        try:
            found = self._api.get(LEASES, names.OPERATOR, namespace=self._namespace)
            if found is not None and (found.get("spec") or {}).get("holderIdentity") == self._identity:
                self._replace(self._lease(found, "", transitions=int(found["spec"].get("leaseTransitions") or 0)))
        except KubeError as error:
            log.warning("the lease is not given back, and lapses in %d s: %s", LEASE_S, error)

    def _lapsed(self, spec: Object, now_s: float) -> bool:
        """Whether its holder has not renewed it for as long as it lasts."""
        record = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if record != self._other:
            self._other, self._other_since_s = record, now_s
        return now_s - self._other_since_s > max(LEASE_S, int(spec.get("leaseDurationSeconds") or 0))

    def _lease(self, found: Object, holder: str, *, transitions: int) -> Object:
        meta = found.get("metadata") or {"name": names.OPERATOR, "namespace": self._namespace}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = found.get("spec") or {}
        acquired = before.get("acquireTime") if before.get("holderIdentity") == holder else now
        return {
            "apiVersion": LEASES.group_version,
            "kind": LEASES.kind,
            "metadata": meta,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": LEASE_S,
                "acquireTime": acquired,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }

    def _replace(self, lease: Object) -> bool:
        try:
            self._api.replace(LEASES, lease)
        except KubeError as error:
            if error.status == 409:  # somebody else was faster
                return False
            raise
        return True

    def _say(self, words: str) -> None:
        if words != self._said:
            self._said = words
            log.info("%s", words)
