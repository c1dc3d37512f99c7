"""The lab that the tests of one session share: one head and five machines with a slot each, of which a test may use one up."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import calm  # noqa: F401  the undisturbed run that these are held against, too
from tests.netlab.hosts import Hosts
from tests.netlab.lab import Lab, cannot, missing_tools

MACHINES = 6


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    """A folder that all machines share. Skips, loudly, where namespaces cannot be made; fails where only a program is missing."""
    if reason := cannot():
        pytest.skip(f"REAL HOSTS ARE NOT TESTED: {reason}")
    if reason := missing_tools():
        pytest.fail(f"real hosts cannot be tested: {reason}")
    made = Path(tempfile.mkdtemp(prefix="lab-")).resolve()
    yield made
    if "NETLAB_KEEP" not in os.environ:
        shutil.rmtree(made)


@pytest.fixture(scope="session")
def hosts(root: Path) -> Iterator[Hosts]:
    """A Ray cluster across them."""
    with Lab(nodes=MACHINES, root=root) as lab:
        made = Hosts(lab)
        made.start()
        yield made
    assert not [n for n in lab.nodes.values() if n.on]
