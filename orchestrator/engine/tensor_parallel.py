"""Tensor parallelism with torch's own DTensor, over groups that are replaced under the living model.

A task declares which linear layers are cut (ColwiseParallel, RowwiseParallel), `parallelize_module` does the rest. Two things
make it fit here. DTensor wants a default group to draw its mesh on: the `fake` backend will do, nothing is ever sent over it. And
its collectives look their group up by name at every call: each epoch registers the group of its tensor axis under the mesh's
name, so that survivors leave a broken group and go on with the same module. The wait for such a collective is ours, because an
abort must end it. Parameters are DTensors over views of the flat vector, so that an optimizer may update the vector in place and
backward adds into views of a gradient vector.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.distributed_c10d as c10d
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from orchestrator.engine.groups.base import EpochGroup
from orchestrator.engine.groups.closing import destroy_later
from orchestrator.engine.groups.library import LibraryGroup
from orchestrator.engine.task import Task, TaskError

_CUTS: dict[type[ParallelStyle], dict[str, int]] = {
    ColwiseParallel: {"weight": 0, "bias": 0},  # outputs are cut; weight is [out, in]
    RowwiseParallel: {"weight": 1, "bias": -1},  # inputs are cut and the outputs summed; the bias is added once
}


def cut_dim(task: Task, layer: str, name: str) -> int:
    """The dimension that tensor parallelism cuts a parameter of the layer along; -1: every tensor rank has all of it.

    `name` is the parameter's, inside the layer or inside the model: what counts is its end. Raises TaskError.
    """
    plan = _checked_plan(task, layer)
    key, _, leaf = name.rpartition(".")
    found = [k for k in plan if f".{key}".endswith(f".{k}")]
    return _CUTS[type(plan[max(found, key=len)])].get(leaf, -1) if found else -1


def _checked_plan(task: Task, layer: str) -> Mapping[str, ParallelStyle]:
    plan = task.tensor_plan(layer)
    for key, style in plan.items():
        if type(style) not in _CUTS:
            known = ", ".join(kind.__name__ for kind in _CUTS)
            raise TaskError(f"tensor_plan of layer {layer}: {key!r} has style {type(style).__name__}; known: {known}")
    return plan


def cut_styles(task: Task, layer: str, module: nn.Module, degree: int) -> Mapping[str, ParallelStyle]:
    """A layer's tensor_plan, with all checked that needs the modules."""
    styles = _checked_plan(task, layer)
    inside = dict(module.named_modules())
    for key, style in styles.items():
        part = inside.get(key)
        if not key or part is None:
            raise TaskError(f"tensor_plan of layer {layer}: there is no submodule {key!r}")
        if not isinstance(part, nn.Linear):
            raise TaskError(f"tensor_plan of layer {layer}: {key} is a {type(part).__name__}; only nn.Linear can be cut")
        size = part.out_features if isinstance(style, ColwiseParallel) else part.in_features
        if size % degree:  # torch takes a local activation for one of equal parts
            raise TaskError(f"tensor_plan of layer {layer}: {key} has {size} features, not a multiple of {degree} tensor ranks")
    for name, _ in module.named_parameters(remove_duplicate=False):
        key, _, leaf = name.rpartition(".")
        exact = _CUTS[type(styles[key])].get(leaf, -1) if key in styles else -1
        if cut_dim(task, layer, name) != exact:
            raise TaskError(f"tensor_plan of layer {layer}: one of its keys is also the end of {name}; rename one of them")
    return styles


