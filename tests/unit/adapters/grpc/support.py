"""What the tests of the gRPC adapter share: a real server on loopback, a raw worker, a handler that remembers.

Everything waits for events, none of it sleeps; a wait that never ends fails with what was seen so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import grpc

from orchestrator.adapters.grpc.auth import bearer
from orchestrator.adapters.grpc.convert import FromSupervisor, FromWorker, from_supervisor, from_worker_to_proto
from orchestrator.adapters.grpc.hub import HubHandlers, WorkerHub
from orchestrator.adapters.grpc.pb.v1 import worker_pb2_grpc
from orchestrator.adapters.grpc.server import SupervisorServer
from orchestrator.core.cluster.view import ClusterView, NodeView
from orchestrator.core.job import DeviceKind, Job
from orchestrator.core.plan.plan import MeshAxis
from orchestrator.core.supervisor.events import CancelRequested, Event, Fault, WorkerHello
from orchestrator.core.supervisor.state import ChangeKind, JobPhase, Outcome
from orchestrator.core.timeouts import Timeouts, derive
from orchestrator.runtime.checkpoint_types import CheckpointInfo, CheckpointVerdict, DamagedFile, ExportedModel, ExportType
from orchestrator.runtime.control import BadRequestError, Decided, Explanation, NotFoundError, NotPossibleError
from orchestrator.runtime.ports import Beat, LogLine, Record, Welcome
from orchestrator.runtime.prediction import PredictionStatus
from orchestrator.runtime.status_types import ChangeStatus, JobStatus
from orchestrator.testkit.jobs import make_graph

T = TypeVar("T")

TOKEN = "token-of-the-tests"
TIMEOUTS = derive(4000)
WAIT_S = 60.0  # far beyond anything that happens; only a failing test waits that long
GRAPH = make_graph(6)


def hello(worker_id: str, **changes: Any) -> WorkerHello:
    return replace(
        WorkerHello(
            at_ms=0,
            worker_id=worker_id,
            node_id="n1",
            pid=7,
            endpoint="127.0.0.1:1",
            graph=GRAPH,
            epoch=0,
            running=False,
            held=None,
            costs=None,
        ),
        **changes,
    )


def beat(worker_id: str, step: int = 0) -> Beat:
    return Beat(worker_id, 1, step, "forward", 2, 3, False, False, 4, 5)


class StepClock:
    """Each look at it is one millisecond later than the last."""

    def __init__(self) -> None:
        self.ms = 1000

    def now_ms(self) -> int:
        self.ms += 1
        return self.ms

    def wall_s(self) -> float:
        return self.ms / 1000


class Seen(list[T]):
    """A list that can be waited for, on the event loop that fills it."""

    def __init__(self) -> None:
        super().__init__()
        self._grown = asyncio.Event()

    def take(self, item: T) -> None:
        self.append(item)
        self._grown.set()

    async def first(self, wanted: Callable[[T], bool], *, start: int = 0) -> T:
        """The first item from `start` on that is wanted, awaited."""
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    for item in self[start:]:
                        if wanted(item):
                            return item
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            raise AssertionError(f"waited in vain; seen: {list(self)}") from None

    async def of(self, kind: type[Any], *, start: int = 0) -> Any:
        return await self.first(lambda item: isinstance(item, kind), start=start)


@dataclass
class Heard:
    """What the hub passed on."""

    committed_step: int = 0
    refusal: str = ""  # of the driver, for every hello
    events: Seen[Event] = field(default_factory=Seen)
    beats: Seen[Beat] = field(default_factory=Seen)
    lines: Seen[LogLine] = field(default_factory=Seen)
    stacks: Seen[tuple[str, str]] = field(default_factory=Seen)

    def handlers(self) -> HubHandlers:
        return HubHandlers(
            sink=self.events.take,
            welcome=lambda _hello: Welcome(not self.refusal, self.refusal, self.committed_step),
            on_beat=self.beats.take,
            on_log=self.lines.take,
            on_stacks=lambda worker_id, text: self.stacks.take((worker_id, text)),
        )


STATUS = JobStatus(
    name="j",
    phase=JobPhase.RUNNING,
    outcome=Outcome.NONE,
    last_word="",
    step=3,
    steps=10,
    loss=1.5,
    eval_loss=None,
    epoch=2,
    tokens_per_s=100.0,
    eta_s=None,
    goodput=0.75,
    recoveries=1,
    steps_lost=0,
    survivors_restarted=0,
    budget=3,
    budget_max=4,
    workers=(),
    nodes=(),
    decision=None,
    checkpoint=None,
    plan=None,
    prediction=PredictionStatus(
        epoch=2,
        step_ms=10.5,
        measured_step_ms=None,
        steps=0,
        step_error=None,
        memory_bytes=1 << 30,
        measured_memory_bytes=1 << 29,
        memory_error=-0.5,
    ),
    target=(MeshAxis("pipeline", 1), MeshAxis("data", 2), MeshAxis("tensor", 1)),
    shrunk=True,
    change=ChangeStatus(kind=ChangeKind.GROW, why="n3 is back"),
    skipped=1,
)
CHECKPOINT = CheckpointInfo(
    step=5,
    uri="/c/step-00000005",
    complete=True,
    trouble="",
    job="j",
    digest="d5",
    size_bytes=1 << 40,
    files=3,
    epoch=2,
    ranks=2,
    plan="epoch 2, 2 ranks",
)
VERDICT = CheckpointVerdict(info=CHECKPOINT, damaged=(DamagedFile(name="a", why="it is missing"),), digest="", trouble="no")
EXPORTED = ExportedModel(path="/m", job="j", step=5, digest="d5", tensors=2, size_bytes=10, dtype=ExportType.BF16)
CLUSTER = ClusterView(4, (NodeView("n1", "127.0.0.1", DeviceKind.CPU, 2, 1 << 30, True),))


def record(seq: int) -> Record:
    return Record(seq, 5, 6.5, CancelRequested(5, "me"), (), f"reason {seq}", "running", 1, 3)


class FakeControl:
    """A ControlHandler for one job named j."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.watching = asyncio.Event()
        self.closed = asyncio.Event()

    def _known(self, name: str) -> None:
        if name not in ("", "j"):
            raise NotFoundError(f"no job named {name}")

    async def submit(self, *, job: Job, yaml_text: str) -> str:
        if job.train.steps == 0:
            raise BadRequestError("\n".join(f"line {n}: impossible é" for n in range(200)))
        self.calls.append(("submit", job, yaml_text))
        return job.name

    async def get(self, name: str) -> JobStatus:
        self._known(name)
        if name == "":
            raise RuntimeError("a bug")
        return STATUS

    async def list_jobs(self) -> Sequence[JobStatus]:
        return (STATUS,)

    async def watch_events(self, name: str, *, after_seq: int, follow: bool) -> AsyncGenerator[Record, None]:
        self._known(name)
        try:
            for seq in range(after_seq + 1, 4):
                yield record(seq)
            if follow:
                self.watching.set()
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def watch_status(self, name: str) -> AsyncGenerator[JobStatus, None]:
        self._known(name)
        yield STATUS
        yield replace(STATUS, phase=JobPhase.SUCCEEDED, outcome=Outcome.COMPLETED, step=10)

    async def tail_logs(self, name: str, *, rank: int | None, follow: bool) -> AsyncGenerator[LogLine, None]:
        self._known(name)
        for line in (LogLine("w0", 0, "zero"), LogLine("w1", 1, "one"), LogLine("w2", -1, "spare")):
            if rank in (None, line.rank):
                yield line

    async def explain(self, name: str, *, seq: int) -> Explanation:
        self._known(name)
        if seq > 3:
            raise NotFoundError(f"no record {seq}")
        return Explanation(record(seq), ("because",))

    async def inject(self, name: str, *, fault: Fault, who: str) -> None:
        self._known(name)
        self.calls.append(("inject", fault, who))

    async def cancel(self, name: str, *, who: str) -> None:
        self._known(name)
        raise NotPossibleError("the job is over")

    async def drain(self, name: str, *, node_id: str, who: str, why: str) -> Decided:
        return self._decided(name, ("drain", node_id, who, why))

    async def node_gone(self, name: str, *, node_id: str, who: str, evidence: str) -> Decided:
        return self._decided(name, ("node_gone", node_id, who, evidence))

    async def suspend(self, name: str, *, who: str, why: str) -> Decided:
        return self._decided(name, ("suspend", who, why))

    async def go_on(self, name: str, *, who: str) -> Decided:
        return self._decided(name, ("go_on", who))

    async def scale(self, name: str, *, nodes: int, layers_per_stage: tuple[int, ...], who: str) -> Decided:
        if nodes > 9:
            raise NotPossibleError("there are 4 nodes")
        return self._decided(name, ("scale", nodes, layers_per_stage, who))

    async def replace_worker(self, name: str, *, worker_id: str, rank: int | None, who: str) -> Decided:
        return self._decided(name, ("replace", worker_id, rank, who))

    async def take_checkpoint(self, name: str, *, who: str) -> Decided:
        return self._decided(name, ("checkpoint", who))

    async def list_checkpoints(self, name: str, *, uri: str) -> Sequence[CheckpointInfo]:
        self._known(name)
        return (CHECKPOINT, replace(CHECKPOINT, step=0, complete=False, trouble="it was never completed", job="", plan=""))

    async def verify_checkpoint(self, name: str, *, uri: str, step: int | None) -> CheckpointVerdict:
        self._known(name)
        self.calls.append(("verify", uri, step))
        return VERDICT

    async def export_checkpoint(self, name: str, *, uri: str, step: int | None, path: str, dtype: ExportType) -> ExportedModel:
        self._known(name)
        self.calls.append(("export", uri, step, path, dtype))
        return EXPORTED

    def _decided(self, name: str, call: tuple[Any, ...]) -> Decided:
        self._known(name)
        self.calls.append(call)
        return Decided(7, f"{call[0]} by {call[-1]}")

    async def cluster(self) -> ClusterView:
        return CLUSTER

    async def shutdown(self, *, who: str) -> None:
        self.calls.append(("shutdown", who))


