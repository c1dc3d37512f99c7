"""Keeps long PyTorch training jobs going: a lost worker or node is swapped for a spare and no step is lost.

The names here are the whole public API of someone who writes a model: `from orchestrator import Task`. They are
loaded on first use, because the command line and the supervisor import this package too and must not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.core.job import OptimizerSettings
    from orchestrator.engine.task import NamedShard, Task, TaskError
    from orchestrator.engine.tasks.gpt import GPT

__all__ = ["GPT", "NamedShard", "OptimizerSettings", "Task", "TaskError"]

_HOMES = {
    "GPT": "orchestrator.engine.tasks.gpt",
    "NamedShard": "orchestrator.engine.task",
    "OptimizerSettings": "orchestrator.core.job",
    "Task": "orchestrator.engine.task",
    "TaskError": "orchestrator.engine.task",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
