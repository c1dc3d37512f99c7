"""A whole system without Ray: the real supervisor, gRPC, journal and engine over worker processes that this fleet starts.

Nodes are names here, or network namespaces (machines.py); everything else is real. It is what makes a failure story testable in
seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from orchestrator.adapters.files.home import Home
from orchestrator.adapters.files.journal import SqliteJournal
from orchestrator.apps.supervisor import Supervisor, WorkerSettings
from orchestrator.core.job import Job
from orchestrator.core.supervisor.commands import KillWorker, SpawnWorker
from orchestrator.core.supervisor.events import ClusterChanged, Event, Fault, SpawnFailed, WorkerGone
from orchestrator.runtime.entry import PAST_FOLDER
from orchestrator.runtime.ports import Clock, Record, Sink
from orchestrator.runtime.replay import story, verify_replay
from tests.world.facts import Facts
from tests.world.machines import LOOPBACK, Machine, Machines
from tests.world.relay import Relay
from tests.world.spawning import WorkerProcess

CLUSTER = "test"
WAIT_S = 200.0  # for one record or the end; less than a test's limit


class ProcessFleet:
    """Implements runtime.ports.Fleet with processes of `system`, which live on where its `kill_lost` is false."""

    def __init__(self, job: Job, settings: WorkerSettings, *, system: System) -> None:
        self._job = job
        self._settings = settings
        self._system = system
        self._sink: Sink | None = None
        self._watches: list[asyncio.Task[None]] = []

    async def start(self, sink: Sink) -> None:
        """Say what the cluster looks like."""
        self._sink = sink
        self._system.machines.make(self._job.cluster)
        self.look()

    def tell(self, event: Event) -> None:
        """Pass a fact on."""
        assert self._sink is not None
        self._sink(event)

    def look(self) -> None:
        """The cluster looks different now."""
        self.tell(ClusterChanged(0, self._system.machines.view()))

    async def spawn(self, command: SpawnWorker) -> None:
        """Start it, behind a relay if the test asked for them; a machine that cannot be reached lets it wait."""
        system = self._system
        if command.worker_id in system.processes or not system.machines.has(command.node_id):
            return
        machine = system.machines.of(command.node_id)
        if not machine.reachable:
            machine.waiting.append(command)
            return
        settings = {**self._settings.of(command.worker_id, command.node_id), "bind_host": machine.address}
        if system.relayed:
            relay = system.relays[command.worker_id] = Relay(system.address)
            settings["endpoint"] = await relay.start()
        process = WorkerProcess(
            settings,
            output=system.output_of(command.worker_id),
            endpoint_file=None if system.relayed else system.home.endpoint_file(CLUSTER),
            namespace=machine.namespace,
            flips=system.flips,
        )
        system.processes[command.worker_id] = process
        system.homes[command.worker_id] = machine
        self._watches.append(asyncio.create_task(self._watch(command.worker_id, process)))

    async def _watch(self, worker_id: str, process: WorkerProcess) -> None:
        code = await process.wait()
        evidence = f"its process ended with {code}"
        if code > 0:
            evidence = f"exit code {code}: {process.said().strip()}"
        machine = self._system.homes[worker_id]
        if not machine.reachable:
            machine.ended.append((worker_id, evidence))
            return
        if code > 0:
            self.tell(SpawnFailed(0, worker_id, evidence))
        self.tell(WorkerGone(0, worker_id, evidence))

    async def adopt(self, worker_ids: Sequence[str]) -> None:
        """Watch again; those of an earlier system are gone."""
        for worker_id in worker_ids:
            process = self._system.processes.get(worker_id)
            if process is not None:
                self._watches.append(asyncio.create_task(self._watch(worker_id, process)))
            elif not any(c.worker_id == worker_id for m in self._system.machines.all for c in m.waiting):
                self.tell(WorkerGone(0, worker_id, "nobody knows its process"))

    async def kill(self, command: KillWorker) -> None:
        """SIGKILL, if its machine can be reached."""
        process = self._system.processes.get(command.worker_id)
        if self._system.kill_lost and process is not None and self._system.homes[command.worker_id].reachable:
            process.kill()

    async def close(self) -> None:
        """Forget them; end what is left."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        if self._system.kill_lost:
            for worker_id, process in self._system.processes.items():
                if self._system.homes[worker_id].reachable:
                    process.kill()


