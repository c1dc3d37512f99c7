"""Layers run by LayeredStage: equal bits however the model is cut, run twice, split in halves or kept elsewhere meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.core.job import Precision
from orchestrator.engine.groups.base import GroupBroken
from orchestrator.engine.layered import LayeredStage, ResidentWeights
from orchestrator.engine.rank_state import UserError
from orchestrator.engine.task import Task, seed_drawing, seed_everything
from orchestrator.engine.tasks.gpt import GPT
from tests.unit.engine.engine_task import Tiny
from tests.unit.engine.layered_task import Layered
from tests.unit.engine.layered_world import SCALE, SEED, STEP, Grads, assert_equal, bare, build

NUMBERS = (4, 9)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Odd(Layered):
    """Layers that try the seams: a view and a transposed tensor as output, a parameter used twice, one that x never meets."""

    def build_model(self) -> nn.Module:
        model: nn.Module = Crooked(self.width, self.vocab)
        return model

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        assert isinstance(model, Crooked)
        return list(model.named_children())

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), batch[:, 1:].flatten()) + 0.1 * F.dropout(output, 0.5).square().mean()


class Crooked(nn.Module):
    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.turn = Turn(width)
        self.twice = Twice(width)
        self.back = Turn(width)
        self.deaf = Deaf(width)
        self.out = nn.Linear(width, vocab)


class Turn(nn.Module):
    """Gives its output with other strides than its shape has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(torch.tanh(self.inner(x.transpose(0, 1))), 0.2).transpose(0, 1)


class Twice(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.a(x) + x + self.b(torch.sin(x)))
        return y.flatten(1).view(x.shape)  # a view at the end