class TensorParallel:
    """The model's layers as one tensor coordinate computes them. One at a time in a process: a new one replaces the last.

    Making one puts torch's hooks on the modules that the task's tensor_plan names; their parameters are placeholders (on `meta`)
    until `param` has made them. The input and output of a layer are whole, and equal to the bit, on every coordinate, and so
    are the gradients of parameters that are not cut. Dropout between a column-wise and a row-wise module draws the same mask for
    every coordinate's part. Raises TaskError for a model that cannot be cut so.

    `module` is the whole model and `layers` are the task's; `degree` and `coordinate` are of the tensor axis.
    """

    def __init__(
        self, task: Task, module: nn.Module, layers: Sequence[tuple[str, nn.Module]], *, degree: int, coordinate: int
    ) -> None:
        self.degree, self.coordinate = degree, coordinate
        if not layers:
            raise TaskError(f"{type(task).__name__} does not name its layers: tensor parallelism needs stack() and tensor_plan()")
        task.check_tensor(degree)
        cut = [(name, layer, cut_styles(task, name, layer, degree)) for name, layer in layers]
        if not any(styles for _, _, styles in cut):
            raise TaskError(f"{type(task).__name__}.tensor_plan() cuts nothing: {degree} tensor ranks would do the same work")
        device = next(p.device.type for p in module.parameters())
        self._mesh = _new_mesh(device, degree=degree, coordinate=coordinate)
        self._group_name: str = self._mesh.get_group().group_name  # while the fake group still has it
        self._prefix = {id(m): f"{p}." if p else "" for p, m in module.named_modules()}
        self._specs: dict[str, tuple[Placement, torch.Size]] = {}  # by full name: how it is cut, and the whole shape
        self._params: dict[str, nn.Parameter] = {}
        for _, layer, styles in cut:
            for key, style in styles.items():
                self._parallelize(layer.get_submodule(key), style)

    def _parallelize(self, part: nn.Module, style: ParallelStyle) -> None:
        for leaf, param in list(part._parameters.items()):
            if param is not None:
                dim = _CUTS[type(style)][leaf]
                placement = Shard(dim) if dim >= 0 else Replicate()
                self._specs[self._prefix[id(part)] + leaf] = (placement, param.shape)
                placeholder = torch.empty(param.shape, dtype=param.dtype, device="meta")
                part._parameters[leaf] = nn.Parameter(placeholder, requires_grad=param.requires_grad)
        parallelize_module(part, self._mesh, style, src_data_rank=None)

    # ---------------------------------------------------------------------------------------------------- its tensors

    def param(self, name: str, local: Tensor) -> nn.Parameter:
        """The model's parameter of this (full) name, with its values in `local`: this coordinate's part of it, or all of it.

        Always the same object, so that a forward pass and its backward may see it at different addresses.
        """
        known = self._params.get(name)
        if known is None:
            known = self._params[name] = nn.Parameter(self.grad(name, local))
        elif isinstance(known, DTensor):
            known._local_tensor = local
        else:
            known.data = local
        return known

    def grad(self, name: str, local: Tensor) -> Tensor:
        """What `.grad` of that parameter must be so that backward adds into `local`."""
        if name not in self._specs:
            return local
        placement, whole = self._specs[name]
        stride = torch.empty(whole, device="meta").stride()
        made: Tensor = DTensor.from_local(local, self._mesh, [placement], run_check=False, shape=whole, stride=stride)
        return made

    # --------------------------------------------------------------------------------------------------- its group

    def install(self, group: EpochGroup) -> None:
        """Compute with this group, of the epoch's tensor axis, from now on.

        Raises ValueError where it is not that of this coordinate, GroupBroken when it is broken already.
        """
        if (group.size, group.rank) != (self.degree, self.coordinate) or not isinstance(group, LibraryGroup):
            raise ValueError(f"rank {group.rank} of {group.size} is not tensor coordinate {self.coordinate} of {self.degree}")
        _registered.put(group, self._group_name, self._mesh.device_type)

    def uninstall(self) -> None:
        """Forget the group; call it before closing the group, whose library object is else kept until the next one."""
        _registered.drop()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Inside: what the library raises because the group is broken becomes GroupBroken."""
        try:
            yield
        except RuntimeError as error:
            group = _registered.group
            if group is not None and (group.broken is not None or _is_fault(error)):
                raise group._failed(error) from error
            raise


class _Registered:
    """The group that torch's functional collectives find under the mesh's name. torch keeps only a weak reference to it."""

    def __init__(self) -> None:
        self.group: LibraryGroup | None = None
        self._name: Any = ""
        self._wrapped: Any = None

    def put(self, group: LibraryGroup, name: str, device_type: str) -> None:
        """Register the group's library object in the place of what is there under the mesh's name."""
        inner: Any = group._require()
        self.drop()
        kind = c10d.ProcessGroup.BackendType.GLOO if device_type == "cpu" else c10d.ProcessGroup.BackendType.NCCL
        wrapped: Any = c10d.ProcessGroup(HashStore(), group.rank, group.size)
        wrapped._set_default_backend(kind)
        wrapped._register_backend(torch.device(device_type), kind, inner)
        self._name = name
        wrapped._set_group_name(self._name)
        with contextlib.suppress(RuntimeError):  # nothing is there
            c10d._unregister_process_group(self._name)  # type: ignore[attr-defined]
        c10d._register_process_group(self._name, wrapped)  # type: ignore[attr-defined]
        self._wrapped, self.group = wrapped, group

    def drop(self) -> None:
        """Forget it; the library object may be destroyed, off this thread."""
        if self._wrapped is None:
            return
        with contextlib.suppress(RuntimeError):
            c10d._unregister_process_group(self._name)  # type: ignore[attr-defined]
        last_reference, self._wrapped, self.group = [self._wrapped], None, None
        destroy_later(last_reference)


_registered = _Registered()
_wait_in_the_library: Any = functional.wait_tensor


def _wait_tensor(tensor: Tensor) -> Tensor:
    """In the place of the functional collectives' own wait, which an abort could not end."""
    group = _registered.group
    if group is not None:
        group.wait_in(functools.partial(_wait_without_grad, tensor))
    out: Tensor = _wait_in_the_library(tensor)  # no wait any more
    return out


def _wait_without_grad(tensor: Tensor) -> None:
    with torch.no_grad():
        _wait_in_the_library(tensor)


functional.wait_tensor = _wait_tensor
atexit.register(_registered.drop)  # before the wait for destructors at exit, which was registered earlier


def _new_mesh(device: str, *, degree: int, coordinate: int) -> DeviceMesh:
    """A mesh of the tensor axis alone, over a default group that cannot send."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend; nobody else needs it

    _registered.drop()
    if dist.is_initialized():
        if dist.get_backend() != "fake":
            raise RuntimeError("torch.distributed has a real default group; tensor parallelism keeps its own")
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=coordinate, world_size=degree)
    return init_device_mesh(device, (degree,), mesh_dim_names=("tensor",))


def _is_fault(error: RuntimeError) -> bool:
    """Whether an error of a functional collective tells of a broken world; gloo names its source file, NCCL has a type."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)
