"""Bits that flip on the wire: what a reshard receives arrives changed now and then, as through a bad cable or memory.

The engine has a seam for it (`corrupt` of transfer.move); this puts a seeded one into a worker before it begins to live.
"""

from __future__ import annotations

import random
from functools import partial

import torch
from torch import Tensor

from orchestrator.engine import restore
from orchestrator.engine.transfer import Arrival, move


class Flips:
    """One bit in `share` of what arrives first; what is fetched again is right, so every reshard can end well."""

    def __init__(self, *, seed: str, share: float) -> None:
        self._random = random.Random(seed)
        self._share = share
        self.count = 0

    def __call__(self, arrival: Arrival, tensor: Tensor) -> None:
        """Change what has arrived."""
        if arrival.attempt or self._random.random() >= self._share:
            return
        at = self._random.randrange(tensor.numel())
        tensor.view(-1)[at : at + 1].view(torch.uint8)[0] ^= 1 << self._random.randrange(8)
        self.count += 1


def install(*, seed: str, share: float) -> None:
    """In a worker's process."""
    restore.move = partial(move, corrupt=Flips(seed=seed, share=share))  # type: ignore[attr-defined]
