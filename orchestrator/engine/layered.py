"""A run of the model's layers on one micro-batch: forward, and the backward pass in one piece or in two halves.

A micro-batch is a sequence of layer calls, each after its own seeding, and what goes from layer to layer is made contiguous, as
is its gradient: so it does not matter, to the bit, which rank runs a layer, where the model is cut into stages, whether a layer
runs twice (recomputation) or has its parameters only while it runs (ZeRO-3). Where neither of the last two is asked for, a stage
is one autograd graph; else each layer is a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator.core.job import Precision
from orchestrator.core.plan.pipeline import BACKWARD, FORWARD, INPUT, WEIGHT
from orchestrator.engine.halves import SecondHalf, first_half
from orchestrator.engine.rank_state import user_code
from orchestrator.engine.saved_params import looked_up
from orchestrator.engine.task import Task, TaskError, seed_drawing, seed_everything

RECOMPUTE, EVAL = "recompute", "eval"  # kinds of visits to a layer, beside those of core/plan/pipeline.py
EVAL_STEP = -2  # the step that held-out batches and their passes are seeded with


class Weights(Protocol):
    """Who has the layers' parameters and gathers their gradients. Layers and stages are numbered over the whole model.

    `kind` is forward, recompute, backward, input, weight or eval; `index` is the micro-batch's number among the replica's own.
    """

    @property
    def by_layer(self) -> bool:
        """Parameters are only there between `enter` and `leave`, and may be elsewhere the next time."""
        ...

    def enter(self, layer: int, index: int, kind: str) -> None:
        """When it returns the layer's parameters may be used. For forward, recompute and eval its buffers are the step's first.

        Several micro-batches may be between their forward and their backward pass: such buffers must be new tensors.
        """
        ...

    def leave(self, layer: int, index: int, kind: str) -> None:
        """The layer has run. After backward and weight its gradient of this micro-batch is complete.

        After recompute the backward (or input) visit of the same layer follows at once.
        """
        ...

    def open(self, stage: int, index: int) -> None:
        """Gradients of this micro-batch are about to be added to the parameters' `.grad`."""
        ...

    def done(self, stage: int, index: int) -> None:
        """All gradients of this micro-batch have been added."""
        ...


class ResidentWeights:
    """Parameters that are always there, gradients that somebody else has bound."""

    by_layer = False

    def enter(self, layer: int, index: int, kind: str) -> None:
        """Nothing to do."""

    def leave(self, layer: int, index: int, kind: str) -> None:
        """Nothing to do."""

    def open(self, stage: int, index: int) -> None:
        """Nothing to do."""

    def done(self, stage: int, index: int) -> None:
        """Nothing to do."""


@dataclass(slots=True)
class _Piece:
    """What lies between a forward pass and its backward pass: one graph, of the whole stage or of one of its layers."""

    layers: range
    x: Tensor  # the input, a leaf
    y: Tensor | None  # the output; None where the layer is to run again
    later: SecondHalf | None = None  # between the halves of a backward pass


@dataclass(slots=True)
class _Flight:
    """A micro-batch between its forward and its backward pass."""

    step: int
    number: int
    batch: Any
    pieces: list[_Piece] = field(default_factory=list)
    output: Tensor | None = None  # of the last layer, a leaf; None on other stages
    loss: Tensor | None = None


