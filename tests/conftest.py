"""Settings that every test shares.

Property tests have no deadline, because this suite asserts what is computed and never how fast, and the machines that
run it are busy. In CI they draw the same examples each time, so that a red run means a change and not luck; elsewhere
they explore. A failing example prints the line that replays it. Where slow tests are left out, a property that names no number
of its own draws a quarter of them.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config: pytest.Config) -> None:
    """Quick runs draw fewer examples."""
    if "not slow" in config.option.markexpr:
        settings.register_profile("fast", settings(), max_examples=25)
        settings.load_profile("fast")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no core waits for them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
