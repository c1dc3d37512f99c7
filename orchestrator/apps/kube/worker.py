"""A worker (or spare) pod's main: a Ray node as a child, which joins through the head's Service.

It decides nothing. What runs on the node is the supervisor's to say; when the pod is to go, the preStop hook (leave.py) has
handed over what was here before the SIGTERM arrives, and where no hook was run, as when a container runtime stops, the SIGTERM
does it. The exit code says why it ended, for whoever reads the pod's status.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time

if __name__ == "__main__":
    # process 1 of a container is not ended by a signal that it leaves alone, and what follows takes seconds from a cold disk
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

from orchestrator.adapters.kube import names
from orchestrator.adapters.ray.settings import MACHINE_LABEL
from orchestrator.adapters.tcp.probe import Sign, sign_of
from orchestrator.apps.kube.pod import (
    EXIT_NO_HEAD,
    EXIT_RAY,
    EXIT_SETUP,
    EXIT_STOPPED,
    LEAVE_MARGIN_S,
    Child,
    Pod,
    PodError,
    log,
    talk,
)
from orchestrator.core.job import DeviceKind

HEAD_LIMIT_S = 600.0  # the head's pod may have to be scheduled and to pull its image first
SAY_EVERY_S = 15.0
LOOK_MS = 1_000
POLL_S = 0.1
HOOK = "orchestrator.apps.kube.leave"
LABEL_CHARS_MAX = 63


def main() -> int:
    """Run the node. Returns EXIT_STOPPED when it was told to stop, else EXIT_SETUP, EXIT_NO_HEAD or EXIT_RAY."""
    talk()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STOPPED))
    try:
        pod = Pod.of(os.environ)
        environment = pod.ray_environment()
    except (PodError, OSError) as error:
        log.error("%s", error)
        return EXIT_SETUP
    if not wait_for_head(pod.gcs_address, limit_s=HEAD_LIMIT_S):
        log.error("no Ray head answers at %s within %.0f s: see the pod %s", pod.gcs_address, HEAD_LIMIT_S, f"{pod.job}-head-*")
        return EXIT_NO_HEAD
    log.info("joining the Ray cluster at %s as %s with %d slot(s)", pod.gcs_address, pod.address, pod.slots)
    child = Child(worker_command(pod), environment)
    try:
        child.tend()
        if child.stopping:
            hand_over(pod, child)
    finally:
        child.end()
    if child.stopping:
        log.info("Ray has ended, as it was told to")
        return EXIT_STOPPED
    log.error("Ray has ended with %s though nobody asked for it: the pod ends, and the operator replaces it", child.code)
    return EXIT_RAY


def hand_over(pod: Pod, child: Child) -> None:
    """Run the preStop hook if nobody has, until it is done or the grace period nearly over; a second SIGTERM ends it."""
    if pod.leaving_file.exists():
        return
    log.info("told to stop, and no preStop hook was run: handing over what is here")
    due_s = time.monotonic() + max(0.0, pod.grace_s - LEAVE_MARGIN_S)
    hook = subprocess.Popen([sys.executable, "-m", HOOK], stdin=subprocess.DEVNULL)
    while hook.poll() is None and child.lives() and not child.hurried and time.monotonic() < due_s:
        time.sleep(POLL_S)
    hook.kill()


def worker_command(pod: Pod) -> list[str]:
    """`ray start --address`: one slot per CPU or GPU that Ray is told of."""
    gpus = pod.slots if pod.device is DeviceKind.CUDA else 0
    resources = [f"--num-cpus={pod.slots}", f"--num-gpus={gpus}"]
    machine = [f"--labels={MACHINE_LABEL}={label_value(pod.machine)}"] if pod.machine else []
    return pod.ray_command(f"--address={pod.gcs_address}", f"--node-manager-port={names.NODE_MANAGER_PORT}", *resources, *machine)


def label_value(name: str) -> str:
    """A Node's name as a label's value, which is shorter than such a name may be."""
    return name if len(name) <= LABEL_CHARS_MAX else hashlib.sha256(name.encode()).hexdigest()[:LABEL_CHARS_MAX]


def wait_for_head(address: str, *, limit_s: float) -> bool:
    """Until somebody accepts connections at host:port; False after the limit. SIGTERM ends the process meanwhile."""
    began_s = time.monotonic()
    said_s = began_s
    while True:
        if sign_of(address, LOOK_MS) is Sign.ACCEPTS:
            return True
        now_s = time.monotonic()
        if now_s - began_s > limit_s:
            return False
        if now_s - said_s >= SAY_EVERY_S:
            said_s = now_s
            log.info("waiting for the Ray head at %s, for %.0f s of at most %.0f s", address, now_s - began_s, limit_s)
        time.sleep(LOOK_MS / 1000)


if __name__ == "__main__":
    sys.exit(main())
