"""The fleet on Ray: worker processes as actors, each in a placement group of its own on the node that the plan chose.

Ray starts processes and reports deaths; it never restarts a worker, because whether and where is the supervisor's decision.
A group of one bundle per worker, pinned to a node by its id label, reserves exactly one slot: Ray cannot place a second
worker there, cannot move the first, and removing the group frees the slot whatever state the actor is in. Every call into
Ray runs in a thread, since each may block for a minute while the GCS is away.

A node that Ray begins to drain (`ray drain-node`, an autoscaler's notice of a spot reclaim) becomes a DrainRequested. Ray places
nothing there any more and ends the node as soon as nothing runs on it; a running worker it leaves alone, also after the deadline,
which whoever asked for the drain enforces. What reason was given, Ray tells nobody before the node is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import ray
from ray._private.state import state as ray_state
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from orchestrator.adapters.ray.placement import actor_name, create_worker, end_worker, find_worker
from orchestrator.adapters.ray.view import ViewTracker, node_id, slot_request
from orchestrator.core.supervisor.commands import KillWorker, SpawnWorker
from orchestrator.core.supervisor.events import ClusterChanged, DrainRequested, SpawnFailed, WorkerGone
from orchestrator.core.timeouts import Timeouts
from orchestrator.runtime.ports import Clock, Sink

T = TypeVar("T")

_log = logging.getLogger(__name__)
_THREADS_MAX: Final = 8
_POLL_TICKS: Final = 5  # the cluster is looked at once per so many ticks
_RETRY_MIN_S: Final = 0.05
_RETRY_MAX_S: Final = 2.0
_CAUSE_CHARS_MAX: Final = 300


class _NotStartedError(Exception):
    """A worker does not come up where it should."""


@dataclass(slots=True)
class _Worker:
    """What the fleet holds for one worker id."""

    worker_id: str
    node_id: str = ""  # while it is being brought up
    node_lost: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    creating: asyncio.Future[Any] | None = None  # runs to its end whatever happens to the task
    handle: Any = None  # ray.actor.ActorHandle, once it exists
    killed: bool = False


class RayFleet:
    """runtime.ports.Fleet. The process must be connected to the cluster (connection.connect, or be an actor of it).

    `worker_main` is the dotted path of a function (settings) -> None that a worker's process runs; `settings_of(worker_id,
    node_id)` makes its settings, which may hold secrets and are not logged. `job` keeps the workers of several jobs apart.
    The first view has the generation after `after_generation`: a restarted supervisor gives the last one it knew.
    """

    def __init__(
        self,
        *,
        job: str,
        worker_main: str,
        settings_of: Callable[[str, str], dict[str, str]],
        timeouts: Timeouts,
        clock: Clock,
        after_generation: int = 0,
    ) -> None:
        self._worker_main = worker_main
        self._job = job
        self._settings_of = settings_of
        self._timeouts = timeouts
        self._clock = clock
        self._tracker = ViewTracker(after_generation=after_generation)
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._draining: frozenset[str] = frozenset()  # living nodes that Ray was seen to drain: a drain is told once
        self._workers: dict[str, _Worker] = {}
        self._executor = ThreadPoolExecutor(max_workers=_THREADS_MAX, thread_name_prefix="ray-fleet")
        self._sink: Sink | None = None
        self._poller: asyncio.Task[None] | None = None

    # ---- the port -----------------------------------------------------------------------------------------------------

    async def start(self, sink: Sink) -> None:
        """Begin to watch; the first ClusterChanged is in the sink when this returns. Raises RayError without a GCS."""
        self._sink = sink
        await self._look()
        self._poller = asyncio.create_task(self._poll(), name="ray-fleet-poll")

    async def spawn(self, command: SpawnWorker) -> None:
        """Start a worker on its node; idempotent.

        SpawnFailed when it is not up within the ladder's spawn_ms, or its node is lost before; WorkerGone follows if there was
        a process at all.
        """
        if command.worker_id in self._workers:
            return
        worker = self._workers[command.worker_id] = _Worker(command.worker_id, node_id=command.node_id)
        worker.task = asyncio.create_task(self._bring_up(worker, command), name=f"spawn-{command.worker_id}")

    async def adopt(self, worker_ids: Sequence[str]) -> None:
        """Watch workers that an earlier supervisor started; WorkerGone for those that Ray does not know."""
        for worker_id in worker_ids:
            if worker_id not in self._workers:
                worker = self._workers[worker_id] = _Worker(worker_id)
                worker.task = asyncio.create_task(self._adopt(worker), name=f"adopt-{worker_id}")

    async def kill(self, command: KillWorker) -> None:
        """Begin to end it, whether we know it or not; WorkerGone follows where it was watched."""
        worker = self._workers.get(command.worker_id)
        if worker is not None:
            worker.killed = True
            await _settled(worker)
        await self._in_thread(end_worker, self._name(command.worker_id))

    async def close(self) -> None:
        """Stop watching, and end every worker that is left."""
        tasks = [t for t in (self._poller, *(w.task for w in self._workers.values())) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._release(worker) for worker in list(self._workers.values())))
        self._executor.shutdown(wait=False, cancel_futures=True)

    # ---- the cluster --------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._timeouts.tick_ms * _POLL_TICKS / 1000)
            try:
                await self._look()
            except (RayError, OSError, RuntimeError) as error:  # the GCS is away: the last view stays
                _log.warning("no news of the cluster: %s", error)

    async def _look(self) -> None:
        rows = await self._in_thread(ray.nodes)
        draining: dict[str, int] = await self._in_thread(ray_state.get_draining_nodes)
        self._rows.update({node_id(row): row for row in rows if row["Alive"]})
        view = self._tracker.look(rows)
        if view is not None:
            self._emit(ClusterChanged(at_ms=self._clock.now_ms(), view=view))
        lost = {n.node_id for n in self._tracker.view.nodes if not n.healthy}
        for worker in self._workers.values():
            if worker.node_id in lost:
                worker.node_lost.set()
        self._tell_drains({ours: draining[row["NodeID"]] for ours, row in self._rows.items() if row["NodeID"] in draining})

    def _tell_drains(self, draining: Mapping[str, int]) -> None:
        """`draining`: node id -> deadline in Unix ms, 0 without one. Ray cannot call a drain off: it ends with the node."""
        living = {n.node_id for n in self._tracker.view.healthy()}
        for node in sorted((draining.keys() & living) - self._draining):
            left_s = max(0, round(draining[node] / 1000 - self._clock.wall_s()))
            why = f"Ray drains it, deadline in {left_s} s" if draining[node] else "Ray drains it, without a deadline"
            self._emit(DrainRequested(at_ms=self._clock.now_ms(), node_id=node, who="ray", why=why))
        self._draining = (self._draining | draining.keys()) & living

    # ---- workers ------------------------------------------------------------------------------------------------------

    async def _bring_up(self, worker: _Worker, command: SpawnWorker) -> None:
        try:
            if worker.killed:
                raise _NotStartedError("killed before it was started")
            row = self._rows.get(command.node_id)
            if row is None:
                raise _NotStartedError(f"there is no node {command.node_id} in the cluster")
            if not any(n.node_id == command.node_id and n.healthy for n in self._tracker.view.nodes):
                raise _NotStartedError(f"node {command.node_id} is lost")
            create = functools.partial(
                create_worker,
                name=self._name(command.worker_id),
                node_id=row["NodeID"],
                worker_main=self._worker_main,
                settings=self._settings_of(command.worker_id, command.node_id),
                request=slot_request(row["Resources"]),
            )
            worker.creating = asyncio.ensure_future(self._in_thread(create))
            worker.handle = await asyncio.shield(worker.creating)
            await self._until_up(worker)
        except (RayError, _NotStartedError, ValueError, OSError, RuntimeError) as error:
            await self._spawn_failed(worker, _cause(error))
            return
        worker.node_id = ""
        await self._watch(worker)

    async def _until_up(self, worker: _Worker) -> None:
        """Ray itself would wait for ever for a slot on a node that is full or lost."""
        up = asyncio.ensure_future(_result(worker.handle.start.remote()))
        lost = asyncio.ensure_future(worker.node_lost.wait())
        try:
            done, _ = await asyncio.wait((up, lost), timeout=self._timeouts.spawn_ms / 1000, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
            lost.cancel()
        if up in done:
            up.result()
        elif lost in done:
            raise _NotStartedError(f"node {worker.node_id} was lost while the worker started there")
        else:
            raise _NotStartedError(f"not up within {self._timeouts.spawn_ms} ms")

    async def _spawn_failed(self, worker: _Worker, why: str) -> None:
        """Tell, and free the slot. A process that existed may have said hello already, so its end is told as well."""
        self._emit(SpawnFailed(at_ms=self._clock.now_ms(), worker_id=worker.worker_id, why=why))
        await self._release(worker)
        if worker.handle is not None:
            self._emit(WorkerGone(at_ms=self._clock.now_ms(), worker_id=worker.worker_id, evidence=f"not started: {why}"))

    async def _adopt(self, worker: _Worker) -> None:
        pause_s = _RETRY_MIN_S
        while worker.handle is None:
            try:
                worker.handle = await self._in_thread(find_worker, self._name(worker.worker_id))
            except ValueError as error:  # the GCS answered: it knows no live actor of this name
                await self._gone(worker, f"Ray knows it no more: {_cause(error)}")
                return
            except (RayError, OSError, RuntimeError) as error:
                _log.warning("cannot look worker %s up yet: %s", worker.worker_id, error)
                await asyncio.sleep(pause_s)
                pause_s = min(_RETRY_MAX_S, pause_s * 2)
        await self._watch(worker)

    async def _watch(self, worker: _Worker) -> None:
        """Wait for its end. Asks again as often as the connection breaks: unavailable is not dead."""
        pause_s = _RETRY_MIN_S
        evidence = ""
        while not evidence:
            try:
                evidence = await _result(worker.handle.watch.remote())
            except ActorUnavailableError as error:
                _log.info("worker %s is out of Ray's reach: %s", worker.worker_id, _cause(error))
            except RayActorError as error:
                evidence = f"Ray: {_cause(error)}"
            except RayError as error:
                _log.warning("watching worker %s failed, asking again: %s", worker.worker_id, _cause(error))
            if not evidence:
                await asyncio.sleep(pause_s)
                pause_s = min(_RETRY_MAX_S, pause_s * 2)
        await self._gone(worker, evidence)

    async def _gone(self, worker: _Worker, evidence: str) -> None:
        text = f"killed by us; {evidence}" if worker.killed else evidence
        self._emit(WorkerGone(at_ms=self._clock.now_ms(), worker_id=worker.worker_id, evidence=text))
        await self._release(worker)

    async def _release(self, worker: _Worker) -> None:
        """Free its slot, and only then forget it: until then close() does it again.

        Best effort: with the GCS away the slot stays taken, and a later spawn there says so.
        """
        await _settled(worker)
        try:
            await self._in_thread(end_worker, self._name(worker.worker_id))
        except (RayError, OSError, RuntimeError) as error:
            _log.warning("the slot of worker %s could not be freed: %s", worker.worker_id, error)
        self._workers.pop(worker.worker_id, None)

    # ---- plumbing -----------------------------------------------------------------------------------------------------

    def _name(self, worker_id: str) -> str:
        return actor_name(job=self._job, worker_id=worker_id)

    def _emit(self, event: ClusterChanged | DrainRequested | SpawnFailed | WorkerGone) -> None:
        assert self._sink is not None, "start() comes first"
        self._sink(event)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


async def _settled(worker: _Worker) -> None:
    """Wait until Ray has heard of the worker, if it is about to: only then can it be killed by name."""
    if worker.creating is not None:
        with contextlib.suppress(RayError, ValueError, OSError, RuntimeError):
            await asyncio.shield(worker.creating)


async def _result(ref: Any) -> Any:
    return await asyncio.wrap_future(ref.future())


def _cause(error: BaseException) -> str:
    """Ray's own words on one line, without the table of ids before them."""
    words = " ".join(str(error).split())
    _, because, reason = words.partition(" because ")
    return (reason if because else words).partition(" Some common causes")[0][:_CAUSE_CHARS_MAX]
