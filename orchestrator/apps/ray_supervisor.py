"""The main of the supervisor's Ray actor, named by dotted path to the Ray adapter.

Nothing here imports torch: a supervisor that was killed is back seconds earlier without it.
"""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path

from orchestrator.adapters.files.home import Home
from orchestrator.adapters.ray.fleet import RayFleet
from orchestrator.adapters.ray.supervisor_actor import Ready, bind_host
from orchestrator.apps.supervisor import Supervisor, WorkerSettings
from orchestrator.core.job import Job
from orchestrator.core.timeouts import derive
from orchestrator.runtime.ports import Clock, Fleet

SUPERVISOR_MAIN = "orchestrator.apps.ray_supervisor:supervise"
WORKER_MAIN = "orchestrator.apps.ray_worker:work"


async def supervise(settings: dict[str, str], ready: Ready) -> None:
    """The supervisor's actor. Settings: home, cluster, ray_address, token, loopback ("1": bind loopback only).

    In pods also port (of the control API, fixed), workers_find_it_at (host:port of the Service in front of it) and everywhere
    ("1": listen at every address of the pod, of which a Service's may be one).
    """
    home = Home(Path(settings["home"]))
    log_path = home.cluster(settings["cluster"]) / "supervisor.log"
    logging.basicConfig(
        level=logging.INFO, filename=log_path, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    host = bind_host(loopback=settings["loopback"] == "1")
    every = "::" if ":" in host else "0.0.0.0"
    supervisor = Supervisor(
        home=home,
        cluster=settings["cluster"],
        ray_address=settings["ray_address"],
        token=settings["token"],
        make_fleet=_fleet,
        host=host,
        listen=every if settings.get("everywhere") == "1" else host,
        port=int(settings.get("port", "0")),
        workers_find_it_at=settings.get("workers_find_it_at", ""),
        on_failure=_crash,
    )
    gc.collect()
    gc.freeze()  # as in a worker: what is imported stays, and looking through it stops every decision for 0.2 s
    ready(await supervisor.start())
    await supervisor.serve()


def _crash(job: str, error: BaseException) -> None:
    """A driver stopped on an error (logged): end this process, so that Ray starts another one, which replays the journals."""
    logging.getLogger(__name__).critical("the supervisor ends for job %s: %s", job, error)
    logging.shutdown()
    os._exit(1)


def _fleet(job: Job, settings: WorkerSettings, clock: Clock) -> Fleet:
    return RayFleet(
        job=job.name,
        worker_main=WORKER_MAIN,
        settings_of=settings.of,
        timeouts=derive(job.resilience.detect_within_ms),
        clock=clock,
    )
