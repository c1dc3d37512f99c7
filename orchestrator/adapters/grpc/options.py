"""Channel and server settings, in one place, derived from the ladder of time-outs where they are about time.

Keepalive pings find a peer that is frozen or cut off behind a TCP connection that still looks open. They are slower than
heartbeats on purpose: pauses shorter than `lost_ms` must not cost a stream, and silence is judged by the supervisor's core.
"""

from __future__ import annotations

from orchestrator.core.timeouts import Timeouts

Options = list[tuple[str, int]]

MESSAGE_BYTES_MAX = 64 * 1024 * 1024  # a plan over thousands of ranks, a graph of thousands of tensors
METADATA_BYTES_MAX = 128 * 1024  # error details travel as metadata: all errors of a bad request, percent-encoded
DETAILS_MAX = 24 * 1024  # characters of error details; each may take 4 bytes, so they fit the metadata


def server_options(timeouts: Timeouts) -> Options:
    """For the supervisor's server."""
    return [
        *_common(),
        ("grpc.so_reuseport", 0),  # two supervisors on one port would share its workers between them
        ("grpc.keepalive_time_ms", timeouts.lost_ms),
        *_ping_timeout(2 * timeouts.lost_ms),
        ("grpc.http2.min_ping_interval_without_data_ms", 10),
        ("grpc.http2.max_ping_strikes", 0),  # links ping more often than gRPC's defaults allow
    ]


def link_options(timeouts: Timeouts) -> Options:
    """For a worker's channel to the supervisor, which is made anew for each attempt."""
    return [
        *_common(),
        ("grpc.use_local_subchannel_pool", 1),  # no back-off inherited from the attempt before
        ("grpc.enable_retries", 0),
        ("grpc.min_reconnect_backoff_ms", timeouts.suspect_ms),  # gRPC's name for the limit of one connection attempt
        ("grpc.keepalive_time_ms", timeouts.suspect_ms),
        *_ping_timeout(timeouts.lost_ms),
    ]


def client_options() -> Options:
    """For a person's channel to the control API."""
    return [*_common(), ("grpc.use_local_subchannel_pool", 1), ("grpc.keepalive_time_ms", 20_000)]


def _ping_timeout(limit_ms: int) -> Options:
    """gRPC 1.85 has two limits for one thing, and the second, a minute by default, is the one that closes a connection."""
    return [("grpc.keepalive_timeout_ms", limit_ms), ("grpc.http2.ping_timeout_ms", limit_ms)]


def _common() -> Options:
    return [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 2 * METADATA_BYTES_MAX),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_http_proxy", 0),  # the environment's proxies are not for cluster traffic
    ]
