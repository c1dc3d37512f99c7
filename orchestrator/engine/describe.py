"""What a job's model consists of, as the planner sees it: names, shapes and places in the flat vector.

Workers report it when they are warm, so that the supervisor can refuse one that runs other code than the rest; the
command line asks for it without training anything.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from orchestrator.core.graph.space import graph_view
from orchestrator.core.graph.view import GraphView, TensorView
from orchestrator.core.job import Job
from orchestrator.engine.model_state import FlatState
from orchestrator.engine.task import Task, TaskError, seed_everything
from orchestrator.engine.tasks.loading import load_task
from orchestrator.engine.tensor_parallel import cut_dim


def build_seeded(task: Task, *, seed: int) -> nn.Module:
    """A new model on the CPU, initialised from the job's seed: equal bits on every rank."""
    torch.set_num_threads(1)
    seed_everything(seed=seed, step=-1, micro_batch=0)
    return task.build_model()


def named_layers(task: Task, module: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    """The task's layers, checked; empty when it does not name them. Raises TaskError."""
    layers = tuple(task.stack(module))
    names = [name for name, _ in layers]
    if len(set(names)) != len(names):
        raise TaskError(f"stack() gives two layers one name: {', '.join(names)}")
    return layers


def lay_out_task(task: Task, module: nn.Module) -> FlatState:
    """The state of a built model, layer by layer as its task names them. Raises TaskError."""
    return FlatState(module, named_layers(task, module), cut_dim=partial(cut_dim, task))


def graph_of(job: Job, task: Task, state: FlatState) -> GraphView:
    """The view of a model that is laid out already."""
    view = graph_view(state.shapes, layer_names=state.layer_names, fingerprint="")
    return replace(view, fingerprint=_fingerprint(job, task, view.tensors))


def describe(job: Job) -> GraphView:
    """Build the model once and look at it; nothing is trained. Raises TaskError for what the user can fix."""
    task = load_task(job.task)
    module = build_seeded(task, seed=job.train.seed)
    return graph_of(job, task, lay_out_task(task, module))


def _fingerprint(job: Job, task: Task, tensors: tuple[TensorView, ...]) -> str:
    """Of names, shapes, options and the source of the task's class: what must agree between workers."""
    digest = hashlib.sha256()
    for part in (torch.__version__, job.task.target, job.task.options_json, repr(job.train.seed)):
        digest.update(part.encode() + b"\x00")
    for t in tensors:
        digest.update(f"{t.name}:{t.shape}:{t.start}:{t.stop}:{t.trainable}:{t.layer}:{t.cut_dim}:{t.twin}\n".encode())
    module = sys.modules.get(type(task).__module__)
    source = inspect.getsourcefile(module) if module is not None else None
    if source is not None and Path(source).is_file():
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()
