"""The optimizer of the regions that one rank holds, and the numbers that steer it.

Every optimizer here is elementwise, so a region's update is the slice of the whole update, whoever holds it. The
state that goes with the elements (Adam's moments) lives in Extents, one per key, so that transfers, digests and checkpoints
speak of intervals of the flat vector and a reshard leaves in place what stays; scalars (Adam's step count) travel by parameter
name.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.core.job import OptimizerSettings
from orchestrator.core.plan.layout import Interval, Intervals, intersect, merge, total
from orchestrator.engine.extents import Extents
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.task import NamedShard, Task, TaskError

_CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_
_PROBE_NUMEL = 8


def lr_at(step: int, *, settings: OptimizerSettings, steps: int) -> float:
    """Learning rate of step 1..steps: linear warm-up, then cosine decay to lr * min_lr_ratio at the last step."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    span = max(1, steps - settings.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - settings.warmup_steps) / span)))
    return settings.lr * (settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * cosine)


def clip_scale(grad_norm: float, *, limit: float) -> float:
    """The factor for the gradient that brings its global norm down to `limit` (0: never clips)."""
    if limit <= 0.0 or grad_norm <= limit:
        return 1.0
    return limit / (grad_norm + _CLIP_EPS)


@dataclass(frozen=True, slots=True)
class StateKeys:
    """What an optimizer keeps: (key, dtype) of its elementwise tensors, sorted by key."""

    elementwise: tuple[tuple[str, torch.dtype], ...]


def probe_keys(task: Task, settings: OptimizerSettings, state: FlatState) -> StateKeys:
    """Find out what the task's optimizer keeps, by one step on a few elements of every parameter (copies).

    Raises TaskError for state that is neither elementwise nor scalar: a sharded run would compute something else.
    """
    shards = [
        NamedShard(s.name, nn.Parameter(s.param.detach()[:_PROBE_NUMEL].clone()), s.ndim, s.start, s.start + n)
        for s in state.shards(state.params.intervals)
        if (n := min(_PROBE_NUMEL, s.stop - s.start)) > 1
    ]
    if not shards:
        raise TaskError("the model has no parameter of more than one element")
    optimizer = task.build_optimizer(shards, settings)
    for shard in shards:
        shard.param.grad = torch.ones_like(shard.param)
    optimizer.step()
    keys: dict[str, torch.dtype] = {}
    for shard in shards:
        for key, value in optimizer.state[shard.param].items():
            if isinstance(value, Tensor) and value.shape == shard.param.shape:
                keys[key] = value.dtype
            elif not _is_scalar(value):
                raise TaskError(
                    f"the optimizer keeps {key!r} for {shard.name}, which is neither a scalar nor of the parameter's "
                    "shape; only elementwise optimizers (AdamW, SGD, Lion, ...) can be sharded"
                )
    return StateKeys(tuple(sorted(keys.items())))


class Regions:
    """Where intervals of the flat vector lie in a compact buffer that holds them one after the other."""

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self.intervals: Intervals = merge(intervals)
        self.numel = total(self.intervals)

    def offset(self, start: int, stop: int) -> int:
        """Offset in the buffer of [start, stop), which must lie inside one interval; KeyError when it does not."""
        at = 0
        for i in self.intervals:
            if i.start <= start and stop <= i.stop:
                return at + start - i.start
            at += i.numel
        raise KeyError(f"[{start}, {stop}) is not held: {self.intervals}")

    def view(self, buffer: Tensor, start: int, stop: int) -> Tensor:
        """[stop - start] view of the compact buffer."""
        at = self.offset(start, stop)
        return buffer[at : at + stop - start]


Scalars = dict[str, dict[str, Any]]


class Reduced:
    """fp32 over some intervals of the flat vector, one after the other: the step's reduced gradient of what a rank holds."""

    def __init__(self, regions: Regions, tensor: Tensor) -> None:
        self.regions, self.tensor = regions, tensor

    def view(self, start: int, stop: int) -> Tensor:
        """[stop - start], inside one interval; KeyError when it is not held."""
        return self.regions.view(self.tensor, start, stop)

    def pieces(self) -> list[tuple[int, Tensor]]:
        """(start, values) of each interval."""
        return [(i.start, self.view(i.start, i.stop)) for i in self.regions.intervals]


