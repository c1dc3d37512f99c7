"""Plain TCP, by the standard library alone: the active liveness probe."""

from __future__ import annotations
