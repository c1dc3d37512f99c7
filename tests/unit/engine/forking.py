"""Where the engine's tests get their processes: a fork server that has loaded torch, and what a first step would load.

Its start alone takes some five seconds, in each worker of xdist whose tests need one; so tests that do are marked `forked`.
"""

from __future__ import annotations

import multiprocessing

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["orchestrator.engine.engine", "numpy.random", "torch._dynamo"])
forked = pytest.mark.slow
