"""One step of one rank: its stages on its micro-batches, in the order of the plan's schedule.

With a pipeline of one this is the plain loop, forward and backward pass in turn. A micro-batch that the replica does not have,
because others of its data axis have one more, is a phantom: parameters are gathered and gradients reduced as for any other, but
nothing is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from orchestrator.core.plan.pipeline import BACKWARD, FORWARD, WEIGHT, Act, actions
from orchestrator.core.plan.plan import PIPELINE, Plan
from orchestrator.engine.boundary import Boundaries
from orchestrator.engine.control import Control
from orchestrator.engine.faults import FaultBox
from orchestrator.engine.groups.base import EpochGroup
from orchestrator.engine.layered import EVAL, LayeredStage
from orchestrator.engine.rank_state import user_code

_Numbers = Sequence[int | None]


class PipelineRunner:
    """Made for an epoch. `rank` is a rank of the plan, `group` the epoch's group of all ranks, `stages` this rank's, by number.

    `control` is checked before each act and told of phases, waits and time spent; `faults` strike before a forward pass.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        rank: int,
        group: EpochGroup,
        stages: Mapping[int, LayeredStage],
        control: Control,
        faults: FaultBox,
        device: torch.device | None = None,
    ) -> None:
        if tuple(sorted(stages)) != plan.stages_of(rank):
            raise ValueError(f"rank {rank} runs stages {plan.stages_of(rank)}, not {tuple(sorted(stages))}")
        self._plan, self._pipe = plan, plan.coordinates(rank)[0]
        self._stages, self._control, self._faults = dict(sorted(stages.items())), control, faults
        device = device or torch.device("cpu")
        self._boundaries = Boundaries(plan=plan, rank=rank, group=group, control=control, device=device)
        self._acts: tuple[int, tuple[Act, ...]] = (0, ())  # of so many micro-batches
        self._seconds: dict[int, float] = {}  # computed on each micro-batch so far

    def run(
        self, step: int, micro_batches: _Numbers, *, start: int = 0, on_loss: Callable[[int, float], None] | None = None
    ) -> dict[int, float]:
        """The replica's micro-batches, by number (None: a phantom); all ranks of the replica call it with the same.

        Without a pipeline a step may go on at its `start`-th. Returns the losses by number on ranks of the last stage, nothing on
        others; `on_loss` hears of each at once. Raises GroupBroken, UserError and what the stages' weights raise; whatever was in
        flight is then forgotten.
        """
        if start and self._plan.axis(PIPELINE) > 1:
            raise ValueError("only a rank that has the whole pipeline can go on in the middle of a step")
        losses: dict[int, float] = {}
        own = sum(number is not None for number in micro_batches)
        with self._dropping():
            self._expect(micro_batches, start)
            for act in self._acts_for(len(micro_batches)):
                number = micro_batches[act.index]
                if act.index < start:
                    continue
                self._control.check()
                if number is None:
                    self._stages[act.stage].phantom(act.kind, act.index)
                elif act.kind == FORWARD:
                    loss = self._forward(act, step, number)
                    if loss is not None:
                        losses[number] = loss
                        if on_loss is not None:
                            on_loss(number, loss)
                else:
                    self._backward(act)
            with user_code():
                self._faults.strike(step=step, micro_batch=own)
            self._boundaries.settle()
        return losses

    def evaluate(self, numbers: _Numbers) -> dict[int, float]:
        """Losses of held-out micro-batches, forward only, otherwise as `run`."""
        losses: dict[int, float] = {}
        with self._dropping():
            self._expect(numbers, 0)
            for index, number in enumerate(numbers):
                for s, stage in self._stages.items():
                    self._control.check()
                    if number is None:
                        stage.phantom(EVAL, index)
                        continue
                    x = None if stage.is_first else self._boundaries.receive(s - 1, index)
                    y = stage.evaluate(index, x, number=number)
                    if stage.is_last:
                        losses[number] = float(y)
                    else:
                        self._boundaries.send(s, index, y)
                    self._control.advance()
            self._boundaries.settle()
        return losses

    # ----------------------------------------------------------------------------------------------------------- acts

    def _forward(self, act: Act, step: int, number: int) -> float | None:
        """The loss, on the last stage."""
        stage, dragged_s = self._stages[act.stage], 0.0
        if act.stage == min(self._stages):
            self._control.phase("batch", step)
            began = time.monotonic()
            with user_code():
                self._faults.strike(step=step, micro_batch=act.index)
            self._faults.drag()
            dragged_s = time.monotonic() - began
        x = None if stage.is_first else self._boundaries.receive(act.stage - 1, act.index)
        self._control.phase("forward", step)
        began = time.monotonic() - dragged_s
        y = stage.forward(act.index, x, step=step, number=number)
        loss = float(y) if stage.is_last else None
        self._computed(act, began)
        if not stage.is_last:
            self._boundaries.send(act.stage, act.index, y)
        return loss

    def _backward(self, act: Act) -> None:
        stage = self._stages[act.stage]
        dy = None
        if act.kind != WEIGHT and not stage.is_last:
            dy = self._boundaries.receive_gradient(act.stage, act.index)
        self._control.phase("backward")
        began = time.monotonic()
        if act.kind == WEIGHT:
            stage.backward_weight(act.index)
            self._computed(act, began)
            return
        dx = (stage.backward if act.kind == BACKWARD else stage.backward_input)(act.index, dy)
        self._computed(act, began)
        if dx is not None and not stage.is_first:
            self._boundaries.send_gradient(act.stage - 1, act.index, dx)

    def _computed(self, act: Act, began: float) -> None:
        """Add up what a micro-batch has cost here; the first stage's end of the backward pass is its last act."""
        seconds = self._seconds.pop(act.index, 0.0) + time.monotonic() - began
        if act.kind in (BACKWARD, WEIGHT) and act.stage == min(self._stages):
            self._control.computed(seconds)
        else:
            self._seconds[act.index] = seconds

    def _acts_for(self, micro_batches: int) -> tuple[Act, ...]:
        known, acts = self._acts
        if known != micro_batches:
            plan = self._plan
            acts = actions(
                plan.schedule,
                pipeline=plan.axis(PIPELINE),
                stages=len(plan.stages),
                rank=self._pipe,
                micro_batches=micro_batches,
            )
            self._acts = micro_batches, acts
        return acts

    def _expect(self, numbers: _Numbers, start: int) -> None:
        for s in self._stages:
            for index, number in enumerate(numbers[start:], start):
                if number is not None and s > 0:
                    self._boundaries.expect(s - 1, index)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Whatever goes wrong, nothing stays in flight: a broken group may still write into it."""
        try:
            yield
        except BaseException:
            self._boundaries.drop()
            for stage in self._stages.values():
                stage.drop()
            raise
        finally:
            self._seconds.clear()
