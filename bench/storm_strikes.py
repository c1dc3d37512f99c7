"""Carrying a storm out: waits for each fault's occasion in the journal, chooses a victim among those that are there, and strikes.

It remembers whom it harmed and when, so that the verdict can hold what the status said against what was true. A victim is spared
where the fault would leave nobody who holds a region of the state, unless a checkpoint is durable: storms are hard, but there is
a way through each of them.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.storm_plan import DETECT_S, Storm, Strike
from orchestrator.core.job import Job
from orchestrator.core.plan.layout import Interval, subtract
from orchestrator.core.plan.plan import OPTIMIZER, Plan
from orchestrator.core.supervisor.commands import RunEpoch
from orchestrator.core.supervisor.events import CheckpointReported, Fault
from orchestrator.runtime.control import NotPossibleError
from orchestrator.runtime.ports import Record
from tests.world.disks import full
from tests.world.facts import Facts, Wanted, at_step, loses
from tests.world.machines import Machine
from tests.world.processes import System

OCCASION_S: Final = 12.0  # a fault whose occasion does not come within this is left out
NOTICED_S: Final = 2.0  # after which the cluster says that a machine is dead
BACK_S: Final = (0.5, 2.0)
SHORT_S: Final = (0.2, 0.7)  # of DETECT_S: nothing that may be noticed
SLOW_MBIT: Final = (8.0, 30.0)


class TooLate(Exception):
    """The run ended before the occasion, or the occasion did not come."""


@dataclass(slots=True)
class Harm:
    """A worker that was harmed for good, from then on."""

    worker_id: str
    since_s: float
    how: str


@dataclass(slots=True)
class Weather:
    """One storm under way."""

    storm: Storm
    job: Job
    system: System
    disk: Path  # where the checkpoints are
    facts: list[Facts] = field(default_factory=list)  # of journals that are closed: the job was ended and submitted again
    harmed: dict[str, Harm] = field(default_factory=dict)
    struck: list[str] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    later: list[asyncio.Task[None]] = field(default_factory=list)
    seq: int = 0

    # ---- watching

    async def records(self) -> list[Record]:
        """The journal so far."""
        return await self.system.records(self.job.name)

    async def wait_for(self, wanted: Wanted, *, after: int = 0, limit_s: float = OCCASION_S) -> Record:
        """Raises TooLate."""
        try:
            async with asyncio.timeout(limit_s):
                return await self.system.until(self.job, wanted, after=after)
        except (TimeoutError, AssertionError):
            raise TooLate from None

    # ---- the faults

    async def rage(self) -> None:
        """All of them, one after another; returns when the last has struck or the run is over."""
        try:
            await self.wait_for(at_step(1), limit_s=60.0)
            for strike in self.storm.strikes:
                await self._occasion(strike)
                what = await self._strike(strike, random.Random(strike.draw))
                if what:
                    self.struck.append(what)
        except (TooLate, NotPossibleError):
            self.struck.append("(the run was over)")

    async def settle(self) -> None:
        """What was to come later has come: machines and processes are as they were."""
        await asyncio.gather(*self.later)

    async def _occasion(self, strike: Strike) -> None:
        last = (await self.records())[-1]
        if strike.occasion == "step":
            await self.wait_for(at_step(last.committed_step + strike.steps), after=last.seq)
            return
        with suppress(TooLate):  # where there is no recovery any more the fault strikes all the same
            await self.wait_for(lambda r: r.phase == strike.occasion, after=self.seq, limit_s=2 * DETECT_S)

    async def _strike(self, strike: Strike, r: random.Random) -> str:
        records = await self.records()
        self.seq, step = records[-1].seq, records[-1].committed_step
        plan = newest_plan(records)
        match strike.kind:
            case "nan" | "flip" | "kill":
                ranks = [s.rank for s in plan.seats if strike.kind == "nan" or self._may_lose([s.worker_id], records)]
                if not ranks or (strike.kind == "flip" and len(ranks) < 3):
                    return ""
                rank, micro_batch = r.choice(ranks), r.randint(0, 2)
                kind = "kill-worker" if strike.kind == "kill" else strike.kind
                fault = Fault(kind, rank, "", step + 2, micro_batch, 0)
                worker = plan.seats[rank].worker_id
                if strike.kind != "nan":
                    self._harm(worker, f"{strike.kind} in step {step + 2}", when=float("inf"))
                await self.system.supervisor.service.inject(self.job.name, fault=fault, who="storm")
                if strike.kind == "flip":  # until it is voted out, or whoever is lost meanwhile could be one of the majority
                    await self.wait_for(loses(worker), after=self.seq)
                return f"{kind} of rank {rank} in step {step + 2}"
            case "kill-now" | "stop" | "pause":
                return await self._signal(strike.kind, r, records)
            case "node" | "nodes" | "partition" | "blip" | "slow-link":
                return await self._machines(strike.kind, r, records)
            case "disk":
                return await self._disk()
            case "supervisor":
                await self.system.replace_supervisor()
                return "supervisor replaced"
            case "cancel":
                return await self._cancel()
        raise AssertionError(strike.kind)

    async def _signal(self, kind: str, r: random.Random, records: list[Record]) -> str:
        able = [w for w in self._alive() if kind == "pause" or self._may_lose([w], records)]
        if not able:
            return ""
        worker = r.choice(able)
        process = self.system.processes[worker]
        if kind == "kill-now":
            self._harm(worker, "killed")
            process.kill()
            return f"SIGKILL of {worker}"
        process.send_signal(signal.SIGSTOP)
        if kind == "pause":
            pause_s = r.uniform(*SHORT_S) * DETECT_S / 2
            self._then(pause_s, lambda: process.send_signal(signal.SIGCONT))
            return f"{worker} pauses for {pause_s:.1f} s"
        self._harm(worker, "stopped")
        self.stopped.add(worker)
        self.later.append(asyncio.create_task(self._continue(worker, r.uniform(*BACK_S))))
        return f"SIGSTOP of {worker}"

    async def _continue(self, worker: str, after_s: float) -> None:
        with suppress(TooLate):
            await self.wait_for(loses(worker))
        await asyncio.sleep(after_s)
        self.system.processes[worker].send_signal(signal.SIGCONT)

    async def _machines(self, kind: str, r: random.Random, records: list[Record]) -> str:
        machines = [m for m in self.system.machines.all if m.reachable and not m.declared_dead]
        short = kind in ("blip", "slow-link")
        wanted = 2 if kind == "nodes" else 1
        r.shuffle(machines)
        chosen: list[Machine] = []
        for machine in machines:
            workers = [w for m in (*chosen, machine) for w in self._on(m)]
            if len(chosen) < wanted and self._on(machine) and (short or self._may_lose(workers, records)):
                chosen.append(machine)
        if not chosen:
            return ""
        names = " and ".join(m.node_id for m in chosen)
        if kind == "slow-link":
            mbit = r.uniform(*SLOW_MBIT)
            self.system.machines.throttle(chosen[0], mbit)
            self._then(r.uniform(1.0, 3.0), lambda: self.system.machines.throttle(chosen[0], None))
            return f"{names} at {mbit:.0f} Mbit/s"
        if kind == "blip":
            pause_s = r.uniform(*SHORT_S) * DETECT_S / 2
            self.system.machines.unplug(chosen[0])
            self._then(pause_s, lambda: self.system.plug(chosen[0]))
            return f"{names} cut off for {pause_s:.1f} s"
        off = kind in ("node", "nodes")
        for machine in chosen:
            for worker in self._on(machine):
                self._harm(worker, "without power" if off else "cut off")
            if off:
                self.system.power_off(machine)
            else:
                self.system.machines.unplug(machine)
            self.later.append(asyncio.create_task(self._back(machine, r.uniform(*BACK_S))))
        return f"{names} {'without power' if off else 'cut off'}"

    async def _back(self, machine: Machine, after_s: float) -> None:
        await asyncio.sleep(NOTICED_S)
        self.system.declare_dead(machine)
        await asyncio.sleep(after_s)
        await self.system.plug(machine)

    async def _disk(self) -> str:
        """Full until a checkpoint has failed."""
        after = (await self.records())[-1].seq
        with full(self.disk):
            await self.wait_for(lambda r: isinstance(r.event, CheckpointReported) and not r.event.ok, after=after)
        return "full disk until a checkpoint failed"

    async def _cancel(self) -> str:
        if not any(is_durable(r) for r in await self.records()):
            await self.wait_for(is_durable)
        service = self.system.supervisor.service
        await service.cancel(self.job.name, who="storm")
        await self.settle()
        self.facts.append(await self.system.finish(self.job))
        self.harmed.clear()
        self.seq = 0
        await service.submit(job=self.job, yaml_text="")
        await self.wait_for(at_step(1), limit_s=60.0)
        return "cancelled and submitted again"

    # ---- who is there

    def _harm(self, worker: str, how: str, *, when: float | None = None) -> None:
        self.harmed[worker] = Harm(worker, time.monotonic() if when is None else when, how)

    def _alive(self) -> list[str]:
        return [
            w
            for w, p in self.system.processes.items()
            if p.returncode is None and w not in self.harmed and self.system.homes[w].reachable
        ]

    def _on(self, machine: Machine) -> list[str]:
        return [w for w in self._alive() if self.system.homes[w] is machine]

    def _may_lose(self, workers: Iterable[str], records: list[Record]) -> bool:
        """Whether the job can go on without them, and those that were harmed before."""
        gone = {*workers, *self.harmed}
        plans = [
            c.plan for r in records for c in r.commands if isinstance(c, RunEpoch) and c.worker_id == c.plan.seats[0].worker_id
        ]
        stay = [s.worker_id for s in plans[-1].seats if s.worker_id not in gone]
        if not stay:
            return False
        if self.storm.checkpoints and any(is_durable(r) for r in records):
            return True
        running = {r.epoch for r in records if r.phase == "running"}
        held = [p for p in plans if p.epoch in running][-1:] + plans[-1:]
        return all(_covers(plan, gone) for plan in held)

    def _then(self, after_s: float, do: Callable[[], object]) -> None:
        async def wait() -> None:
            await asyncio.sleep(after_s)
            done = do()
            if asyncio.iscoroutine(done):
                await done

        self.later.append(asyncio.create_task(wait()))


def is_durable(record: Record) -> bool:
    """Whether it tells of a durable checkpoint."""
    return isinstance(record.event, CheckpointReported) and record.event.ok


def newest_plan(records: list[Record]) -> Plan:
    """The plan that was started last."""
    return [c.plan for r in records for c in r.commands if isinstance(c, RunEpoch)][-1]


def _covers(plan: Plan, gone: set[str]) -> bool:
    layout = plan.layout(OPTIMIZER)
    held = [i for s in plan.seats if s.worker_id not in gone for i in layout.holdings[s.rank].everything]
    return not subtract((Interval(0, layout.numel),), held)
