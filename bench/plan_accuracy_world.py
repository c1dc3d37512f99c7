"""Rank processes for `make bench-plan-accuracy`: engines without a supervisor, and a probe of what they run on.

Processes come from a fork server that has torch loaded. None is pinned, as workers are not. A process tells its highest resident
memory over the steps that count.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from orchestrator.core.graph.costs import ModelCosts
from orchestrator.core.graph.view import GraphView
from orchestrator.core.job import Job
from orchestrator.core.plan.plan import Plan
from orchestrator.core.planner.planner import first_plan
from orchestrator.core.reshard.recovery import Resume, Source
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import StepCommitted
from orchestrator.runtime.ports import Finished

HOST = "127.0.0.1"
_CLONE_NEWNET = 0x40000000
LIMIT_S = 300.0
COUNTED_FROM = 3  # the first steps touch memory for the first time

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["orchestrator.engine.engine", "numpy.random", "torch._dynamo", "bench.plan_accuracy_models"])


@dataclass(frozen=True)
class Place:
    """Where a rank runs: a network namespace ("": this one) and its address there."""

    netns: str = ""
    host: str = HOST

    def enter(self) -> None:
        """Before the process has other threads."""
        if self.netns:
            libc = ctypes.CDLL(None, use_errno=True)
            with (Path("/var/run/netns") / self.netns).open() as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {self.netns}")


@dataclass(frozen=True)
class RankRun:
    """What one rank saw."""

    step_s: tuple[float, ...]  # of the steps that count
    phases: dict[str, float]  # seconds in each, over these steps
    peak_bytes: int  # resident at most, over these steps


def _status(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024


class _Watch:
    """The engine's hook: clocks phases, begins and ends the memory's high-water mark."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self.peak = 0
        self._phase, self._since = "", time.perf_counter()

    def __call__(self, phase: str, step: int) -> None:
        now = time.perf_counter()
        if step >= COUNTED_FROM and self._phase:
            self.phases[self._phase] = self.phases.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now
        if phase == "update" and step == COUNTED_FROM - 1:
            Path("/proc/self/clear_refs").write_text("5")
        if phase == "digest":
            self.peak = _status("VmHWM")
            self._phase = ""


def _rank_main(link: Connection, place: Place, job: Job, worker: str) -> None:
    place.enter()
    from orchestrator.engine.engine import TorchEngine

    engine = TorchEngine(job, place.host)
    graph = engine.warm()
    watch = _Watch()
    engine.hook = watch
    link.send((engine.store_endpoint(), graph))
    plan, endpoint = link.recv()
    steps: list[float] = []

    def report(event: Any) -> None:
        if isinstance(event, StepCommitted) and event.step >= COUNTED_FROM:
            steps.append(event.step_ms / 1e3)

    resume = Resume(Source.INIT, 0, None, (), tuple(range(plan.size)), "", 0, ())
    outcome = engine.run_epoch(RunEpoch(worker, plan, resume, endpoint), report)
    if isinstance(outcome, Finished):
        link.send(RankRun(tuple(steps), watch.phases, watch.peak))
        with contextlib.suppress(EOFError):
            link.recv()  # peers may still read from us
    else:
        link.send(str(outcome))
    os._exit(0)


@dataclass
class Processes:
    """Some processes and their pipes; use as a context: none is left."""

    links: list[Connection] = field(default_factory=list)
    processes: list[Any] = field(default_factory=list)

    def start(self, target: Any, *arguments: object) -> None:
        """One more: `target(link, *arguments)`."""
        ours, theirs = _context.Pipe()
        process = _context.Process(target=target, args=(theirs, *arguments), daemon=True)
        process.start()
        theirs.close()
        self.links.append(ours)
        self.processes.append(process)

    def tell(self, message: object) -> None:
        """All of them."""
        for link in self.links:
            link.send(message)

    def answers(self) -> list[Any]:
        """One of each. Raises SystemExit where one does not answer."""
        out = []
        for number, link in enumerate(self.links):
            if not link.poll(LIMIT_S):
                raise SystemExit(f"process {number} said nothing within {LIMIT_S:.0f} s")
            try:
                out.append(link.recv())
            except EOFError as error:
                raise SystemExit(f"process {number} has ended; its output is above") from error
        return out

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self.links:
            with contextlib.suppress(OSError):
                link.close()
        for process in self.processes:
            process.join(1.0)
            process.kill()
            process.join()


def plan_of(job: Job, graph: GraphView, places: Sequence[Place]) -> Plan:
    """The plan that a fixed job gets on workers in these places; a namespace is a node."""
    workers = [(f"w{n}", place.netns) for n, place in enumerate(places[: job.parallel.ranks])]
    return first_plan(job=job, graph=graph, workers=workers, epoch=1)


def seats(plan: Plan) -> tuple[int, ...]:
    """The place of each rank."""
    return tuple(int(seat.worker_id[1:]) for seat in plan.seats)


