"""The base class of tasks: options are checked, RNG seeding is a function of its arguments, loading says whose fault it is."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.core.job import TaskRef
from orchestrator.engine.task import Task, TaskError, seed_everything, stable_seed
from orchestrator.engine.tasks.gpt import GPT
from orchestrator.engine.tasks.loading import load_task

TASK_SOURCE = """
from orchestrator import Task
import torch
from sibling import SIZE

class Line(Task):
    slope: float = 2.0
    tokens_per_micro_batch = SIZE

    def build_model(self): return torch.nn.Linear(1, 1)
    def batch(self, *, seed, step, micro_batch): return torch.ones(SIZE, 1)
    def eval_batch(self, *, seed, index): return torch.ones(SIZE, 1)
    def loss(self, model, batch): return (model(batch) - self.slope * batch).square().mean()

class Half(Task):
    def build_model(self): return torch.nn.Linear(1, 1)

class Stacked(Line):
    loss = Task.loss
    def stack(self, model): return [("line", model)]
    def inputs(self, batch): return batch

class Broken(Line):
    def setup(self):
        raise ZeroDivisionError("the user's own mistake")

NOT_A_TASK = 3
"""


class Tiny(Task):
    size: int = 2
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    label: str | None = None
    must: int

    _cache: int = 0
    tokens_per_micro_batch = 1

    def setup(self) -> None:
        self.seen = (self.size, self.must)

    def build_model(self) -> nn.Module:
        return nn.Linear(self.size, 1)

    def batch(self, *, seed: int, step: int, micro_batch: int) -> Tensor:
        return torch.ones(1, self.size)

    def eval_batch(self, *, seed: int, index: int) -> Tensor:
        return torch.ones(1, self.size)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        out: Tensor = model(batch)
        return out.mean()


def ref(target: str, base_dir: Path | str = "/", **options: object) -> TaskRef:
    return TaskRef(target=target, options_json=json.dumps(options, sort_keys=True), base_dir=str(base_dir))


def test_options_are_set_before_setup_and_keep_their_defaults() -> None:
    task = Tiny(must=3, rate=1, label="x")
    assert task.seen == (2, 3)
    assert (task.rate, task.kind, task.label) == (1.0, "a", "x")
    assert isinstance(task.rate, float)
    assert task.metrics(2.5) == {"loss": 2.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"must": 1, "sise": 3}, "unknown option 'sise'; did you mean 'size'? known: kind, label, must, rate, size"),
        ({"must": 1, "_cache": 3}, "unknown option '_cache'; known: kind, label, must, rate, size"),
        ({"must": 1, "size": 2.5}, "option 'size' must be int, not 2.5"),
        ({"must": 1, "size": True}, "option 'size' must be int, not True"),
        ({"must": 1, "rate": "fast"}, "option 'rate' must be float, not 'fast'"),
        ({"must": 1, "kind": "c"}, "option 'kind' must be typing.Literal['a', 'b'], not 'c'"),
        ({"must": 1, "label": 3}, "option 'label' must be str | None, not 3"),
        ({}, "option 'must' is missing; it must be int"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        Tiny(**options)
    assert str(caught.value) == f"task Tiny: {message}"


def test_all_bad_options_are_named_at_once() -> None:
    with pytest.raises(TaskError, match=r"unknown option 'wdith'; did you mean 'width'\?.*'heads' must be int"):
        GPT(wdith=3, heads="four")


def test_seed_everything_is_a_function_of_its_arguments() -> None:
    def draw(**numbers: int) -> tuple[float, float, float]:
        seed_everything(**numbers)
        return torch.rand(1).item(), random.random(), float(np.random.rand())

    first = draw(seed=1, step=2, micro_batch=3)
    assert draw(seed=1, step=2, micro_batch=4) != first
    assert draw(seed=1, step=3, micro_batch=3) != first
    assert draw(seed=12, step=3, micro_batch=3) != draw(seed=1, step=23, micro_batch=3)
    assert draw(seed=1, step=2, micro_batch=3) == first


def test_stable_seed_does_not_change_between_versions() -> None:
    """A new value would silently give resumed jobs other batches."""
    assert stable_seed("train", 0, 1, 2) == 7397175196462346252
    assert stable_seed(1, "2") != stable_seed("1", 2)
    assert all(0 <= stable_seed(i) < 2**63 for i in range(100))


@pytest.mark.slow
def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, orchestrator; assert 'torch' not in sys.modules; assert 'Task' in dir(orchestrator);"
        "from orchestrator import GPT, Task, NamedShard, OptimizerSettings, TaskError; assert issubclass(GPT, Task);"
        "assert 'torch' in sys.modules; assert not hasattr(orchestrator, 'Tusk')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=200)


@pytest.fixture
def user_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("sibling", "pack", "pack.mod"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "sibling.py").write_text("SIZE = 3\n")
    (tmp_path / "mine.py").write_text(TASK_SOURCE)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mod.py").write_text(TASK_SOURCE)
    return tmp_path


def test_load_by_name_file_and_module(user_dir: Path) -> None:
    assert isinstance(load_task(ref("gpt", layers=1)), GPT)
    first = load_task(ref("mine.py:Line", user_dir, slope=3))
    assert first.tokens_per_micro_batch == 3
    assert first.base_dir == user_dir
    again = load_task(ref(f"{user_dir}/mine.py:Line"))
    assert type(again) is type(first)
    assert sys.modules[type(first).__module__].__file__ == str(user_dir / "mine.py")
    module_task = load_task(ref("pack.mod:Line", user_dir))
    assert type(module_task).__module__ == "pack.mod"


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("gtp", {}, r"unknown task 'gtp': did you mean 'gpt'\? use 'gpt', 'package.module:Class' or"),
        ("lost.py:Line", {}, r"there is no file .*/lost\.py; relative paths start in the folder of job.yaml"),
        ("mine.py:Lime", {}, r"mine.py has no 'Lime'; did you mean 'Line'\?"),
        ("mine.py:", {}, "names no object"),
        ("mine.py:NOT_A_TASK", {}, r"no subclass of orchestrator.Task; declare it as `class NOT_A_TASK\(Task\)`"),
        ("mine.py:Half", {}, "lacks batch, eval_batch, loss, tokens_per_micro_batch; define them"),
        ("mine.py:Stacked", {}, "Stacked lacks criterion; define them"),
        ("mine.py:Line", {"slop": 1}, r"did you mean 'slope'\?"),
        ("mine.py:Broken", {}, "(?s)failed while it was set up:\nTraceback.*mine.py.*in setup.*the user's own mistake"),
        ("no_such_module:Task", {}, "there is no module 'no_such_module'; install it, or put it beside job.yaml"),
        ("bad.py:Line", {}, "(?s)bad.py failed while it was imported:\nTraceback.*bad.py.*line 1.*NameError"),
        ("typo.py:Line", {}, "(?s)typo.py failed while it was imported:.*SyntaxError"),
        ("quits.py:Line", {}, "(?s)quits.py failed while it was imported:.*SystemExit"),
        ("needs:Line", {}, "(?s)needs failed while it was imported:.*No module named 'absent_dependency'"),
    ],
)
def test_what_the_user_can_fix_is_a_task_error(user_dir: Path, target: str, options: dict[str, object], message: str) -> None:
    (user_dir / "bad.py").write_text("x = nowhere\n")
    (user_dir / "typo.py").write_text("class :\n")
    (user_dir / "quits.py").write_text("raise SystemExit(3)\n")
    (user_dir / "needs.py").write_text("import absent_dependency\n")
    with pytest.raises(TaskError, match=message) as caught:
        load_task(ref(target, user_dir, **options))
    assert "importlib" not in str(caught.value)


def test_a_file_that_failed_is_read_again(user_dir: Path) -> None:
    (user_dir / "later.py").write_text("x = nowhere\n")
    with pytest.raises(TaskError):
        load_task(ref("later.py:Line", user_dir))
    (user_dir / "later.py").write_text(TASK_SOURCE + "\n# repaired\n")
    assert load_task(ref("later.py:Line", user_dir)).tokens_per_micro_batch == 3
