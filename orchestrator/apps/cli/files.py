"""Commands that only look at files: init and validate. They need no cluster and start nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.apps.cli.base import CliError, Code, checked_name, complain, data, data_json, job_from, say
from orchestrator.apps.cli.options import AsJson

FILE_NAME = "job.yaml"


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where it goes; made when absent.", show_default=".")] = Path(),
    name: Annotated[str, typer.Option("--name", help="Name of the job; absent: the folder's.", show_default=False)] = "",
) -> None:
    """Write a job.yaml that runs as it is and shows every key."""
    from orchestrator.spec.template import render as template

    path = directory / FILE_NAME
    folder = re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower())[:63].strip("-")
    text = template(checked_name(name) if name else folder or "job")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CliError(f"{path} exists already and is left as it is; remove it, or name another folder", Code.INPUT) from None
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}; name a folder that you may write to", Code.INPUT) from None
    data(str(path))
    say(f"next: orchestrator validate {path}, orchestrator run {path}")


def validate(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The job file.", show_default=False)] = None,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of job files instead.")] = False,
) -> None:
    """Check a job file and list everything that is wrong with it."""
    if schema:
        from orchestrator.spec.schema_export import render as schema_text

        data(schema_text().rstrip("\n"))
        return
    if file is None:
        raise CliError("name a job file, or ask for --schema", Code.INPUT)
    if as_json:
        _validate_json(file)
        return
    job, _ = job_from(file)
    ranks = "as many ranks as the planner chooses" if job.planner.auto else f"{job.parallel.ranks} ranks"
    data(f"{file}: ok, job {job.name}, {job.train.steps} steps on {ranks}")


def _validate_json(file: Path) -> None:
    from dataclasses import asdict

    from orchestrator.core.codec import to_json
    from orchestrator.spec import SpecError, load

    try:
        job = load(file)
    except SpecError as error:
        data_json({"ok": False, "problems": [asdict(p) for p in error.problems], "omitted": error.omitted})
        complain(f"{file} has {len(error.problems) + error.omitted} problem(s)")
        raise typer.Exit(Code.INPUT) from None
    data_json({"ok": True, "problems": [], "omitted": 0, "job": to_json(job)})
