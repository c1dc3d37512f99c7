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

from orchestrator.core.graph.space import ALIGN, block_size, graph_view, space_of
from orchestrator.core.job import OptimizerSettings
from orchestrator.core.plan.layout import Interval
from orchestrator.engine.extents import Extents
from orchestrator.engine.model_state import Entry, FlatState, Kind
from orchestrator.engine.task import TaskError, build_adamw
from tests.unit.engine.state_world import Layered, cut_up, new_state, values_of, whole_vector

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


def whole(state: FlatState) -> Tensor:
    """A view of all of a state of one layer."""
    return state.params.view(0, state.space.numel)


def zeros(state: FlatState) -> Tensor:
    """Another vector."""
    return torch.zeros(state.space.numel)


def holding(vector: Tensor) -> Extents:
    """All of a vector in one piece."""
    out = Extents(vector.dtype)
    out.add(Interval(0, vector.numel()), vector)
    return out


def params(state: FlatState) -> list[Entry]:
    return [e for e in state.entries if e.kind is Kind.PARAM]


def entry_names(state: FlatState, kind: Kind) -> list[str]:
    return [e.name for e in state.entries if e.kind is kind]


# ------------------------------------------------------------------------------------------------------------ laying out


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
    others = [e for e in state.entries if e.kind is not Kind.PARAM]
    assert [e.start for e in params(state)] == [0, *(-(-e.stop // ALIGN) * ALIGN for e in params(state)[:-1])]
    assert [e.start for e in others] == [params(state)[-1].stop, *(e.stop for e in others[:-1])]
    assert state.numel == sum(e.stop - e.start for e in state.entries)
    assert state.space.numel % state.block == 0
    for e in state.entries:
        if e.kind is not Kind.COUNTER:
            assert torch.equal(state.params.view(e.start, e.stop).view(e.shape), values[e.name])
    assert not whole(state)[others[-1].start :].any()
    assert net.head.weight is net.embed.weight
    assert {k: int(v) for k, v in state.counters.items()} == {"norm.num_batches_tracked": 0}


@pytest.mark.parametrize(
    ("numel", "block"),
    [(1, 1024), (2**20, 1024), (2**20 + 1, 2048), (2**21, 2048), (12_000_000, 16_384), (2**30 + 1, 2**21)],
)
def test_block_size_is_a_power_of_two_for_at_most_1024_blocks(numel: int, block: int) -> None:
    assert block_size(numel) == block
    assert -(-numel // block) <= 1024


def test_layers_lie_one_after_the_other_and_tied_weights_twice() -> None:
    model = Layered()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = FlatState(model, model.layers())
    view = graph_view(state.shapes, layer_names=state.layer_names, fingerprint="f")
    assert space_of(view, 1) == state.space
    assert [state.bounds(n) for n in range(5)] == [Interval(layer.start, layer.stop) for layer in view.layers]
    assert all(state.bounds(e.layer).start <= e.start <= e.stop <= state.bounds(e.layer).stop for e in state.entries)
    twins = {e.name: e.twin for e in state.entries if e.twin}
    assert twins == {"head.weight": "embed.weight"}
    assert model.head.weight is not model.embed.weight
    assert torch.equal(model.head.weight, before["embed.weight"])
    shards = [s.name for s in state.shards([Interval(0, state.space.numel)])]
    assert (shards.count("embed.weight"), "head.weight" in shards) == (2, False), "an optimizer may go by names"
    state.params.view(state.bounds(0).start, state.bounds(0).stop).zero_()
    assert not model.embed.weight.any()
    assert torch.equal(model.head.weight, before["embed.weight"])


@pytest.mark.parametrize("degree", [2, 3])
def test_a_tensor_coordinate_has_its_part_as_chunk_cuts(degree: int) -> None:
    for coordinate in range(degree):
        state = new_state(degree=degree, coordinate=coordinate)
        vector = whole_vector(state, 1)
        state.adopt(cut_up(vector, tuple(state.bounds(n) for n in (1, 3)), coordinate), ())
        parts = Extents(torch.float32)
        for n in (1, 3):
            bounds = state.bounds(n)
            parts.add(bounds, vector[bounds.start : bounds.stop].clone())
        state.adopt(parts, (1, 3))
        expected = values_of(state, 1)
        for name, dim in (("a.up.weight", 0), ("a.down.weight", 1), ("c.up.bias", 0), ("c.up.weight", 0)):
            part = expected[name].chunk(degree, dim=dim)[coordinate]
            assert torch.equal(state.module.get_parameter(name), part), name
        assert torch.equal(state.module.get_parameter("a.down.bias"), expected["a.down.bias"])
        assert state.module.get_parameter("b.up.weight").numel() == 0
        assert torch.equal(state.module.get_buffer("a.norm.running_mean"), expected["a.norm.running_mean"])
        assert int(state.module.get_buffer("a.norm.num_batches_tracked")) == 8


# -------------------------------------------------------------------------------------------------------------- aliasing


def test_parameters_alias_the_vector_and_follow_it_elsewhere() -> None:
    net = Net()
    state = FlatState(net)
    old = whole(state)
    shards = state.shards([Interval(0, state.space.numel)])
    old[: params(state)[-1].stop].fill_(0.25)
    assert all((p == 0.25).all() for p in net.parameters() if p.requires_grad)
    other = zeros(state).fill_(0.5)
    state.adopt(holding(other), (0,))
    old.fill_(9.0)  # an aborted collective writes late
    assert all((p == 0.5).all() for p in net.parameters() if p.requires_grad)
    assert (net.get_buffer("norm.running_mean") == 0.5).all()
    for shard in shards:
        shard.param.data.add_(1.0)
    assert all((other[e.start : e.stop] == 1.5).all() for e in params(state))
    assert (net.head.weight == 1.5).all()
    with pytest.raises(KeyError, match="is not all held"):
        state.adopt(Extents(torch.float32), (0,))


def test_a_layer_that_is_let_go_has_no_memory_until_it_is_bound_again() -> None:
    state = new_state()
    vector = whole_vector(state, 1)
    state.adopt(cut_up(vector, (Interval(0, state.space.numel),), 3), ())
    assert all(p.numel() == 0 for p in state.module.parameters() if p.requires_grad)
    bounds = state.bounds(2)
    state.bind_layer(2, vector[bounds.start : bounds.stop])
    assert torch.equal(state.module.get_parameter("b.conv.weight"), values_of(state, 1)["b.conv.weight"])
    assert state.module.get_parameter("a.up.weight").numel() == 0
    state.release_layer(2)
    assert state.module.get_parameter("b.conv.weight").numel() == 0


def test_backward_accumulates_into_the_bound_vector() -> None:
    net, plain = Net(), Net()
    state = FlatState(net)
    grad = zeros(state)
    state.bind_grads((0,), 0, grad)
    for seed in (1, 2):
        backward(net, seed)
        backward(plain, seed)
        state.check_grads((0,))
    for e in params(state):
        expected = plain.get_parameter(e.name).grad
        assert torch.equal(grad[e.start : e.stop].view(e.shape), torch.zeros(e.shape) if expected is None else expected)
    end = params(state)[-1].stop
    assert grad[:end].any()
    assert not grad[end:].any()
    second = zeros(state)
    state.bind_grads((0,), 0, second)
    before = grad.clone()
    backward(net, 3)
    assert torch.equal(grad, before)
    assert second.any()


def test_gradients_follow_a_buffer_that_begins_elsewhere() -> None:
    state = new_state()
    bounds = state.bounds(1)
    buffer = torch.zeros(bounds.numel + 2 * state.block)
    weight = state.module.get_parameter("a.up.weight")
    for start in (bounds.start, bounds.start - state.block):  # the same memory: a stage that was cut elsewhere
        state.bind_grads((1,), start, buffer)
        state.check_grads((1,))
        buffer.zero_()
        weight.sum().backward()
        e = next(e for e in state.of_layer(1) if e.name == "a.up.weight")
        assert (buffer[e.start - start : e.stop - start] == 1.0).all()
        assert buffer.sum() == weight.numel()


def test_a_gradient_that_left_the_vector_is_noticed() -> None:
    net = Net()
    state = FlatState(net)
    state.bind_grads((0,), 0, zeros(state))
    net.zero_grad(set_to_none=True)
    backward(net, 1)
    with pytest.raises(TaskError, match=r"the gradient of unused was replaced"):
        state.check_grads((0,))
    state.bind_grads((0,), 0, zeros(state))
    assert net.inner.weight.grad is not None
    net.inner.weight.grad = net.inner.weight.grad.clone()
    with pytest.raises(TaskError, match=r"the gradient of inner\.weight was replaced"):
        state.check_grads((0,))


# ---------------------------------------------------------------------------------------------------------------- shards


def test_shards_are_the_overlaps_in_order() -> None:
    state = FlatState(Net())
    found = state.shards([Interval(510, 520), Interval(1, 20), Interval(520, 760), Interval(990, state.space.numel)])
    assert [(s.name, s.start, s.stop, s.ndim) for s in found] == [
        ("inner.weight", 512, 520, 2),  # embed.weight is [16, 497), and nobody has [497, 512)
        ("unused", 1, 3, 1),
        ("embed.weight", 16, 20, 2),
        ("inner.weight", 520, 681, 2),
        ("inner.bias", 688, 701, 1),
        ("norm.weight", 704, 717, 1),
        ("norm.bias", 720, 733, 1),
        ("head.bias", 736, 760, 1),
    ]
    assert all(s.param.shape == (s.stop - s.start,) and s.param.is_leaf for s in found)
    assert all(s.param.data_ptr() == whole(state).data_ptr() + 4 * s.start for s in found)
    with pytest.raises(KeyError, match="is not all held"):
        new_state(degree=2).shards([Interval(0, 2 * new_state(degree=2).space.section)])


def test_shards_end_where_memory_does() -> None:
    state = FlatState(Net())
    cut = Extents(torch.float32)
    for lo, hi in ((0, 48), (48, 640), (640, state.space.numel)):
        cut.add(Interval(lo, hi), torch.zeros(hi - lo))
    state.adopt(cut, ())
    found = state.shards([Interval(0, 700)])
    assert [(s.name, s.start, s.stop) for s in found] == [
        ("unused", 0, 3),
        ("embed.weight", 16, 48),
        ("embed.weight", 48, 497),
        ("inner.weight", 512, 640),
        ("inner.weight", 640, 681),
        ("inner.bias", 688, 700),
    ]


def trained(cuts: list[int], *, seed: int) -> list[Tensor]:
    """Parameters and both moments after 4 steps, the state cut into as many owners as there are stretches between cuts."""
    state = FlatState(nn.Sequential(nn.Linear(31, 43), nn.Linear(43, 17), nn.LayerNorm(17)))
    draw = torch.Generator().manual_seed(seed)
    numel = state.space.numel
    whole(state).copy_(torch.randn(numel, generator=draw))
    edges = sorted({0, numel, *(c % numel for c in cuts)})
    owners = [state.shards([Interval(a, b)]) for a, b in itertools.pairwise(edges)]
    optimizers = [build_adamw(owner, SETTINGS) for owner in owners]
    grad = zeros(state)
    for _ in range(4):
        scale = 10 ** (torch.rand(1, generator=draw) * 8 - 6)
        grad.copy_(torch.randn(numel, generator=draw) * scale)
        for owner, optimizer in zip(owners, optimizers, strict=True):
            for shard in owner:
                shard.param.grad = grad[shard.start : shard.stop]
            optimizer.step()
    moments = [zeros(state), zeros(state)]
    for owner, optimizer in zip(owners, optimizers, strict=True):
        for shard in owner:
            for moment, key in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
                moment[shard.start : shard.stop] = optimizer.state[shard.param][key]
    return [whole(state), *moments]


@settings(max_examples=80, deadline=None)
@given(cuts=st.lists(st.integers(1, 4095 // ALIGN), min_size=1, max_size=9), seed=st.integers(0, 2**31))
def test_adamw_on_shards_is_the_slice_of_the_whole_to_the_bit(cuts: list[int], seed: int) -> None:
    alone = trained([], seed=seed)
    parts = trained([c * ALIGN for c in cuts], seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(alone, parts, strict=True))


def test_biases_and_norms_are_exempt_from_weight_decay() -> None:
    state = FlatState(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    shards = state.shards([Interval(1, state.space.numel)])
    decayed, exempt = build_adamw(shards, SETTINGS).param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    assert [p.numel() for p in decayed["params"]] == [8]
    assert [p.numel() for p in exempt["params"]] == [3, 3, 3]
    build_adamw([], SETTINGS).step()


# --------------------------------------------------------------------------------------------------------------- buffers


def one_step(state: FlatState, net: Net, *, ranks: int, micro_batches: int, first_seed: int) -> None:
    """A step whose micro-batches are spread over `ranks`; each runs in isolation, the sum is in canonical order."""
    total = zeros(state)
    for m in range(micro_batches):
        state.bind_grads((0,), 0, zeros(state))
        state.restore_all_buffers((0,))
        backward(net, first_seed + m)
        for e, change in state.buffer_changes(0, whole(state)):
            total[e.start : e.stop].add_(change.reshape(-1))
        if ranks > 1 and m % 2:  # another rank's forward in between, or a micro-batch that is thrown away and redone
            backward(net, 999)
    total.mul_(1.0 / micro_batches)
    buffers = state.buffers_only[0]
    middle = (buffers.start + buffers.stop) // 2
    edges = [0, middle, state.space.numel] if ranks > 1 else [0, state.space.numel]
    state.apply_buffers([(a, total[a:b]) for a, b in itertools.pairwise(edges)])
    state.restore_all_buffers((0,))


def test_buffers_are_the_mean_over_micro_batches_whoever_computed_them() -> None:
    nets = Net(), Net()
    one, two = (FlatState(n) for n in nets)
    for step in range(3):
        one_step(one, nets[0], ranks=1, micro_batches=10, first_seed=20 * step)
        one_step(two, nets[1], ranks=2, micro_batches=10, first_seed=20 * step)
    assert torch.equal(whole(one), whole(two))
    assert not torch.equal(whole(one), whole(FlatState(Net())))
    assert whole(one)[one.entries[-1].start] == 3.0  # ten times 0.1 is not 1.0
    for net in nets:
        count = net.get_buffer("norm.num_batches_tracked")
        assert (count.item(), count.dtype) == (3, torch.int64)
        assert torch.equal(net.mask, torch.tensor([0.1, -math.inf, 0.0]))
    # a spare that only receives the vector has the same modules
    spare = Net()
    FlatState(spare).adopt(holding(whole(one).clone()), (0,))
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


# --------------------------------------------------------------------------------------------------------------- refusals


def test_state_that_cannot_travel_is_refused() -> None:
    net = Net()
    state = FlatState(net)
    net.get_buffer("table").add_(1)
    with pytest.raises(TaskError, match="changed the integer buffer table"):
        state.buffer_changes(0, whole(state))
    net = Net()
    state = FlatState(net)
    net.ema = torch.zeros(2)
    with pytest.raises(TaskError, match="changed the shape of buffer ema"):
        state.buffer_changes(0, whole(state))
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


def test_layers_that_do_not_cover_the_model_or_overlap_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    first, second, third = model
    with pytest.raises(TaskError, match=r"layers\(\) leaves out 2, which has trainable parameters or persistent buffers"):
        FlatState(model, [("a", first), ("b", second)])
    with pytest.raises(TaskError, match=r"layers a and c share the module 0; give each a module of its own"):
        FlatState(model, [("a", first), ("b", nn.Sequential(second, third)), ("c", first)])
    with pytest.raises(TaskError, match="layer d has a Linear with parameters or buffers that is not part of the model"):
        FlatState(model, [("a", first), ("b", second), ("c", third), ("d", nn.Linear(4, 4))])
    model.register_buffer("scale", torch.ones(1))
    with pytest.raises(TaskError, match=r"layers\(\) leaves out the model itself"):
        FlatState(model, [("a", first), ("b", second), ("c", third)])


def test_ties_that_cannot_be_kept_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    layers = [(n, model[i]) for i, n in enumerate("abc")]
    model[2].weight = model[0].weight
    with pytest.raises(TaskError, match=r"0\.weight and 2\.weight are tied: tensor_plan must cut both along one dimension"):
        FlatState(model, layers, cut_dim=lambda layer, name: 0 if layer == "a" else -1)
    model[1].weight = model[0].weight
    with pytest.raises(TaskError, match=r"parameter 2\.weight, tied to 0\.weight, is in a third layer"):
        FlatState(model, layers)


def test_an_empty_parameter_is_none_of_our_business_and_a_lazy_one_is_refused() -> None:
    model = nn.Linear(4, 4)
    model.register_parameter("nothing", nn.Parameter(torch.empty(0)))
    state = FlatState(model)
    state.bind_grads((0,), 0, zeros(state))
    model(torch.ones(2, 4)).sum().backward()
    state.check_grads((0,))
    with pytest.raises(TaskError, match=r"weight has no shape yet"):
        FlatState(nn.LazyLinear(4))
