"""What every command shares: exit codes, talk on stderr, data on stdout, and errors that say what to do.

Only light modules are imported here and in the command modules (no torch, no Ray, no gRPC): a command imports what it needs
when it runs, so that `--help` and `validate` answer at once. Errors that are expected leave as a CliError and one message; a
traceback on the screen always means a bug of ours.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
import traceback
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from orchestrator.core.supervisor.state import Outcome
from orchestrator.runtime.control import BadRequestError, ControlError, NotFoundError, NotPossibleError

if TYPE_CHECKING:
    from orchestrator.apps.wiring import Session
    from orchestrator.core.job import Job

NOT_IN_CLUSTERS = (
    "this command asks a supervisor and reaches none in a Kubernetes cluster ($ORCHESTRATOR_ON):"
    " `kubectl drain` empties a node there, `orchestrator suspend` saves, `orchestrator events` tells the decisions"
)


class Code(IntEnum):
    """Exit codes of the program."""

    OK = 0
    USER = 1  # the job failed by the user's code
    INPUT = 2  # bad input: a file, an option, a name that does not exist
    INFRA = 3  # infrastructure, or the failure budget is spent
    INTERRUPTED = 130  # interrupted or cancelled


_CODES = {
    Outcome.COMPLETED: Code.OK,
    Outcome.USER_ERROR: Code.USER,
    Outcome.BUDGET_SPENT: Code.INFRA,
    Outcome.CORRUPT_STATE: Code.INFRA,
    Outcome.UNRECOVERABLE: Code.INFRA,
    Outcome.CANCELLED: Code.INTERRUPTED,
    Outcome.NONE: Code.INFRA,  # nobody can say how it ended
}


def code_of(outcome: Outcome) -> Code:
    """The exit code that an outcome means."""
    return _CODES[outcome]


class CliError(Exception):
    """An expected error: a message for people, complete, and the exit code."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


class Commands(TyperGroup):
    """The command group that turns every error into words and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; raises only what typer itself handles."""
        try:
            return super().invoke(ctx)
        except (typer.TyperException, typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:  # the reader of stdout (`| head`) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(Code.OK) from None
        except KeyboardInterrupt:
            complain("interrupted", word="")
            raise typer.Exit(Code.INTERRUPTED) from None
        except CliError as error:
            complain(str(error))
            raise typer.Exit(error.code) from None
        except (BadRequestError, NotFoundError, NotPossibleError) as error:
            complain(str(error))
            raise typer.Exit(Code.INPUT) from None
        except (ControlError, OSError) as error:
            complain(str(error))
            raise typer.Exit(Code.INFRA) from None
        except Exception:
            traceback.print_exc(file=sys.stderr)
            complain("this is a bug of the orchestrator, not of your job; please report it with the lines above")
            raise typer.Exit(Code.INFRA) from None


def talk() -> Console:
    """A console on stderr, where all talk goes."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of talk."""
    talk().print(text, markup=False)


def complain(text: str, *, word: str = "error") -> None:
    """An error message: the word in red where there is colour."""
    talk().print(Text.assemble((f"{word}: ", "bold red"), text) if word else Text(text))


def data(text: str) -> None:
    """Text on stdout, as it is, and a newline."""
    typer.echo(text)


def data_json(value: Any, *, indent: int | None = 2) -> None:
    """A JSON value on stdout; with indent None it takes one line."""
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False))


def who() -> str:
    """Who asks, for the journal: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def job_from(file: Path, *, name: str = "") -> tuple[Job, str]:
    """The job of a file (under another name when one is given) and the file's text. Raises CliError with every problem."""
    from dataclasses import replace

    from orchestrator.spec import SpecError, load

    try:
        job = load(file)
        text = file.read_text(encoding="utf-8")
    except SpecError as error:
        count = len(error.problems) + error.omitted
        raise CliError(f"{file} has {count} problem{'s' if count > 1 else ''}\n{error.render()}", Code.INPUT) from None
    return (replace(job, name=checked_name(name)) if name else job), text


def checked_name(name: str) -> str:
    """The name when it is good for a job; raises CliError."""
    from pydantic_core import PydanticCustomError

    from orchestrator.spec import values

    try:
        return values.checked_name(name)
    except PydanticCustomError as error:
        context = error.context or {}
        raise CliError(f"--name: {context['message']}; fix: {context['fix']}", Code.INPUT) from None


def milliseconds(text: str, *, option: str) -> int:
    """`300ms`, `1.5s`, `1m` -> whole milliseconds; raises CliError."""
    from orchestrator.spec.values import duration_ms

    try:
        return duration_ms(text)
    except ValueError as error:
        raise CliError(f"{option}: {error}; write a number and its unit, such as 300ms or 1.5s", Code.INPUT) from None


def running(*, home: Path, cluster: str | None) -> Session:
    """The supervisor that runs; raises CliError where there is none."""
    from orchestrator.apps.wiring import NotRunning, find

    try:
        return find(home=home, cluster=cluster)
    except NotRunning as error:
        if os.environ.get("ORCHESTRATOR_ON") == "kubernetes":
            raise CliError(f"{error}; {NOT_IN_CLUSTERS}", Code.INPUT) from None
        raise CliError(str(error), Code.INFRA) from None
    except ValueError as error:  # a cluster name that is no name, or a damaged file; both say so
        raise CliError(str(error), Code.INPUT) from None
