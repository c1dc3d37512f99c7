"""The preStop hook of a worker's pod: hand over what is here, before the pod goes.

Kubernetes runs it in the container before it sends SIGTERM, and waits for it as long as the pod's grace period lasts. It asks the
supervisor to drain this pod's Ray node and stays until no worker on it holds state that is still needed. It never holds a pod for
nothing: where the job is over, or nobody answers, it says so and returns. Where SIGTERM comes without it, the pod's first process
runs it (worker.py), and where it has begun before, it leaves a file so that nothing is waited for twice.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from orchestrator.adapters.grpc.client import ControlClient
from orchestrator.adapters.kube import names
from orchestrator.apps.kube.pod import LEAVE_MARGIN_S, Pod, PodError
from orchestrator.core.supervisor.state import WorkerPhase
from orchestrator.core.timeouts import DETECT_WITHIN_MS, derive
from orchestrator.runtime.control import ControlError, NotFoundError, NotPossibleError, UnreachableError
from orchestrator.runtime.status_types import JobStatus, NodeStatus

POLL_S = 0.25
ANSWER_S = 2 * derive(DETECT_WITHIN_MS).lost_ms / 1000  # a supervisor that is started again is back by then
HOLDS = (WorkerPhase.MEMBER, WorkerPhase.LEFT)  # state: with a rank, or until the epoch that does without it runs

Say = Callable[[str], None]


def main() -> int:
    """Returns 0 whatever came of it: a hook that fails only makes Kubernetes log that it failed."""

    def say(words: str) -> None:
        print(f"leave: {words}", flush=True)

    try:
        pod = Pod.of(os.environ)
        try:
            pod.leaving_file.touch()
        except OSError as error:
            say(f"{error}: SIGTERM will begin anew")
        with ControlClient(
            address=pod.control_address, token=pod.token(names.CONTROL_TOKEN), timeout_ms=round(ANSWER_S * 1000)
        ) as client:
            leave(client, pod, say=say)
    except (PodError, ControlError) as error:
        say(str(error))
    return 0


def leave(client: ControlClient, pod: Pod, *, say: Say, now_s: Callable[[], float] = time.monotonic) -> bool:
    """Drain this pod's node and wait; whether no state is on it any more. Raises ControlError when nobody answers in time."""
    due_s = now_s() + max(0.0, pod.grace_s - LEAVE_MARGIN_S)
    heard_s = now_s()
    asked = False
    told = ""
    while True:
        try:
            status = client.get(pod.job)
            node = node_at(status, pod.address)
            if status.phase.terminal:
                say(f"job {pod.job} is over ({status.phase}): nothing to hand over")
                return True
            if node is None:
                say(f"no node of job {pod.job} lives at {pod.address}: nothing to hand over")
                return True
            if not asked:
                why = "its pod has to go"
                say(f"draining node {node.node_id[:12]} ({pod.address})")
                say(client.drain(pod.job, node_id=node.node_id, who=f"pod {pod.name}", why=why).reason)
                asked = True
                continue
            heard_s = now_s()
            holders = [w for w in status.workers if w.node_id == node.node_id and w.phase in HOLDS]
            if not holders:
                say("no rank is here any more: the pod may go")
                return True
            ranks = ", ".join(str(w.rank) for w in sorted(holders, key=lambda w: w.rank) if w.rank >= 0)
            words = (
                f"rank(s) {ranks} are still here"
                if ranks
                else "the rank(s) have moved, and their state stays until the others run"
            )
            if words != told:
                told = words
                say(f"{words}, at step {status.step}")
        except NotPossibleError as error:
            say(str(error))
            return False
        except NotFoundError:
            say(f"the supervisor knows no job {pod.job}: nothing to hand over")
            return True
        except UnreachableError:
            if now_s() - heard_s > ANSWER_S:
                raise
        if now_s() > due_s:
            say(f"the grace period of {pod.grace_s:.0f} s is nearly over: the pod goes with what is on it")
            return False
        time.sleep(POLL_S)


def node_at(status: JobStatus, address: str) -> NodeStatus | None:
    """The living Ray node at an address."""
    return next((n for n in status.nodes if n.address == address and n.healthy), None)


if __name__ == "__main__":
    sys.exit(main())
