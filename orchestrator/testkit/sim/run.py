"""One seed: a world, a supervisor that is killed and started again, and a verdict.

The supervisor is the real driver (start_driver, then resume_driver after each crash) in virtual time. A run ends when the
driver says that the job is over, or when it took too long, which is a violation: once faults stop and there is room, every
job reaches an end.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass

from orchestrator.core.codec import to_json
from orchestrator.core.job import BadStep, FailureClass
from orchestrator.core.supervisor.events import Event
from orchestrator.core.supervisor.state import Outcome, State, WorkerPhase
from orchestrator.runtime.driver import Driver, resume_driver, start_driver
from orchestrator.runtime.ports import Record
from orchestrator.runtime.replay import tell, verify_replay
from orchestrator.testkit.fakes.journal import MemoryJournal
from orchestrator.testkit.sim.faults import Faults
from orchestrator.testkit.sim.hub import Fleet, Hub, Prober, Process
from orchestrator.testkit.sim.scenario import Kind, scenario
from orchestrator.testkit.sim.world import World
from orchestrator.testkit.virtual_time import VirtualClock, VirtualLoop

LIMIT_MS = 600_000  # after the calm began
RESTARTS_MAX = 50
AFTERMATH_MS = 20_000  # within which every process that can be reached has ended


class SupervisorKilled(BaseException):
    """Kills the supervisor inside a write to its journal."""


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict on a seed."""

    seed: int
    kind: str
    outcome: str
    violations: tuple[str, ...]
    story: tuple[str, ...]  # empty unless there are violations or it was asked for
    digest: str  # of the whole journal
    faults: int
    machines: int  # lost one at a time
    recoveries: int  # planned changes included
    planned: int
    shrunk: int
    grown: int
    steps_lost: int
    restarts: int  # of the supervisor
    records: int
    commands: int
    virtual_s: float