def run(job: Job, places: Sequence[Place]) -> list[RankRun]:
    """The job to its end, worker n in places[n]; what each rank saw, by rank. Raises SystemExit where it does not end well."""
    with Processes() as world:
        for n in range(job.parallel.ranks):
            world.start(_rank_main, places[n], job, f"w{n}")
        ready = world.answers()
        plan = plan_of(job, ready[0][1], places)
        world.tell((plan, ready[0][0]))
        told = world.answers()
        world.tell("end")
    runs = [told[n] for n in seats(plan)]
    failed = [r for r in runs if not isinstance(r, RankRun)]
    if failed:
        raise SystemExit(f"{plan.reason}: {failed[0]}")
    return runs


# ------------------------------------------------------------------------------------------------------------------- the probe


@dataclass(frozen=True)
class Speed:
    """What a core reaches."""

    flops: float
    half_flops: float
    bandwidth: float  # bytes/s, elementwise work


@dataclass(frozen=True)
class LinkSpeed:
    """Between two ranks."""

    bandwidth: float
    latency_s: float


def _profile_main(link: Connection, place: Place, job: Job, costs: ModelCosts, device: str, limit_s: float) -> None:
    place.enter()
    from orchestrator.engine.profile import with_timings

    link.send("ready")
    link.recv()
    link.send(with_timings(costs, job, device_name=device, limit_s=limit_s))
    with contextlib.suppress(EOFError):
        link.recv()
    os._exit(0)


def profile(job: Job, costs: ModelCosts, *, places: Sequence[Place], device: str, limit_s: float) -> list[ModelCosts]:
    """Timings by as many processes at the same time as there are places."""
    with Processes() as world:
        for place in places:
            world.start(_profile_main, place, job, costs, device, limit_s)
        world.answers()
        world.tell("go")
        measured = world.answers()
        world.tell("end")
    return measured


def _speed_main(link: Connection, place: Place) -> None:
    place.enter()
    import torch

    torch.set_num_threads(1)
    link.send("ready")
    link.recv()

    def low(work: Any, repeats: int) -> float:
        took = []
        for _ in range(repeats):
            began = time.perf_counter()
            work()
            took.append(time.perf_counter() - began)
        return sorted(took)[repeats // 5]

    large, small = torch.randn(768, 768), torch.randn(64, 64)
    flops = 2 * 768**3 / low(lambda: large @ large, 60)
    half = flops * max(0.0, low(lambda: small @ small, 400) - 2 * 64**3 / flops)  # FLOPs that the overhead of a call is worth
    a, b = torch.randn(8 << 20), torch.randn(8 << 20)
    bandwidth = 3 * a.nbytes / low(lambda: torch.add(a, b, out=a), 40)
    link.send(Speed(flops, half, bandwidth))
    with contextlib.suppress(EOFError):
        link.recv()
    os._exit(0)


def speeds(places: Sequence[Place]) -> list[Speed]:
    """Of the cores of these places, measured at the same time."""
    with Processes() as world:
        for place in places:
            world.start(_speed_main, place)
        world.answers()
        world.tell("go")
        found = world.answers()
        world.tell("end")
    return found


_LARGE = 4 << 20  # elements: what gradients travel in


def _link_main(link: Connection, place: Place, rank: int) -> None:
    place.enter()
    import torch

    from orchestrator.engine.groups import StoreServer, connect_store, form_group
    from orchestrator.engine.probe_links import pings, usual_s

    torch.set_num_threads(1)
    server = StoreServer(place.host)
    link.send(server.endpoint)
    endpoint = link.recv()
    store = connect_store(endpoint, LIMIT_S)
    group = form_group(
        "gloo",
        store,
        name="probe",
        epoch=1,
        rank=rank,
        size=2,
        bind_host=place.host,
        deadline_s=LIMIT_S,
        cancelled=threading.Event(),
    )
    latency = usual_s(pings(group, 1 - rank, device=torch.device("cpu"), count=200))
    took, out, into = [], torch.ones(_LARGE), torch.ones(_LARGE)
    for _ in range(25):
        group.barrier()
        began = time.perf_counter()
        group.exchange([(out, 1 - rank)], [(into, 1 - rank)], tag=1).wait()  # both ways at once, as reductions do
        took.append(time.perf_counter() - began)
    link.send(LinkSpeed(4 * _LARGE / sorted(took)[len(took) // 5], latency))
    with contextlib.suppress(EOFError):
        link.recv()
    os._exit(0)


def link_speed(places: Sequence[Place]) -> LinkSpeed:
    """Between processes in the first two places, as the engine's groups see it."""
    with Processes() as world:
        for rank, place in enumerate(places[:2]):
            world.start(_link_main, place, rank)
        endpoints = world.answers()
        world.tell(endpoints[0])
        found: list[LinkSpeed] = world.answers()
        world.tell("end")
    return max(found, key=lambda f: f.bandwidth)
