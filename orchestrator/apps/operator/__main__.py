"""The operator: `python -m orchestrator.apps.operator`, in the cluster or beside it with a kubeconfig.

It makes and replaces the pods of TrainingJobs, and takes no part in training: while it is away, jobs train on. All that it
knows is in the API server, so it may be killed at any moment.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from orchestrator.adapters.kube import names
from orchestrator.adapters.kube.access import Options, connect
from orchestrator.adapters.kube.api import KubeApi, KubeError
from orchestrator.adapters.kube.desired import Newest
from orchestrator.apps.operator.execute import carry_out
from orchestrator.apps.operator.lease import CALL_S, Lease
from orchestrator.apps.operator.observation import Served, observe, remember_made
from orchestrator.apps.operator.reconcile import decide
from orchestrator.apps.operator.removal import excuse
from orchestrator.apps.operator.turns import Key, Turns
from orchestrator.apps.operator.watching import watch
from orchestrator.runtime.control import ControlError

RESYNC_S: Final = 300.0  # a job is looked at this often though nothing happens
SERVED_S: Final = 30.0  # for which an answer to "is KubeRay installed" is kept
STUCK_S: Final = 300.0  # a turn that takes so long will not end
STOP_LIMIT_S: Final = 20.0

log = logging.getLogger("operator")


class Operator:
    """Turns over jobs, as long as the lease is ours."""

    def __init__(self, api: KubeApi, *, namespace: str, lease: Lease) -> None:
        self._api = api
        self._namespace = namespace
        self._lease = lease
        self._highest: dict[Key, dict[tuple[str, int], Newest]] = {}
        self._served: Served | None = None
        self._served_until_s = 0.0
        self.turns = Turns(self._turn, may=lambda: lease.held)

    def healthy(self) -> bool:
        """Whether turns come to an end."""
        return self.turns.longest_s() < STUCK_S

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        watching = threading.Thread(
            target=watch,
            args=(self._api,),
            kwargs={"namespace": self._namespace, "wake": self.turns.wake, "stop": stop},
            name="watching",
            daemon=True,
        )
        released = threading.Event()
        leasing = threading.Thread(target=self._lease.run, args=(released,), name="lease", daemon=True)
        for thread in (watching, leasing):
            thread.start()
        self.turns.start()
        stop.wait()
        due_s = time.monotonic() + STOP_LIMIT_S
        self.turns.stop(limit_s=STOP_LIMIT_S / 2)
        released.set()  # only now: no turn is under way
        for thread in (leasing, watching):
            thread.join(max(0.0, due_s - time.monotonic()))

    def _turn(self, key: Key) -> float | None:
        namespace, name = key
        highest = self._highest.setdefault(key, {})
        try:
            seen = observe(self._api, namespace=namespace, name=name, served=self._what_is_served(), highest=highest)
        except KubeError as error:
            if error.status == 404:  # a kind that was served a moment ago
                self._served = None
            raise
        if seen is None:
            del self._highest[key]
            return None
        now = datetime.now(UTC)
        decision = decide(seen, now)
        excuse(highest, seen, decision.actions)
        carry_out(
            self._api,
            seen.obj,
            decision,
            now=now,
            may=lambda: self._lease.held,
            made=lambda pod: remember_made(highest, pod, now=now),
        )
        return RESYNC_S if decision.again_s is None else min(RESYNC_S, decision.again_s)

    def _what_is_served(self) -> Served:
        now_s = time.monotonic()
        served = self._served  # another turn may forget it meanwhile
        if served is None or now_s > self._served_until_s:
            self._served = served = Served.of(self._api.groups())
            self._served_until_s = now_s + SERVED_S
        return served


def serve_health(operator: Operator, port: int) -> None:
    """/healthz for a kubelet; returns at once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            well = self.path == "/healthz" and operator.healthy()
            self.send_response(200 if well else 500)
            self.end_headers()
            self.wfile.write(b"ok\n" if well else b"not well\n")

        def log_message(self, *_: object) -> None:
            """Probes are no news."""

    server = ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, name="healthz", daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns 0 when it was told to stop, 2 when there is no way to an API server."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.apps.operator", description=__doc__.split("\n")[0])
    parser.add_argument("--namespace", default="", help="look after the TrainingJobs of this namespace only (default: all)")
    parser.add_argument(
        "--lease-namespace",
        default=os.environ.get(names.ENV_NAMESPACE, names.SYSTEM_NAMESPACE),
        help=f"where the lease is (default: ${names.ENV_NAMESPACE}, or {names.SYSTEM_NAMESPACE})",
    )
    parser.add_argument("--healthz", type=int, default=0, metavar="PORT", help="serve /healthz there (default: nowhere)")
    options = parser.parse_args(argv)
    talk()
    try:
        api = connect(Options(), timeout_s=CALL_S).api
    except ControlError as error:
        log.error("%s", error)
        return 2
    # a container that is started again has its pod's name still, and nobody else has: it need not wait for its own lease
    identity = os.environ.get(names.ENV_POD) or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    operator = Operator(api, namespace=options.namespace, lease=Lease(api, namespace=options.lease_namespace, identity=identity))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if options.healthz:
        serve_health(operator, options.healthz)
    log.info("looking after %s, API server at %s", options.namespace or "all namespaces", api.server)
    operator.run(stop)
    log.info("the operator ends, as it was told to")
    return 0


def talk() -> None:
    """Log to stderr. kopf tells every retry, and what it left when it ended; that it ended is told by watching.py."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for library in ("kopf", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # kopf's thread may be waiting for an API server that is gone
