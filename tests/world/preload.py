"""Everything that a worker imports sooner or later. Importing starts no thread, so the process can still be forked."""

# ruff: noqa: F401  importing is all that this module is for
from __future__ import annotations

import gc

import grpc
import numpy.random
import torch._dynamo
import torch.distributed.checkpoint
import torch.optim

import orchestrator.apps.worker_main
import orchestrator.engine.groups
import tests.world.corruption
import tests.world.tasks

torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports the rest of itself when it is used

gc.collect()
gc.freeze()  # a worker collects once before it says hello: not what it shares with all others, of which it would copy each page
