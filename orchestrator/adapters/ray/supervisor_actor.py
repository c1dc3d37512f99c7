"""The supervisor's process: a detached, named Ray actor that survives the launcher and is started again when it dies.

It runs `supervisor_main` in an event loop in a thread of its own and tells whoever asks where its control API listens. After
a crash Ray starts the actor again with the same arguments, and the same main finds its journal and goes on from there; the
workers are actors of their own and notice nothing but a broken stream. It lives on Ray's head node, where its journal is: on
another node it would find none.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

import ray
from ray.exceptions import RayError

from orchestrator.adapters.ray.dotted import resolve
from orchestrator.adapters.ray.settings import NAMESPACE, RAY_HEAD_RESOURCE, SUPERVISOR_NAME

# `async def supervisor_main(settings, ready) -> None`: calls ready("host:port") once its control API listens
Ready = Callable[[str], None]
SupervisorMain = Callable[[dict[str, str], Ready], Coroutine[Any, Any, None]]

_POLL_S: Final = 0.02
_CRASH_PAUSE_S: Final = 1.0  # a supervisor that crashes at once is started again about every two seconds, not faster
_HEAD_SHARE: Final = 0.01
_LOOPBACK: Final = "127.0.0.1"


class SupervisorUnavailableError(RuntimeError):
    """The supervisor did not come up, or does not answer."""


class SupervisorActor:
    """Made into a Ray actor by ensure_supervisor. The end of its main, without an exception, is the end of the actor."""

    def __init__(self, supervisor_main: str, settings: dict[str, str]) -> None:
        self._main = supervisor_main
        self._settings = settings
        self._endpoint = ""
        # Started here and not by a call: after a restart nobody calls.
        threading.Thread(target=self._run, name="supervisor", daemon=True).start()

    async def endpoint(self) -> str:
        """host:port of the control API, once it listens."""
        while not self._endpoint:  # noqa: ASYNC110  it comes from another thread, once in this process's life
            await asyncio.sleep(_POLL_S)
        return self._endpoint

    async def pid(self) -> int:
        """Process id."""
        return os.getpid()

    async def settings(self) -> dict[str, str]:
        """What it was started with; secret, as far as anything is to those who may run code on this cluster."""
        return self._settings

    def _ready(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def _run(self) -> None:
        try:
            asyncio.run(resolve(self._main)(self._settings, self._ready))
        except BaseException:  # a crash: end the process, so that Ray starts it again and the journal is replayed
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
            time.sleep(_CRASH_PAUSE_S)
            os._exit(1)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def bind_host(*, loopback: bool) -> str:
    """Where an actor of ours listens: loopback, or this node's own address where the cluster has more than one machine."""
    return _LOOPBACK if loopback else str(ray.util.get_node_ip_address())


def ensure_supervisor(supervisor_main: str, settings: dict[str, str], *, timeout_ms: int) -> tuple[str, dict[str, str]]:
    """Find the supervisor of the cluster we are connected to, or start it; returns host:port of its control API, its settings.

    An existing supervisor keeps its own settings, which may be those of a launcher on another machine. Raises
    SupervisorUnavailableError.
    """
    actor_class: Any = ray.remote(SupervisorActor)  # Ray's types do not follow options() on an actor class
    handle = actor_class.options(
        name=SUPERVISOR_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
        resources={RAY_HEAD_RESOURCE: _HEAD_SHARE},
    ).remote(supervisor_main, settings)
    try:
        endpoint, kept = ray.get([handle.endpoint.remote(), handle.settings.remote()], timeout=timeout_ms / 1000)
        return str(endpoint), dict(kept)
    except (RayError, TimeoutError) as error:
        raise SupervisorUnavailableError(f"the supervisor has no endpoint after {timeout_ms} ms: {error}") from error


class EndpointResolver:
    """Asks Ray where the supervisor is, for a worker that has lost it.

    Each question runs in one thread of our own, because Ray's calls may block far longer than their time-out while its GCS is
    away; until that one returns, later questions answer None at once.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resolve-endpoint")
        self._pending: Any = None

    def resolve(self, timeout_ms: int) -> str | None:
        """host:port of the supervisor's control API, or None when it cannot be learned within `timeout_ms`."""
        if self._pending is None:
            self._pending = self._executor.submit(_ask_endpoint, timeout_ms / 1000)
        try:
            endpoint: str | None = self._pending.result(timeout_ms / 1000)
        except FutureTimeoutError:
            if not self._pending.done():
                return None
            endpoint = None
        self._pending = None
        return endpoint

    def close(self) -> None:
        """Ask no more."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def resolve_endpoint(timeout_ms: int) -> str | None:
    """One question of an EndpointResolver."""
    resolver = EndpointResolver()
    try:
        return resolver.resolve(timeout_ms)
    finally:
        resolver.close()


def supervisor_pid(timeout_ms: int) -> int:
    """Its process id. Raises SupervisorUnavailableError."""
    try:
        handle = ray.get_actor(SUPERVISOR_NAME, namespace=NAMESPACE)
        pid: Any = ray.get(handle.pid.remote(), timeout=timeout_ms / 1000)
        return int(pid)
    except (ValueError, RayError, TimeoutError) as error:
        raise SupervisorUnavailableError(f"no supervisor answers: {error}") from error


def _ask_endpoint(timeout_s: float) -> str | None:
    try:
        handle = ray.get_actor(SUPERVISOR_NAME, namespace=NAMESPACE)
        return str(ray.get(handle.endpoint.remote(), timeout=timeout_s))
    except (ValueError, RayError, TimeoutError):
        return None
