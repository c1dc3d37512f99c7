"""Seconds that each kind of layer really takes on this worker's device: what corrects an estimate from FLOPs.

The layers run through the engine's own stage runner, so that its seeding, drawing and copying are in the figures. One layer of
each kind takes its turn, forward and backward, round after round: between two runs of a layer the others have had the caches, as
in a step. What counts is the median of the rounds: a step is made of many runs of layers, few of which are undisturbed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.core.graph.costs import ModelCosts, Timing
from orchestrator.core.job import Job
from orchestrator.engine.describe import build_seeded
from orchestrator.engine.layered import LayeredStage
from orchestrator.engine.rank_state import UserError
from orchestrator.engine.task import Task, TaskError
from orchestrator.engine.tasks.loading import load_task

_ROUNDS_MAX = 40


def never() -> bool:
    """Nobody wants it to stop."""
    return False


def with_timings(
    costs: ModelCosts,
    job: Job,
    *,
    device_name: str,
    limit_s: float,
    stop: Callable[[], bool] = never,
    task: Task | None = None,
    module: nn.Module | None = None,
    to_device: Callable[[Any], Any] = lambda batch: batch,
) -> ModelCosts:
    """The costs with a Timing for `device_name` (a DeviceType's) in the place of what was measured on it before.

    At least one round is run, then rounds until `limit_s` is over; `stop` is asked between runs, and where it says yes before
    every kind was measured the costs come back as they were. `task` and `module` (the whole model, uncut, on the device) where
    a worker has them: gradients and buffers are then left as they were. Raises TaskError.
    """
    task = task or load_task(job.task)
    module = module if module is not None else build_seeded(task, seed=job.train.seed)
    torch.set_num_threads(1)  # as the engine runs
    rounds = _Rounds(costs, job, task, module, to_device)
    try:
        with _untouched(module):
            measured = rounds.run(time.perf_counter() + limit_s, stop)
    except UserError as error:
        raise TaskError(f"the model failed on a micro-batch:\n{error}") from error
    if not measured:
        return costs
    kinds = []
    for kind, probe in zip(costs.kinds, rounds.probes, strict=True):
        timing = Timing(device_name, median(probe.forward_s), median(probe.backward_s))
        kinds.append(replace(kind, timings=(*(t for t in kind.timings if t.device != device_name), timing)))
    return replace(costs, kinds=tuple(kinds))


@dataclass(slots=True)
class _Probe:
    """One layer of a kind, what goes in at either end, and what its runs took."""

    stage: LayeredStage
    x: Tensor | None
    dy: Tensor | None
    forward_s: list[float] = field(default_factory=list)
    backward_s: list[float] = field(default_factory=list)


class _Rounds:
    def __init__(self, costs: ModelCosts, job: Job, task: Task, module: nn.Module, to_device: Callable[[Any], Any]) -> None:
        self._costs, self._job, self._task, self._module, self._to_device = costs, job, task, module, to_device
        self._device = next(module.parameters()).device
        self.probes: list[_Probe] = []  # by kind

    def run(self, deadline: float, stop: Callable[[], bool]) -> bool:
        """Whether every kind was measured at least once."""
        x: Tensor | None = None
        shapes: dict[int, torch.Size] = {}  # of the output of a kind
        for k, kind in enumerate(self._costs.order):
            if kind in shapes and x is not None and x.shape == shapes[kind]:
                continue  # its output would look like its input
            if stop():
                return False
            probe = self._probe(k, x)
            y = probe.stage.forward(0, x, step=1, number=0)
            if not probe.stage.is_last and y.requires_grad:
                probe.dy = torch.full_like(y, 1e-3, requires_grad=False)
            probe.stage.backward(0, probe.dy)  # the first time is not counted
            if kind not in shapes:
                shapes[kind] = y.shape
                self.probes.append(probe)
            x = y
        for n in range(_ROUNDS_MAX):
            for probe in self.probes:
                if stop() or (n > 0 and time.perf_counter() > deadline):
                    return all(p.backward_s for p in self.probes)
                began = self._now()
                probe.stage.forward(0, probe.x, step=1, number=0)
                between = self._now()
                probe.stage.backward(0, probe.dy)
                probe.forward_s.append(between - began)
                probe.backward_s.append(self._now() - between)
        return True

    def _probe(self, k: int, x: Tensor | None) -> _Probe:
        train = self._job.train
        stage = LayeredStage(
            self._task,
            self._module,
            first=k,
            last=k + 1,
            seed=train.seed,
            scale=1.0 / train.micro_batches,
            precision=train.precision,
            device=self._device,
            to_device=self._to_device,
        )
        return _Probe(stage, x, None)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Gradients are added into memory of our own inside, as the engine adds them into its own; buffers are put back."""
    params = [p for p in module.parameters() if p.requires_grad]
    gradients = [p.grad for p in params]
    buffers = [(b, b.detach().clone()) for b in module.buffers()]
    for p in params:
        p.grad = torch.zeros_like(p)
    try:
        yield
    finally:
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