class LayeredStage:
    """Layers [first, last) of a task's model. For one thread; raises UserError for whatever the user's code raises.

    `module` is the whole model; `last` None means its last layer. A task that does not name its layers is one layer, whose
    forward pass is `task.loss`. `scale` multiplies the loss before the backward pass (1 / micro-batches of a step). `to_device`
    moves a batch, `guard` is entered around everything that computes. What `weights` raises passes through, as GroupBroken does.
    """

    def __init__(
        self,
        task: Task,
        module: nn.Module,
        *,
        seed: int,
        scale: float,
        stage: int = 0,
        first: int = 0,
        last: int | None = None,
        weights: Weights | None = None,
        recompute: bool = False,
        precision: Precision = Precision.FP32,
        device: torch.device | None = None,
        to_device: Callable[[Any], Any] = lambda batch: batch,
        guard: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._task, self._module, self._seed, self._scale = task, module, seed, scale
        with user_code():
            named = task.stack(module)
        self._whole = not named  # the model is one layer: its input and its loss are the task's business
        total = len(named) or 1
        self.stage = stage
        self.layers = range(first, total if last is None else last)
        self.is_first, self.is_last = self.layers.start == 0, self.layers.stop == total
        self._names = [name for name, _ in named] or ["the model"]
        self._modules = [layer for _, layer in named] or [module]
        self._weights: Weights = weights or ResidentWeights()
        self._recompute = recompute and not self._whole
        self._by_layer = self._recompute or self._weights.by_layer
        self._device_type = device.type if device is not None else "cpu"
        self._bf16 = precision is Precision.BF16
        self._to_device, self._guard = to_device, guard
        self._flights: dict[int, _Flight] = {}

    # -------------------------------------------------------------------------------------------------------- forward

    def forward(self, index: int, x: Tensor | None, *, step: int, number: int) -> Tensor:
        """Micro-batch `number` of the job's step, the replica's `index`-th, through the layers.

        `x` is what the stage before has made, None for the first stage. Returns what the next stage gets: contiguous, detached,
        with requires_grad where a gradient is wanted for it; or the last stage's loss: detached, not scaled, of one element.
        """
        flight = _Flight(step, number, self._draw(step, number))
        x = self._input(flight) if x is None else x
        for layers in self._graphs():
            leaf = x.detach().requires_grad_(x.requires_grad)
            if self._recompute:
                with torch.no_grad():
                    y = self._run(flight, layers, leaf, index, FORWARD)
                wanted = leaf.requires_grad or any(p.requires_grad for p in self._params(layers))
                x = y.detach().requires_grad_(wanted and y.is_floating_point())
                flight.pieces.append(_Piece(layers, leaf, None))
            else:
                y = self._run(flight, layers, leaf, index, FORWARD)
                x = y.detach().requires_grad_(y.requires_grad)
                flight.pieces.append(_Piece(layers, leaf, y))
        self._flights[index] = flight
        if not self.is_last:
            return x
        flight.output = x
        flight.loss = x if self._whole else self._criterion(flight, x)
        return flight.loss.detach()

    def evaluate(self, index: int, x: Tensor | None, *, number: int) -> Tensor:
        """The same for held-out micro-batch `number`, forward only. Whether modules are in eval mode is the caller's business."""
        flight = _Flight(EVAL_STEP, number, self._draw(EVAL_STEP, number))
        with torch.no_grad():
            x = self._run(flight, self.layers, self._input(flight) if x is None else x, index, EVAL)
            return x if self._whole or not self.is_last else self._criterion(flight, x)

    def _draw(self, step: int, number: int) -> Any:
        """The batch, where this stage needs it."""
        if not (self.is_first or self.is_last):
            return None
        with user_code():
            seed_drawing(seed=self._seed, step=step, micro_batch=number)
            if step == EVAL_STEP:
                return self._to_device(self._task.eval_batch(seed=self._seed, index=number))
            return self._to_device(self._task.batch(seed=self._seed, step=step, micro_batch=number))

    def _input(self, flight: _Flight) -> Tensor:
        """What the first layer is called with."""
        if self._whole:
            return torch.empty(0)
        with user_code():
            x = self._task.inputs(flight.batch)
            if not isinstance(x, Tensor):
                raise TaskError(f"inputs() must return a tensor, not {type(x).__name__}")
        return x.detach()

    def _run(self, flight: _Flight, layers: range, x: Tensor, index: int, kind: str) -> Tensor:
        """Through some layers; they see each other's output contiguous, and so its gradient."""
        for k in layers:
            self._weights.enter(k, index, kind)
            with self._computing(), self._autocast(), self._saving(k, kind):
                seed_everything(seed=self._seed, step=flight.step, micro_batch=flight.number, layer=k)
                y = self._task.loss(self._module, flight.batch) if self._whole else self._call(k, x)
                if self._whole:
                    _check_scalar(y, "loss()")
                x = y.contiguous() if type(y) is Tensor else y.clone()  # clone: a collective's result that is still under way
                if x.requires_grad and k + 1 < layers.stop:
                    x.register_hook(Tensor.contiguous)
            self._weights.leave(k, index, kind)
        return x

    def _call(self, k: int, x: Tensor) -> Tensor:
        before = x._version
        y = self._modules[k](x)
        if x._version != before:
            raise TaskError(f"layer {self._names[k]} changes its input in place; another stage may still need it as it was")
        if not isinstance(y, Tensor):
            raise TaskError(f"layer {self._names[k]} returned {type(y).__name__}; what goes from layer to layer is one tensor")
        return y

    def _criterion(self, flight: _Flight, output: Tensor) -> Tensor:
        with self._computing(), self._autocast():
            loss = self._task.criterion(output, flight.batch)
            _check_scalar(loss, "criterion()")
        return loss

    # ------------------------------------------------------------------------------------------------------- backward

    def backward(self, index: int, dy: Tensor | None) -> Tensor | None:
        """The whole backward pass. `dy` is the gradient of what `forward` has returned, None on the last stage.

        Returns the input's gradient, contiguous; None where none is wanted.
        """
        flight = self._flights.pop(index)
        x = flight.pieces[0].x
        self._weights.open(self.stage, index)
        dy = self._loss_gradient(flight, dy)
        while flight.pieces:
            piece = flight.pieces.pop()
            y = self._output(flight, piece, index)
            with self._visit(piece.layers, index, BACKWARD):
                if y.requires_grad and dy is not None:
                    with self._computing():
                        torch.autograd.backward(y, dy)
                dy = _contiguous(piece.x.grad)
            del piece, y  # the activations
        self._weights.done(self.stage, index)
        return dy if dy is not None or not x.requires_grad else torch.zeros_like(x)

    def backward_input(self, index: int, dy: Tensor | None) -> Tensor | None:
        """The half of the backward pass that the stage before waits for; as `backward`, but adds no gradient."""
        flight = self._flights[index]
        x = flight.pieces[0].x
        dy = self._loss_gradient(flight, dy)
        for piece in reversed(flight.pieces):
            y, piece.y = self._output(flight, piece, index), None
            with self._visit(piece.layers, index, INPUT):
                dx = None
                if y.requires_grad and dy is not None:
                    with self._computing():
                        dx, piece.later = first_half(y, dy, piece.x, self._params(piece.layers))
                dy = _contiguous(dx)
            del y
        return dy if dy is not None or not x.requires_grad else torch.zeros_like(x)

    def backward_weight(self, index: int) -> None:
        """The other half: adds the gradients of the parameters."""
        flight = self._flights.pop(index)
        self._weights.open(self.stage, index)
        while flight.pieces:
            piece = flight.pieces.pop()
            with self._visit(piece.layers, index, WEIGHT), self._computing():
                if piece.later is not None:
                    piece.later.run()
            del piece
        self._weights.done(self.stage, index)

    def _loss_gradient(self, flight: _Flight, dy: Tensor | None) -> Tensor | None:
        """Of the last layer's output, on the last stage."""
        output, loss = flight.output, flight.loss
        if output is None or loss is None:
            return dy
        flight.output = flight.loss = None
        if self._whole:
            return torch.full_like(output, self._scale)
        if loss.requires_grad:
            with self._computing():
                (loss * self._scale).backward()
        return _contiguous(output.grad)

    def _output(self, flight: _Flight, piece: _Piece, index: int) -> Tensor:
        """The piece's output with its graph, for which a layer may have to run once more."""
        return self._run(flight, piece.layers, piece.x, index, RECOMPUTE) if piece.y is None else piece.y

    def phantom(self, kind: str, index: int) -> None:
        """The calls of `weights` that the act `kind` (forward, backward, input, weight or eval) makes, and nothing else.

        For a replica that has one micro-batch less than those that it gathers parameters and reduces gradients with.
        """
        if kind in (FORWARD, EVAL):
            for k in self.layers:
                self._weights.enter(k, index, kind)
                self._weights.leave(k, index, kind)
            return
        if kind != INPUT:
            self._weights.open(self.stage, index)
        for layers in reversed(self._graphs()):
            if self._recompute and kind != WEIGHT:
                with self._visit(layers, index, RECOMPUTE):
                    pass
            with self._visit(layers, index, kind):
                pass
        if kind != INPUT:
            self._weights.done(self.stage, index)

    def drop(self) -> None:
        """Forget what is in flight."""
        self._flights.clear()

    # -------------------------------------------------------------------------------------------------------- helpers

    def _graphs(self) -> list[range]:
        return [range(k, k + 1) for k in self.layers] if self._by_layer else [self.layers]

    def _params(self, layers: range) -> list[nn.Parameter]:
        return [p for k in layers for p in self._modules[k].parameters() if p.requires_grad]

    @contextmanager
    def _visit(self, layers: range, index: int, kind: str) -> Iterator[None]:
        for k in reversed(layers):
            self._weights.enter(k, index, kind)
        yield
        for k in reversed(layers):
            self._weights.leave(k, index, kind)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with user_code(), self._guard():
            yield

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device_type, torch.bfloat16) if self._bf16 else nullcontext()

    def _saving(self, layer: int, kind: str) -> AbstractContextManager[object]:
        if self._weights.by_layer and kind == FORWARD and not self._recompute:
            return looked_up(self._modules[layer].parameters())
        return nullcontext()


def _check_scalar(loss: object, made_by: str) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shown = f"one of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TaskError(f"{made_by} must return a scalar tensor, not {shown}")


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.contiguous()
