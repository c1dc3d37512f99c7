"""Where the engine's tests get their processes: a fork server that has loaded torch, and what a first step would load."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["orchestrator.engine.engine", "numpy.random", "torch._dynamo"])
