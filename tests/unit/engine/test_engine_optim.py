"""The schedule, clipping, and an optimizer that is cut over ranks."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orchestrator.core.job import OptimizerSettings
from orchestrator.core.plan.layout import Interval, Intervals
from orchestrator.engine.extents import Extents
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.optim import Reduced, Regions, Scalars, ShardedOptimizer, StateKeys, clip_scale, lr_at, probe_keys
from orchestrator.engine.task import NamedShard, Task, TaskError

SETTINGS = OptimizerSettings(
    lr=1.0, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, warmup_steps=4, min_lr_ratio=0.1, clip_grad_norm=1.0
)


def test_the_schedule_warms_up_and_ends_at_its_floor() -> None:
    lrs = [lr_at(step, settings=SETTINGS, steps=20) for step in range(1, 21)]
    assert lrs[:4] == [0.25, 0.5, 0.75, 1.0]
    assert lrs[11] == pytest.approx(0.1 + 0.9 * 0.5)  # half way down the cosine
    assert lrs[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(lrs[3:]))
    assert lr_at(1, settings=SETTINGS, steps=1) == 0.25


def test_clipping_agrees_with_torch() -> None:
    for size in (0.5, 1.0, 3.0):
        param = nn.Parameter(torch.zeros(4))
        param.grad = torch.full((4,), size)
        norm = float(nn.utils.clip_grad_norm_([param], 1.0))
        assert float(param.grad[0]) == pytest.approx(size * clip_scale(norm, limit=1.0), rel=1e-6)
    assert clip_scale(1e9, limit=0.0) == 1.0


def test_regions_lie_one_after_the_other() -> None:
    regions = Regions([Interval(20, 30), Interval(0, 10), Interval(10, 12)])
    assert regions.numel == 22
    assert regions.offset(21, 30) == 13
    buffer = torch.arange(22.0)
    assert regions.view(buffer, 20, 23).tolist() == [12.0, 13.0, 14.0]
    with pytest.raises(KeyError, match="not held"):
        regions.offset(11, 21)


class Plain(Task):
    """Only its model and optimizer are used."""

    def build_model(self) -> nn.Module:
        """Two layers."""
        return nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))

    def batch(self, *, seed: int, step: int, micro_batch: int) -> Any:
        """None."""

    def eval_batch(self, *, seed: int, index: int) -> Any:
        """None."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """None."""
        raise NotImplementedError

    @property
    def tokens_per_micro_batch(self) -> int:
        """None."""
        return 1


class Momentum(Plain):
    """Its state begins to exist with the first step."""

    def build_optimizer(self, params: Sequence[NamedShard], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD([p.param for p in params], lr=1.0, momentum=0.9)


class Replacing(Momentum):
    """Makes new state tensors instead of changing them in place."""

    def build_optimizer(self, params: Sequence[NamedShard], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """SGD whose momentum is another tensor after each step."""
        made = super().build_optimizer(params, settings)
        step = made.step

        def stepping(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            for p in params:
                made.state[p.param]["momentum_buffer"] = made.state[p.param]["momentum_buffer"].clone()
            return result

        made.step = stepping  # type: ignore[method-assign]
        return made


class Muddled(Plain):
    """Keeps state that no shard can hold a slice of."""

    def build_optimizer(self, params: Sequence[NamedShard], settings: OptimizerSettings) -> torch.optim.Optimizer:
        """Adafactor keeps row and column sums; L-BFGS a history: here, a matrix."""
        made = torch.optim.SGD([p.param for p in params], lr=1.0)
        step = made.step

        def stepping(*args: Any, **kwargs: Any) -> Any:
            for p in params:
                made.state[p.param]["rows"] = torch.zeros(3, 3)
            return step(*args, **kwargs)

        made.step = stepping  # type: ignore[method-assign]
        return made


def _memory(keys: StateKeys, intervals: Intervals, *, cut_at: int = 1 << 30) -> dict[str, Extents]:
    """Zeros for the moments, cut at multiples of `cut_at`."""
    out = {}
    for key, dtype in keys.elementwise:
        out[key] = Extents(dtype)
        for i in intervals:
            edges = [i.start, *range(-(-(i.start + 1) // cut_at) * cut_at, i.stop, cut_at), i.stop]
            for lo, hi in itertools.pairwise(edges):
                out[key].add(Interval(lo, hi), torch.zeros(hi - lo, dtype=dtype))
    return out


def _steps(
    task: Task, cuts: Sequence[Sequence[Interval]], *, keys: StateKeys, handover: bool, cut_at: int = 1 << 30
) -> tuple[Tensor, dict[str, Tensor]]:
    """Four steps with the vector cut so; with `handover` each part's state goes to a new optimizer after two."""
    torch.manual_seed(0)
    state = FlatState(task.build_model())
    numel = state.space.numel

    def make(intervals: Intervals, moments: Mapping[str, Extents], scalars: Scalars | None) -> ShardedOptimizer:
        return ShardedOptimizer(task=task, settings=SETTINGS, state=state, intervals=intervals, moments=moments, scalars=scalars)

    regions = [Regions(c) for c in cuts]
    parts = [make(r.intervals, _memory(keys, r.intervals, cut_at=cut_at), None) for r in regions]
    reduced = [Reduced(r, torch.empty(r.numel)) for r in regions]
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 5):
        grad = torch.randn(numel, generator=generator)
        for part, mine in zip(parts, reduced, strict=True):
            for start, values in mine.pieces():
                values.copy_(grad[start : start + values.numel()])
            part.update(mine, lr=0.1 * step, scale=0.5, micro_batches=1)
        if handover and step == 2:
            parts = [make(old.regions.intervals, old.moments, json.loads(json.dumps(old.scalars()))) for old in parts]
    whole = {key: torch.zeros(numel, dtype=dtype) for key, dtype in keys.elementwise}
    for part in parts:
        for key, extents in part.moments.items():
            for i, tensor in extents:
                whole[key][i.start : i.stop] = tensor
    return state.params.view(0, numel), whole


