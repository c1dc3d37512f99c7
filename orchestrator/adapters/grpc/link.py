"""A worker's stream to its supervisor: hello, heartbeats and reports up, commands down, for as long as the worker lives.

It runs in threads of its own, beside a training thread that must not notice it, and it is synchronous because that needs the
GIL least predictably seldom: one short wake-up per heartbeat. When the stream breaks it tries again for ever, asks where the
supervisor went after some failures, and says again what may have been lost. Only a refusal ends it: then the worker is fenced.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from orchestrator.adapters.grpc.auth import bearer
from orchestrator.adapters.grpc.convert import FromSupervisor, Goodbye, from_supervisor, from_worker_to_proto
from orchestrator.adapters.grpc.mirror import ConvertError
from orchestrator.adapters.grpc.options import link_options
from orchestrator.adapters.grpc.outbox import Outbox
from orchestrator.adapters.grpc.pb.v1 import worker_pb2, worker_pb2_grpc
from orchestrator.core.supervisor.events import WorkerHello
from orchestrator.core.timeouts import Timeouts
from orchestrator.runtime.ports import Beat, LogLine, Welcome, WorkerCommand
from orchestrator.runtime.worker import WorkerReport

log = logging.getLogger(__name__)

RESOLVE_AFTER = 3  # refused attempts in a row, each time, before it asks where the supervisor is now; a mute address: at once
BACKOFF_MAX = 4  # pauses grow from reconnect_ms to at most this many times it
CLOSE_CUT_S = 1.0  # after close() has cut a stream that would not end by itself


class GrpcLink:
    """One worker's link. Callbacks are called in the link's threads and must return soon.

    hello: builds what to say first, anew for each stream. pulse: one heartbeat, taken when it is sent. on_command: a command
    that arrived. on_refused: called once, with the reason, when the worker is fenced; the link has then ended. resolve: the
    supervisor's present address (host:port), or None when it is not known; it may take a while.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        endpoint: str,
        token: str,
        timeouts: Timeouts,
        hello: Callable[[], WorkerHello],
        pulse: Callable[[], Beat],
        on_command: Callable[[WorkerCommand], None],
        on_refused: Callable[[str], None],
        resolve: Callable[[], str | None],
    ) -> None:
        self._worker_id = worker_id
        self._endpoint = endpoint
        self._token = token
        self._timeouts = timeouts
        self._hello = hello
        self._pulse = pulse
        self._on_command = on_command
        self._on_refused = on_refused
        self._resolve = resolve
        self._changed = threading.Condition()  # guards everything below
        self._outbox = Outbox()
        self._attempt: _Attempt | None = None
        self._last_connected_s = time.monotonic()
        self._goodbye: str | None = None  # set once close() was called
        self._refusal: str | None = None
        self._jitter = random.Random()
        self._thread = threading.Thread(target=self._run, name=f"link {worker_id}", daemon=True)

    def start(self) -> None:
        """Connect, and stay connected; returns at once."""
        self._thread.start()

    def report(self, event: WorkerReport) -> None:
        """Say it soon, and again after a break until it is known to be heard. Never blocks for the network."""
        with self._changed:
            self._outbox.report(event)
            self._changed.notify_all()

    def log(self, line: LogLine) -> None:
        """Pass a log line on; lost when too many wait."""
        with self._changed:
            self._outbox.line(line)
            self._changed.notify_all()

    def stacks(self, text: str) -> None:
        """Answer a DumpStacks."""
        with self._changed:
            self._outbox.stacks(text)
            self._changed.notify_all()

    @property
    def endpoint(self) -> str:
        """Where it connects to now."""
        return self._endpoint

    @property
    def connected(self) -> bool:
        """Whether it has been welcomed and the stream is up, as far as is known."""
        with self._changed:
            return self._attempt is not None and self._attempt.welcomed

    def disconnected_ms(self) -> int:
        """How long there has been no supervisor; 0 while connected."""
        with self._changed:
            if self._attempt is not None and self._attempt.welcomed:
                return 0
            return int((time.monotonic() - self._last_connected_s) * 1000)

    def close(self, why: str = "", *, timeout_ms: int = 2000) -> None:
        """Say what waits and goodbye, and end; cut the stream when that takes longer. Safe to call twice, from any thread."""
        with self._changed:
            if self._goodbye is None:
                self._goodbye = why
            self._changed.notify_all()
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            return
        self._thread.join(timeout_ms / 1000)
        if self._thread.is_alive():
            with self._changed:
                attempt = self._attempt
            if attempt is not None:
                attempt.cancel()
            self._thread.join(CLOSE_CUT_S)

    # ---- the link's thread

    def _run(self) -> None:
        failures = 0
        while not self._ended:
            began_s = time.monotonic()
            try:
                welcomed = self._connect_once()
            except Exception:
                log.exception("worker %s: the link failed; it tries again", self._worker_id)
                welcomed = False
            failures = 0 if welcomed else failures + 1
            if self._ended:
                break
            mute = not welcomed and time.monotonic() - began_s >= self._timeouts.suspect_ms / 2000
            if mute or (failures and failures % RESOLVE_AFTER == 0):
                self._look_for_supervisor()
            self._pause(failures)
        if self._refusal is not None:
            self._on_refused(self._refusal)

    @property
    def _ended(self) -> bool:
        with self._changed:
            return self._goodbye is not None or self._refusal is not None

    def _connect_once(self) -> bool:
        """One stream from its hello to its end; returns whether it was welcomed."""
        attempt = _Attempt()
        hello = self._hello()
        channel = grpc.insecure_channel(self._endpoint, options=link_options(self._timeouts))
        try:
            with self._changed:
                if self._goodbye is not None:
                    return False
                self._attempt = attempt
            call = worker_pb2_grpc.WorkerServiceStub(channel).Connect(
                self._outgoing(attempt, hello), metadata=bearer(self._token)
            )
            attempt.started(call)
            for message in call:
                self._take(attempt, message)
        except grpc.RpcError as e:
            log.info("worker %s: stream to %s ended: %s", self._worker_id, self._endpoint, _words(e))
        finally:
            with self._changed:
                attempt.over = True
                self._attempt = None
                if attempt.welcomed:
                    self._last_connected_s = time.monotonic()
                self._changed.notify_all()
            channel.close()
        return attempt.welcomed

    def _take(self, attempt: _Attempt, message: worker_pb2.SupervisorMessage) -> None:
        try:
            value: FromSupervisor = from_supervisor(message, worker_id=self._worker_id)
        except ConvertError:
            log.exception("worker %s: the supervisor said something that makes no sense", self._worker_id)
            return
        if isinstance(value, Welcome):
            with self._changed:
                if value.accepted:
                    self._outbox.rewind(committed_step=value.committed_step)
                    attempt.welcomed = True
                else:
                    self._refusal = value.why
                    attempt.over = True
                self._changed.notify_all()
            return
        try:
            self._on_command(value)
        except Exception:
            log.exception("worker %s: %s failed", self._worker_id, type(value).__name__)

    def _look_for_supervisor(self) -> None:
        try:
            endpoint = self._resolve()
        except Exception:
            log.exception("worker %s: asking for the supervisor's address failed", self._worker_id)
            return
        if endpoint is not None and endpoint != self._endpoint:
            log.info("worker %s: the supervisor is at %s now", self._worker_id, endpoint)
            self._endpoint = endpoint

    def _pause(self, failures: int) -> None:
        factor = min(BACKOFF_MAX, 2 ** min(failures, 10) / 2) * self._jitter.uniform(0.5, 1.0)
        with self._changed:
            self._changed.wait_for(lambda: self._goodbye is not None, timeout=self._timeouts.reconnect_ms * factor / 1000)

    # ---- gRPC's sending thread

    def _outgoing(self, attempt: _Attempt, hello: WorkerHello) -> Iterator[worker_pb2.WorkerMessage]:
        """What gRPC sends: it asks for the next message when the one before is on its way, so beats never queue up."""
        yield from_worker_to_proto(hello)
        if not self._await_welcome(attempt):
            return
        beat_s = self._timeouts.heartbeat_ms / 1000
        due = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: attempt.over or bool(self._outbox) or self._goodbye is not None,
                    timeout=max(0.0, due - time.monotonic()),
                )
                if attempt.over:
                    return
                value = None if time.monotonic() >= due else self._outbox.take()
                if value is None and self._goodbye is not None and (value := self._outbox.take()) is None:
                    break
            if value is not None:
                yield from_worker_to_proto(value)
            elif time.monotonic() >= due:
                yield from_worker_to_proto(self._pulse())
                due = time.monotonic() + beat_s
        yield from_worker_to_proto(Goodbye(self._goodbye or ""))

    def _await_welcome(self, attempt: _Attempt) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: attempt.welcomed or attempt.over, timeout=self._timeouts.suspect_ms / 1000)
            welcomed = attempt.welcomed and not attempt.over
        if not welcomed:
            attempt.cancel()
        return welcomed


class _Attempt:
    """One stream. `welcomed` and `over` are guarded by the link's condition."""

    def __init__(self) -> None:
        self.welcomed = False
        self.over = False
        self._lock = threading.Lock()
        self._call: Any = None
        self._cancelled = False

    def started(self, call: Any) -> None:
        """The call exists now."""
        with self._lock:
            self._call = call
            cancelled = self._cancelled
        if cancelled:
            call.cancel()

    def cancel(self) -> None:
        """End the call, also if it is yet to start."""
        with self._lock:
            self._cancelled = True
            call = self._call
        if call is not None:
            call.cancel()


def _words(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"
