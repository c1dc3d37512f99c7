"""The hub of the worker streams: the supervisor's side of WorkerService.

Each worker has at most one stream, the newest; a fenced worker has none. What workers say becomes core events, stamped with the
time they were heard. Each WorkerHello is followed, the moment its stream is over for whatever reason, by a WorkerDisconnected, or
by the next hello when a newer stream takes its place. All of it runs on the supervisor's event loop; no method may be called from
another thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import grpc

from orchestrator.adapters.grpc.convert import FromSupervisor, Goodbye, LogLines, Stacks, from_supervisor_to_proto, from_worker
from orchestrator.adapters.grpc.mirror import ConvertError
from orchestrator.adapters.grpc.options import DETAILS_MAX
from orchestrator.adapters.grpc.pb.v1 import worker_pb2, worker_pb2_grpc
from orchestrator.core.supervisor.events import WorkerDisconnected, WorkerHello
from orchestrator.core.timeouts import Timeouts
from orchestrator.runtime.ports import Beat, Clock, LogLine, NotReady, Sink, Welcome, WorkerCommand

log = logging.getLogger(__name__)

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined] # the stubs lack it

QUEUE_MAX = 64  # commands that wait for one worker to read them; more means that it does not, and its stream is cut

Context: TypeAlias = "grpc.aio.ServicerContext[worker_pb2.WorkerMessage, worker_pb2.SupervisorMessage]"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubHandlers:
    """Where things that are heard go. Called on the event loop; they must return soon and not raise."""

    sink: Sink
    welcome: Callable[[WorkerHello], Welcome]  # asked before the hello goes into the sink
    on_beat: Callable[[Beat], None]
    on_log: Callable[[LogLine], None]
    on_stacks: Callable[[str, str], None]  # worker id, text


class WorkerHub(worker_pb2_grpc.WorkerServiceServicer):
    """Implements runtime.ports.Workers over gRPC streams. `attach` comes before the server starts."""

    def __init__(self, *, clock: Clock, timeouts: Timeouts, queue_max: int = QUEUE_MAX) -> None:
        self._clock = clock
        self._timeouts = timeouts
        self._queue_max = queue_max
        self._handlers: HubHandlers | None = None
        self._streams: dict[str, _Stream] = {}
        self._refused: dict[str, str] = {}  # one entry per worker ever lost: ids are never used again
        self._closing = False

    def attach(self, handlers: HubHandlers) -> None:
        """Say where things go; once."""
        if self._handlers is not None:
            raise RuntimeError("the hub has its handlers already")
        self._handlers = handlers

    @property
    def connected(self) -> tuple[str, ...]:
        """Ids of the workers that have a stream, sorted."""
        return tuple(sorted(self._streams))

    async def send(self, command: WorkerCommand) -> bool:
        """Queue a command. False when the worker has no stream, or does not read it (its stream is then cut)."""
        stream = self._streams.get(command.worker_id)
        if stream is None:
            return False
        if stream.put(command):
            return True
        self._drop(stream, f"{self._queue_max} commands wait unread")
        return False

    def refuse(self, worker_id: str, why: str) -> None:
        """Fence a worker for ever: nothing it says counts from here on; its stream ends with the reason as its last word."""
        self._refused[worker_id] = why
        stream = self._streams.get(worker_id)
        if stream is not None:
            stream.end(last_word=Welcome(False, why, 0), grace_s=self._grace_s)
            self._drop(stream, f"refused: {why}")

    def close(self) -> None:
        """End all streams (no event follows) and take no new ones: the workers go on by themselves and look for us again."""
        self._closing = True
        for stream in self._streams.values():
            stream.end(last_word=None, grace_s=self._grace_s)
        self._streams.clear()

    @property
    def _grace_s(self) -> float:
        return self._timeouts.suspect_ms / 1000

    # ---- gRPC

    async def Connect(self, _requests: object, context: Context) -> None:
        """One stream, from its hello to its end."""
        handlers = self._handlers
        if handlers is None or self._closing:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the supervisor is not ready for workers")
        hello = await self._hello(context)
        try:
            answer = self._answer(handlers, hello)
        except NotReady as e:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))
        if not answer.accepted:
            await context.write(from_supervisor_to_proto(answer))
            return
        stream = _Stream(hello.worker_id, self._queue_max)
        older = self._streams.get(hello.worker_id)
        self._streams[hello.worker_id] = stream
        if older is not None:
            older.end(last_word=None, grace_s=self._grace_s)
        stream.put(answer)
        handlers.sink(hello)
        detail = "the connection broke"
        try:
            detail = await self._serve(handlers, stream, context)
        except ConvertError as e:
            detail = f"a message made no sense: {e}"
            await _invalid(context, str(e))
        finally:
            self._drop(stream, detail)

    async def _hello(self, context: Context) -> WorkerHello:
        try:
            async with asyncio.timeout(self._timeouts.form_ms / 1000):
                message = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no hello within {self._timeouts.form_ms} ms")
        if message is _EOF:
            await _invalid(context, "the stream ended before a hello")
        try:
            hello = from_worker(message, worker_id="", at_ms=self._clock.now_ms())
        except ConvertError as e:
            await _invalid(context, str(e))
        if not isinstance(hello, WorkerHello):
            await _invalid(context, f"the first message must be a hello, not {type(hello).__name__}")
        return hello

    def _answer(self, handlers: HubHandlers, hello: WorkerHello) -> Welcome:
        why = self._refused.get(hello.worker_id)
        if why is not None:
            return Welcome(False, why, 0)
        return handlers.welcome(hello)

    async def _serve(self, handlers: HubHandlers, stream: _Stream, context: Context) -> str:
        """Read and write until one of the two ends; returns why."""
        reader = asyncio.create_task(self._read(handlers, stream, context), name=f"read {stream.worker_id}")
        writer = asyncio.create_task(stream.write_all(context), name=f"write {stream.worker_id}")
        stream.writer = writer
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, writer):
                task.cancel()
            results = await asyncio.gather(reader, writer, return_exceptions=True)
        for result in results:
            if isinstance(result, ConvertError):
                raise result
            if isinstance(result, Exception):
                return f"the stream broke: {type(result).__name__}: {result}"
        return next((r for r in results if isinstance(r, str)), "the connection broke")

    async def _read(self, handlers: HubHandlers, stream: _Stream, context: Context) -> str:
        while True:
            message: Any = await context.read()
            if self._streams.get(stream.worker_id) is not stream:
                return "replaced or refused"
            if message is _EOF:
                return "the worker closed its stream"
            value = from_worker(message, worker_id=stream.worker_id, at_ms=self._clock.now_ms())
            match value:
                case Beat():
                    handlers.on_beat(value)
                case LogLines(lines):
                    for line in lines:
                        handlers.on_log(line)
                case Stacks(text):
                    handlers.on_stacks(stream.worker_id, text)
                case Goodbye(why):
                    return f"it said goodbye: {why}"
                case WorkerHello():
                    raise ConvertError("a second hello in one stream")
                case _:
                    handlers.sink(value)

    def _drop(self, stream: _Stream, detail: str) -> None:
        """Forget a stream that is over and tell the core; nothing when it was forgotten before (replaced, or we closed)."""
        if self._streams.get(stream.worker_id) is not stream:
            return
        del self._streams[stream.worker_id]
        stream.end(last_word=None, grace_s=0)
        if self._handlers is not None:
            self._handlers.sink(WorkerDisconnected(self._clock.now_ms(), stream.worker_id, detail))


class _Stream:
    """What goes down to one worker, in order, bounded."""

    def __init__(self, worker_id: str, queue_max: int) -> None:
        self.worker_id = worker_id
        self.writer: asyncio.Task[None] | None = None
        self._outgoing: asyncio.Queue[FromSupervisor | None] = asyncio.Queue(maxsize=queue_max + 2)
        self._room = queue_max
        self._ended = False

    def put(self, value: FromSupervisor) -> bool:
        """False when the queue is full or the stream is over."""
        if self._ended or self._outgoing.qsize() >= self._room:
            return False
        self._outgoing.put_nowait(value)
        return True

    def end(self, *, last_word: Welcome | None, grace_s: float) -> None:
        """Write what waits and the last word, then end the stream; a worker that does not read is cut off after grace_s."""
        if self._ended:
            return
        self._ended = True
        if last_word is not None:
            self._outgoing.put_nowait(last_word)  # fits: two places more than `put` may fill
        self._outgoing.put_nowait(None)
        asyncio.get_running_loop().call_later(grace_s, self._cut)

    async def write_all(self, context: Context) -> None:
        """Write until the end is asked for."""
        while (value := await self._outgoing.get()) is not None:
            await context.write(from_supervisor_to_proto(value))

    def _cut(self) -> None:
        if self.writer is not None:
            self.writer.cancel()


async def _invalid(context: Context, why: str) -> NoReturn:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why[:DETAILS_MAX])
