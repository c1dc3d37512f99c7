"""The flat state: views alias, shards equal slices bit for bit, buffers are means over micro-batches for any number of ranks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.core.job import OptimizerSettings
from orchestrator.core.plan.layout import Interval
from orchestrator.engine.model_state import ALIGN, FlatState, Kind, block_size
from orchestrator.engine.task import TaskError, build_adamw

SETTINGS = OptimizerSettings(
    lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, warmup_steps=0, min_lr_ratio=0.1, clip_grad_norm=0.0
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


class Net(nn.Module):
    """Tied weights, a BatchNorm, constants of every kind, a buffer that is replaced, a parameter that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(37, 13)
        self.inner = nn.Linear(13, 13)
        self.norm = nn.BatchNorm1d(13)
        self.head = nn.Linear(13, 37)
        self.head.weight = self.embed.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.mask: Tensor
        self.ema: Tensor
        self.register_buffer("mask", torch.tensor([0.1, -math.inf, 0.0]))
        self.register_buffer("ema", torch.zeros(()))
        self.register_buffer("cache", torch.full((50,), 0.3), persistent=False)
        self.register_buffer("table", torch.arange(4))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.inner(self.embed(ids)))
        if self.training:
            self.ema = 0.9 * self.ema + 0.1 * x.detach().abs().max()
        out: Tensor = self.head(x) + 0 * self.mask[0]
        return out


def backward(net: Net, seed: int) -> None:
    ids = torch.randint(37, (7,), generator=torch.Generator().manual_seed(seed))
    loss: Any = net(ids).square().mean()
    loss.backward()


def entry_names(state: FlatState, kind: Kind) -> list[str]:
    return [e.name for e in state.entries if e.kind is kind]


