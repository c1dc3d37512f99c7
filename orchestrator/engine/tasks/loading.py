"""From the name of a task in job.yaml to the task itself, wherever its class lives.

Users' modules run here for the first time, so this is where their errors surface: each becomes a TaskError that says
what is wrong, how to fix it and, for an exception of their own code, carries its traceback.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType

from orchestrator.core.job import TaskRef
from orchestrator.engine.task import Task, TaskError

BUILT_IN = {"gpt": "orchestrator.engine.tasks.gpt:GPT"}


def load_task(ref: TaskRef) -> Task:
    """The task that job.yaml names, made with its options. Raises TaskError for everything that the user can fix."""
    options: dict[str, object] = json.loads(ref.options_json)
    target = BUILT_IN.get(ref.target, ref.target)
    if ":" not in target:
        close = difflib.get_close_matches(target, BUILT_IN, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise TaskError(
            f"unknown task {target!r}: {hint}use {', '.join(map(repr, BUILT_IN))}, 'package.module:Class' or "
            "'path/to/file.py:Class'"
        )
    cls = load_object(target, base_dir=ref.base_dir)
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise TaskError(f"{ref.target} is no subclass of orchestrator.Task; declare it as `class {target.split(':')[-1]}(Task)`")
    lacks = set(getattr(cls, "__abstractmethods__", ()))
    if cls.loss is Task.loss:  # then it must name its layers
        lacks |= (
            {"loss"} if cls.stack is Task.stack else {n for n in ("inputs", "criterion") if getattr(cls, n) is getattr(Task, n)}
        )
    if lacks:
        raise TaskError(f"{ref.target} lacks {', '.join(sorted(lacks))}; define them in the class")
    try:
        return cls(base_dir=ref.base_dir, **options)
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{ref.target} failed while it was set up:\n{user_traceback(error)}") from error


def load_object(target: str, *, base_dir: str | Path) -> object:
    """The object `package.module:name` or `path/to/file.py:name`; `base_dir` is where relative paths and local
    packages start.
    """
    where, _, name = target.rpartition(":")
    if not where or not name.isidentifier():
        raise TaskError(f"{target!r} names no object: use 'package.module:Name' or 'path/to/file.py:Name'")
    if where.endswith(".py") or "/" in where:
        module = _load_file((Path(base_dir) / where).resolve(), target=target)
    else:
        module = _load_module(where, base_dir=Path(base_dir).resolve(), target=target)
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise TaskError(f"{where} has no {name!r}{hint}")
    value: object = getattr(module, name)
    return value


def _load_file(path: Path, *, target: str) -> ModuleType:
    """Runs the file once per process under a name made of its path, with its folder on sys.path as for a script."""
    if not path.is_file():
        raise TaskError(f"{target}: there is no file {path}; relative paths start in the folder of job.yaml")
    name = f"orchestrator_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"{target}: {path} is no Python file; its name must end in .py")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TaskError(f"{target}: {path} failed while it was imported:\n{user_traceback(error)}") from error
    return module


def _load_module(name: str, *, base_dir: Path, target: str) -> ModuleType:
    if str(base_dir) not in sys.path:
        sys.path.append(str(base_dir))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise TaskError(
                f"{target}: there is no module {error.name!r}; install it, or put it beside job.yaml ({base_dir})"
            ) from error
        raise TaskError(f"{target}: {name} failed while it was imported:\n{user_traceback(error)}") from error
    except (Exception, SystemExit) as error:
        raise TaskError(f"{target}: {name} failed while it was imported:\n{user_traceback(error)}") from error


def user_traceback(error: BaseException) -> str:
    """The traceback without the frames of the import machinery and of this loader."""
    report = traceback.TracebackException.from_exception(error)
    kept = [f for f in report.stack if "importlib" not in f.filename and f.filename != __file__]
    report.stack = traceback.StackSummary.from_list(kept)
    return "".join(report.format()).rstrip()
