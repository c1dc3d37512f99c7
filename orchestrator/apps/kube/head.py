"""The head pod's main: Ray's head as a child, and on it the supervisor, which outlives both on the head's volume.

Ray's GCS keeps its tables and the supervisor its journal below HOME_PATH, and both are reached through the head's Service, so a
container that is restarted, or another pod behind the same Service, goes on with the cluster as it was: raylets and workers
reconnect, and Ray starts the supervisor again. This process only watches; when Ray ends, it ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

if __name__ == "__main__":
    # process 1 of a container is not ended by a signal that it leaves alone, and what follows takes seconds from a cold disk
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

from orchestrator.adapters.files.home import Home
from orchestrator.adapters.files.token import put_token
from orchestrator.adapters.kube import names
from orchestrator.adapters.ray import connection
from orchestrator.adapters.ray.settings import head_storage
from orchestrator.adapters.ray.supervisor_actor import SupervisorUnavailableError, ensure_supervisor
from orchestrator.apps.kube.pod import CLUSTER, EXIT_RAY, EXIT_SETUP, EXIT_STOPPED, Child, Pod, PodError, log, talk
from orchestrator.apps.ray_supervisor import SUPERVISOR_MAIN

GCS_LIMIT_S = 120.0  # a cold image reads a lot before Ray answers
SUPERVISOR_LIMIT_MS = 120_000
TRIES = 3  # to find or start the supervisor; the first after a restart may meet the end of the one before


def main() -> int:
    """Run the head. Returns EXIT_STOPPED (told to stop), EXIT_SETUP (the pod is not set up) or EXIT_RAY (Ray ended)."""
    talk()
    try:
        pod = Pod.of(os.environ)
        home = Home(pod.home)
        put_token(home.token_file(CLUSTER), pod.token(names.CONTROL_TOKEN))
        gcs_tables = pod.home / "gcs"
        gcs_tables.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = any(gcs_tables.iterdir())
        environment = pod.ray_environment(head_storage(gcs_tables))
    except (PodError, OSError) as error:
        log.error("%s", error)
        return EXIT_SETUP
    log.info("Ray's head starts at %s, %s", pod.address, "around the tables of the one before" if known else "as a new cluster")
    child = Child(head_command(pod), environment)
    try:
        return _run(pod, child)
    except (PodError, SupervisorUnavailableError, connection.RayUnavailableError) as error:
        log.error("%s", error)
        return EXIT_RAY
    finally:
        child.end()


def head_command(pod: Pod) -> list[str]:
    """`ray start --head`: without slots, so that no worker is ever placed beside the supervisor."""
    return pod.ray_command("--head", f"--port={names.GCS_PORT}", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false")


def supervisor_settings(pod: Pod) -> dict[str, str]:
    """What the supervisor's actor is started with; it holds the token: never log it.

    Nothing in it names this pod: Ray starts the actor again with the same settings on the head that comes after this one.
    """
    return {
        "home": str(pod.home),
        "cluster": CLUSTER,
        "ray_address": pod.gcs_address,
        "token": pod.token(names.CONTROL_TOKEN),
        "loopback": "0",
        "everywhere": "1",
        "port": str(names.CONTROL_PORT),
        "workers_find_it_at": pod.control_address,
    }


def _run(pod: Pod, child: Child) -> int:
    own = f"{pod.address}:{names.GCS_PORT}"
    connection.prepare_environment(pod.ray_token_file())
    if child.until(lambda: bool(connection.registered_node_ids(own, timeout_s=2)), limit_s=GCS_LIMIT_S, what=f"Ray at {own}"):
        log.info("Ray answers at %s", own)
        found: list[str] = []
        troubles: list[BaseException] = []

        def ensure() -> None:
            try:
                found.append(_ensure(pod, own))
            except (SupervisorUnavailableError, connection.RayUnavailableError) as error:
                troubles.append(error)

        # In a thread, for Ray's calls do not listen to signals, and a head that is told to stop must not wait for them.
        thread = threading.Thread(target=ensure, name="ensure-supervisor", daemon=True)
        thread.start()
        limit_s = TRIES * SUPERVISOR_LIMIT_MS / 1000 + GCS_LIMIT_S
        if child.until(lambda: not thread.is_alive(), limit_s=limit_s, what="the supervisor"):
            if troubles:
                raise troubles[0]
            log.info("the supervisor serves at %s, and by its Service at %s", found[0], pod.control_address)
    child.tend()
    if child.stopping:
        return EXIT_STOPPED
    log.error("Ray's head has ended with %s: the container ends, and is started again around its volume", child.code)
    return EXIT_RAY


def _ensure(pod: Pod, address: str) -> str:
    for left in reversed(range(TRIES)):
        connection.connect(address, token_path=pod.ray_token_file())
        try:
            return ensure_supervisor(SUPERVISOR_MAIN, supervisor_settings(pod), timeout_ms=SUPERVISOR_LIMIT_MS)[0]
        except SupervisorUnavailableError as error:
            if not left:
                raise
            log.warning("%s; trying again", error)
            time.sleep(1)
        finally:
            connection.disconnect()
    raise AssertionError("the last try returns or raises")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads of Ray's may still wait for a cluster that is gone
