"""Tensor parallelism in real processes: close to the serial run, whole tensors equal to the bit, and groups that come and go."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import psutil
import pytest
import torch
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, SequenceParallel

from orchestrator.core.graph.space import cut, local_shape
from orchestrator.engine import tensor_parallel
from orchestrator.engine.groups import EpochGroup, GroupBroken, StoreServer
from orchestrator.engine.layered import LayeredStage
from orchestrator.engine.task import Task, TaskError
from orchestrator.engine.tasks.gpt import GPT
from orchestrator.engine.tensor_parallel import TensorParallel, cut_dim
from tests.unit.engine.forking import CONTEXT, forked
from tests.unit.engine.groups_world import DEADLINE_S, HOST, form, run_ranks
from tests.unit.engine.layered_task import Layered
from tests.unit.engine.layered_world import SCALE, SEED, build

STEPS = 4
LR = 0.5


class Still(Layered):
    """No dropout: coordinates draw one mask for unlike parts, so there would be no serial run to compare with."""

    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        model.eval()  # of the layers' modes, only dropout looks at it here
        return super().stack(model)


def gpt() -> Task:
    return GPT(layers=2, width=32, heads=4, context=16, batch_size=2)


TASKS: dict[str, Callable[[], Task]] = {"gpt": gpt, "layered": lambda: Still(depth=3)}


class Flat:
    """The model over a flat vector and a flat gradient, one coordinate's part of it, as the engine has it."""

    def __init__(self, task: Task, *, degree: int, coordinate: int) -> None:
        self.model = build(task)
        self.layers = list(task.stack(self.model))
        whole = dict(self.model.named_parameters())
        layer_of = {id(p): name for name, layer in self.layers for p in layer.parameters()}
        self.dims = {n: cut_dim(task, layer_of[id(p)], n) for n, p in whole.items()}
        self.tensor = TensorParallel(task, self.model, self.layers, degree=degree, coordinate=coordinate) if degree > 1 else None
        numel = sum(p.numel() for p in whole.values())
        self.flat, self.grad = torch.zeros(numel), torch.zeros(numel)
        self.views: dict[str, tuple[Tensor, Tensor, nn.Parameter]] = {}
        at = 0
        for name, p in whole.items():
            shape = local_shape(p.shape, cut_dim=self.dims[name], degree=degree, coordinate=coordinate)
            size = torch.Size(shape).numel()
            value, grad = (v[at : at + size].view(shape) for v in (self.flat, self.grad))
            part = p.detach()
            if self.dims[name] >= 0:
                lo, hi = cut(p.shape[self.dims[name]], degree=degree, coordinate=coordinate)
                part = part.narrow(self.dims[name], lo, hi - lo)
            value.copy_(part)
            made = nn.Parameter(value) if self.tensor is None else self.tensor.param(name, value)
            made.grad = grad if self.tensor is None else self.tensor.grad(name, grad)
            prefix, _, key = name.rpartition(".")
            self.model.get_submodule(prefix)._parameters[key] = made
            self.views[name] = value, grad, made
            at += size

    def check(self) -> None:
        """Parameters and gradients still lie in the flat vectors."""
        for value, grad, made in self.views.values():
            assert made.grad is not None
            for tensor, view in ((made, value), (made.grad, grad)):
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                assert local.data_ptr() == view.data_ptr()


@dataclass
class Told:
    losses: list[float] = field(default_factory=list)
    grads: dict[str, Tensor] = field(default_factory=dict)  # after the last step, this coordinate's
    dims: dict[str, int] = field(default_factory=dict)


