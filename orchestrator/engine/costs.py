"""What any task's model costs, layer by layer, found out without computing: one micro-batch of fake tensors through the engine's
own stage runner, forward and backward, under a FLOP counter and a meter of bytes.

A fake tensor (torch's FakeTensorMode, the `meta` device with the manners of the CPU) has a shape and no memory, so a model of any
size is traced in the memory of its skeleton. Code that looks at values cannot run so; then the model is built in earnest and runs
one micro-batch on the CPU under the same meters, and that is said aloud. What tensor parallelism cuts is found by tracing a layer
a second time, with its linear modules cut as one coordinate has them.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel
from torch.utils import _pytree as pytree

from orchestrator.core.graph.costs import LayerCost, ModelCosts
from orchestrator.core.job import Job
from orchestrator.engine.describe import named_layers
from orchestrator.engine.layered import LayeredStage
from orchestrator.engine.meter import Kept, Meter, flop_counter
from orchestrator.engine.rank_state import UserError, user_code
from orchestrator.engine.task import Task, TaskError, seed_drawing, seed_everything
from orchestrator.engine.tasks.loading import load_task, user_traceback
from orchestrator.engine.tensor_parallel import cut_styles

log = logging.getLogger(__name__)

_TENSOR_TRIED_MAX = 1024
_REAL_COPIES = 4  # parameters, gradients, activations and room, in a run in earnest


def trace(job: Job, *, task: Task | None = None, say: Callable[[str], None] = log.warning) -> ModelCosts:
    """The costs of one micro-batch of the job's task, without timings; `task` where it is loaded already.

    `say` hears, in a sentence, of everything that could not be found out the usual way. Raises TaskError.
    """
    task = task or load_task(job.task)
    with _as_task_error("batch() failed"), user_code():
        seed_drawing(seed=job.train.seed, step=1, micro_batch=0)
        batch = task.batch(seed=job.train.seed, step=1, micro_batch=0)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    module: nn.Module | None = None
    try:
        with mode:
            module = _build(task, job)
            fake = pytree.tree_map_only(Tensor, mode.from_tensor, batch)
            return _Tracer(job, task, module, fake, say).trace()
    except TaskError:
        raise
    except Exception as error:  # whatever a value that is not there leads to; in earnest it shows whether it is a mistake
        if isinstance(error.__cause__, TaskError):
            raise error.__cause__ from None
        reason = _last_line(error)
        _check_room(module, reason)
        say(f"the model could not be traced without computing ({reason}); one micro-batch was run on the CPU instead")
    with _as_task_error("the model failed on a micro-batch"):
        with user_code():
            module = _build(task, job)
        return _Tracer(job, task, module, batch, say).trace()


@contextmanager
def _as_task_error(what: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if isinstance(error.__cause__, TaskError):
            raise error.__cause__ from None
        raise TaskError(f"{what}:\n{error}") from error


def _last_line(error: Exception) -> str:
    """What happened, without where."""
    text = str(error) if isinstance(error, UserError) else user_traceback(error)
    return text.strip().splitlines()[-1]


def _build(task: Task, job: Job) -> nn.Module:
    seed_everything(seed=job.train.seed, step=-1, micro_batch=0)
    return task.build_model()


def _check_room(module: nn.Module | None, reason: str) -> None:
    """Raises TaskError where running in earnest would take more memory than there is."""
    if module is None:
        return
    need = _REAL_COPIES * sum(p.numel() * p.element_size() for p in module.parameters())
    room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > room:
        raise TaskError(
            f"the model's code looks at values ({reason}), so it cannot be traced without computing, and running it here would "
            f"take about {need / 2**30:.0f} GiB of {room / 2**30:.0f}; make its shapes and branches independent of values"
        )


class _Stage(LayeredStage):
    """The runner copies what is no plain tensor, as a collective's result is none; a fake tensor stands for a plain one."""

    def _call(self, k: int, x: Tensor) -> Tensor:
        y = super()._call(k, x)
        if isinstance(y, FakeTensor):

            def contiguous() -> Tensor:
                del y.clone
                return y.contiguous()

            setattr(y, "clone", contiguous)  # noqa: B010
        return y


@dataclass(frozen=True, slots=True)
class _Measured:
    """One layer on one micro-batch."""

    forward_flops: int
    backward_flops: int
    moved: int
    kept: int
    work: int
    boundary: int
    y: Tensor  # with requires_grad where a gradient is wanted for it


