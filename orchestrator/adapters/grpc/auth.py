"""The bearer token that guards every method but the health check.

One token per cluster, made and stored by adapters/files with mode 600. It travels as `authorization: Bearer ...`, is compared in
constant time, and is never logged nor part of any error message.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc

HEADER = "authorization"
_OPEN_TO_ALL = "/grpc.health.v1.Health/"
_REFUSAL = "a valid bearer token is needed in the metadata key 'authorization'"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Call metadata that carries the token."""
    return ((HEADER, f"Bearer {token}"),)


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Lets a call through when it carries the token, and ends it with UNAUTHENTICATED otherwise."""

    def __init__(self, token: str) -> None:
        if not token:
            raise ValueError("an empty token would let everybody in")
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Called by gRPC for each call before its handler."""
        if handler_call_details.method.startswith(_OPEN_TO_ALL) or self._valid(handler_call_details):
            return await continuation(handler_call_details)
        # A stream-stream handler answers calls of every kind, and needs no request to do so.
        return grpc.stream_stream_rpc_method_handler(_refuse)

    def _valid(self, details: grpc.HandlerCallDetails) -> bool:
        given = [value for key, value in details.invocation_metadata or () if key == HEADER]
        return len(given) == 1 and hmac.compare_digest(_bytes(given[0]), self._expected)


async def _refuse(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