def train(
    task: Task,
    *,
    degree: int = 1,
    coordinate: int = 0,
    epoch: Callable[[int, TensorParallel], None] = lambda step, tensor: None,
    how: str = "",
) -> Told:
    """STEPS of gradient descent, the flat vector updated in place; `epoch` may replace the group before a step."""
    torch.set_num_threads(1)
    flat = Flat(task, degree=degree, coordinate=coordinate)
    guard: dict[str, Any] = {} if flat.tensor is None else {"guard": flat.tensor.guard}
    stage = LayeredStage(task, flat.model, seed=SEED, scale=SCALE, recompute="recompute" in how, **guard)
    if how == "moving":
        stage = LayeredStage(task, flat.model, seed=SEED, scale=SCALE, weights=Moving(flat), **guard)
    told = Told(dims=flat.dims)
    for step in range(STEPS):
        if flat.tensor is not None:
            epoch(step, flat.tensor)
        flat.grad.zero_()
        told.losses.append(float(stage.forward(0, None, step=step, number=1)))
        if "halves" in how:
            stage.backward_input(0, None)
            stage.backward_weight(0)
        else:
            stage.backward(0, None)
        flat.check()
        flat.flat.add_(flat.grad, alpha=-LR)
    told.grads = {name: grad.clone() for name, (_, grad, _) in flat.views.items()}
    return told


class Moving:
    """Values lie elsewhere each time that a layer runs, and are poisoned where it ran before."""

    by_layer = True

    def __init__(self, flat: Flat) -> None:
        self.flat = flat
        self.names = [
            [n for n, (_, _, p) in flat.views.items() if any(p is q for q in layer.parameters())] for _, layer in flat.layers
        ]
        self.here: dict[str, Tensor] = {}

    def enter(self, layer: int, index: int, kind: str) -> None:
        assert self.flat.tensor is not None
        for name in self.names[layer]:
            self.here[name] = self.flat.views[name][0].clone()
            assert self.flat.tensor.param(name, self.here[name]) is self.flat.views[name][2]

    def leave(self, layer: int, index: int, kind: str) -> None:
        assert self.flat.tensor is not None
        for name in self.names[layer]:
            self.here.pop(name).fill_(float("nan"))
            self.flat.tensor.param(name, self.flat.views[name][0])

    def open(self, stage: int, index: int) -> None:
        pass

    def done(self, stage: int, index: int) -> None:
        pass


# ------------------------------------------------------------------------------------------------------------ processes


def run_train(link: Connection, endpoint: str, rank: int, size: int, name: str, *hows: str) -> list[Told]:
    """Trainings one after the other; in each, groups are replaced before step 2."""
    groups: list[EpochGroup] = []

    def epoch(step: int, tensor: TensorParallel) -> None:
        if step in (0, 2):
            tensor.uninstall()
            if groups:
                groups[-1].close()
            groups.append(form(endpoint, rank=rank, size=size, epoch=len(groups) + 1))
            tensor.install(groups[-1])

    return [train(TASKS[name](), degree=size, coordinate=rank, epoch=epoch, how=how) for how in hows]


def run_broken(link: Connection, endpoint: str, rank: int, size: int, phase: str, how: str) -> str:
    """Rank 1 stops (or dies) before rank 0's forward or backward pass; continued, it forms a new group with rank 0."""
    task = gpt()
    flat = Flat(task, degree=size, coordinate=rank)
    assert flat.tensor is not None
    group = form(endpoint, rank=rank, size=size, epoch=1)
    flat.tensor.install(group)
    stage = LayeredStage(task, flat.model, seed=SEED, scale=SCALE, guard=flat.tensor.guard)
    if phase == "backward":
        stage.forward(0, None, step=0, number=0)
    if rank == 1:
        link.send("there")
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        group.abort()
    elif how == "stop":
        link.send("there")
        link.recv()  # the other has stopped
        threading.Timer(0.3, group.abort).start()
    else:
        link.send("there")
    if rank == 0:
        with pytest.raises(GroupBroken) as caught:
            stage.backward(0, None) if phase == "backward" else stage.forward(0, None, step=0, number=0)
        assert caught.value.peer == (1 if how == "kill" else None)
        stage.drop()
        with pytest.raises(GroupBroken):  # for ever
            stage.forward(0, None, step=0, number=0)
        link.send("broken")
    if how == "kill":
        return ""
    link.recv()  # the other goes on again
    group = form(endpoint, rank=rank, size=size, epoch=2)
    flat.tensor.install(group)
    stage.drop()
    flat.grad.zero_()
    loss = float(stage.forward(0, None, step=0, number=1))
    stage.backward(0, None)
    return loss.hex()


