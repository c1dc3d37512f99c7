"""A small GPT that misbehaves when told to, at a step and micro-batch: as a user's code would, out of the engine's sight."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from orchestrator.engine.tasks.gpt import GPT


class Staged(GPT):
    """`act` happens at step `at_step`, before micro-batch `at_micro_batch`; with a `marker` file in the whole job only once."""

    pace_ms: int = 0  # slept in each micro-batch, so that a test has time to look
    hurry: str = ""  # a file: once it is there nothing is slept any more, for the test has seen what it wanted
    hurry_host: str = ""  # the same for the name of a host, once somebody knows it
    act: str = ""  # raise | block | flip: an exception; a thread that never comes back; one bit of a parameter
    at_step: int = 0
    at_micro_batch: int = 0
    marker: str = ""
    talk: bool = False  # print a line for each step
    diary: str = ""  # a file to which each micro-batch adds a line "step micro_batch": how far it got, whoever listens

    def batch(self, *, seed: int, step: int, micro_batch: int) -> Any:
        """(inputs, targets, whether to act now)."""
        if self.diary:
            with open(self.diary, "a") as file:
                file.write(f"{step} {micro_batch}\n")
        if self.talk and micro_batch == 0:
            print(f"step {step}", flush=True)
        now = bool(self.act) and (step, micro_batch) == (self.at_step, self.at_micro_batch) and self._first()
        return *super().batch(seed=seed, step=step, micro_batch=micro_batch), torch.tensor(now)

    def eval_batch(self, *, seed: int, index: int) -> Any:
        """As batch."""
        return *super().eval_batch(seed=seed, index=index), torch.tensor(False)

    def build_model(self) -> nn.Module:
        """GPT's, remembered for the act."""
        self._model = super().build_model()
        return self._model

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        """GPT's, after the act."""
        _, targets, now = batch
        if self.pace_ms and not self._hurries():
            time.sleep(self.pace_ms / 1000)
        if bool(now):
            self._perform()
        return super().criterion(output, (output, targets))

    def _hurries(self) -> bool:
        return bool(self.hurry and Path(self.hurry).exists()) or bool(self.hurry_host and _is_known(self.hurry_host))

    def _first(self) -> bool:
        if not self.marker:
            return True
        try:
            os.close(os.open(Path(self.marker), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _perform(self) -> None:
        if self.act == "raise":
            raise ZeroDivisionError("the user's own mistake")
        if self.act == "block":
            threading.Event().wait()
        if self.act == "flip":
            with torch.no_grad():
                weight = cast(Tensor, next(self._model.parameters()))
                weight.view(torch.int32).view(-1)[0] ^= 1 << 20


class Refusing(Staged):
    """Cannot be set up."""

    def setup(self) -> None:
        """Raise what a missing library would."""
        raise ModuleNotFoundError("the user's library is not installed here")


def _is_known(host: str) -> bool:
    try:
        return bool(socket.gethostbyname(host))
    except OSError:
        return False


def furthest(diary: Path) -> int:
    """The newest step that any worker has begun; a line that is being written does not count yet."""
    lines = diary.read_text().split("\n")[:-1]
    return max((int(line.split()[0]) for line in lines), default=0)
