"""The model's state as one flat vector, so that every rank, copy and reshard speaks of intervals instead of tensors.

Layout: trainable parameters (tied weights once), each from a multiple of ALIGN on, then what buffers carry from step to
step, then zeros up to a whole number of blocks. Parameters are views into the vector. Buffers are not: modules work on
their own copies and the vector keeps the step's starting values, so a forward pass that is aborted or redone leaves no
trace. One step's change of the buffers travels with the gradients and is the mean over micro-batches, hence the same
for any number of ranks.

One micro-batch: `restore_buffers`, `seed_everything`, forward, backward, `check_grads`, `capture_buffers`. One step:
reduce the gradient vectors to their mean, then the optimizer on `shards(own)` and `apply_buffers(mean, own)`. The
norm that clips is taken over the first `param_numel` elements only.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from orchestrator.core.plan.layout import Interval, Intervals, intersect, merge
from orchestrator.engine.task import NamedShard, TaskError

BLOCKS_MAX = 1024
BLOCK_MIN = 1024
ALIGN = 16  # so that block boundaries cut a parameter at whole cache lines, where vectorised kernels do not care


class Kind(StrEnum):
    """What an entry of the flat vector is."""

    PARAM = "param"
    BUFFER = "buffer"  # a float buffer's value
    COUNTER = "counter"  # how far an integer scalar buffer (`num_batches_tracked`) has moved from its initial value


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the model and its place [start, stop) in the flat vector."""

    name: str
    start: int
    stop: int
    shape: torch.Size
    kind: Kind


@dataclass(slots=True)
class _Working:
    """A buffer of the model: where it lives, the tensor that the module works on and, for a counter, its initial
    value.
    """

    entry: Entry
    owner: nn.Module
    key: str
    tensor: Tensor
    initial: Tensor | None


@dataclass(frozen=True, slots=True)
class _Constant:
    """An integer or bool buffer that is no scalar: it may not change, because it is not part of the state."""

    name: str
    owner: nn.Module
    key: str
    tensor: Tensor
    version: int