class Deaf(nn.Module):
    """Half of its parameters meet x late, and part of its gradient is a broadcast one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift, self.gain = nn.Parameter(torch.randn(width) * 0.1), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + torch.tanh(self.shift * self.gain) + x.mean(dim=1, keepdim=True)


@dataclass
class Moving(ResidentWeights):
    """Parameters have memory only while their layer runs, another one each time, and what is left behind is poison."""

    layers: Sequence[nn.Module]
    by_layer: bool = True
    masters: dict[int, Tensor] = field(default_factory=dict)
    calls: list[tuple[str, int, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for layer in self.layers:
            for p in layer.parameters():
                self.masters[id(p)] = p.detach().clone()
                self._take(p)

    def _take(self, p: nn.Parameter) -> None:
        p.data.fill_(float("nan"))
        p.data = torch.empty(0)

    def enter(self, layer: int, index: int, kind: str) -> None:
        self.calls.append(("enter", layer, index, kind))
        for p in self.layers[layer].parameters():
            if p.numel() == 0:
                home = torch.full((self.masters[id(p)].numel() + 48,), float("nan"))  # parameters lie inside larger memory
                p.data = home[16 : 16 + self.masters[id(p)].numel()].view(self.masters[id(p)].shape)
            p.data.copy_(self.masters[id(p)])

    def leave(self, layer: int, index: int, kind: str) -> None:
        self.calls.append(("leave", layer, index, kind))
        if kind != "recompute":
            for p in self.layers[layer].parameters():
                self._take(p)

    def open(self, stage: int, index: int) -> None:
        self.calls.append(("open", stage, index, ""))

    def done(self, stage: int, index: int) -> None:
        self.calls.append(("done", stage, index, ""))


@dataclass
class Noting(ResidentWeights):
    calls: list[tuple[str, int, int, str]] = field(default_factory=list)

    def enter(self, layer: int, index: int, kind: str) -> None:
        self.calls.append(("enter", layer, index, kind))

    def leave(self, layer: int, index: int, kind: str) -> None:
        self.calls.append(("leave", layer, index, kind))

    def open(self, stage: int, index: int) -> None:
        self.calls.append(("open", stage, index, ""))

    def done(self, stage: int, index: int) -> None:
        self.calls.append(("done", stage, index, ""))


def staged(
    task: Task,
    cuts: Sequence[int],
    *,
    halves: bool = False,
    recompute: bool = False,
    moving: bool = False,
    precision: Precision = Precision.FP32,
) -> tuple[list[float], Grads]:
    """The same through stages that begin at `cuts`; both micro-batches are in flight at once."""
    model = build(task)
    layers = [layer for _, layer in task.stack(model)]
    weights = Moving(layers) if moving else None
    bounds = [0, *cuts, len(layers)]
    stages = [
        LayeredStage(
            task,
            model,
            seed=SEED,
            scale=SCALE,
            stage=s,
            first=a,
            last=b,
            weights=weights,
            recompute=recompute,
            precision=precision,
        )
        for s, (a, b) in enumerate(pairwise(bounds))
    ]
    losses = []
    for index, number in enumerate(NUMBERS):
        x: Tensor | None = None
        for stage in stages:
            x = stage.forward(index, x, step=STEP, number=number)
            x = x if stage.is_last else x.clone().detach().requires_grad_(x.requires_grad)  # as another rank gets it
        assert x is not None
        losses.append(x.item())
    for index in range(len(NUMBERS)):
        dy: Tensor | None = None
        for stage in reversed(stages):
            dy = stage.backward_input(index, dy) if halves else stage.backward(index, dy)
            assert dy is None or dy.is_contiguous()
    if halves:
        for stage in stages:
            for index in range(len(NUMBERS)):
                stage.backward_weight(index)
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


TASKS: dict[str, Callable[[], Task]] = {
    "layered": Layered,
    "odd": Odd,
    "gpt": lambda: GPT(layers=2, width=16, heads=2, context=16, batch_size=2, dropout=0.1),
}


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("mode", ["graph", "recompute", "moving", "moving+recompute"])
@pytest.mark.parametrize("name", TASKS)
def test_every_way_to_run_it_gives_the_same_bits(name: str, mode: str, halves: bool) -> None:
    wanted = bare(TASKS[name](), NUMBERS)
    how: dict[str, Any] = {"halves": halves, "recompute": "recompute" in mode, "moving": "moving" in mode}
    for cuts in ((), (1,), (2,), (3,), (1, 3)):
        assert_equal(staged(TASKS[name](), cuts, **how), wanted)


@pytest.mark.parametrize("halves", [False, True])
def test_bf16_crosses_as_it_is(halves: bool) -> None:
    wanted = bare(TASKS["gpt"](), NUMBERS, Precision.BF16)
    assert wanted[0] != bare(TASKS["gpt"](), NUMBERS)[0]
    for cuts, recompute, moving in (((1,), False, False), ((2,), True, False), ((1, 3), False, True)):
        found = staged(TASKS["gpt"](), cuts, halves=halves, recompute=recompute, moving=moving, precision=Precision.BF16)
        assert_equal(found, wanted)


def test_a_task_without_layers_is_one_layer() -> None:
    task = Tiny()
    losses, grads = [], []
    for plain in (True, False):
        seed_everything(seed=SEED, step=-1, micro_batch=0)
        model = task.build_model()
        if plain:
            seed_drawing(seed=SEED, step=STEP, micro_batch=2)
            batch = task.batch(seed=SEED, step=STEP, micro_batch=2)
            seed_everything(seed=SEED, step=STEP, micro_batch=2)
            loss = task.loss(model, batch)
            (loss * SCALE).backward()
        else:
            stage = LayeredStage(task, model, seed=SEED, scale=SCALE, recompute=True)
            assert (stage.is_first, stage.is_last, stage.layers) == (True, True, range(1))
            loss = stage.forward(0, None, step=STEP, number=2)
            assert stage.backward(0, None) is None
        losses.append(loss.item())
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_each_half_of_the_backward_pass_does_its_own_part() -> None:
    flops = {}
    for halves in (False, True):
        task = TASKS["gpt"]()
        stage = LayeredStage(task, build(task), seed=SEED, scale=1.0, first=1, last=3)
        y = stage.forward(0, torch.randn(2, 16, 16, requires_grad=True), step=STEP, number=0)
        for kind in ("backward_input", "backward_weight") if halves else ("backward",):
            with FlopCounterMode(display=False) as counter:
                stage.backward_weight(0) if kind == "backward_weight" else getattr(stage, kind)(0, torch.ones_like(y))
            flops[kind] = counter.get_total_flops()
    assert flops["backward_input"] + flops["backward_weight"] == flops["backward"]
    weights = 2 * 2 * (2 * 16) * (12 * 16 * 16)  # 2 flops, 2 blocks, 32 tokens, 12 width^2 elements in matrices
    assert flops["backward_weight"] == weights


def test_what_is_kept_between_the_passes() -> None:
    """Recomputation keeps a layer's input only; one graph keeps everything."""
    kept = []
    for recompute in (False, True):
        task = Layered(depth=2, batch_size=8)
        stage = LayeredStage(task, build(task), seed=SEED, scale=1.0, recompute=recompute)
        saved: list[int] = []

        def pack(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            stage.forward(0, None, step=STEP, number=0)
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 4  # what is left is the criterion's


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("by_layer", [False, True])
def test_visits_come_in_the_promised_order_and_a_phantom_makes_the_same(by_layer: bool, recompute: bool) -> None:
    task = Layered(depth=1)
    model = build(task)
    weights = Noting()
    weights.by_layer = by_layer
    stage = LayeredStage(task, model, seed=SEED, scale=1.0, stage=7, weights=weights, recompute=recompute)
    seen: dict[str, list[tuple[str, int, int, str]]] = {}
    for kind in ("forward", "backward", "forward", "input", "weight", "eval"):
        weights.calls.clear()
        if kind == "forward":
            stage.forward(0, None, step=STEP, number=3)
        elif kind == "backward":
            stage.backward(0, None)
        elif kind == "input":
            stage.backward_input(0, None)
        elif kind == "weight":
            stage.backward_weight(0)
        else:
            stage.evaluate(0, None, number=3)
        seen[kind] = list(weights.calls)
        weights.calls.clear()
        stage.phantom(kind, 0)
        assert weights.calls == seen[kind]
    assert seen["forward"] == [(what, k, 0, "forward") for k in range(3) for what in ("enter", "leave")]
    backward = [call for call in seen["backward"] if call[3] == "backward"]
    if by_layer or recompute:
        assert backward == [(what, k, 0, "backward") for k in (2, 1, 0) for what in ("enter", "leave")]
    else:
        assert backward == [(what, k, 0, "backward") for what in ("enter", "leave") for k in (2, 1, 0)]
    for kind in ("backward", "weight"):
        assert (seen[kind][0], seen[kind][-1]) == (("open", 7, 0, ""), ("done", 7, 0, ""))
    again = [call for call in seen["backward"] + seen["input"] if call[3] == "recompute"]
    assert len(again) == (12 if recompute else 0)


def test_evaluation_draws_the_held_out_batch_and_leaves_no_trace() -> None:
    task = Layered()
    model = build(task).eval()
    x: Tensor | None = None
    for stage in (LayeredStage(task, model, seed=SEED, scale=1.0, first=a, last=b) for a, b in ((0, 2), (2, 6))):
        x = stage.evaluate(0, x, number=4)
        assert not x.requires_grad
        assert not stage._flights
    batch = task.eval_batch(seed=SEED, index=4)
    y = task.inputs(batch)
    for _, layer in task.stack(model):
        y = layer(y)
    assert x is not None
    assert x.item() == task.criterion(y, batch).item()


class Wrong(Layered):
    fault: str = ""

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        layers = list(super().stack(model))
        return [*layers[:-1], ("wrong", Faulty(self.fault)), layers[-1]]

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        return output if self.fault == "loss" else super().criterion(output, batch)

    def inputs(self, batch: Any) -> Any:
        return None if self.fault == "inputs" else super().inputs(batch)


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise GroupBroken("a collective inside the backward pass broke", 1)


class Faulty(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        if self.fault == "pair":
            return x, x
        if self.fault == "in place":
            with torch.no_grad():
                x.add_(1.0)
        if self.fault == "raise":
            raise ZeroDivisionError("the user's own mistake")
        if self.fault == "broken":
            return Raises.apply(x + self.bias)  # type: ignore[no-untyped-call]
        return x + self.bias


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("pair", "layer wrong returned tuple; what goes from layer to layer is one tensor"),
        ("in place", "layer wrong changes its input in place"),
        ("raise", "the user's own mistake"),
        ("loss", r"criterion\(\) must return a scalar tensor, not one of shape \[2, 6, 64\]"),
        ("inputs", r"inputs\(\) must return a tensor, not NoneType"),
    ],
)
def test_what_the_user_can_mend_is_said(fault: str, message: str) -> None:
    task = Wrong(fault=fault)
    stage = LayeredStage(task, build(task), seed=SEED, scale=1.0)
    with pytest.raises(UserError, match=message):
        stage.forward(0, None, step=STEP, number=0)


@pytest.mark.parametrize("halves", [False, True])
def test_a_broken_group_passes_through_autograd(halves: bool) -> None:
    task = Wrong(fault="broken")
    stage = LayeredStage(task, build(task), seed=SEED, scale=1.0, first=1)
    stage.forward(0, torch.randn(2, 6, 32, requires_grad=True), step=STEP, number=0)
    with pytest.raises(GroupBroken, match="a collective inside") as caught:
        (stage.backward_input if halves else stage.backward)(0, None)
    assert caught.value.peer == 1
    stage.drop()
    assert not stage._flights
