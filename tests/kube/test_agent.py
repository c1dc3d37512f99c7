# ruff: noqa: F811  the undisturbed run is a fixture that lies elsewhere
"""The agent between a real API server and a real supervisor, whose workers train without Ray: what it writes and heeds."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from orchestrator.core.job import ClusterSettings, Job
from orchestrator.core.supervisor import events as ev
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.spec.training_job import from_training_job
from tests.chaos.conftest import Calm, calm  # noqa: F401  the undisturbed run that these are held against
from tests.kube.agents import LIMIT_S, Agent, Objects, seq_of, until
from tests.kube.control_plane import ControlPlane
from tests.world.facts import Facts, at_step, says
from tests.world.jobs import ROOT, document
from tests.world.machines import Machines
from tests.world.processes import System

T = TypeVar("T")
STEPS = 60
# What the control plane starts ends with the thread that started it, so that thread must outlive the test.
STEADY = ThreadPoolExecutor(max_workers=1)


class Addressed(Machines):
    """Each machine has an address of its own on loopback, as each pod has."""

    def make(self, wanted: ClusterSettings) -> None:
        super().make(wanted)
        for i, machine in enumerate(self.all):
            machine.address = address(i)


def address(index: int) -> str:
    """Of the machine of this number."""
    return f"127.0.1.{index + 1}"


class World:
    """One TrainingJob with its supervisor, agent, nodes and pods. It trains slowly until `hurry`, so that nothing is missed."""

    def __init__(self, system: System, agent: Agent, objects: Objects, job: Job, *, flag: Path) -> None:
        self.system, self.agent, self.objects, self.job = system, agent, objects, job
        self.hurry = flag.touch

    async def see(self, look: Callable[[], T], wanted: Callable[[T], bool], *, what: str) -> T:
        """Wait without holding up the supervisor, which lives on this event loop."""
        return await asyncio.to_thread(partial(until, look, wanted, what=what))

    async def status(self, wanted: Callable[[dict[str, Any]], bool], *, what: str) -> dict[str, Any]:
        """The TrainingJob's status, once it is as wanted."""
        return await self.see(lambda: self.objects.status(self.job.name), wanted, what=what)

    async def kubectl(self, *argv: str) -> str:
        """In the namespace."""
        return await asyncio.to_thread(self.objects.plane.kubectl, "-n", self.objects.namespace, *argv)

    async def reach(self, step: int) -> None:
        """Wait for a step; the agent submits the job."""
        await self.submitted()
        await self.system.until(self.job, at_step(step))

    async def submitted(self) -> None:
        """Wait until the supervisor knows the job."""
        async with asyncio.timeout(LIMIT_S):
            while self.job.name not in [s.name for s in await self.system.supervisor.service.list_jobs()]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def seat(self, rank: int) -> int:
        """Number of the machine that has this rank in the first epoch; one of the four is a spare's."""
        records = await self.system.records(self.job.name)
        plan = next(c.plan for r in records for c in r.commands if isinstance(c, RunEpoch))
        return int(next(s.node_id for s in plan.seats if s.rank == rank).rpartition("-")[2])

    async def swapped(self, run: Facts, index: int) -> bool:
        """Whether machine `index` had a rank in the first epoch, and has none in the last."""
        plans = [c.plan for r in run.records for c in r.commands if isinstance(c, RunEpoch)]
        node = f"node-{index}"
        return node in {s.node_id for s in plans[0].seats} and node not in {s.node_id for s in plans[-1].seats}

    async def goes_on_without(self, index: int, *, because: str, alone: Facts) -> Facts:
        """Machine `index` is told to be gone, `because`; the job is swapped off it and ends as if nothing had been."""
        told = await self.system.until(self.job, lambda r: isinstance(r.event, ev.NodeGone))
        assert because in told.reason
        assert told.event.node_id == f"node-{index}"  # type: ignore[union-attr]
        await self.system.until(self.job, says("epoch 2 runs"), after=told.seq)
        self.hurry()
        run = await self.system.finish(self.job)
        assert (run.steps_lost, run.digest) == (0, alone.digest)
        assert await self.swapped(run, index)
        return run