@dataclass
class Running:
    """A server that runs, and what surrounds it."""

    address: str
    hub: WorkerHub
    heard: Heard
    control: FakeControl
    server: SupervisorServer

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@asynccontextmanager
async def serving(
    *, port: int = 0, committed_step: int = 0, heard: Heard | None = None, queue_max: int = 64, timeouts: Timeouts = TIMEOUTS
) -> AsyncIterator[Running]:
    hub = WorkerHub(clock=StepClock(), timeouts=timeouts, queue_max=queue_max)
    heard = heard or Heard(committed_step=committed_step)
    hub.attach(heard.handlers())
    control = FakeControl()
    server = SupervisorServer(hub=hub, control=control, token=TOKEN, timeouts=timeouts)
    address = await server.start(port=port)
    try:
        yield Running(address, hub, heard, control, server)
    finally:
        await server.stop()


class RawWorker:
    """One stream by hand, on the test's event loop."""

    def __init__(self, channel: grpc.aio.Channel, call: Any, worker_id: str) -> None:
        self.channel = channel
        self.call = call
        self.worker_id = worker_id

    async def say(self, value: FromWorker) -> bool:
        """False when the stream is over."""
        try:
            await self.call.write(from_worker_to_proto(value))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        return True

    async def hear(self) -> FromSupervisor | None:
        """The next message; None when the stream was ended in order. Raises AioRpcError otherwise."""
        async with asyncio.timeout(WAIT_S):
            message = await self.call.read()
        if message is grpc.aio.EOF:  # type: ignore[attr-defined] # the stubs lack it
            return None
        return from_supervisor(message, worker_id=self.worker_id)

    async def cut(self) -> None:
        """Break the stream without a word."""
        self.call.cancel()
        await self.channel.close(None)


async def raw_worker(address: str, worker_id: str, *, token: str = TOKEN) -> RawWorker:
    channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
    stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
    return RawWorker(channel, stub.Connect(metadata=bearer(token)), worker_id)