class ShardedOptimizer:
    """The task's optimizer over what `moments` hold of the flat vector, its elementwise state in their memory.

    `moments`: one Extents per elementwise key, all over `intervals`. Without `scalars` it has no state yet.
    """

    def __init__(
        self,
        *,
        task: Task,
        settings: OptimizerSettings,
        state: FlatState,
        intervals: Intervals,
        moments: Mapping[str, Extents],
        scalars: Scalars | None,
    ) -> None:
        self.regions = Regions(intervals)
        self.moments = moments
        self._task, self._settings = task, settings
        self._state = state
        self._shards = state.shards(_stretches(self.regions.intervals, moments.values()))
        self._params_only = intersect(self.regions.intervals, state.params_only)
        self._buffers_only = intersect(self.regions.intervals, state.buffers_only)
        self._optimizer = task.build_optimizer(self._shards, settings) if self._shards else None
        self._adopted = False  # whether the optimizer's state are views of our memory
        self._views: dict[tuple[int, str], Tensor] = {}  # those views, by shard and key
        self._grad: Tensor | None = None
        if scalars is not None:
            self._install(scalars)

    def update(self, reduced: Reduced, *, lr: float, scale: float, micro_batches: int) -> None:
        """One step in place. In `reduced` is the mean gradient and, for buffers, the sum over micro-batches of their changes.

        It is used up.
        """
        if scale != 1.0:
            for i in self._params_only:
                reduced.view(i.start, i.stop).mul_(scale)
        if self._optimizer is not None:
            self._bind(reduced)
            if self._adopted:
                _step(self._optimizer, lr)
                for at, shard in enumerate(self._shards):
                    self._adopt(at, self._optimizer.state[shard.param])
            else:
                self._begin(self._optimizer, lr)
        changes = [(i.start, reduced.view(i.start, i.stop)) for i in self._buffers_only]
        for _, change in changes:
            change.mul_(1.0 / micro_batches)
        self._state.apply_buffers(changes)

    def _bind(self, reduced: Reduced) -> None:
        if self._grad is not reduced.tensor:
            for shard in self._shards:
                shard.param.grad = reduced.view(shard.start, shard.stop)
            self._grad = reduced.tensor

    def _begin(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """The first step, shard by shard: state made for all of them at once would lie beside our memory for it."""
        for at, shard in enumerate(self._shards):
            alone = self._task.build_optimizer([shard], self._settings)
            _step(alone, lr)
            kept = alone.state[shard.param]
            self._adopt(at, kept)
            optimizer.state[shard.param] = kept
        self._adopted = True

    def _adopt(self, at: int, kept: dict[str, Any]) -> None:
        """After a step: move a shard's state that the optimizer has made, or has replaced, into our memory."""
        shard = self._shards[at]
        for key, extents in self.moments.items():
            value, ours = kept.get(key), self._views.get((at, key))
            if value is None or value is ours:
                continue
            view = extents.view(shard.start, shard.stop)
            view.copy_(value)
            kept[key] = self._views[at, key] = view

    def scalars(self) -> Scalars:
        """Scalar state by parameter name and key, JSON-able; empty before the first step."""
        if self._optimizer is None or not self._adopted:
            return {}
        return {
            shard.name: {
                key: _scalar_to_json(value)
                for key, value in self._optimizer.state[shard.param].items()
                if key not in self.moments
            }
            for shard in self._shards
        }

    def _install(self, scalars: Scalars) -> None:
        """Make what the moments hold, with these scalars, the optimizer's state. Raises KeyError when a parameter is missing."""
        if self._optimizer is None:
            return
        for at, shard in enumerate(self._shards):
            kept: dict[str, Any] = {k: _scalar_from_json(v, shard.param) for k, v in scalars[shard.name].items()}
            for key, extents in self.moments.items():
                kept[key] = self._views[at, key] = extents.view(shard.start, shard.stop)
            self._optimizer.state[shard.param] = kept
        self._adopted = True

    @property
    def shards(self) -> Sequence[NamedShard]:
        """The parameters' parts that are updated here."""
        return self._shards


def _step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def _stretches(intervals: Intervals, memory: Iterable[Extents]) -> list[Interval]:
    """The intervals cut wherever some memory is."""
    cuts = sorted({i.start for extents in memory for i, _ in extents})
    out: list[Interval] = []
    for i in intervals:
        inside = cuts[bisect.bisect_right(cuts, i.start) : bisect.bisect_left(cuts, i.stop)]
        edges = [i.start, *inside, i.stop]
        out += [Interval(lo, hi) for lo, hi in itertools.pairwise(edges)]
    return out


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _scalar_to_json(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"dtype": dtype, "shape": list(value.shape), "value": value.item(), "device": value.device.type}
    return {"dtype": "", "value": value}


def _scalar_from_json(data: Mapping[str, Any], param: Tensor) -> Any:
    if not data["dtype"]:
        return data["value"]
    device = "cpu" if data["device"] == "cpu" else param.device
    return torch.full(tuple(data["shape"]), data["value"], dtype=getattr(torch, data["dtype"]), device=device)
