"""The model's state as one flat vector, so that every rank, copy and reshard speaks of intervals instead of tensors.

The layout is core/graph/space.py's: layer after layer, in each its trainable parameters (tied weights once within a layer) and
then what its buffers carry from step to step. A worker keeps the part of the vector that its rank needs, in Extents; parameters
are views into them. A parameter that a later layer uses again becomes a *twin* there: a parameter of its own, with a gradient of
its own, kept equal by summing the two gradients, so that the layers may live on different ranks. Buffers are not views: modules
work on their own copies and the vector keeps the step's starting values, so a forward pass that is aborted or redone leaves no
trace. One step's change of the buffers travels with the gradients and is the mean over micro-batches, hence the same for any
number of ranks.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orchestrator.core.graph.space import Shape, Space, block_size, lay_out
from orchestrator.core.plan.layout import Interval, Intervals, intersect, merge
from orchestrator.engine.entries import Entry, Kind, entries_of
from orchestrator.engine.extents import Extents
from orchestrator.engine.task import NamedShard, TaskError

__all__ = ["Changes", "Entry", "FlatState", "Kind", "Wrapping"]


class Wrapping(Protocol):
    """How tensor parallelism dresses a local view; see tensor_parallel.py."""

    def param(self, name: str, local: Tensor) -> nn.Parameter:
        """The parameter that the module works with, over this storage; the same object at every call."""
        ...

    def grad(self, name: str, local: Tensor) -> Tensor:
        """What its `.grad` must be so that backward adds into this storage."""
        ...


@dataclass(slots=True)
class _Slot:
    """A parameter: where the model keeps it."""

    shape: Shape
    owners: list[tuple[nn.Module, str]]
    param: nn.Parameter


@dataclass(slots=True)
class _Working:
    """A buffer of the model: where it lives, the tensor that the module works on and, for a counter, its initial value."""

    shape: Shape
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


Changes = list[tuple[Entry, Tensor]]


def _keeps_state(owner: nn.Module) -> bool:
    """Whether the module itself has trainable parameters, or buffers that are part of the state."""
    if any(p is not None and p.requires_grad for p in owner._parameters.values()):
        return True
    kept = [b for k, b in owner._buffers.items() if b is not None and k not in owner._non_persistent_buffers_set]
    return any(b.is_floating_point() or (b.numel() == 1 and b.dtype is not torch.bool) for b in kept)


class FlatState:
    """The part of the flat fp32 vector that this worker holds, and the model over it.

    Buffers that are not persistent are, by PyTorch's own meaning, no state (masks, caches) and stay as they are. Frozen
    parameters and constant integer buffers are not in the vector either: `Task.build_model` makes them anew.

    A new FlatState holds all of the uncut model; `place` says which coordinate of which degree it is to be from then on, `adopt`
    gives it the extents of a rank. Raises TaskError for a model that cannot be laid out so: no trainable parameter, a parameter
    that is not fp32, several devices, storage shared by different parameters, a float64 buffer, state outside the layers.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[tuple[str, nn.Module]] = (),
        *,
        cut_dim: Callable[[str, str], int] = lambda layer, name: -1,
    ) -> None:
        self.module = module
        self.layer_names = tuple(name for name, _ in layers) or ("model",)
        self.layer_modules = tuple(m for _, m in layers) or (module,)
        self._cut_dim = cut_dim
        self._prefix = {id(m): p for p, m in module.named_modules()}
        self._slots: list[_Slot] = []
        self._working: list[_Working] = []
        self._constants: list[_Constant] = []
        self._shards: list[tuple[weakref.ref[nn.Parameter], int, int]] = []
        self._bound: dict[int, tuple[int, Tensor]] = {}  # layer -> (start, gradient buffer)
        self._wrapping: Wrapping | None = None
        self._look()
        self.shapes: tuple[Shape, ...] = tuple(s for layer in range(len(self.layer_names)) for s in self._shapes_of(layer))
        self.numel = sum(torch.Size(s.shape).numel() for s in self.shapes)
        self.block = block_size(self.numel)
        self.device = self._slots[0].param.device
        self._check()
        self.place(degree=1, coordinate=0, wrapping=None)
        self.params = Extents(torch.float32, self.device)
        for layer, bounds in enumerate(self.space.layers):
            self.params.add(bounds, self._values(layer, bounds))
        self.adopt(self.params, range(len(self.layer_names)))

    # ------------------------------------------------------------------------------------------------------ laying out

    def _look(self) -> None:
        """Find every parameter and buffer, layer by layer."""
        first: dict[int, tuple[int, str]] = {}  # id of a parameter -> layer and name where it was met first
        storages: dict[int, str] = {}
        seen_buffers: dict[int, str] = {}
        slots: dict[tuple[int, int], _Slot] = {}
        owned: dict[int, int] = {}  # module -> layer
        for layer, root in enumerate(self.layer_modules):
            for owner in root.modules():
                self._check_owner(owner, layer, owned)
                prefix = self._prefix.get(id(owner), "")
                for key, param in owner._parameters.items():
                    if param is None or not param.requires_grad:
                        continue
                    known = slots.get((layer, id(param)))
                    if known is not None:
                        known.owners.append((owner, key))
                        continue
                    name = f"{prefix}.{key}" if prefix else key
                    self._check_param(name, param, storages, tied=id(param) in first)
                    twin = first[id(param)][1] if id(param) in first else ""
                    first.setdefault(id(param), (layer, name))
                    cut_dim = self._cut_dim(self.layer_names[layer], name)
                    if twin and cut_dim != self._cut_dim(self.layer_names[first[id(param)][0]], twin):
                        raise TaskError(f"parameters {twin} and {name} are tied: tensor_plan must cut both along one dimension")
                    if twin and any(s.shape.twin == twin for s in self._slots):
                        raise TaskError(f"parameter {name}, tied to {twin}, is in a third layer; only two layers can share one")
                    shape = Shape(name, tuple(param.shape), True, layer, cut_dim, twin)
                    slot = _Slot(shape, [(owner, key)], param)
                    slots[layer, id(param)] = slot
                    self._slots.append(slot)
                self._look_at_buffers(owner, prefix, layer, seen_buffers)
        for slot in self._slots:
            if slot.shape.twin:  # a parameter of its own from here on
                slot.param = nn.Parameter(slot.param.detach().clone())
                for owner, key in slot.owners:
                    owner._parameters[key] = slot.param
        if not self._slots or not any(p.param.numel() for p in self._slots):
            raise TaskError(f"{type(self.module).__name__} has no trainable parameter")

    def _check_owner(self, owner: nn.Module, layer: int, owned: dict[int, int]) -> None:
        if not _keeps_state(owner):
            return
        name, here = type(owner).__name__, self.layer_names[layer]
        if id(owner) not in self._prefix:
            raise TaskError(f"layer {here} has a {name} with parameters or buffers that is not part of the model")
        if owned.setdefault(id(owner), layer) != layer:
            there = self.layer_names[owned[id(owner)]]
            raise TaskError(
                f"layers {there} and {here} share the module {self._prefix[id(owner)]}; "
                "give each a module of its own and tie their parameters"
            )

    def _check_param(self, name: str, param: nn.Parameter, storages: dict[int, str], *, tied: bool) -> None:
        if nn.parameter.is_lazy(param):
            raise TaskError(f"parameter {name} has no shape yet; run one batch through lazy modules in build_model")
        if param.dtype is not torch.float32:
            raise TaskError(
                f"parameter {name} is {param.dtype}; trainable parameters must be "
                "float32 (set precision: bf16 in job.yaml for bf16 arithmetic)"
            )
        if "," in name:
            raise TaskError(f"parameter {name!r} has a comma in its name; rename it")
        other = storages.setdefault(param.untyped_storage().data_ptr(), name) if param.numel() and not tied else name
        if other != name:
            raise TaskError(f"parameters {other} and {name} share storage; tie weights by using one nn.Parameter twice")

    def _look_at_buffers(self, owner: nn.Module, prefix: str, layer: int, seen: dict[int, str]) -> None:
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
            shape = Shape(name, tuple(tensor.shape), False, layer, -1, "")
            self._working.append(_Working(shape, owner, key, tensor.detach(), None if is_float else tensor.detach().clone()))

    def _shapes_of(self, layer: int) -> list[Shape]:
        params = [s.shape for s in self._slots if s.shape.layer == layer]
        return params + [w.shape for w in self._working if w.shape.layer == layer]

    def _check(self) -> None:
        named = [(s.shape.name, s.param) for s in self._slots] + [(w.shape.name, w.tensor) for w in self._working]
        for name, tensor in named:
            if tensor.device != self.device:
                raise TaskError(f"{name} is on {tensor.device} and other parameters on {self.device}; build on one device")
        covered = {id(m) for root in self.layer_modules for m in root.modules()}
        for prefix, owner in self.module.named_modules():
            if id(owner) not in covered and _keeps_state(owner):
                raise TaskError(
                    f"layers() leaves out {prefix or 'the model itself'}, which has trainable parameters or persistent buffers"
                )

    def _values(self, layer: int, bounds: Interval) -> Tensor:
        """A layer's part of the uncut vector with the values that the module has now."""
        vector = torch.zeros(bounds.numel, dtype=torch.float32, device=self.device)
        params = {s.shape.name: s.param for s in self._slots}
        working = {w.shape.name: w for w in self._working}
        for e in self.of_layer(layer):
            view = vector[e.start - bounds.start : e.stop - bounds.start].view(e.shape)
            if e.kind is Kind.PARAM:
                view.copy_(params[e.name].detach())
            elif e.kind is Kind.BUFFER:
                view.copy_(working[e.name].tensor)
        return vector

    # ------------------------------------------------------------------------------------------------------- placement

    def place(self, *, degree: int, coordinate: int, wrapping: Wrapping | None) -> None:
        """This worker is `coordinate` of `degree` tensor ranks from now on; `adopt` comes next."""
        self.degree, self.coordinate = degree, coordinate
        self._wrapping = wrapping
        self.space: Space = lay_out(self.shapes, layers=len(self.layer_names), block=self.block, degree=degree)
        kinds = {w.shape.name: Kind.BUFFER if w.initial is None else Kind.COUNTER for w in self._working}
        self.entries = entries_of(self.shapes, kinds, self.space)
        self._starts = [e.start for e in self.entries]
        self._mine: list[list[Entry]] = [[] for _ in self.layer_names]
        for e in self.entries:
            if e.coordinate == coordinate:
                self._mine[e.layer].append(e)
        self.params_only: Intervals = merge(
            Interval(e.start, e.stop) for e in self.entries if e.kind is Kind.PARAM and e.start < e.stop
        )
        self.buffers_only: Intervals = merge(
            Interval(e.start, e.stop) for e in self.entries if e.kind is not Kind.PARAM and e.start < e.stop
        )

    def of_layer(self, layer: int) -> Sequence[Entry]:
        """A layer's entries at this worker's tensor coordinate."""
        return self._mine[layer]

    def bounds(self, layer: int) -> Interval:
        """Where a layer lies, at this worker's tensor coordinate."""
        i, base = self.space.layers[layer], self.coordinate * self.space.section
        return Interval(base + i.start, base + i.stop)

    def adopt(self, params: Extents, layers: Iterable[int]) -> None:
        """These extents are the state; parameters of `layers` (which must be whole in them) become views, others are released.

        Nothing is copied. Living shards move along.
        """
        self.params = params
        wanted = set(layers)
        for layer in range(len(self.layer_names)):
            if layer in wanted:
                bounds = self.bounds(layer)
                self.bind_layer(layer, params.view(bounds.start, bounds.stop))
            else:
                self.release_layer(layer)
        self._move_shards()

    def _move_shards(self) -> None:
        living = [(ref, start, stop) for ref, start, stop in self._shards if ref() is not None]
        for ref, start, stop in living:
            shard = ref()
            if shard is not None and self.params.covers(start, stop):
                shard.data = self.params.view(start, stop)
        self._shards = living

    def bind_layer(self, layer: int, values: Tensor) -> None:
        """The layer's parameters become views of `values`, fp32 [bounds(layer).numel]; its buffers take theirs from it."""
        base = self.bounds(layer).start
        entries = {e.name: e for e in self.of_layer(layer)}
        with torch.no_grad():
            for slot in self._slots:
                if slot.shape.layer != layer:
                    continue
                e = entries[slot.shape.name]
                local = values[e.start - base : e.stop - base].view(e.shape)
                self._bind(slot, local)
        self.restore_buffers(layer, values)

    def _bind(self, slot: _Slot, local: Tensor) -> None:
        """The parameter object stays the same from the first time on: autograd and the layered runner know it."""
        if self._wrapping is None:
            slot.param.data = local
            return
        slot.param = self._wrapping.param(slot.shape.name, local)
        for owner, key in slot.owners:
            owner._parameters[key] = slot.param

    def release_layer(self, layer: int) -> None:
        """Its parameters have no memory any more."""
        self._bound.pop(layer, None)
        for slot in self._slots:
            if slot.shape.layer == layer:
                slot.param.grad = None
                self._bind(slot, torch.empty(0, dtype=torch.float32, device=self.device))

    def shards(self, intervals: Sequence[Interval]) -> list[NamedShard]:
        """The parameters' parts inside the intervals, in order of the flat vector: one per parameter and stretch of memory.

        Padding and buffers give no shard: `apply_buffers` updates those. Intervals are taken as they are: a shard never reaches
        over the end of one, so that the caller's own memory may be cut there. A twin goes by the name of its first, so that an
        optimizer that goes by names treats both alike.
        """
        out: list[NamedShard] = []
        for interval in intervals:
            at = max(0, bisect.bisect_right(self._starts, interval.start) - 1)
            for e in self.entries[at:]:
                if e.start >= interval.stop:
                    break
                start, stop = max(e.start, interval.start), min(e.stop, interval.stop)
                if start >= stop or e.kind is not Kind.PARAM:
                    continue
                for lo, hi, view in self.params.pieces(start, stop):
                    param = nn.Parameter(view)
                    self._shards.append((weakref.ref(param), lo, hi))
                    out.append(NamedShard(e.twin or e.name, param, len(e.whole), lo, hi))
        return out

    # ------------------------------------------------------------------------------------------------------ gradients

    def bind_grads(self, layers: Iterable[int], start: int, buffer: Tensor) -> None:
        """Gradients of the layers' parameters become views of `buffer`, whose first element is `start` of the flat vector.

        Backward then adds into it. The caller zeroes it; never call zero_grad(set_to_none=True) on this model.
        """
        wanted = [n for n in layers if n not in self._bound or self._bound[n][0] != start or self._bound[n][1] is not buffer]
        if not wanted:
            return
        places = {(n, e.name): e for n in wanted for e in self.of_layer(n)}
        for slot in self._slots:
            e = places.get((slot.shape.layer, slot.shape.name))
            if e is None:
                continue
            view = buffer[e.start - start : e.stop - start].view(e.shape)
            slot.param.grad = view if self._wrapping is None else self._wrapping.grad(e.name, view)
        for n in wanted:
            self._bound[n] = (start, buffer)

    def drop_grads(self) -> None:
        """Bound to nothing any more: the buffers may end."""
        for slot in self._slots:
            slot.param.grad = None
        self._bound.clear()

    def check_grads(self, layers: Iterable[int]) -> None:
        """Raises TaskError if some `.grad` is no longer the view that `bind_grads` set: its gradient would be lost silently."""
        places = {(n, e.name): e for n in layers for e in self.of_layer(n)}
        for slot in self._slots:
            e = places.get((slot.shape.layer, slot.shape.name))
            if e is None or e.start == e.stop:
                continue  # an empty tensor has no address
            start, buffer = self._bound[e.layer]
            grad = slot.param.grad
            local = grad.to_local() if isinstance(grad, DTensor) else grad
            if local is None or local.data_ptr() != buffer.data_ptr() + 4 * (e.start - start):
                raise TaskError(
                    f"the gradient of {e.name} was replaced during the forward or backward pass; "
                    "a task must not call zero_grad, backward(create_graph=True) or assign .grad"
                )

    # -------------------------------------------------------------------------------------------------------- buffers

    @property
    def has_buffers(self) -> bool:
        """Whether any buffer is part of the state."""
        return bool(self._working)

    @property
    def counters(self) -> dict[str, Tensor]:
        """Initial value (integer, one element) of every counter, by name."""
        return {w.shape.name: w.initial for w in self._working if w.initial is not None}

    def restore_buffers(self, layer: int, values: Tensor) -> None:
        """Gives the layer's modules the step's starting values out of `values`, the layer's part of the vector.

        Not between a forward and its backward.
        """
        base = self.bounds(layer).start
        entries = {e.name: e for e in self.of_layer(layer)}
        with torch.no_grad():
            for work in self._working:
                if work.shape.layer != layer:
                    continue
                e = entries[work.shape.name]
                value = values[e.start - base : e.stop - base].view(e.shape)
                # A tensor of its own each time: autograd may have saved the one before.
                fresh = value.clone() if work.initial is None else work.initial + value.round().to(work.initial.dtype)
                work.owner._buffers[work.key] = fresh.to(work.tensor.dtype)

    def restore_all_buffers(self, layers: Iterable[int]) -> None:
        """The same for layers that are whole in the extents."""
        if self._working:
            for layer in layers:
                bounds = self.bounds(layer)
                self.restore_buffers(layer, self.params.view(bounds.start, bounds.stop))

    def buffer_changes(self, layer: int, values: Tensor) -> Changes:
        """(value now - the step's starting value, in `values`) of every buffer of the layer.

        The change travels, not the value, so that a constant stays itself to the bit through any mean. Raises TaskError if the
        forward pass changed an integer buffer that is no scalar, or a buffer's shape.
        """
        for constant in self._constants:
            now = constant.owner._buffers[constant.key]
            if now is not constant.tensor or now._version != constant.version:
                raise TaskError(
                    f"the forward pass changed the integer buffer {constant.name}; only float buffers "
                    "and integer scalars are averaged over micro-batches: make it float32, or persistent=False"
                )
        base = self.bounds(layer).start
        entries = {e.name: e for e in self.of_layer(layer)}
        out: Changes = []
        with torch.no_grad():
            for work in self._working:
                if work.shape.layer != layer:
                    continue
                e = entries[work.shape.name]
                buffer = work.owner._buffers[work.key]
                if buffer is None or buffer.shape != e.shape:
                    raise TaskError(f"the forward pass changed the shape of buffer {e.name}; shapes must stay")
                old = values[e.start - base : e.stop - base].view(e.shape)
                new = (buffer if work.initial is None else buffer - work.initial).detach().to(torch.float32)
                out.append((e, torch.where(new == old, 0.0, new - old)))  # inf - inf would be nan
        return out

    def apply_buffers(self, pieces: Iterable[tuple[int, Tensor]]) -> None:
        """Adds the mean changes to the buffers' values: (start, fp32 [n]) pieces of the vector that lie in `params`.

        Counters are rounded to whole numbers (the mean of M equal ones need not be exactly one). Modules see the new values
        after `restore_buffers`.
        """
        if not self.buffers_only:
            return
        counters = merge(Interval(e.start, e.stop) for e in self.entries if e.kind is Kind.COUNTER)
        with torch.no_grad():
            for start, change in pieces:
                here: Intervals = (Interval(start, start + change.numel()),)
                for i in intersect(here, self.buffers_only):
                    for lo, hi, view in self.params.pieces(i.start, i.stop):
                        view.add_(change[lo - start : hi - start])
                for i in intersect(here, counters):
                    for _, _, view in self.params.pieces(i.start, i.stop):
                        view.round_()