def test_layout_has_parameters_then_buffers_then_padding() -> None:
    net = Net()
    values = {n: p.detach().clone() for n, p in [*net.named_parameters(), *net.named_buffers()]}
    state = FlatState(net)
    assert entry_names(state, Kind.PARAM) == [
        "unused",
        "embed.weight",
        "inner.weight",
        "inner.bias",
        "norm.weight",
        "norm.bias",
        "head.bias",
    ]
    assert entry_names(state, Kind.BUFFER) == ["mask", "ema", "norm.running_mean", "norm.running_var"]
    assert entry_names(state, Kind.COUNTER) == ["norm.num_batches_tracked"]
    params = [e for e in state.entries if e.kind is Kind.PARAM]
    others = [e for e in state.entries if e.kind is not Kind.PARAM]
    assert [e.start for e in params] == [0, *(-(-e.stop // ALIGN) * ALIGN for e in params[:-1])]
    assert [e.start for e in others] == [state.param_numel, *(e.stop for e in others[:-1])]
    assert state.entries[-1].stop == state.numel
    assert state.padded_numel == state.n_blocks * state.block >= state.numel
    for e in state.entries:
        if e.kind is not Kind.COUNTER:
            assert torch.equal(state.flat[e.start : e.stop].view(e.shape), values[e.name])
    assert not state.flat[state.numel - 1 :].any()
    assert net.head.weight is net.embed.weight


@pytest.mark.parametrize(
    ("numel", "block"),
    [(1, 1024), (2**20, 1024), (2**20 + 1, 2048), (2**21, 2048), (12_000_000, 16_384), (2**30 + 1, 2**21)],
)
def test_block_size_is_a_power_of_two_for_at_most_1024_blocks(numel: int, block: int) -> None:
    assert block_size(numel) == block
    assert -(-numel // block) <= 1024


def test_parameters_alias_the_vector_and_follow_a_rebind() -> None:
    net = Net()
    state = FlatState(net)
    old = state.flat
    shards = state.shards([Interval(0, state.padded_numel)])
    state.flat[: state.param_numel].fill_(0.25)
    assert all((p == 0.25).all() for p in net.parameters() if p.requires_grad)
    other = state.new_vector().fill_(0.5)
    state.rebind(other)
    old.fill_(9.0)  # an aborted collective writes late
    assert all((p == 0.5).all() for p in net.parameters() if p.requires_grad)
    assert (net.get_buffer("norm.running_mean") == 0.5).all()
    for shard in shards:
        shard.param.data.add_(1.0)
    assert all((other[e.start : e.stop] == 1.5).all() for e in state.entries if e.kind is Kind.PARAM)
    assert (net.head.weight == 1.5).all()
    with pytest.raises(ValueError, match="expected contiguous float32"):
        state.rebind(torch.zeros(3))


def test_backward_accumulates_into_the_bound_vector() -> None:
    net, plain = Net(), Net()
    state = FlatState(net)
    grad = state.new_vector()
    state.bind_grads(grad)
    for seed in (1, 2):
        backward(net, seed)
        backward(plain, seed)
        state.check_grads()
    for e in state.entries:
        if e.kind is Kind.PARAM:
            expected = plain.get_parameter(e.name).grad
            assert torch.equal(grad[e.start : e.stop].view(e.shape), torch.zeros(e.shape) if expected is None else expected)
    assert grad[: state.param_numel].any()
    assert not grad[state.param_numel :].any()
    second = state.new_vector()
    state.bind_grads(second)
    before = grad.clone()
    backward(net, 3)
    assert torch.equal(grad, before)
    assert second.any()


def test_a_gradient_that_left_the_vector_is_noticed() -> None:
    net = Net()
    state = FlatState(net)
    with pytest.raises(RuntimeError, match="before bind_grads"):
        state.check_grads()
    state.bind_grads(state.new_vector())
    net.zero_grad(set_to_none=True)
    backward(net, 1)
    with pytest.raises(TaskError, match=r"the gradient of unused was replaced"):
        state.check_grads()
    state.bind_grads(state.new_vector())
    assert net.inner.weight.grad is not None
    net.inner.weight.grad = net.inner.weight.grad.clone()
    with pytest.raises(TaskError, match=r"the gradient of inner\.weight was replaced"):
        state.check_grads()


def test_shards_are_the_overlaps_in_order() -> None:
    state = FlatState(Net())
    found = state.shards([Interval(510, 520), Interval(1, 20), Interval(520, 760), Interval(990, state.padded_numel)])
    assert [(s.name, s.start, s.stop, s.ndim) for s in found] == [
        ("unused", 1, 3, 1),
        ("embed.weight", 16, 20, 2),
        ("inner.weight", 512, 681, 2),  # embed.weight is [16, 497), and nobody has [497, 512)
        ("inner.bias", 688, 701, 1),
        ("norm.weight", 704, 717, 1),
        ("norm.bias", 720, 733, 1),
        ("head.bias", 736, 760, 1),
    ]
    assert all(s.param.shape == (s.stop - s.start,) and s.param.is_leaf for s in found)
    assert all(s.param.data_ptr() == state.flat.data_ptr() + 4 * s.start for s in found)
    with pytest.raises(ValueError, match="ends beyond"):
        state.shards([Interval(0, state.padded_numel + 1)])


def trained(cuts: list[int], *, seed: int) -> list[Tensor]:
    """Parameters and both moments after 4 steps, the state cut into as many owners as there are stretches between cuts."""
    state = FlatState(nn.Sequential(nn.Linear(31, 43), nn.Linear(43, 17), nn.LayerNorm(17)))
    draw = torch.Generator().manual_seed(seed)
    state.flat.copy_(torch.randn(state.padded_numel, generator=draw))
    edges = sorted({0, state.padded_numel, *(c % state.padded_numel for c in cuts)})
    owners = [state.shards([Interval(a, b)]) for a, b in itertools.pairwise(edges)]
    optimizers = [build_adamw(owner, SETTINGS) for owner in owners]
    grad = state.new_vector()
    for _ in range(4):
        scale = 10 ** (torch.rand(1, generator=draw) * 8 - 6)
        grad.copy_(torch.randn(state.padded_numel, generator=draw) * scale)
        for owner, optimizer in zip(owners, optimizers, strict=True):
            for shard in owner:
                shard.param.grad = grad[shard.start : shard.stop]
            optimizer.step()
    moments = [state.new_vector(), state.new_vector()]
    for owner, optimizer in zip(owners, optimizers, strict=True):
        for shard in owner:
            for moment, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
                moment[shard.start : shard.stop] = optimizer.state[shard.param][key]
    return [state.flat, *moments]


@settings(max_examples=80, deadline=None)
@given(cuts=st.lists(st.integers(1, 4095 // ALIGN), min_size=1, max_size=9), seed=st.integers(0, 2**31))
def test_adamw_on_shards_is_the_slice_of_the_whole_to_the_bit(cuts: list[int], seed: int) -> None:
    whole = trained([], seed=seed)
    parts = trained([c * ALIGN for c in cuts], seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_biases_and_norms_are_exempt_from_weight_decay() -> None:
    state = FlatState(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    shards = state.shards([Interval(1, state.padded_numel)])
    decayed, exempt = build_adamw(shards, SETTINGS).param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    assert [p.numel() for p in decayed["params"]] == [8]
    assert [p.numel() for p in exempt["params"]] == [3, 3, 3]
    build_adamw([], SETTINGS).step()


def one_step(state: FlatState, net: Net, *, ranks: int, micro_batches: int, first_seed: int) -> None:
    """A step whose micro-batches are spread over `ranks`; each runs in isolation, the sum is in canonical order."""
    total = state.new_vector()
    for m in range(micro_batches):
        grad = state.new_vector()
        state.bind_grads(grad)
        state.restore_buffers()
        backward(net, first_seed + m)
        state.check_grads()
        state.capture_buffers(grad, 1 / micro_batches)
        if ranks > 1 and m % 2:  # another rank's forward in between, or a micro-batch that is thrown away and redone
            backward(net, 999)
        total.add_(grad)
    middle = (state.param_numel + state.numel) // 2
    for part in (Interval(0, middle), Interval(middle, state.padded_numel)) if ranks > 1 else (Interval(0, state.numel),):
        state.apply_buffers(total, [part])
    state.restore_buffers()


def test_buffers_are_the_mean_over_micro_batches_whoever_computed_them() -> None:
    nets = Net(), Net()
    one, two = (FlatState(n) for n in nets)
    for step in range(3):
        one_step(one, nets[0], ranks=1, micro_batches=10, first_seed=20 * step)
        one_step(two, nets[1], ranks=2, micro_batches=10, first_seed=20 * step)
    assert torch.equal(one.flat, two.flat)
    assert not torch.equal(one.flat, FlatState(Net()).flat)
    assert one.flat[one.numel - 1] == 3.0  # ten times 0.1 is not 1.0
    for net in nets:
        count = net.get_buffer("norm.num_batches_tracked")
        assert (count.item(), count.dtype) == (3, torch.int64)
        assert torch.equal(net.mask, torch.tensor([0.1, -math.inf, 0.0]))
    # a spare that only receives the vector has the same modules
    spare = Net()
    state = FlatState(spare)
    state.rebind(one.flat.clone())
    assert all(torch.equal(a, b) for a, b in zip(spare.buffers(), nets[0].buffers(), strict=True))


def test_the_mean_is_the_mean() -> None:
    net = Net()
    state = FlatState(net)
    plain = []
    for seed in range(4):
        lone = Net()
        backward(lone, seed)
        plain.append(lone)
    one_step(state, net, ranks=1, micro_batches=4, first_seed=0)
    for name in ("norm.running_mean", "norm.running_var", "ema"):
        expected = torch.stack([lone.get_buffer(name) for lone in plain]).mean(0)
        assert torch.allclose(net.get_buffer(name), expected, atol=1e-6)
        assert expected.abs().max() > 0


def test_state_that_cannot_travel_is_refused() -> None:
    net = Net()
    state = FlatState(net)
    net.get_buffer("table").add_(1)
    with pytest.raises(TaskError, match="changed the integer buffer table"):
        state.capture_buffers(state.new_vector(), 1.0)
    net = Net()
    state = FlatState(net)
    net.ema = torch.zeros(2)
    with pytest.raises(TaskError, match="changed the shape of buffer ema"):
        state.capture_buffers(state.new_vector(), 1.0)
    with pytest.raises(TaskError, match=r"parameter weight is torch\.float64; trainable parameters must be float32"):
        FlatState(nn.Linear(2, 2).double())
    with pytest.raises(TaskError, match="ReLU has no trainable parameter"):
        FlatState(nn.ReLU())
    shared = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shared.get_parameter("1.weight").data = shared.get_parameter("0.weight").data
    with pytest.raises(TaskError, match=r"parameters 0\.weight and 1\.weight share storage"):
        FlatState(shared)
    wide = nn.Linear(2, 2)
    wide.register_buffer("total", torch.zeros(2, dtype=torch.float64))
    with pytest.raises(TaskError, match=r"buffer total is torch\.float64; make it float32, or persistent=False"):
        FlatState(wide)


def test_an_empty_parameter_is_none_of_our_business_and_a_lazy_one_is_refused() -> None:
    model = nn.Linear(4, 4)
    model.register_parameter("nothing", nn.Parameter(torch.empty(0)))
    state = FlatState(model)
    state.bind_grads(state.new_vector())
    model(torch.ones(2, 4)).sum().backward()
    state.check_grads()
    with pytest.raises(TaskError, match=r"weight has no shape yet"):
        FlatState(nn.LazyLinear(4))
