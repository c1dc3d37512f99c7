"""The supervisor process: service, hub, control API, journals and fleets joined behind one address.

The address is published in the cluster's folder and kept there: a supervisor that is started again listens at the same port if
it can, so that workers and people find it without asking anybody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from orchestrator.adapters.files.home import ClusterEndpoint, Home
from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.adapters.grpc.hub import HubHandlers, WorkerHub
from orchestrator.adapters.grpc.server import SupervisorServer, endpoint
from orchestrator.adapters.tcp.probe import TcpProber
from orchestrator.core.codec import to_json
from orchestrator.core.job import Job
from orchestrator.core.supervisor.state import CheckpointRef, State
from orchestrator.core.timeouts import DETECT_WITHIN_MS, derive
from orchestrator.runtime.clock import SystemClock
from orchestrator.runtime.entry import OwnedJournal
from orchestrator.runtime.ports import Beat, CheckpointTools, Clock, Fleet, Record
from orchestrator.runtime.service import Parts, SupervisorService

LOOPBACK = "127.0.0.1"

log = logging.getLogger(__name__)

MakeFleet = Callable[[Job, "WorkerSettings", Clock], Fleet]


class WorkerSettings:
    """What every worker of one job is started with, beside its own id and node. It holds the token: never log it."""

    def __init__(self, *, job: Job, endpoint: str, token: str, loopback: bool) -> None:
        self._common = {
            "job": json.dumps(to_json(job)),
            "endpoint": endpoint,
            "token": token,
            "loopback": "1" if loopback else "0",
        }

    def of(self, worker_id: str, node_id: str) -> dict[str, str]:
        """The settings of one worker."""
        return {**self._common, "worker_id": worker_id, "node_id": node_id}


class Supervisor:
    """One supervisor; everything on one event loop.

    `port` 0: the one of the supervisor before, or any; else this one and no other. `workers_find_it_at` (host:port) is what
    workers are told, where a name in front of the supervisor outlives its address; empty: the address itself. `listen` is where
    it listens if that is not `host` alone, by which others find it.
    """

    def __init__(
        self,
        *,
        home: Home,
        cluster: str,
        ray_address: str,
        token: str,
        make_fleet: MakeFleet,
        host: str = LOOPBACK,
        port: int = 0,
        workers_find_it_at: str = "",
        listen: str = "",
        on_failure: Callable[[str, BaseException], None] | None = None,
        open_journal: Callable[[Path], OwnedJournal] = SqliteJournal,
    ) -> None:
        self._home = home
        self._cluster = cluster
        self._ray_address = ray_address
        self._make_fleet = make_fleet
        self._host = host
        self._port = port
        self._workers_find_it_at = workers_find_it_at
        self._listen = listen or host
        self._clock = SystemClock()
        self._token = token
        self._endpoint = ""
        timeouts = derive(DETECT_WITHIN_MS)
        self._hub = WorkerHub(clock=self._clock, timeouts=timeouts)
        self.service = SupervisorService(
            jobs_dir=home.jobs,
            cluster=cluster,
            parts=Parts(
                open_journal=open_journal,
                make_fleet=self._fleet,
                make_telemetry=lambda job: _LogTelemetry(job.name),
                newest_checkpoint=_newest_checkpoint,
                checkpoint_tools=checkpoint_tools,
                workers=self._hub,
                prober=TcpProber(),
                clock=self._clock,
            ),
            on_failure=on_failure,
        )
        self._server = SupervisorServer(hub=self._hub, control=self.service, token=self._token, timeouts=timeouts)

    async def start(self) -> str:
        """Serve, publish the address and take up the jobs that are not over. Returns host:port. Raises OSError."""
        before = self._home.read_endpoint(self._cluster)
        port = self._port or (int(before.address.rpartition(":")[2]) if before else 0)
        try:
            bound = await self._server.start(host=self._listen, port=port)
        except OSError:
            if not port or self._port:
                raise
            bound = await self._server.start(host=self._listen, port=0)
        self._endpoint = endpoint(self._host, int(bound.rpartition(":")[2]))
        resumed = await self.service.start()
        self._hub.attach(  # not before the jobs are known: a worker that reconnects early must wait, not be refused
            HubHandlers(
                sink=self.service.sink,
                welcome=self.service.welcome,
                on_beat=self.service.on_beat,
                on_log=self.service.on_log,
                on_stacks=self.service.on_stacks,
            )
        )
        self._home.write_endpoint(self._cluster, ClusterEndpoint(self._endpoint, self._ray_address, os.getpid()))
        log.info("supervisor %d serves at %s; resumed jobs: %s", os.getpid(), self._endpoint, ", ".join(resumed) or "none")
        return self._endpoint

    async def serve(self) -> None:
        """Until somebody asks for a shutdown; then the address is withdrawn."""
        try:
            await self.service.wait_shut_down()
            self._home.remove_endpoint(self._cluster)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop serving; the jobs are left as they are."""
        await self.service.close()
        await self._server.stop()

    def _fleet(self, job: Job) -> Fleet:
        where = self._workers_find_it_at or self._endpoint
        settings = WorkerSettings(job=job, endpoint=where, token=self._token, loopback=self._host == LOOPBACK)
        return self._make_fleet(job, settings, self._clock)


class _LogTelemetry:
    """Each decision as one line of the supervisor's own log."""

    def __init__(self, job: str) -> None:
        self._job = job

    def decided(self, record: Record, state: State) -> None:
        if record.commands:
            log.info("%s #%d %s", self._job, record.seq, record.reason)

    def ticked(self, state: State, beats: Iterable[Beat]) -> None:
        pass


def checkpoint_tools() -> CheckpointTools:
    """The engine's; torch is not imported before somebody asks."""
    from orchestrator.engine.checkpoint_tools import Tools

    return Tools()


async def _newest_checkpoint(job: Job) -> CheckpointRef | None:
    """The newest checkpoint of this job that is complete and verified; looked for in a thread, since storage may be slow."""
    if not job.checkpoint.uri:
        return None

    def look() -> CheckpointRef | None:
        from orchestrator.engine.checkpoint_files import newest_good

        skipped: list[str] = []
        found = newest_good(job.checkpoint.uri, job.name, skipped)
        for why in skipped:
            log.warning("%s: a checkpoint cannot be used: %s", job.name, why)
        return found

    return await asyncio.to_thread(look)
