"""What loading a worker's main does to the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import gc, sys
collections = []
gc.callbacks.append(lambda phase, info: collections.append(info) if phase == "start" and "torch" in sys.modules else None)
import orchestrator.apps.worker_main
assert len(collections) <= 1, collections  # the one that is due when all is loaded
assert "torch._dynamo" in sys.modules
assert gc.isenabled()
"""


@pytest.mark.slow
def test_torch_is_loaded_without_looking_for_garbage_and_then_garbage_is_looked_for_again() -> None:
    # Half a second of CPU time at every start of a worker.
    subprocess.run([sys.executable, "-c", LOOK], check=True, timeout=200)