@pytest.fixture
def objects(plane: ControlPlane) -> Iterator[Objects]:
    """A fresh namespace in which TrainingJobs can be made."""
    made = Objects(plane, plane.namespace("agent"))
    made.install()
    yield made
    made.clear_nodes()


@asynccontextmanager
async def world(objects: Objects, root: Path, *, min_ranks: int = 3, **settings: Any) -> AsyncIterator[World]:
    """A job of three ranks and a spare that the agent has been told of."""
    name = settings.pop("name", "j")
    flag = root / "hurry"
    usual = {"nodes": 3, "spares": 1, "zero": 1, "steps": STEPS, "pace_ms": 100, "hurry": str(flag)}
    asked = document(name, **{**usual, "detect_within": "10s", **settings})  # nobody here falls silent, but machines may be slow
    asked["resilience"]["min_ranks"] = min_ranks
    machines = Addressed()
    async with System(root / "system", machines=machines) as system:
        sent = await asyncio.to_thread(objects.submit, asked)
        job, _, _ = from_training_job(sent, base_dir=ROOT)
        for i in range(4):
            await asyncio.to_thread(objects.node, f"{objects.namespace}-n{i}")
            await asyncio.to_thread(partial(objects.pod, name, ordinal=i, node=f"{objects.namespace}-n{i}", address=address(i)))
        endpoint = system.supervisor._endpoint
        agent = Agent(
            objects.plane, root=root / "agent", job=name, namespace=objects.namespace, supervisor=endpoint, token="t" * 43
        )
        with agent:
            try:
                yield World(system, agent, objects, job, flag=flag)
            except BaseException:
                print(agent.said)
                raise


def test_the_status_and_the_events_tell_the_whole_story_in_order(objects: Objects, calm: Calm, tmp_path: Path) -> None:
    alone = calm(STEPS)

    async def story() -> None:
        async with world(objects, tmp_path) as w:
            await w.reach(10)
            running = await w.status(lambda s: s.get("phase") == "Running" and s["step"] >= 10, what="a running job")
            assert (running["steps"], running["ranks"], running["reason"]) == (STEPS, 3, "Running")
            assert {c["type"]: c["status"] for c in running["conditions"]} == {"Training": "True", "Degraded": "False"}
            w.hurry()
            run = await w.system.finish(w.job)
            end = await w.status(lambda s: s.get("phase") == "Succeeded", what="the end")
            assert end["digest"] == run.digest == alone.digest
            assert (end["progress"], end["step"], end["reason"], end["stepsLost"]) == ("100%", STEPS, "Completed", 0)
            conditions = {c["type"]: c for c in end["conditions"]}
            assert {k: c["status"] for k, c in conditions.items()} == {
                "Training": "False",
                "Degraded": "False",
                "Succeeded": "True",
                "Failed": "False",
            }
            records = await w.system.records(w.job.name)
            reasoned = [r for r in records if r.reason]
            assert end["lastDecision"].startswith(f"#{reasoned[-1].seq} ")
            events = await asyncio.to_thread(objects.events)
            assert [seq_of(e) for e in events] == [r.seq for r in reasoned]
            assert [e["message"][:900] for e in events] == [r.reason[:900] for r in reasoned]
            assert {e["type"] for e in events} == {"Normal"}
            assert events[-1]["reason"] == "JobSucceeded"
            assert events[0]["involvedObject"]["name"] == "j"
            assert any(line.startswith("[rank ") or line.startswith("[spare") for line in w.agent.shown) or not w.agent.shown
            assert w.agent.end(signal.SIGTERM) == 0

    asyncio.run(story())