class Simulation:
    """One run of one seed."""

    def __init__(self, seed: int) -> None:
        self.scenario = scenario(seed)
        self.world = World(self.scenario)
        self.journal = MemoryJournal(before=self._before_write, after=self._after_write)
        self.process: Process | None = None
        self.task: asyncio.Task[State] | None = None
        self.driver: Driver | None = None
        self.restarts = 0
        self.dying = False
        self.too_long = False
        self.faults = Faults(self.world, kill_supervisor=self._kill, pause_supervisor=self._pause, ask=self._ask)

    def run(self, *, verbose: bool = False) -> Result:
        """To the end; never raises for what the simulated code does wrong."""
        world = self.world
        loop = VirtualLoop(world.timeline)
        world.timeline.after(self.scenario.calm_after_ms + LIMIT_MS, self._give_up)
        state: State | None
        try:
            state = loop.run_until_complete(self._supervise())
        except Exception as error:
            world.violation(f"the supervisor broke: {type(error).__name__}: {error}")
            state = self.driver.state if self.driver is not None else None
        virtual_s = world.timeline.now_us / 1e6
        if not world.violations and state is not None:
            self._aftermath(state)
        loop.close()
        world.checks.cost(virtual_s)
        mismatches = verify_replay(self.journal.whole())
        for mismatch in mismatches[:3]:
            world.violation(f"replay: {mismatch}")
        if state is not None:
            self._judge(state)
        return self._result(state, virtual_s, verbose)

    # ---- the supervisor's life

    async def _supervise(self) -> State:
        while True:
            driver = self._start()
            self.driver = driver
            self.task = asyncio.get_running_loop().create_task(driver.run())
            try:
                return await self.task
            except (asyncio.CancelledError, SupervisorKilled):
                if self.too_long:
                    return driver.state
            self._bury()
            self.restarts += 1
            if self.restarts > RESTARTS_MAX:
                raise RuntimeError("the supervisor is killed over and over")
            await asyncio.sleep(self.world.rng.choice((0.05, 0.3, 1.0, 2.0, 4.0)) * self.world.rng.uniform(0.5, 1.5))
            lost = self.journal.crash(self.world.rng.randint(0, 5)) if self.scenario.lossy_disk else 0
            self.world.tell_story(f"a new supervisor starts, {lost} record(s) were lost")

    def _start(self) -> Driver:
        world = self.world
        process = self.process = Process(world)
        self.dying = False
        hub, fleet = Hub(world, process), Fleet(world, process)
        clock = VirtualClock(world.timeline)
        prober = Prober(world)
        if self.restarts:
            driver = resume_driver(
                checkpoint=None,
                fleet=fleet,
                workers=hub,
                prober=prober,
                journal=self.journal,
                telemetry=world.checks,
                clock=clock,
            )
        else:
            driver = start_driver(
                self.scenario.job,
                checkpoint=None,
                fleet=fleet,
                workers=hub,
                prober=prober,
                journal=self.journal,
                telemetry=world.checks,
                clock=clock,
            )
        world.checks.resumed(driver.state)
        hub.driver = driver
        world.hub, world.fleet = hub, fleet
        if self.restarts and self.scenario.moves:
            world.address += 1
        return driver

    def _bury(self) -> None:
        if self.process is not None:
            self.process.alive = False
        hub, self.world.hub, self.world.fleet = self.world.hub, None, None
        if hub is not None:
            hub.die()

    def _kill(self) -> None:
        if self.task is None or self.task.done() or self.process is None:
            return
        self.world.tell_story("the supervisor is killed")
        if self.process.held_up:
            self.dying = True  # inside a write
            return
        self._bury()
        self.task.cancel()

    def _pause(self, for_ms: float) -> None:
        process = self.process
        if process is not None and process.alive:
            asyncio.get_running_loop().call_soon(lambda: process.hold_up(for_ms))

    def _ask(self, event: Event) -> bool:
        driver, process = self.driver, self.process
        if driver is None or process is None or not process.alive:
            return False
        process.run(lambda: driver.sink(event))
        return True

    def _give_up(self) -> None:
        state = self.driver.state if self.driver is not None else None
        self.world.violation(
            f"the job is not over {LIMIT_MS // 1000} s after the calm began: it is {state.phase if state else '?'}"
        )
        self.too_long = True
        if self.task is not None:
            self.task.cancel()

    # ---- the journal

    def _before_write(self, record: Record, durable: bool) -> None:
        process = self.process
        assert process is not None
        process.hold_up(self.faults.disk_ms * self.world.rng.random())
        self._die_inside()

    def _after_write(self, record: Record, durable: bool) -> None:
        self.world.checks.journaled(record, durable)
        self._note(record)
        process = self.process
        assert process is not None
        process.held_up = True  # a fault that strikes here strikes inside the write
        self.world.hook("journal")
        if record.commands:
            self.world.hook("journal with commands")
        process.go_on()
        self._die_inside()

    def _die_inside(self) -> None:
        if self.dying:
            self._bury()
            raise SupervisorKilled

    def _note(self, record: Record) -> None:
        commands = ", ".join(f"{type(c).__name__} {getattr(c, 'worker_id', '')}".strip() for c in record.commands)
        self.world.tell_story(
            f"#{record.seq} [{record.phase}, epoch {record.epoch}, step {record.committed_step}] {tell(record.event)[:220]}"
            + (f"\n        because {record.reason}" if record.reason else "")
            + (f"\n        -> {commands}" if commands else "")
        )

    # ---- the verdict

    def _aftermath(self, state: State) -> None:
        """Nobody is left who could be told to end."""
        world = self.world
        if not state.phase.terminal:
            return
        if not self.faults.calm:
            self.faults.end()
        world.timeline.play(AFTERMATH_MS)
        left = [w.worker_id for w in world.living() if not world.control_cut(w.node_id) and not w.stopped]
        if left:
            world.violation(f"the job is over, and {', '.join(left)} live on")

    def _judge(self, state: State) -> None:
        world, kind = self.world, self.scenario.kind
        fine = {Outcome.COMPLETED}
        if kind in (Kind.CHAOS, Kind.STINGY, Kind.CANCEL, Kind.ELASTIC, Kind.BAD, Kind.CORRUPT):
            fine.add(Outcome.UNRECOVERABLE)  # the checks know whether it had to be
        if kind is Kind.CORRUPT and world.flips:
            fine.add(Outcome.CORRUPT_STATE)
        if kind is Kind.BAD and self.scenario.job.resilience.on_bad_step is BadStep.FAIL:
            fine = {Outcome.CORRUPT_STATE, Outcome.UNRECOVERABLE}
        if kind is Kind.STINGY:
            fine.add(Outcome.BUDGET_SPENT)
        if kind is Kind.CANCEL:
            fine.add(Outcome.CANCELLED)
        if kind is Kind.USER:
            fine = {Outcome.USER_ERROR}
        if state.outcome not in fine:
            world.violation(f"a {kind} run ended as {state.phase} {state.outcome}: {state.last_word[:300]}")
        if kind in (Kind.CALM, Kind.PAUSES):
            lost = [w for w, worker in state.workers.items() if worker.phase is WorkerPhase.LOST]
            if lost or (state.recoveries and kind is Kind.CALM):  # an epoch may have to form again after a long pause
                world.violation(f"nothing failed, and {lost} were lost in {len(state.recoveries)} recoveries")
        if kind in (Kind.SINGLE, Kind.MACHINES) and state.steps_lost:
            world.violation(f"faults one at a time cost {state.steps_lost} steps")

    def _result(self, state: State | None, virtual_s: float, verbose: bool) -> Result:
        world = self.world
        digest = hashlib.sha256()
        for record in self.journal.written():
            digest.update(json.dumps(to_json(record), sort_keys=True).encode())
        story: tuple[str, ...] = ()
        if verbose or world.violations:
            story = tuple(f"{at:7d} ms  {text}" for at, text in world.story)
        return Result(
            seed=self.scenario.seed,
            kind=self.scenario.kind.value,
            outcome=state.outcome.value if state is not None else "",
            violations=tuple(world.violations),
            story=story,
            digest=digest.hexdigest(),
            faults=self.faults.struck,
            machines=self.faults.machines.lost,
            recoveries=len(state.recoveries) if state is not None else 0,
            planned=sum(r.failure is FailureClass.PLANNED for r in state.recoveries) if state is not None else 0,
            shrunk=world.checks.sizes.shrunk,
            grown=world.checks.sizes.grown,
            steps_lost=state.steps_lost if state is not None else 0,
            restarts=self.restarts,
            records=len(self.journal.written()),
            commands=world.checks.commands,
            virtual_s=virtual_s,
        )


def simulate(seed: int, *, verbose: bool = False) -> Result:
    """The verdict on a seed."""
    return Simulation(seed).run(verbose=verbose)