class _Tracer:
    """Takes a built model through one micro-batch; all of it inside the fake mode, or all of it in earnest."""

    def __init__(self, job: Job, task: Task, module: nn.Module, batch: Any, say: Callable[[str], None]) -> None:
        self._job, self._module, self._batch, self._say = job, module, batch, say
        self._task = copy.copy(task)
        setattr(self._task, "batch", lambda **_: batch)  # noqa: B010  (drawn already, and in the fake mode it could not be)
        self._named = named_layers(task, module)

    def trace(self) -> ModelCosts:
        """All layers, folded."""
        job, task = self._job, self._task
        degrees = self._degrees()
        degree = degrees[0] if degrees else 1
        costs: list[LayerCost] = []
        seen: dict[object, tuple[LayerCost, Tensor]] = {}
        x: Tensor | None = None
        layers = self._named or (("model", self._module),)
        for k, (name, layer) in enumerate(layers):
            styles = cut_styles(task, name, layer, degree) if degrees else {}
            same = (_structure(layer), _outline(x), k + 1 == len(layers), sorted((key, type(s)) for key, s in styles.items()))
            known = seen.get(repr(same))
            if known is None:
                known = seen[repr(same)] = self._cost(k, name, layer, x, styles, degree)
            costs.append(replace(known[0], name=name))
            x = known[1]
        kinds, order = _fold(costs, [layer for _, layer in self._named] or [self._module])
        return ModelCosts(
            name=job.task.target,
            kinds=kinds,
            order=order,
            samples_per_unit=float(task.tokens_per_micro_batch),
            tensor_max=degrees[-1] if degrees else 1,
            splits=bool(self._named),
        )

    # --------------------------------------------------------------------------------------------------------- one layer

    def _cost(
        self, k: int, name: str, layer: nn.Module, x: Tensor | None, styles: Mapping[str, ParallelStyle], degree: int
    ) -> tuple[LayerCost, Tensor]:
        with _RowWise(layer, styles) as reduced:
            whole = self._measure(k, layer, x)
        cut = _cut_part(whole, self._measure_cut(k, layer, x, styles, degree), degree) if styles else (0.0, 0.0, 0.0)
        cost = LayerCost(
            name=name,
            params=_elements(layer),
            cut_params=_cut_elements(layer, styles),
            buffers=_buffer_elements(layer),
            forward_flops=float(whole.forward_flops),
            cut_forward_flops=cut[0],
            backward_flops=float(whole.backward_flops),
            cut_backward_flops=cut[1],
            moved_bytes=float(whole.moved),
            kept_bytes=float(whole.kept),
            cut_kept_bytes=cut[2],
            work_bytes=float(whole.work),
            boundary_bytes=float(whole.boundary),
            reduced_bytes=float(reduced.bytes),
        )
        return cost, whole.y

    def _measure(self, k: int, layer: nn.Module, x: Tensor | None) -> _Measured:
        stage = _Stage(
            self._task,
            self._module,
            first=k,
            last=k + 1,
            seed=self._job.train.seed,
            scale=1.0,
            precision=self._job.train.precision,
        )
        params = [p for p in layer.parameters() if p.requires_grad]
        for p in params:
            p.grad = torch.zeros_like(p)  # the engine's buffers: autograd adds into them
        try:
            return self._run(stage, layer, x)
        finally:
            for p in params:
                p.grad = None

    def _run(self, stage: LayeredStage, layer: nn.Module, x: Tensor | None) -> _Measured:
        meter, flops = Meter(), flop_counter()
        kept = Kept([*layer.parameters(), *layer.buffers()])
        with meter, flops, kept.watching():
            y = stage.forward(0, x, step=1, number=0)
        made = kept.bytes(without=x if x is not None else y)  # before what was there already is added
        inputs = [x] if x is not None else self._inputs()
        kept.add(*inputs)
        if stage.is_last:
            kept.add(*(t for t in pytree.tree_leaves(self._batch) if isinstance(t, Tensor)))
            kept_bytes = kept.bytes()
        else:
            kept_bytes = kept.bytes(without=y)
        forward, moved, highest = flops.get_total_flops(), meter.moved, meter.peak
        dy = None if stage.is_last or not y.requires_grad else torch.empty_like(y, requires_grad=False)
        out = y.detach().requires_grad_(y.requires_grad)
        boundary = y.numel() * y.element_size()
        meter.mark()
        if dy is not None:
            meter.made(dy)
        with meter, flop_counter() as backward:
            stage.backward(0, dy)
        work = max(highest, meter.peak) - made
        return _Measured(forward, backward.get_total_flops(), moved, kept_bytes, max(0, work), boundary, out)

    def _inputs(self) -> list[Tensor]:
        """What the first layer is called with; of a task in one piece the batch is."""
        return [self._task.inputs(self._batch)] if self._named else []

    # -------------------------------------------------------------------------------------------------- tensor parallelism

    def _degrees(self) -> list[int]:
        """Tensor degrees from 2 up that divide the model, ascending; empty when its plan cuts nothing."""
        sizes: list[int] = []
        for name, layer in self._named:
            for key, style in cut_styles(self._task, name, layer, 1).items():
                linear = layer.get_submodule(key)
                assert isinstance(linear, nn.Linear)
                sizes.append(linear.out_features if isinstance(style, ColwiseParallel) else linear.in_features)
        common = math.gcd(*sizes)
        return [d for d in range(2, min(common, _TENSOR_TRIED_MAX) + 1) if common % d == 0 and self._cuts(d)]

    def _cuts(self, degree: int) -> bool:
        try:
            self._task.check_tensor(degree)
        except TaskError:
            return False
        return True

    def _measure_cut(
        self, k: int, layer: nn.Module, x: Tensor | None, styles: Mapping[str, ParallelStyle], degree: int
    ) -> _Measured | None:
        try:
            with _coordinate(layer, styles, degree):
                return self._measure(k, layer, x)
        except UserError as error:
            reason = _last_line(error)
            self._say(
                f"layer {self._named[k][0]} could not be traced as one of {degree} tensor ranks ({reason}); "
                "only its parameters are taken for cut"
            )
            return None


