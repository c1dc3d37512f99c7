"""Settings that every test shares.

Property tests have no deadline, because this suite asserts what is computed and never how fast, and the machines that
run it are busy. In CI they draw the same examples each time, so that a red run means a change and not luck; elsewhere
they explore. A failing example prints the line that replays it. Where slow tests are left out, a property that names no number
of its own, or a multiple of the usual one, draws a quarter of them.

Every worker of xdist collects everything. So a folder whose tests all bear a mark is not even imported where that mark is left
out, and garbage is looked for only after the collection, and then not in what it has made.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")

HERE = Path(__file__).parent
MARKED = {HERE / "kube": "kube", HERE / "chaos": "chaos", HERE / "netlab": "chaos", HERE / "e2e": "slow"}


def pytest_configure(config: pytest.Config) -> None:
    """Quick runs draw fewer examples."""
    if "not slow" in config.option.markexpr:
        settings.register_profile("fast", settings(), max_examples=25)
        settings.load_profile("fast")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Folders that hold nothing which was asked for."""
    mark, asked = MARKED.get(collection_path), config.option.markexpr
    return True if mark and " or " not in asked and f"not {mark}" in asked.split(" and ") else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """What is below a marked folder bears its mark."""
    for folder, mark in MARKED.items():
        if folder in item.path.parents:
            item.add_marker(mark)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Most of what is made here stays: looking through it again and again takes a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no core waits for them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)
