"""What a planner says when there is no plan."""

from __future__ import annotations


class PlanError(ValueError):
    """No plan exists for these workers; the message says what is missing."""
