"""A job on real hosts, each with an address of its own: links are slow or cut, machines lose power, and the curve stays the same.

In a partition the side with the supervisor goes on. The other side's worker is alive, and nobody can tell it anything: it has to
leave by itself, in time, and to stay harmless from then on.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.job import Job
from orchestrator.core.supervisor.events import StepCommitted, WorkerDisconnected, WorkerGone
from orchestrator.engine.checkpoint_files import list_steps, read_manifest
from tests.chaos.conftest import Calm
from tests.chaos.support import until_gone
from tests.netlab.hosts import LIMIT_S, POLL_S, Hosts
from tests.netlab.lab import Node
from tests.world.facts import Facts, assert_as_if_nothing_happened, at_step, loses, steps_in
from tests.world.jobs import document, tiny_job

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(400)]

STEPS = 80
SLOW_MBIT = 2.0
SLOW_STEPS = 5


def launched(hosts: Hosts, name: str, *, on: int, **settings: Any) -> Job:
    """A job of three ranks and a spare, which is swapped in where one is lost; `orchestrator launch` is given on machine `on`."""
    settings = {"nodes": 3, "spares": 1, "zero": 1, "steps": STEPS, "pace_ms": 30, **settings}
    asked = document(name, **settings)
    asked["resilience"]["min_ranks"] = 3  # a spare that is not there yet is waited for
    hosts.launch(asked, on=on)
    return tiny_job(name, **settings)


def test_a_slow_link_is_no_failure(hosts: Hosts, calm: Calm) -> None:
    job = launched(hosts, "slow", on=1)
    hosts.until(job, at_step(5))
    machine = hosts.seated(job, 1).machine.index
    hosts.lab.throttle(machine, SLOW_MBIT)
    known = hosts.records(job)[-1].committed_step
    hosts.until(job, at_step(known + SLOW_STEPS))
    hosts.lab.throttle(machine, None)
    run = hosts.finish(job)
    assert seconds_of_a_step(run, 1, 4) * 2 < seconds_of_a_step(run, known + 2, known + SLOW_STEPS), "the link was not slow"
    assert run.killed == {}, str(run)
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[])


def seconds_of_a_step(run: Facts, first: int, last: int) -> float:
    """The quickest of these, as the journal tells it: a busy machine makes some of them longer."""
    at = {r.event.step: r.wall_s for r in run.records if isinstance(r.event, StepCommitted)}
    return min(at[step + 1] - at[step] for step in range(first, last))


def test_a_machine_without_power_is_replaced(hosts: Hosts, calm: Calm) -> None:
    hurry = hosts.lab.root / "hurry"  # once somebody has looked and the power is off
    job = launched(hosts, "power", on=2, pace_ms=200, hurry=str(hurry))
    hosts.until(job, at_step(5))
    told = json.loads(hosts.orchestrator("status", job.name, "--json", on=2))  # whose home had another token than the supervisor
    assert (told["name"], told["phase"]) == (job.name, "running")
    victim = hosts.seated(job, 1)
    hosts.lab.power_off(victim.machine.index)
    hurry.touch()
    run = hosts.finish(job)
    assert victim.worker_id in run.killed
    assert {run.epochs[1][0], run.epochs[1][2]}.isdisjoint(run.killed)
    assert list(run.epochs) == [1, 2]
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[1])


def test_the_cut_off_side_of_a_partition_fences_itself_and_is_harmless(hosts: Hosts, calm: Calm) -> None:
    place = hosts.lab.root / "checkpoints"
    job = launched(hosts, "parted", on=0, checkpoint=place, checkpoint_every=5, detect_within="8s")
    hosts.until(job, at_step(7))
    cut = hosts.seated(job, 0)  # the one that commits checkpoints
    hosts.lab.unplug(cut.machine.index)
    lost = hosts.until(job, loses(cut.worker_id))
    hosts.until(job, steps_in(2))
    stood_ms = fenced_itself(hosts, cut.machine, epoch=1)
    assert stood_ms <= job.resilience.detect_within_ms
    by_it = checkpoints(place, epoch=1)
    hosts.until(job, at_step(max(by_it, default=0) + 10))
    assert cut.pid in {p.pid for p in cut.machine.processes()}, "it lives, and nobody can tell it anything"

    hosts.lab.plug(cut.machine.index)
    until_gone(cut.pid)
    run = hosts.finish(job)
    said = [r for r in run.records if r.seq > lost.seq and getattr(r.event, "worker_id", "") == cut.worker_id]
    assert all(isinstance(r.event, WorkerGone | WorkerDisconnected) for r in said), str(run)
    assert checkpoints(place, epoch=1).items() <= by_it.items()
    assert checkpoints(place, epoch=2), "the other side went on to write its own"
    assert list(run.epochs) == [1, 2]
    assert_as_if_nothing_happened(run, calm(STEPS), swapped=[0])


def fenced_itself(hosts: Hosts, machine: Node, *, epoch: int) -> int:
    """Wait until a worker there says so; returns how long it had stood still by its own clock, in ms."""
    words = re.compile(rf"fences itself out of epoch {epoch} after (\d+) ms")
    deadline = time.monotonic() + LIMIT_S
    while True:
        for log in (hosts.lab.root / machine.name).glob("session_2*/logs/worker-*.err"):
            found = words.search(log.read_text(errors="replace"))
            if found is not None:
                return int(found[1])
        assert time.monotonic() < deadline, "it never fenced itself"
        time.sleep(POLL_S)


def checkpoints(place: Path, *, epoch: int) -> dict[int, str]:
    """Step -> digest of what ranks of this epoch have committed and nobody has pruned yet."""
    found = {step: read_manifest(uri) for step, uri in list_steps(str(place))}
    return {step: manifest.digest for step, manifest in found.items() if manifest.epoch == epoch}
