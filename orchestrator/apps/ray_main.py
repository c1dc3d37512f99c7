"""What Ray's processes run: the mains of the supervisor's and the workers' actors, named by dotted path to the Ray adapter."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path

import ray

from orchestrator.adapters.files.home import Home
from orchestrator.adapters.ray.fleet import RayFleet
from orchestrator.adapters.ray.supervisor_actor import EndpointResolver, Ready
from orchestrator.apps.supervisor import Supervisor, WorkerSettings
from orchestrator.apps.worker_main import live
from orchestrator.core.job import Job
from orchestrator.core.timeouts import derive
from orchestrator.runtime.ports import Clock, Fleet

SUPERVISOR_MAIN = "orchestrator.apps.ray_main:supervise"
WORKER_MAIN = "orchestrator.apps.ray_main:work"
LOOPBACK = "127.0.0.1"
RESOLVE_MS = 1_000


async def supervise(settings: dict[str, str], ready: Ready) -> None:
    """The supervisor's actor. Settings: home, cluster, ray_address, token, loopback ("1": bind loopback only)."""
    home = Home(Path(settings["home"]))
    log_path = home.cluster(settings["cluster"]) / "supervisor.log"
    logging.basicConfig(
        level=logging.INFO, filename=log_path, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    supervisor = Supervisor(
        home=home,
        cluster=settings["cluster"],
        ray_address=settings["ray_address"],
        token=settings["token"],
        make_fleet=_fleet,
        host=_host(settings),
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


def work(settings: dict[str, str]) -> None:
    """A worker's actor; does not return."""
    resolver = EndpointResolver()
    live({**settings, "bind_host": _host(settings)}, lambda: resolver.resolve(RESOLVE_MS))


def _host(settings: dict[str, str]) -> str:
    """Loopback, or this node's own address where the cluster has more machines than this one."""
    return LOOPBACK if settings["loopback"] == "1" else str(ray.util.get_node_ip_address())


def _fleet(job: Job, settings: WorkerSettings, clock: Clock) -> Fleet:
    return RayFleet(
        job=job.name,
        worker_main=WORKER_MAIN,
        settings_of=settings.of,
        timeouts=derive(job.resilience.detect_within_ms),
        clock=clock,
    )