def test_an_agent_that_is_killed_repeats_nothing_and_misses_nothing(objects: Objects, tmp_path: Path) -> None:
    async def story() -> None:
        async with world(objects, tmp_path, pace_ms=30) as w:
            for step in (5, 20, 35):
                await w.reach(step)
                await asyncio.to_thread(w.agent.end, signal.SIGKILL)
                await w.system.until(w.job, at_step(step + 5))
                w.agent.start()
            w.hurry()
            await w.system.finish(w.job)
            end = await w.status(lambda s: s.get("phase") == "Succeeded", what="the end")
            assert end["digest"]
            reasoned = [r.seq for r in await w.system.records(w.job.name) if r.reason]
            events = await asyncio.to_thread(objects.events)
            assert [seq_of(e) for e in events] == reasoned
            assert {e["count"] for e in events} == {1}
            submitted = [
                r for r in await w.system.records(w.job.name) if isinstance(r.event, ev.ScaleRequested | ev.DrainRequested)
            ]
            assert submitted == [], "adopting asks for nothing"

    asyncio.run(story())


def test_training_goes_on_while_the_api_server_is_away_and_the_status_catches_up(
    objects: Objects,
    calm: Calm,
    tmp_path: Path,
) -> None:
    alone = calm(80)

    async def story() -> None:
        async with world(objects, tmp_path, steps=80, pace_ms=60) as w:
            await w.reach(10)
            await w.status(lambda s: s.get("step", 0) >= 5, what="a first report")
            await asyncio.to_thread(objects.plane.stop_api)
            try:
                await w.system.until(w.job, at_step(50))
            finally:
                await asyncio.get_running_loop().run_in_executor(STEADY, objects.plane.start_api)
            await w.status(lambda s: s.get("step", 0) >= 50, what="the status catches up")
            w.hurry()
            run = await w.system.finish(w.job)
            end = await w.status(lambda s: s.get("phase") == "Succeeded", what="the end")
            assert end["digest"] == run.digest == alone.digest
            assert (run.killed, run.steps_lost, len(run.epochs)) == ({}, 0, 1)
            reasoned = [r.seq for r in run.records if r.reason]
            assert [seq_of(e) for e in await asyncio.to_thread(objects.events)] == reasoned

    asyncio.run(story())


def drained(name: str) -> Callable[[Any], bool]:
    """Whether a record is the drain of that machine."""
    return lambda r: isinstance(r.event, ev.DrainRequested) and r.event.node_id == name


def test_a_notice_drains_a_node_before_it_goes_and_costs_nothing(objects: Objects, calm: Calm, tmp_path: Path) -> None:
    alone = calm(STEPS)

    async def story() -> None:
        async with world(objects, tmp_path) as w:
            await w.reach(8)
            victim, other = await w.seat(1), await w.seat(0)
            await asyncio.to_thread(objects.plane.kubectl, "cordon", f"{objects.namespace}-n{other}")  # alone it means nothing
            await asyncio.to_thread(objects.taint, f"{objects.namespace}-n{victim}", "aws-node-termination-handler/spot-itn")
            told = await w.system.until(w.job, drained(f"node-{victim}"))
            assert "spot instance back" in told.reason
            await w.system.until(w.job, says("epoch 2 runs"), after=told.seq)
            w.hurry()
            run = await w.system.finish(w.job)
            assert run.state is not None
            assert (run.steps_lost, run.state.budget, run.digest) == (0, 5, alone.digest)
            assert await w.swapped(run, victim)
            assert [r.event.node_id for r in run.records if isinstance(r.event, ev.DrainRequested)] == [f"node-{victim}"]
            events = [e for e in await asyncio.to_thread(objects.events) if e["reason"] == "DrainRequested"]
            assert len(events) == 1
            assert "taint aws-node-termination-handler/spot-itn" in events[0]["message"]

    asyncio.run(story())


