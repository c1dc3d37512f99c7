"""Everything that a worker imports sooner or later. Importing starts no thread, so the process can still be forked."""

from __future__ import annotations

import grpc  # noqa: F401
import torch.distributed.checkpoint
import torch.optim

import tests.world.tasks  # noqa: F401

torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports the rest of itself when it is used
