"""Process groups of one epoch: formed explicitly, aborted from any thread, replaced while the process lives on."""

from __future__ import annotations

from orchestrator.engine.groups.base import BackendUnavailable, EpochGroup, GroupBroken, Handle
from orchestrator.engine.groups.closing import drain
from orchestrator.engine.groups.forming import form_group
from orchestrator.engine.groups.store import StoreClient, StoreServer, connect_store

__all__ = [
    "BackendUnavailable",
    "EpochGroup",
    "GroupBroken",
    "Handle",
    "StoreClient",
    "StoreServer",
    "connect_store",
    "drain",
    "form_group",
]
