"""The supervisor's gRPC server: worker streams, control API, health and reflection behind one port and one token.

It binds loopback unless told otherwise, takes an ephemeral port for 0 and says which, and never shares a port with another
supervisor. Stopping is bounded: streams are ended, calls get a moment to finish, then the server goes.
"""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orchestrator.adapters.grpc.auth import TokenInterceptor
from orchestrator.adapters.grpc.hub import WorkerHub
from orchestrator.adapters.grpc.options import server_options
from orchestrator.adapters.grpc.pb.v1 import control_pb2, control_pb2_grpc, worker_pb2, worker_pb2_grpc
from orchestrator.adapters.grpc.servicer import ControlServicer
from orchestrator.core.timeouts import Timeouts
from orchestrator.runtime.control import ControlHandler

LOOPBACK = "127.0.0.1"
SERVICES = tuple(
    file.services_by_name[name].full_name
    for file, name in ((worker_pb2.DESCRIPTOR, "WorkerService"), (control_pb2.DESCRIPTOR, "ControlService"))
)


def endpoint(host: str, port: int) -> str:
    """host:port, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class SupervisorServer:
    """`start` binds and serves, `stop` ends it; both on the event loop that the hub and the handler live on."""

    def __init__(self, *, hub: WorkerHub, control: ControlHandler, token: str, timeouts: Timeouts) -> None:
        self._hub = hub
        self._control = control
        self._token = token
        self._timeouts = timeouts
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined] # the stubs lack it
        self._server: grpc.aio.Server | None = None

    async def start(self, *, host: str = LOOPBACK, port: int = 0) -> str:
        """Serve at host:port and return that address with the real port. Raises OSError when it cannot be bound."""
        if self._server is not None:
            raise RuntimeError("the server has been started already")
        server = grpc.aio.server(interceptors=(TokenInterceptor(self._token),), options=server_options(self._timeouts))
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self._hub, server)
        control_pb2_grpc.add_ControlServiceServicer_to_server(ControlServicer(self._control), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            bound = server.add_insecure_port(endpoint(host, port))
        except RuntimeError as e:
            raise OSError(f"cannot listen at {endpoint(host, port)}: {e}") from e
        self._server = server
        await server.start()
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return endpoint(host, bound)

    async def stop(self, *, grace_ms: int = 500) -> None:
        """End the streams, let calls finish for at most grace_ms, and stop. Safe to call twice."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        self._hub.close()
        await self._server.stop(grace_ms / 1000)
