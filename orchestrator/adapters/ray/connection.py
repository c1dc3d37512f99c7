"""Joining a Ray cluster as a driver, with the settings that every member must share.

Ray caches its authentication once per process, and takes its settings from the environment, so joining goes through here
only: environment first, then Ray. An embedded cluster demands a token that lies in its run directory (mode 600): without it
anybody on the machine could run code through Ray's ports, and no token is ever written into the home directory.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from orchestrator.adapters.ray.settings import CLUSTER_SETTINGS, LOOPBACK_SETTINGS, NAMESPACE


class RayUnavailableError(ConnectionError):
    """No Ray cluster answers at this address, or it refuses us."""


def authentication(token_path: Path | None) -> dict[str, str]:
    """Environment of every process of a cluster whose token lies at `token_path`; empty for a cluster that is not ours."""
    if token_path is None:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path)}


def prepare_environment(token_path: Path | None) -> None:
    """Lay the settings into this process's environment; what the user set stays, except authentication."""
    for name, value in CLUSTER_SETTINGS.items():
        os.environ.setdefault(name, value)
    ours = authentication(token_path)
    if ours:
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ.update(ours)
        # Ray may be loaded already, with the settings of that moment, and with the token of a cluster that was joined before.
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def connect(address: str, *, token_path: Path | None = None) -> None:
    """Join the cluster at host:port as a driver, in our namespace. Raises RayUnavailableError.

    With `token_path` None the user's own Ray authentication settings apply.
    """
    prepare_environment(token_path)
    stay_on_loopback(address)
    import ray

    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RayUnavailableError(f"no Ray cluster can be joined at {address}: {error}") from error


def stay_on_loopback(address: str) -> None:
    """For a cluster on 127.0.0.1, tell Ray to mean that; it was perhaps imported before, when it read its setting."""
    if not address.startswith("127."):
        return
    os.environ.update(LOOPBACK_SETTINGS)
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def disconnect() -> None:
    """Leave it; detached actors go on."""
    import ray

    ray.shutdown()


def registered_node_ids(gcs_address: str, *, timeout_s: float) -> frozenset[str]:
    """Hex ids of the nodes that the GCS at host:port knows as alive, without joining; empty when it does not answer."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import RayError, RpcError

    try:
        infos = GcsClient(address=gcs_address).get_all_node_info(timeout=timeout_s)
    except (RayError, RpcError):
        return frozenset()
    return frozenset(node_id.hex() for node_id, info in infos.items() if info.state == 0)  # 0 is ALIVE
