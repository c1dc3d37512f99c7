"""What every implementation of runtime.ports.Fleet must do, whatever starts the processes and whatever they run.

An implementation joins by adding a harness to HARNESSES: a context manager that gives a FleetHarness of two one-slot nodes. The
Ray fleet runs here on an embedded cluster, so that its nodes can really be lost. One harness serves all tests: each leaves two
healthy nodes with free slots behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Protocol

import pytest

from orchestrator.core.cluster.view import ClusterView
from orchestrator.core.supervisor.commands import KillWorker, SpawnWorker
from orchestrator.core.supervisor.events import ClusterChanged, DrainRequested, Event, SpawnFailed, WorkerGone
from orchestrator.core.timeouts import Timeouts, derive
from orchestrator.runtime.clock import SystemClock
from orchestrator.runtime.ports import Fleet
from tests.unit.adapters.ray.mains import HERE
from tests.unit.adapters.ray.support import LIMIT_S, Seen, joined_cluster, lives

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(500)]

_ids = count(1)
TIMEOUTS = derive(4_000)


class FleetHarness(Protocol):
    """An implementation with its surroundings."""

    def make(self, main: str, timeouts: Timeouts) -> Fleet:
        """A fleet, not started, over the same processes as every other one that this made. `main`: what workers run."""
        ...

    def nodes(self) -> tuple[str, ...]:
        """Ids of the living nodes."""
        ...

    async def whereabouts(self, worker_id: str) -> tuple[int, str]:
        """Pid and node of a worker, once it is up."""
        ...

    def lose_node(self, node_id: str) -> None:
        """Everything on it dies."""
        ...

    def lose_agent(self, node_id: str) -> None:
        """Whatever watches the workers of the node dies; they do not."""
        ...

    def add_node(self) -> str:
        """Another one-slot node."""
        ...

    def clear(self, node_id: str) -> None:
        """What is left of a lost node is ended."""
        ...

    def announce_drain(self, node_id: str, *, deadline_s: int) -> None:
        """Whoever runs the machines gives notice that the node goes."""
        ...


class RayHarness:
    """RayFleet on an embedded cluster."""

    def __init__(self, cluster: object) -> None:
        from orchestrator.adapters.ray.local_cluster import LocalCluster

        assert isinstance(cluster, LocalCluster)
        self.cluster = cluster

    def make(self, main: str, timeouts: Timeouts) -> Fleet:
        from orchestrator.adapters.ray.fleet import RayFleet

        return RayFleet(
            job="conformance",
            worker_main=f"{HERE}:{main}",
            settings_of=lambda worker_id, node_id: {"worker_id": worker_id, "node_id": node_id},
            timeouts=timeouts,
            clock=SystemClock(),
        )

    def nodes(self) -> tuple[str, ...]:
        return self.cluster.node_ids

    async def whereabouts(self, worker_id: str) -> tuple[int, str]:
        from orchestrator.adapters.ray.nodes import members
        from orchestrator.adapters.ray.placement import actor_name, find_worker

        async with asyncio.timeout(LIMIT_S):
            handle = None
            while handle is None:  # spawn returns before Ray knows the name
                with suppress(ValueError):
                    handle = find_worker(actor_name(job="conformance", worker_id=worker_id))
                await asyncio.sleep(0.01)
            pid: int = await asyncio.wrap_future(handle.pid.remote().future())
        (node_id,) = [r.node_id for r in self.cluster.records() if pid in {p.pid for p in members(r)}]
        return pid, node_id

    def lose_node(self, node_id: str) -> None:
        self.cluster.kill_node(node_id)

    def lose_agent(self, node_id: str) -> None:
        assert self.cluster.kill_raylet(node_id)

    def add_node(self) -> str:
        return self.cluster.add_node()

    def clear(self, node_id: str) -> None:
        self.cluster.kill_node(node_id)

    def announce_drain(self, node_id: str, *, deadline_s: int) -> None:
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.cluster.address, "--node-id", node_id),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot reclaim"),
            *("--deadline-remaining-seconds", str(deadline_s)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stderr


@contextmanager
def ray_harness() -> Iterator[FleetHarness]:
    """Two nodes and a head."""
    with joined_cluster(nodes=2) as cluster:
        yield RayHarness(cluster)


HARNESSES: dict[str, Callable[[], AbstractContextManager[FleetHarness]]] = {"ray": ray_harness}


@pytest.fixture(scope="module", params=sorted(HARNESSES))
def harness(request: pytest.FixtureRequest) -> Iterator[FleetHarness]:
    with HARNESSES[request.param]() as made:
        yield made


@asynccontextmanager
async def started(harness: FleetHarness, main: str, timeouts: Timeouts = TIMEOUTS) -> AsyncIterator[tuple[Fleet, Seen]]:
    """A fleet with a sink; closed, with all its workers, afterwards."""
    fleet, seen = harness.make(main, timeouts), Seen()
    await fleet.start(seen)
    try:
        yield fleet, seen
    finally:
        await fleet.close()


async def eventually_dead(pid: int) -> None:
    """Ray tells of a death that it brings about before the process has ended."""
    async with asyncio.timeout(LIMIT_S):
        while lives(pid):  # noqa: ASYNC110  the process is no child of ours
            await asyncio.sleep(0.02)


def fresh() -> str:
    """A worker id that was never used."""
    return f"w{next(_ids)}"


def gone(worker_id: str) -> Callable[[Event], bool]:
    return lambda e: isinstance(e, WorkerGone) and e.worker_id == worker_id


def failed(worker_id: str) -> Callable[[Event], bool]:
    return lambda e: isinstance(e, SpawnFailed) and e.worker_id == worker_id


def shows(holds: Callable[[ClusterView], bool]) -> Callable[[Event], bool]:
    return lambda e: isinstance(e, ClusterChanged) and holds(e.view)


def unhealthy(node_id: str) -> Callable[[ClusterView], bool]:
    def holds(view: ClusterView) -> bool:
        node = view.node(node_id)
        return node is not None and not node.healthy

    return holds


async def test_the_first_look_comes_with_the_start(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (_, seen):
        first = seen.events[0]
        assert isinstance(first, ClusterChanged)
        assert {n.node_id for n in first.view.healthy()} == set(harness.nodes())
        assert all(n.slots == 1 for n in first.view.healthy())


async def test_a_worker_runs_on_the_node_that_was_asked_for(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, _):
        for node_id in harness.nodes():
            worker = fresh()
            await fleet.spawn(SpawnWorker(worker, node_id))
            pid, where = await harness.whereabouts(worker)
            assert where == node_id
            assert lives(pid)


async def test_spawning_one_id_twice_is_spawning_it_once(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, seen):
        worker, node = fresh(), harness.nodes()[0]
        await fleet.spawn(SpawnWorker(worker, node))
        pid, _ = await harness.whereabouts(worker)
        await fleet.spawn(SpawnWorker(worker, node))
        assert (await harness.whereabouts(worker))[0] == pid
        assert not [e for e in seen.events if isinstance(e, WorkerGone | SpawnFailed)]


async def test_kill_nine_is_told_and_the_slot_is_free_again(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, seen):
        first, second, node = fresh(), fresh(), harness.nodes()[0]
        await fleet.spawn(SpawnWorker(first, node))
        pid, _ = await harness.whereabouts(first)
        os.kill(pid, signal.SIGKILL)
        event = await seen.until(gone(first))
        assert isinstance(event, WorkerGone)
        assert event.evidence
        await fleet.spawn(SpawnWorker(second, node))
        assert (await harness.whereabouts(second))[1] == node


async def test_a_stopped_worker_is_not_gone(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, seen):
        worker = fresh()
        await fleet.spawn(SpawnWorker(worker, harness.nodes()[0]))
        pid, _ = await harness.whereabouts(worker)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(2 * TIMEOUTS.heartbeat_ms * 10 / 1000)  # nothing happens, so there is no event to wait for
        os.kill(pid, signal.SIGCONT)
        assert (await harness.whereabouts(worker))[0] == pid
        assert not [e for e in seen.events if gone(worker)(e)]


async def test_a_worker_that_ends_by_itself(harness: FleetHarness) -> None:
    async with started(harness, "end_at_once") as (fleet, seen):
        worker = fresh()
        await fleet.spawn(SpawnWorker(worker, harness.nodes()[0]))
        event = await seen.until(gone(worker))
        assert isinstance(event, WorkerGone)
        assert "ended by itself" in event.evidence


async def test_a_worker_whose_main_raises_says_what(harness: FleetHarness) -> None:
    async with started(harness, "raise_at_once") as (fleet, seen):
        worker = fresh()
        await fleet.spawn(SpawnWorker(worker, harness.nodes()[0]))
        event = await seen.until(gone(worker))
        assert isinstance(event, WorkerGone)
        assert f"LookupError: worker {worker} has a bug" in event.evidence.replace("'", "")


async def test_kill_is_idempotent_and_knows_strangers(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, seen):
        worker = fresh()
        await fleet.kill(KillWorker(fresh(), "never existed"))
        await fleet.spawn(SpawnWorker(worker, harness.nodes()[0]))
        pid, _ = await harness.whereabouts(worker)
        await fleet.kill(KillWorker(worker, "test"))
        await fleet.kill(KillWorker(worker, "test"))
        event = await seen.until(gone(worker))
        assert isinstance(event, WorkerGone)
        assert "killed by us" in event.evidence
        await eventually_dead(pid)


async def test_a_stopped_worker_is_killed_like_any_other(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, seen):
        worker = fresh()
        await fleet.spawn(SpawnWorker(worker, harness.nodes()[0]))
        pid, _ = await harness.whereabouts(worker)
        os.kill(pid, signal.SIGSTOP)
        await fleet.kill(KillWorker(worker, "hung"))
        await seen.until(gone(worker))
        await eventually_dead(pid)


async def test_a_worker_killed_before_it_is_up_does_not_come_up(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, seen):
        worker, after, node = fresh(), fresh(), harness.nodes()[0]
        await fleet.spawn(SpawnWorker(worker, node))
        await fleet.kill(KillWorker(worker, "changed my mind"))
        await seen.until(lambda e: failed(worker)(e) or gone(worker)(e))
        await fleet.spawn(SpawnWorker(after, node))  # the slot is free
        assert (await harness.whereabouts(after))[1] == node


async def test_a_full_node_takes_no_second_worker(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (patient, _):
        first, second, node = fresh(), fresh(), harness.nodes()[0]
        await patient.spawn(SpawnWorker(first, node))
        pid, _ = await harness.whereabouts(first)
        async with started(harness, "wait_for_ever", replace(TIMEOUTS, spawn_ms=1_500)) as (fleet, seen):
            await fleet.spawn(SpawnWorker(second, node))
            event = await seen.until(failed(second))
            assert isinstance(event, SpawnFailed)
            assert "not up within" in event.why
            assert lives(pid)


async def test_an_unknown_node_is_refused(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, seen):
        worker = fresh()
        await fleet.spawn(SpawnWorker(worker, "no-such-node"))
        event = await seen.until(failed(worker))
        assert isinstance(event, SpawnFailed)
        assert "no-such-node" in event.why


async def test_a_second_fleet_adopts_the_living_and_tells_of_the_dead(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (first, _):
        living, dead = fresh(), fresh()
        await first.spawn(SpawnWorker(living, harness.nodes()[0]))
        pid, _ = await harness.whereabouts(living)
        async with started(harness, "wait_for_ever") as (second, seen):
            await second.adopt([living, dead])
            await seen.until(gone(dead))
            assert lives(pid)
            os.kill(pid, signal.SIGKILL)
            await seen.until(gone(living))


async def test_a_lost_node_is_told_with_its_workers_and_a_new_one_is_seen(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, seen):
        stays, goes = harness.nodes()
        survivor, victim, late, replacement = fresh(), fresh(), fresh(), fresh()
        await fleet.spawn(SpawnWorker(survivor, stays))
        await fleet.spawn(SpawnWorker(victim, goes))
        survivor_pid, _ = await harness.whereabouts(survivor)
        await harness.whereabouts(victim)
        harness.lose_node(goes)
        await seen.until(gone(victim))
        await seen.until(shows(unhealthy(goes)))
        await fleet.spawn(SpawnWorker(late, goes))
        await seen.until(failed(late))
        assert lives(survivor_pid)
        assert not [e for e in seen.events if gone(survivor)(e)]
        new = await asyncio.to_thread(harness.add_node)
        event = await seen.until(shows(lambda v: new in {n.node_id for n in v.healthy()}))
        assert isinstance(event, ClusterChanged)
        views = [e.view for e in seen.events if isinstance(e, ClusterChanged)]
        assert [v.generation for v in views] == sorted({v.generation for v in views})
        await fleet.spawn(SpawnWorker(replacement, new))
        assert (await harness.whereabouts(replacement))[1] == new


async def test_a_node_whose_agent_died_is_lost_though_its_worker_goes_on(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, seen):
        node, worker = harness.nodes()[0], fresh()
        await fleet.spawn(SpawnWorker(worker, node))
        pid, _ = await harness.whereabouts(worker)
        harness.lose_agent(node)
        await seen.until(shows(unhealthy(node)))
        assert lives(pid)
        harness.clear(node)
        assert not lives(pid)
    await asyncio.to_thread(harness.add_node)


async def test_a_drain_that_ray_announces_is_told_once_and_ends_with_the_node(harness: FleetHarness) -> None:
    looks = 3 * 5 * TIMEOUTS.tick_ms / 1000  # so long that the cluster is looked at again, more than once
    goes, stays = harness.nodes()
    async with started(harness, "wait_for_ever") as (fleet, seen):
        worker = fresh()
        await fleet.spawn(SpawnWorker(worker, goes))
        pid, _ = await harness.whereabouts(worker)
        await asyncio.to_thread(harness.announce_drain, goes, deadline_s=1)
        event = await seen.until(lambda e: isinstance(e, DrainRequested))
        assert isinstance(event, DrainRequested)
        assert (event.node_id, event.who) == (goes, "ray")
        assert event.why in {f"Ray drains it, deadline in {s} s" for s in (0, 1)}
        await asyncio.sleep(1 + looks)
        assert lives(pid), "Ray leaves a running worker alone, also after the deadline"
        await asyncio.to_thread(harness.announce_drain, goes, deadline_s=300)  # the same drain, put off
        await asyncio.sleep(looks)
        async with started(harness, "wait_for_ever") as (_, later):  # a restarted supervisor is told with the first look
            (told,) = [e for e in later.events if isinstance(e, DrainRequested)]
            assert told.why in {f"Ray drains it, deadline in {s} s" for s in range(200, 301)}
        await fleet.kill(KillWorker(worker, "its rank has moved"))
        await seen.until(shows(unhealthy(goes)))  # nothing runs there any more, so Ray ends the node
        await asyncio.sleep(looks)
        assert [e.node_id for e in seen.events if isinstance(e, DrainRequested)] == [goes]
        harness.clear(goes)
        assert await asyncio.to_thread(harness.add_node) != stays


async def test_close_releases_the_workers(harness: FleetHarness) -> None:
    async with started(harness, "wait_for_ever") as (fleet, _):
        worker = fresh()
        await fleet.spawn(SpawnWorker(worker, harness.nodes()[0]))
        pid, _ = await harness.whereabouts(worker)
    await eventually_dead(pid)
