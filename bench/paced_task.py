"""The GPT of `task: gpt`, at a pace that a driver sets while it runs: a script of failures needs a run that waits for it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from torch import Tensor

from orchestrator.engine.tasks.gpt import GPT


class PacedGPT(GPT):
    """`pace` is a file with the milliseconds to sleep before each micro-batch; no file: none."""

    pace: str = ""

    def batch(self, *, seed: int, step: int, micro_batch: int) -> tuple[Tensor, Tensor]:
        """After the pause."""
        with contextlib.suppress(OSError, ValueError):  # not there, or being written
            time.sleep(int(Path(self.pace).read_text()) / 1e3)
        return super().batch(seed=seed, step=step, micro_batch=micro_batch)