class System:
    """One supervisor and its worker processes; use as an async context. At the end every journal must replay as it was written.

    With `kill_lost` False a worker that was declared lost lives on, as behind a broken network, and must be refused.
    `relayed`: each worker's stream goes through a Relay of its own. `open_journal`: for a disk that misbehaves. `machines`: of
    one job; without them nodes are names. `flips`: see WorkerProcess.
    """

    def __init__(
        self,
        root: Path,
        *,
        kill_lost: bool = True,
        relayed: bool = False,
        open_journal: Callable[[Path], SqliteJournal] = SqliteJournal,
        machines: Machines | None = None,
        host: str = LOOPBACK,
        flips: float = 0.0,
    ) -> None:
        self.home = Home(root)
        self.kill_lost = kill_lost
        self.processes: dict[str, WorkerProcess] = {}
        self.relayed = relayed
        self.relays: dict[str, Relay] = {}
        self.machines = machines or Machines()
        self.homes: dict[str, Machine] = {}  # worker -> where it lives
        self.flips = flips
        self._host = host
        self._fleet: ProcessFleet | None = None
        self._open_journal = open_journal
        self.supervisor = self._new()

    def _new(self) -> Supervisor:
        def fleet(job: Job, settings: WorkerSettings, clock: Clock) -> ProcessFleet:
            self._fleet = ProcessFleet(job, settings, system=self)
            return self._fleet

        return Supervisor(
            home=self.home,
            cluster=CLUSTER,
            ray_address="",
            token="t" * 43,
            make_fleet=fleet,
            host=self._host,
            open_journal=self._open_journal,
        )

    async def __aenter__(self) -> System:
        await self.supervisor.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.crash()
        if kind is None:
            self.check_journals()

    async def crash(self) -> None:
        """SIGKILL every worker and leave the supervisor as a crash would: nothing is said to anybody."""
        try:
            for process in self.processes.values():
                process.kill()
        finally:
            await self.supervisor.close()
        for process in self.processes.values():
            await process.wait()
        for relay in self.relays.values():
            await relay.close()

    def check_journals(self) -> None:
        """Every decision that was written down is the one that the program makes of the same events."""
        past = self.home.jobs / PAST_FOLDER
        for folder in (*self.home.jobs.iterdir(), *(past.iterdir() if past.is_dir() else ())):
            if folder.name == PAST_FOLDER:
                continue
            journal = SqliteJournal(folder, read_only=True)
            assert verify_replay(journal) == ()
            journal.close()

    def address(self) -> str:
        """Of the newest supervisor: another one where its predecessor's port was taken meanwhile."""
        endpoint = self.home.read_endpoint(CLUSTER)
        assert endpoint is not None
        return endpoint.address

    async def end_supervisor(self) -> None:
        """End the supervisor as a crash would: nothing is said to anybody."""
        await self.supervisor.close()

    async def start_supervisor(self) -> None:
        """Start another one on the same journals."""
        self.supervisor = self._new()
        await self.supervisor.start()

    async def replace_supervisor(self) -> None:
        """End it and start another."""
        await self.end_supervisor()
        await self.start_supervisor()

    # ---- machines that fail

    def power_off(self, machine: Machine) -> None:
        """Pull its power cord: its processes end and nobody hears a word of it."""
        self.machines.unplug(machine)
        machine.power = False
        for worker_id, home in self.homes.items():
            if home is machine:
                self.processes[worker_id].kill()

    def declare_dead(self, machine: Machine) -> None:
        """The cluster notices that a machine does not answer."""
        machine.declared_dead = True
        self.look()

    async def plug(self, machine: Machine) -> None:
        """It is within reach again, without the processes that it had when its power went; what waited for it is done."""
        self.machines.plug(machine)
        waiting, machine.waiting = machine.waiting, []
        ended, machine.ended = machine.ended, []
        self.look()
        assert self._fleet is not None
        for worker_id, evidence in ended:
            self._fleet.tell(WorkerGone(0, worker_id, evidence))
        for command in waiting:
            await self._fleet.spawn(command)

    def look(self) -> None:
        """Tell the supervisor, if there is one, what the cluster looks like."""
        if self._fleet is not None:
            self._fleet.look()

    def output_of(self, worker_id: str) -> Path:
        """File with what a worker prints."""
        folder = self.home.root / "output"
        folder.mkdir(exist_ok=True)
        return folder / f"{worker_id.replace('/', '-')}.txt"

    # ---- what a test does with it

    async def submit(self, job: Job, *faults: Fault) -> None:
        """Start a job and ask for its faults; those that come before an epoch runs wait for it."""
        await self.supervisor.service.submit(job=job, yaml_text="")
        for fault in faults:
            await self.supervisor.service.inject(job.name, fault=fault, who="test")

    async def finish(self, job: Job) -> Facts:
        """Wait for the end; AssertionError with the story when it does not come."""
        async with self._limited(job.name, "the end"):
            state = await self.supervisor.service.finished(job.name)
        return Facts(await self.records(job.name), state)

    async def run(self, job: Job, *faults: Fault) -> Facts:
        """Submit and wait for the end."""
        await self.submit(job, *faults)
        return await self.finish(job)

    async def records(self, name: str) -> list[Record]:
        """The journal so far."""
        return [r async for r in self.supervisor.service.watch_events(name, after_seq=0, follow=False)]

    async def until(self, job: Job, wanted: Callable[[Record], bool], *, after: int = 0) -> Record:
        """The first such record, past or to come; AssertionError when the job ends without one, or when none comes."""
        seen: list[Record] = []
        watched = self.supervisor.service.watch_events(job.name, after_seq=after, follow=True)
        async with self._limited(job.name, "a record"), aclosing(watched) as records:
            async for record in records:
                if wanted(record):
                    return record
                seen.append(record)
        raise AssertionError(f"{job.name} ended without the record that was waited for:\n{story(seen)}")

    @asynccontextmanager
    async def _limited(self, name: str, what: str) -> AsyncIterator[None]:
        """Nothing is waited for until the test's own limit, which could not tell the story."""
        try:
            async with asyncio.timeout(WAIT_S):
                yield
        except TimeoutError:
            records = await self.records(name)
            raise AssertionError(f"{name}: {what} did not come within {WAIT_S:.0f} s; so far:\n{story(records)}") from None

    async def log(self, job: Job) -> str:
        """What the workers' logs hold now."""
        lines = self.supervisor.service.tail_logs(job.name, rank=None, follow=False)
        return "\n".join([line.text async for line in lines])