def test_a_pod_that_failed_is_swapped_at_once_though_nobody_else_has_noticed(
    objects: Objects,
    calm: Calm,
    tmp_path: Path,
) -> None:
    alone = calm(STEPS)

    async def story() -> None:
        async with world(objects, tmp_path) as w:
            await w.reach(8)
            victim = await w.seat(2)
            await asyncio.to_thread(partial(objects.fail_pod, f"j-worker-{victim}-1", reason="OOMKilled", code=137))
            await w.goes_on_without(victim, because="OOMKilled, exit code 137", alone=alone)
            warnings = [e for e in await asyncio.to_thread(objects.events) if e["type"] == "Warning"]
            assert "NodeGone" in {e["reason"] for e in warnings}

    asyncio.run(story())


@pytest.mark.parametrize("agent_is_there", [True, False])
def test_a_node_whose_object_is_deleted_is_gone_also_when_no_agent_saw_it_go(
    objects: Objects,
    calm: Calm,
    tmp_path: Path,
    agent_is_there: bool,
) -> None:
    alone = calm(90)

    async def story() -> None:
        async with world(objects, tmp_path, steps=90) as w:
            await w.reach(8)
            victim = await w.seat(1)
            name = f"{objects.namespace}-n{victim}"
            if agent_is_there:
                await w.status(lambda s: s.get("phase") == "Running", what="a first report")
            else:
                await asyncio.to_thread(w.agent.end, signal.SIGKILL)
            await asyncio.to_thread(objects.plane.kubectl, "delete", "node", name)
            if not agent_is_there:
                w.agent.start()
            run = await w.goes_on_without(victim, because=f"node {name} was deleted from the cluster", alone=alone)
            assert [r.event.node_id for r in run.records if isinstance(r.event, ev.NodeGone)] == [f"node-{victim}"]

    asyncio.run(story())


def test_a_pod_that_is_deleted_is_drained_before_it_goes(objects: Objects, calm: Calm, tmp_path: Path) -> None:
    alone = calm(STEPS)

    async def story() -> None:
        async with world(objects, tmp_path) as w:
            await w.reach(8)
            victim = await w.seat(0)
            await w.kubectl("delete", "pod", f"j-worker-{victim}-1", "--wait=false")
            told = await w.system.until(w.job, drained(f"node-{victim}"))
            assert "is being deleted" in told.reason
            await w.system.until(w.job, says("epoch 2 runs"), after=told.seq)
            w.hurry()
            run = await w.system.finish(w.job)
            assert (run.steps_lost, run.digest) == (0, alone.digest)

    asyncio.run(story())


def test_a_suspended_job_saves_gives_its_machines_back_and_goes_on_with_the_same_bits(
    objects: Objects,
    calm: Calm,
    tmp_path: Path,
) -> None:
    alone = calm(STEPS)

    async def story() -> None:
        place = tmp_path / "checkpoints"
        async with world(objects, tmp_path, checkpoint=f"file://{place}", checkpoint_every=0) as w:
            await w.reach(15)
            await w.kubectl("patch", "trainingjob", "j", "--type=merge", "-p", '{"spec": {"suspend": true}}')
            parked = await w.see(
                lambda: objects.conditions("j"), lambda c: c.get("Checkpointed", {}).get("status") == "True", what="parked"
            )
            assert parked["Checkpointed"]["observedGeneration"] == 2
            w.hurry()
            assert (await w.status(lambda s: s["phase"] == "Suspending", what="the phase"))["reason"] == "Suspended"
            at = (await w.system.records("j"))[-1].committed_step
            await w.kubectl("patch", "trainingjob", "j", "--type=merge", "-p", '{"spec": {"suspend": false}}')
            run = await w.system.finish(w.job)
            assert run.state is not None
            assert (run.digest, run.state.budget) == (alone.digest, 5)
            assert run.steps_lost == 0, "no step was trained after the one that was saved"
            assert 15 <= at < STEPS
            end = await w.status(lambda s: s.get("phase") == "Succeeded", what="the end")
            assert "Checkpointed" not in {c["type"] for c in end["conditions"]}

    asyncio.run(story())