@pytest.mark.parametrize(("task", "names"), [(Plain(), ["exp_avg", "exp_avg_sq"]), (Momentum(), ["momentum_buffer"])])
def test_parts_equal_the_whole_to_the_bit(task: Task, names: list[str]) -> None:
    state = FlatState(task.build_model())
    keys = probe_keys(task, SETTINGS, state)
    assert [k for k, _ in keys.elementwise] == names
    alone = _steps(task, [[Interval(0, state.space.numel)]], keys=keys, handover=False)
    for handover, cut_at in itertools.product((False, True), (1 << 30, 272)):
        cuts = [[Interval(0, 1024), Interval(2048, 2560)], [Interval(1024, 2048)], [Interval(2560, 4096)]]
        parts = _steps(task, cuts, keys=keys, handover=handover, cut_at=cut_at)
        assert torch.equal(alone[0], parts[0])
        for key in names:
            assert torch.equal(alone[1][key], parts[1][key])
            assert alone[1][key].any()
            assert math.isfinite(float(alone[1][key].sum()))


def test_state_that_is_replaced_moves_like_state_that_is_changed() -> None:
    keys = probe_keys(Momentum(), SETTINGS, FlatState(Plain().build_model()))
    whole = [[Interval(0, 4096)]]
    expected = _steps(Momentum(), whole, keys=keys, handover=False)
    for handover in (False, True):
        got = _steps(Replacing(), whole, keys=keys, handover=handover)
        assert torch.equal(expected[0], got[0])
        assert torch.equal(expected[1]["momentum_buffer"], got[1]["momentum_buffer"])


def test_the_state_of_all_parameters_is_never_there_twice() -> None:
    # An optimizer makes its state in the first step; what it has made for one parameter is ours before it makes the next.
    made: list[int] = []

    class Watched(Plain):
        def build_optimizer(self, params: Sequence[NamedShard], settings: OptimizerSettings) -> torch.optim.Optimizer:
            optimizer = super().build_optimizer(params, settings)
            optimizer.register_step_post_hook(lambda o, *_: made.append(sum(len(s) for s in o.state.values())))
            return optimizer

    state = FlatState(Plain().build_model())
    keys = probe_keys(Plain(), SETTINGS, state)
    whole: Intervals = (Interval(0, state.space.numel),)
    part = ShardedOptimizer(
        task=Watched(), settings=SETTINGS, state=state, intervals=whole, moments=_memory(keys, whole), scalars=None
    )
    for _ in range(2):
        part.update(Reduced(Regions(whole), torch.ones(state.space.numel)), lr=0.1, scale=1.0, micro_batches=1)
    each = len(keys.elementwise) + 1  # and the number of steps
    assert made == [each] * len(part.shards) + [each * len(part.shards)]


def test_scalars_are_there_from_the_first_step_on() -> None:
    state = FlatState(Plain().build_model())
    keys = probe_keys(Plain(), SETTINGS, state)
    part: Intervals = (Interval(1024, 2048),)

    def make(scalars: Scalars | None) -> ShardedOptimizer:
        return ShardedOptimizer(
            task=Plain(), settings=SETTINGS, state=state, intervals=part, moments=_memory(keys, part), scalars=scalars
        )

    made = make(None)
    assert made.scalars() == {}
    made.update(Reduced(Regions(part), torch.ones(1024)), lr=0.1, scale=1.0, micro_batches=1)
    step = {"dtype": "float32", "shape": [], "value": 1.0, "device": "cpu"}
    assert made.scalars() == {"0.weight": {"step": step}, "0.bias": {"step": step}, "1.weight": {"step": step}}
    assert make(made.scalars()).scalars() == made.scalars()
    with pytest.raises(KeyError, match=r"0\.bias"):
        make({"0.weight": {"step": step}})


def test_a_rank_that_holds_only_buffers_updates_those() -> None:
    model = nn.Sequential(nn.Linear(40, 40), nn.BatchNorm1d(40))
    state = FlatState(model)
    keys = probe_keys(Plain(), SETTINGS, state)
    (buffers,) = state.buffers_only
    held: Intervals = (Interval(buffers.start // 16 * 16 + 16, state.space.numel),)
    made = ShardedOptimizer(
        task=Plain(), settings=SETTINGS, state=state, intervals=held, moments=_memory(keys, held), scalars=None
    )
    assert made.shards == []
    before = state.params.view(0, state.space.numel).clone()
    counter = next(e for e in state.entries if e.name == "1.num_batches_tracked")
    reduced = Reduced(Regions(held), torch.zeros(state.space.numel - held[0].start))
    reduced.view(held[0].start, buffers.stop).fill_(1.5)
    made.update(reduced, lr=0.1, scale=0.01, micro_batches=2)
    after = state.params.view(0, state.space.numel)
    assert torch.equal(after[: held[0].start], before[: held[0].start])
    assert torch.equal(after[held[0].start : counter.start], before[held[0].start : counter.start] + 0.75)
    assert after[counter.start] == 1.0
    assert made.scalars() == {}


def test_state_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(TaskError, match="keeps 'rows'"):
        probe_keys(Muddled(), SETTINGS, FlatState(Plain().build_model()))
