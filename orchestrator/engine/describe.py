"""What a job's model consists of, as the planner sees it: names, shapes and places in the flat vector.

Workers report it when they are warm, so that the supervisor can refuse one that runs other code than the rest; the
command line asks for it without training anything.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from pathlib import Path

import torch
from torch import nn

from orchestrator.core.graph.view import GraphView, TensorView
from orchestrator.core.job import Job
from orchestrator.engine.model_state import FlatState, Kind
from orchestrator.engine.task import Task, seed_everything
from orchestrator.engine.tasks.loading import load_task


def build_seeded(task: Task, *, seed: int) -> nn.Module:
    """A new model on the CPU, initialised from the job's seed: equal bits on every rank."""
    torch.set_num_threads(1)
    seed_everything(seed=seed, step=-1, micro_batch=0)
    return task.build_model()


def graph_of(job: Job, task: Task, state: FlatState) -> GraphView:
    """The view of a model that is laid out already."""
    tensors = tuple(TensorView(e.name, tuple(e.shape), e.start, e.stop, trainable=e.kind is Kind.PARAM) for e in state.entries)
    return GraphView(
        tensors=tensors,
        numel=state.numel,
        padded_numel=state.padded_numel,
        block=state.block,
        fingerprint=_fingerprint(job, task, tensors),
    )


def describe(job: Job) -> GraphView:
    """Build the model once and look at it; nothing is trained. Raises TaskError for what the user can fix."""
    task = load_task(job.task)
    return graph_of(job, task, FlatState(build_seeded(task, seed=job.train.seed)))


def _fingerprint(job: Job, task: Task, tensors: tuple[TensorView, ...]) -> str:
    """Of names, shapes, options and the source of the task's class: what must agree between workers."""
    digest = hashlib.sha256()
    for part in (torch.__version__, job.task.target, job.task.options_json, repr(job.train.seed)):
        digest.update(part.encode() + b"\x00")
    for t in tensors:
        digest.update(f"{t.name}:{t.shape}:{t.start}:{t.stop}:{t.trainable}\n".encode())
    module = sys.modules.get(type(task).__module__)
    source = inspect.getsourcefile(module) if module is not None else None
    if source is not None and Path(source).is_file():
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()