class _RowWise:
    """Counts the outputs of a layer's row-wise modules, which are all-reduced: Shoeybi et al., arXiv 1909.08053 section 3."""

    def __init__(self, layer: nn.Module, styles: Mapping[str, ParallelStyle]) -> None:
        self.bytes = 0
        self._modules = [layer.get_submodule(key) for key, style in styles.items() if isinstance(style, RowwiseParallel)]

    def __enter__(self) -> _RowWise:
        self._hooks = [m.register_forward_hook(self._count) for m in self._modules]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.bytes += output.numel() * output.element_size()


def _cut_part(whole: _Measured, local: _Measured | None, degree: int) -> tuple[float, float, float]:
    """FLOPs forward and backward and kept bytes that are divided by the degree, from what one coordinate is left with."""
    if local is None:
        return 0.0, 0.0, 0.0
    scale = degree / (degree - 1)
    pairs = (
        (whole.forward_flops, local.forward_flops),
        (whole.backward_flops, local.backward_flops),
        (whole.kept, local.kept),
    )
    forward, backward, kept = (float(min(w, max(0.0, (w - part) * scale))) for w, part in pairs)
    return forward, backward, kept


@contextmanager
def _coordinate(layer: nn.Module, styles: Mapping[str, ParallelStyle], degree: int) -> Iterator[None]:
    """Inside, the layer's linear modules are cut as the first of `degree` tensor ranks has them."""
    before: list[tuple[nn.Linear, dict[str, Any]]] = []
    try:
        for key, style in styles.items():
            linear = layer.get_submodule(key)
            assert isinstance(linear, nn.Linear)
            before.append((linear, dict(linear._parameters)))
            column = isinstance(style, ColwiseParallel)
            _replace(linear, "weight", 0 if column else 1, degree)
            if column:
                _replace(linear, "bias", 0, degree)
        yield
    finally:
        for linear, params in before:
            linear._parameters.update(params)


def _replace(linear: nn.Linear, leaf: str, dim: int, degree: int) -> None:
    param = linear._parameters[leaf]
    if param is not None:
        part = param.detach().chunk(degree, dim=dim)[0].clone()
        linear._parameters[leaf] = nn.Parameter(part, requires_grad=param.requires_grad)


# ------------------------------------------------------------------------------------------------------------------ elements


def _elements(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters() if p.requires_grad)


def _cut_elements(layer: nn.Module, styles: Mapping[str, ParallelStyle]) -> int:
    out = 0
    for key, style in styles.items():
        for leaf, param in layer.get_submodule(key).named_parameters(recurse=False):
            if param.requires_grad and (leaf == "weight" or isinstance(style, ColwiseParallel)):
                out += param.numel()
    return out


def _buffer_elements(layer: nn.Module) -> int:
    """Buffers, and parameters that are not trained: what a rank has beside what it updates."""
    return sum(b.numel() for b in layer.buffers()) + sum(p.numel() for p in layer.parameters() if not p.requires_grad)


def _structure(layer: nn.Module) -> list[object]:
    """What decides a layer's costs, as far as can be seen: classes, plain attributes, shapes."""
    out: list[object] = []
    for prefix, m in layer.named_modules():
        plain = {k: v for k, v in sorted(vars(m).items()) if not k.startswith("_")}
        params = [(k, tuple(p.shape), p.requires_grad) for k, p in m.named_parameters(recurse=False)]
        buffers = [(k, tuple(b.shape)) for k, b in m.named_buffers(recurse=False)]
        out.append((prefix, type(m), plain, m.extra_repr(), params, buffers))
    return out


def _outline(x: Tensor | None) -> object:
    return None if x is None else (tuple(x.shape), x.dtype, x.requires_grad)


def _fold(costs: Sequence[LayerCost], layers: Sequence[nn.Module]) -> tuple[tuple[LayerCost, ...], tuple[int, ...]]:
    """Kinds and the kind of each layer: equal costs and equal structure are one."""
    keys = [(replace(c, name=""), type(m).__qualname__, repr(m)) for c, m in zip(costs, layers, strict=True)]
    distinct = list(dict.fromkeys(keys))
    order = tuple(distinct.index(k) for k in keys)
    kinds: list[LayerCost] = []
    for n in range(len(distinct)):
        members = [c for c, kind in zip(costs, order, strict=True) if kind == n]
        stem = re.sub(r"[\W_]*\d+$", "", members[0].name) if len(members) > 1 else ""
        name = stem if stem and all(k.name != stem for k in kinds) else members[0].name
        kinds.append(replace(members[0], name=name))
    return tuple(kinds), order