def block_size(numel: int) -> int:
    """Elements per block: a power of two, never under BLOCK_MIN, for at most BLOCKS_MAX blocks; by the model only."""
    per_block = -(-numel // BLOCKS_MAX)
    return max(BLOCK_MIN, 1 << max(0, per_block - 1).bit_length())


class FlatState:
    """Flat fp32 view of a model's trainable parameters and persistent buffers.

    Buffers that are not persistent are, by PyTorch's own meaning, no state (masks, caches) and stay as they are.
    Frozen parameters and constant integer buffers are not in the vector either: `Task.build_model` makes them anew.

    Raises TaskError for a model that cannot be laid out so: no trainable parameter, a parameter that is not fp32,
    several devices, storage shared by different parameters, a float64 buffer.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._params: list[tuple[Entry, nn.Parameter]] = []
        self._working: list[_Working] = []
        self._constants: list[_Constant] = []
        self._shards: list[tuple[weakref.ref[nn.Parameter], int, int]] = []
        self._flat_grad: Tensor | None = None
        self.param_numel = self._lay_out_params()
        self.numel = self._lay_out_buffers()
        self.entries: tuple[Entry, ...] = tuple([e for e, _ in self._params] + [w.entry for w in self._working])
        self.block = block_size(self.numel)
        self.n_blocks = -(-self.numel // self.block)
        self.padded_numel = self.n_blocks * self.block
        self.device = self._params[0][1].device
        self._check_devices()
        self.flat = self.new_vector()
        for entry, param in self._params:
            self.flat[entry.start : entry.stop].copy_(param.detach().reshape(-1))
        for work in self._working:
            if work.initial is None:
                self._view(self.flat, work.entry).copy_(work.tensor)
        self.rebind(self.flat)

    # ------------------------------------------------------------------------------------------------------ laying out

    def _lay_out_params(self) -> int:
        at = 0
        storages: dict[int, str] = {}
        for name, param in self.module.named_parameters():
            if not param.requires_grad:
                continue
            if nn.parameter.is_lazy(param):
                raise TaskError(f"parameter {name} has no shape yet; run one batch through lazy modules in build_model")
            if param.dtype is not torch.float32:
                raise TaskError(
                    f"parameter {name} is {param.dtype}; trainable parameters must be "
                    "float32 (set precision: bf16 in job.yaml for bf16 arithmetic)"
                )
            if "," in name:
                raise TaskError(f"parameter {name!r} has a comma in its name; rename it")
            other = storages.setdefault(param.untyped_storage().data_ptr(), name) if param.numel() else name
            if other != name:
                raise TaskError(f"parameters {other} and {name} share storage; tie weights by using one nn.Parameter twice")
            at = -(-at // ALIGN) * ALIGN
            self._params.append((Entry(name, at, at + param.numel(), param.shape, Kind.PARAM), param))
            at += param.numel()
        if at == 0:
            raise TaskError(f"{type(self.module).__name__} has no trainable parameter")
        return at

    def _lay_out_buffers(self) -> int:
        at = self.param_numel
        seen: dict[int, str] = {}
        for prefix, owner in self.module.named_modules():
            for key, tensor in owner.named_buffers(recurse=False):
                name = f"{prefix}.{key}" if prefix else key
                if key in owner._non_persistent_buffers_set:
                    continue
                if seen.setdefault(id(tensor), name) != name:
                    raise TaskError(f"buffers {seen[id(tensor)]} and {name} are one tensor; give each module its own")
                is_float = tensor.is_floating_point()
                if tensor.is_complex() or tensor.dtype is torch.float64:
                    raise TaskError(f"buffer {name} is {tensor.dtype}; make it float32, or persistent=False if it is no state")
                if not is_float and (tensor.numel() != 1 or tensor.dtype is torch.bool):
                    self._constants.append(_Constant(name, owner, key, tensor, tensor._version))
                    continue
                kind = Kind.BUFFER if is_float else Kind.COUNTER
                entry = Entry(name, at, at + tensor.numel(), tensor.shape, kind)
                initial = None if is_float else tensor.detach().clone()
                self._working.append(_Working(entry, owner, key, tensor.detach(), initial))
                at += tensor.numel()
        return at

    def _check_devices(self) -> None:
        tensors = [(e.name, p) for e, p in self._params] + [(w.entry.name, w.tensor) for w in self._working]
        for name, tensor in tensors:
            if tensor.device != self.device:
                raise TaskError(f"{name} is on {tensor.device} and other parameters on {self.device}; build on one device")

    # -------------------------------------------------------------------------------------------------------- vectors

    def new_vector(self) -> Tensor:
        """Zeros of shape [padded_numel], fp32, on the model's device."""
        return torch.zeros(self.padded_numel, dtype=torch.float32, device=self.device)

    def rebind(self, new_flat: Tensor) -> None:
        """Makes `new_flat` (fp32 [padded_numel]) the state: parameters and living shards become views of it, nothing
        is copied.

        For use after an aborted collective, which may still write into the old vector. Buffers are restored from
        `new_flat`.
        """
        self._check_vector(new_flat)
        self.flat = new_flat
        for entry, param in self._params:
            param.data = self._view(new_flat, entry)
        living = [(ref, start, stop) for ref, start, stop in self._shards if ref() is not None]
        for ref, start, stop in living:
            shard = ref()
            if shard is not None:
                shard.data = new_flat[start:stop]
        self._shards = living
        self.restore_buffers()

    def shards(self, intervals: Sequence[Interval]) -> list[NamedShard]:
        """The parameters' parts inside the intervals, in order of the flat vector: one per parameter and stretch.

        Touching intervals count as one. Padding and buffers give no shard: `apply_buffers` updates those.
        """
        stops = [entry.stop for entry, _ in self._params]
        out: list[NamedShard] = []
        for interval in self._checked(intervals):
            for entry, _ in self._params[bisect.bisect_right(stops, interval.start) :]:
                if entry.start >= interval.stop:
                    break
                start, stop = max(entry.start, interval.start), min(entry.stop, interval.stop)
                if start < stop:
                    param = nn.Parameter(self.flat[start:stop])
                    self._shards.append((weakref.ref(param), start, stop))
                    out.append(NamedShard(entry.name, param, len(entry.shape), start, stop))
        return out

    # ------------------------------------------------------------------------------------------------------ gradients

    def bind_grads(self, flat_grad: Tensor) -> None:
        """Every parameter's `.grad` becomes a view of `flat_grad` (fp32 [padded_numel]), into which backward then adds.

        The caller zeroes the vector; never call zero_grad(set_to_none=True) on this model.
        """
        self._check_vector(flat_grad)
        for entry, param in self._params:
            param.grad = self._view(flat_grad, entry)
        self._flat_grad = flat_grad

    def check_grads(self) -> None:
        """Raises TaskError if some `.grad` is no longer the view that `bind_grads` set: its gradient would be lost
        silently.
        """
        if self._flat_grad is None:
            raise RuntimeError("check_grads before bind_grads")
        base = self._flat_grad.data_ptr()
        for entry, param in self._params:
            if entry.start == entry.stop:
                continue  # an empty tensor has no address
            if param.grad is None or param.grad.data_ptr() != base + 4 * entry.start:
                raise TaskError(
                    f"the gradient of {entry.name} was replaced during the forward or backward pass; "
                    "a task must not call zero_grad, backward(create_graph=True) or assign .grad"
                )

    # -------------------------------------------------------------------------------------------------------- buffers

    def restore_buffers(self) -> None:
        """Gives the modules the step's starting buffer values, out of the flat vector. Not between a forward and its
        backward.
        """
        with torch.no_grad():
            for work in self._working:
                work.owner._buffers[work.key] = work.tensor
                value = self._view(self.flat, work.entry)
                work.tensor.copy_(value if work.initial is None else work.initial + value.round().to(work.initial.dtype))

    def capture_buffers(self, flat_grad: Tensor, scale: float) -> None:
        """Adds scale * (value now - the step's starting value) of every buffer to its place in `flat_grad`, as
        backward does.

        The change travels, not the value, so that a constant stays itself to the bit through any mean. Raises
        TaskError if the forward pass changed an integer buffer that is no scalar, or a buffer's shape.
        """
        self._check_vector(flat_grad)
        for constant in self._constants:
            now = constant.owner._buffers[constant.key]
            if now is not constant.tensor or now._version != constant.version:
                raise TaskError(
                    f"the forward pass changed the integer buffer {constant.name}; only float buffers "
                    "and integer scalars are averaged over micro-batches: make it float32, or persistent=False"
                )
        with torch.no_grad():
            for work in self._working:
                buffer = work.owner._buffers[work.key]
                if buffer is None or buffer.shape != work.entry.shape:
                    raise TaskError(f"the forward pass changed the shape of buffer {work.entry.name}; shapes must stay")
                old = self._view(self.flat, work.entry)
                new = (buffer if work.initial is None else buffer - work.initial).detach().to(torch.float32)
                change = torch.where(new == old, 0.0, new - old)  # inf - inf would be nan
                self._view(flat_grad, work.entry).add_(change, alpha=scale)

    def apply_buffers(self, reduced: Tensor, intervals: Sequence[Interval]) -> None:
        """Adds the mean change in `reduced` (fp32 [padded_numel]) to the buffers inside the intervals of the flat
        vector.

        Counters are rounded to whole numbers (the mean of M equal ones need not be exactly one). Modules see the new
        values after `restore_buffers`, once all regions of the vector are up to date.
        """
        self._check_vector(reduced)
        tail: Intervals = (Interval(self.param_numel, self.numel),) if self.numel > self.param_numel else ()
        with torch.no_grad():
            for i in intersect(self._checked(intervals), tail):
                self.flat[i.start : i.stop].add_(reduced[i.start : i.stop])
            for work in self._working:
                if work.initial is not None:
                    self._view(self.flat, work.entry).round_()

    # -------------------------------------------------------------------------------------------------------- helpers

    def _view(self, vector: Tensor, entry: Entry) -> Tensor:
        return vector[entry.start : entry.stop].view(entry.shape)

    def _checked(self, intervals: Sequence[Interval]) -> Intervals:
        merged = merge(intervals)
        if merged and merged[-1].stop > self.padded_numel:
            raise ValueError(f"interval {merged[-1]} ends beyond the vector of {self.padded_numel} elements")
        return merged

    def _check_vector(self, vector: Tensor) -> None:
        if vector.shape != (self.padded_numel,) or vector.dtype is not torch.float32 or not vector.is_contiguous():
            raise ValueError(f"expected contiguous float32 [{self.padded_numel}], got {vector.dtype} {list(vector.shape)}")
        if vector.device != self.device:
            raise ValueError(f"expected a vector on {self.device}, got {vector.device}")