def run_roles(link: Connection, endpoint: str, rank: int, size: int, name: str, how: str) -> list[Told]:
    """The two processes change places; a new TensorParallel replaces the old one."""
    out = []
    for epoch, seat in ((1, rank), (2, 1 - rank)):
        group = form(endpoint, rank=seat, size=size, epoch=epoch)

        def install(step: int, tensor: TensorParallel, group: EpochGroup = group) -> None:
            if step == 0:
                tensor.install(group)

        out.append(train(TASKS[name](), degree=size, coordinate=seat, epoch=install))
    return out


def main(work: Callable[..., Any], link: Connection, *arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        link.send(("told", work(link, *arguments)))
    except BaseException:
        link.send(("failed", traceback.format_exc()))
    with contextlib.suppress(EOFError):
        link.recv()  # others may still be reading from our group
    os._exit(0)


class Ranks:
    """`size` processes that do `work(link, endpoint, rank, size, *arguments)`."""

    def __init__(self, size: int, work: Callable[..., Any], *arguments: Any) -> None:
        self.server = StoreServer(HOST)
        self.links, self.processes = [], []
        for rank in range(size):
            here, there = CONTEXT.Pipe()
            process = CONTEXT.Process(target=main, args=(work, there, self.server.endpoint, rank, size, *arguments), daemon=True)
            process.start()
            there.close()
            self.links.append(here)
            self.processes.append(process)

    def hear(self, rank: int) -> Any:
        assert self.links[rank].poll(2 * DEADLINE_S), f"rank {rank} said nothing within {2 * DEADLINE_S} s"
        return self.links[rank].recv()

    def result(self, rank: int) -> Any:
        kind, told = self.hear(rank)
        assert kind == "told", told
        return told

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join(DEADLINE_S)
        self.server.close()


def results(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    with closing(Ranks(size, work, *arguments)) as ranks:
        return [ranks.result(rank) for rank in range(size)]


def assert_like_serial(found: Sequence[Told], serial: Told) -> None:
    """Losses agree within 1e-5, cut gradients put together too, whole ones are equal to the bit on all coordinates."""
    degree = len(found)
    for told in found:
        assert told.losses == found[0].losses
    assert found[0].losses == pytest.approx(serial.losses, abs=1e-5)
    assert serial.losses[-1] < serial.losses[0]
    for name, wanted in serial.grads.items():
        parts = [told.grads[name] for told in found]
        if serial.dims[name] >= 0:
            whole = torch.cat(parts, serial.dims[name])
        else:
            assert all(torch.equal(part, parts[0]) for part in parts), name
            whole = parts[0]
        assert whole.shape == wanted.shape
        torch.testing.assert_close(whole, wanted, rtol=1e-3, atol=1e-5)
    assert degree == 1 or sum(d >= 0 for d in serial.dims.values()) >= 4


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@forked
@pytest.mark.parametrize(("name", "degree"), [("gpt", 2), ("gpt", 4), ("layered", 3)])
def test_losses_of_the_serial_run_and_equal_bits_of_what_is_whole(name: str, degree: int) -> None:
    found = [told for (told,) in results(degree, run_train, name, "")]
    assert_like_serial(found, train(TASKS[name]()))


@forked
def test_every_way_to_run_a_layer_gives_the_same_bits() -> None:
    for plain, *others in results(2, run_train, "gpt", "", "halves", "recompute", "recompute+halves", "moving"):
        for other in others:
            assert other.losses == plain.losses
            for name, gradient in plain.grads.items():
                assert torch.equal(gradient, other.grads[name]), name


@forked
def test_processes_may_change_places() -> None:
    (first, second), serial = results(2, run_roles, "gpt", ""), train(gpt())
    assert_like_serial([first[0], second[0]], serial)
    assert_like_serial([second[1], first[1]], serial)


def test_an_abort_ends_a_wait_that_gloo_has_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer that was half-way when its connection went is waited for until the time-out, inside the library."""
    forgotten = threading.Event()

    def work(group: EpochGroup) -> None:
        monkeypatch.setattr(tensor_parallel._registered, "group", group)
        monkeypatch.setattr(tensor_parallel, "_wait_in_the_library", lambda tensor: forgotten.wait(60))
        threading.Timer(0.1, group.abort).start()
        with pytest.raises(GroupBroken, match="aborted"):
            functional.wait_tensor(torch.zeros(1))
        assert not forgotten.is_set()

    try:
        run_ranks(1, work)
    finally:
        forgotten.set()


@forked
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_an_abort_wakes_whoever_waits_for_a_stopped_rank(phase: str) -> None:
    with closing(Ranks(2, run_broken, phase, "stop")) as ranks:
        assert [ranks.hear(rank) for rank in (0, 1)] == ["there"] * 2
        ranks.links[0].send("it has stopped")
        assert ranks.hear(0) == "broken"
        stopped = psutil.Process(ranks.processes[1].pid)
        while stopped.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        stopped.resume()
        for link in ranks.links:
            link.send("go on")
        assert ranks.result(0) == ranks.result(1)


@forked
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_a_killed_rank_breaks_the_group(phase: str) -> None:
    with closing(Ranks(2, run_broken, phase, "kill")) as ranks:
        assert [ranks.hear(rank) for rank in (0, 1)] == ["there"] * 2
        assert ranks.hear(0) == "broken"


# --------------------------------------------------------------------------------------------------------- declarations


class Declared(Layered):
    """Says what a test tells it to."""

    _plan: dict[str, ParallelStyle]

    def tensor_plan(self, layer: str) -> dict[str, ParallelStyle]:
        return self._plan if layer == "mix0" else {}


class Unnamed(Layered):
    def stack(self, model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
        return ()


def test_cut_dims() -> None:
    task = gpt()
    assert cut_dim(task, "block0", "blocks.0.qkv.weight") == cut_dim(task, "block0", "qkv.bias") == 0
    assert cut_dim(task, "block1", "blocks.1.mlp_out.weight") == 1
    for layer, name in (("block1", "mlp_out.bias"), ("block1", "norm_mlp.weight"), ("head", "last.head.weight"), ("block0", "x")):
        assert cut_dim(task, layer, name) == -1


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "cuts nothing: 999 tensor ranks would do the same work"),
        ({"inner": SequenceParallel()}, "'inner' has style SequenceParallel; known: ColwiseParallel, RowwiseParallel"),
        ({"iner": ColwiseParallel()}, "layer mix0: there is no submodule 'iner'"),
        ({"norm": ColwiseParallel()}, "norm is a LayerNorm; only nn.Linear can be cut"),
        ({"inner": ColwiseParallel(), "outer": RowwiseParallel()}, r"inner has \d+ features, not a multiple of 999 tensor ranks"),
    ],
)
def test_what_cannot_be_cut_is_refused(plan: dict[str, ParallelStyle], message: str) -> None:
    task = Declared(width=2)
    task._plan = plan
    model = task.build_model()
    with pytest.raises(TaskError, match=message):
        TensorParallel(task, model, task.stack(model), degree=999, coordinate=0)


def test_a_key_that_is_the_end_of_another_name_is_refused() -> None:
    task = Declared()
    task._plan = {"inner": ColwiseParallel()}
    model = task.build_model()
    layers = dict(task.stack(model))
    layers["mix0"].add_module("more", nn.ModuleDict({"inner": nn.Linear(8, 8)}))
    with pytest.raises(TaskError, match=r"one of its keys is also the end of more\.inner\.weight; rename one of them"):
        TensorParallel(task, model, list(layers.items()), degree=2, coordinate=0)


def test_heads_are_dealt_out_whole_and_layers_must_have_names() -> None:
    task = gpt()
    model = task.build_model()
    with pytest.raises(TaskError, match="4 attention heads cannot be dealt out to 3 tensor ranks"):
        TensorParallel(task, model, task.stack(model), degree=3, coordinate=0)
    with pytest.raises(TaskError, match="Unnamed does not name its layers"):
        TensorParallel(Unnamed(), model, (), degree=2, coordinate=0)