def test_with_what_spec_a_job_was_submitted_is_written_down_once_and_any_later_agent_goes_by_it(
    objects: Objects, tmp_path: Path
) -> None:
    async def story() -> None:
        async with world(objects, tmp_path) as w:
            await w.reach(3)
            running = await w.status(lambda s: s.get("phase") == "Running", what="a running job")
            job = json.loads(await w.kubectl("get", "trainingjob", "j", "-o", "json"))
            assert running["submitted"] == job["spec"]
            edit = {"spec": {"train": {"steps": 9_999, "micro_batches": 1}, "checkpoint": {"uri": "/nowhere"}}}
            await w.kubectl("patch", "trainingjob", "j", "--type=merge", "-p", json.dumps(edit))
            await asyncio.to_thread(w.agent.end, signal.SIGKILL)
            w.agent.start()
            run = await w.system.finish(w.job)
            end = await w.status(lambda s: s.get("phase") == "Succeeded", what="the end")
            assert run.state is not None
            assert (end["step"], end["submitted"]) == (STEPS, job["spec"]), "the spec cannot even be run as it is now"
            assert "NotSubmitted" not in {e["reason"] for e in await asyncio.to_thread(objects.events)}

    asyncio.run(story())


def test_a_scale_that_the_supervisor_refuses_is_in_the_status_until_another_is_wished(objects: Objects, tmp_path: Path) -> None:
    async def story() -> None:
        async with world(objects, tmp_path, steps=100_000) as w:
            await w.reach(3)
            await w.kubectl("patch", "trainingjob", "j", "--type=merge", "-p", '{"spec": {"cluster": {"nodes": 2}}}')

            async def refused() -> dict[str, Any]:
                found = await w.see(lambda: objects.conditions("j"), lambda c: "Scaled" in c, what="the refusal")
                return found["Scaled"]

            first = await refused()
            assert (first["status"], first["reason"], first["observedGeneration"]) == ("False", "Refused", 2)
            assert "2 rank(s) are fewer than the least that the job trains with, 3" in first["message"]
            numbers = await w.status(lambda s: "nodesRefused" in s, what="the refusal")
            assert (numbers["nodes"], numbers["nodesRefused"]) == (3, 2)
            await asyncio.to_thread(w.agent.end, signal.SIGKILL)
            report = (await asyncio.to_thread(objects.status, "j"))["lastReport"]
            w.agent.start()
            await w.status(lambda s: s["lastReport"] != report, what="the next agent reports")
            assert await refused() == first
            await w.kubectl("patch", "trainingjob", "j", "--type=merge", "-p", '{"spec": {"cluster": {"nodes": 3}}}')
            await w.see(lambda: objects.conditions("j"), lambda c: "Scaled" not in c, what="the wish is another")
            asked = [r.event.nodes for r in await w.system.records("j") if isinstance(r.event, ev.ScaleRequested)]
            assert asked == [2, 3]

    asyncio.run(story())


def test_a_change_of_nodes_in_the_spec_scales_the_job(objects: Objects, calm: Calm, tmp_path: Path) -> None:
    alone = calm(STEPS)

    async def story() -> None:
        async with world(objects, tmp_path, min_ranks=2, on_loss=("swap", "shrink", "wait")) as w:
            await w.reach(8)
            await w.kubectl("patch", "trainingjob", "j", "--type=merge", "-p", '{"spec": {"cluster": {"nodes": 2}}}')
            await w.system.until(w.job, says("epoch 2 runs"))
            w.hurry()
            run = await w.system.finish(w.job)
            assert [r.event.nodes for r in run.records if isinstance(r.event, ev.ScaleRequested)] == [2]
            assert (len(run.epochs[2]), run.steps_lost, run.digest) == (2, 0, alone.digest)

    asyncio.run(story())
